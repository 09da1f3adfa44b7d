"""A look that may hang, at a file or a socket: in a thread, which is left behind when its time is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")


async def in_thread(look: Callable[[], T]) -> T:
    """What `look` returns or raises; cancelled at once, though its thread may go on."""
    call = trio.to_thread.run_sync
    return await call(look, abandon_on_cancel=True)  # type: ignore[call-arg]  # newer than trio's stubs
