"""For rigs on trio: how orders are read, and how tasks run at the same time."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from benches.rigs import stage


async def order() -> str:
    return await trio.to_thread.run_sync(stage.next_order)


async def together(actions: Sequence[stage.Action]) -> None:
    async with trio.open_nursery() as nursery:
        for action in actions:
            nursery.start_soon(action)
