"""One error is one error: a group of a single exception is raised as that exception.

Nurseries wrap whatever ends them, also an exception of the block itself that happens to run inside
one. Who writes `except NotFound:` around `async with Peer.open()` must not need to know of that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def single_error() -> Iterator[None]:
    """Unwrap groups of one exception, however deep, that leave the block."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if error is group:
            raise
        raise error from error.__cause__
