"""What an expert's caller is asked to do, and how its times are taken: the same for each system.

A rig process is the caller; its server is a process of its own. It reads orders, one JSON object a line, and
answers each with one line. Standard library only, for it runs under another system's interpreter too.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Protocol

from benches.rigs import stage
from benches.rigs.stage import Line

EXPERT = "expert"  # the model, under this name in the orders
BATCHES = (1, 32)  # rows of one call


class ExpertRig(Protocol):
    """One system's caller, connected to its expert server. All times in seconds."""

    async def calls(self, model: str, rows: int, count: int) -> list[float]:
        """One call after the other; each answer has as many rows."""

    async def rate(self, model: str, rows: int, callers: int, seconds: float) -> list[float]:
        """So many callers who each wait for their answer, for about so long: the time that each call took."""

    def alone(self, rows: int) -> Callable[[], object]:
        """The expert in this process, called without any system."""

    def packed(self, rows: int) -> Callable[[], object]:
        """The same, with weights that are packed as in a worker of ours."""

    async def kill(self, model: str) -> Line:
        """`kill -9` of the process that runs a model which is being called: what its callers see of it."""


async def obey(rig: ExpertRig, server: int, next_line: Callable[[], Awaitable[str]], versions: Line) -> None:
    """Takes orders until there are no more. `server` is the process id of the server."""
    told = {"ready": True, "caller": os.getpid(), "server": server, "ways": [stage.ONLY_WAY]}
    stage.tell(told | versions)
    while line := await next_line():
        stage.tell(await perform(stage.read(line), rig))


async def perform(order: Line, rig: ExpertRig) -> Line:
    match order:
        case {"do": "calls", "model": str(model), "rows": int(rows), "count": int(count)}:
            return {"seconds": await rig.calls(model, rows, count)}
        case {
            "do": "rate",
            "model": str(model),
            "rows": int(rows),
            "callers": int(callers),
            "seconds": float(seconds),
        }:
            started = perf_counter()
            each = await rig.rate(model, rows, callers, seconds)
            return {"calls": len(each), "each": each, "seconds": perf_counter() - started}
        case {"do": "alone", "rows": int(rows), "count": int(count)}:
            return {"seconds": timed(rig.alone(rows), count)}
        case {"do": "packed", "rows": int(rows), "count": int(count)}:
            return {"seconds": timed(rig.packed(rows), count)}
        case {"do": "kill", "model": str(model)}:
            return await rig.kill(model)
    raise SystemExit(f"an expert's rig was asked for {order}")


def timed(step: Callable[[], object], count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        started = perf_counter()
        step()
        seconds.append(perf_counter() - started)
    return seconds
