"""For rigs on asyncio: how orders are read, and how tasks run at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from benches.rigs import stage


async def order() -> str:
    return await asyncio.get_running_loop().run_in_executor(None, stage.next_order)


async def together(actions: Sequence[stage.Action]) -> None:
    await asyncio.gather(*(action() for action in actions))
