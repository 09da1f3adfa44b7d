"""The time that a caller allows, as a bound on a block and as a typed error when it is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from modelnet_p2p.errors import Code, LocalError, RemoteError


def check_timeout(timeout: float) -> None:
    """Raises LocalError (bad-input) for what is no time to wait."""
    if not timeout >= 0:  # not a number, too
        raise LocalError(Code.BAD_INPUT, f"a timeout of {timeout:g} s", hint="at least 0 seconds")


@contextmanager
def within(
    timeout: float, what: str, grace: float = 0.0, asked_too_much: Callable[[float], str] = lambda since: ""
) -> Iterator[None]:
    """The block ends in `timeout` seconds, by RemoteError (deadline) if not by itself within `grace` more.

    RemoteError (busy) where that is because of those of whom `asked_too_much` tells.
    """
    check_timeout(timeout)
    began = trio.current_time()
    with trio.move_on_after(timeout + grace) as scope:
        yield
    if scope.cancelled_caught:
        hint = f"give it longer: --timeout {2 * timeout:g}"
        raise too_late(f"{what} took longer than {timeout:g} s", hint, asked_too_much(began))


def too_late(what: str, hint: str, because: str) -> RemoteError:
    """That the time was over, and `because` others had asked us to slow down, if they had."""
    if because:
        return RemoteError(Code.BUSY, f"{what}: {because}", hint=f"fewer at once, or {hint}")
    return RemoteError(Code.DEADLINE, what, hint=hint)
