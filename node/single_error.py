"""One error is one error: what a group of exceptions stands for is raised in its place.

Nurseries wrap whatever ends them, also an exception of the block itself that happens to run inside
one. Who writes `except NotFound:` around `async with Peer.open()` must not need to know of that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from modelnet_p2p.errors import ModelnetError


@contextmanager
def single_error() -> Iterator[None]:
    """Unwrap the groups that leave the block, however deep they are.

    One exception is raised itself; of several errors of this library's own the first; a Ctrl-C among
    others is a Ctrl-C. Any other group stays one, for it holds a bug that must not be hidden.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if not isinstance(error, BaseExceptionGroup):
            raise error from error.__cause__
        if error.subgroup(KeyboardInterrupt) is not None:
            raise KeyboardInterrupt from None
        if (own := own_error(error)) is not None:
            raise own from group
        raise


def own_error(error: BaseException) -> ModelnetError | None:
    """The first of this library's own errors in `error`, which may be a group of them; None for a bug."""
    if isinstance(error, ModelnetError):
        return error
    if isinstance(error, BaseExceptionGroup):
        found = [own_error(one) for one in error.exceptions]
        return None if None in found else found[0]
    return None
