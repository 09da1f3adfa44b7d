"""The time that a caller allows, as a bound on a block and as a typed error when it is over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from modelnet_p2p.errors import Code, LocalError, RemoteError


def check_timeout(timeout: float) -> None:
    """Raises LocalError (bad-input) for what is no time to wait."""
    if not timeout >= 0:  # not a number, too
        raise LocalError(Code.BAD_INPUT, f"a timeout of {timeout:g} s", hint="at least 0 seconds")


@contextmanager
def within(timeout: float, what: str, grace: float = 0.0) -> Iterator[None]:
    """The block ends in `timeout` seconds, by RemoteError (deadline) if not by itself within `grace` more."""
    check_timeout(timeout)
    with trio.move_on_after(timeout + grace) as scope:
        yield
    if scope.cancelled_caught:
        hint = f"give it longer: --timeout {2 * timeout:g}"
        raise RemoteError(Code.DEADLINE, f"{what} took longer than {timeout:g} s", hint=hint)
