"""What all systems are asked to do, and how its times are taken: the same code for every one of them.

A rig is the caller; it starts its server as a process of its own. It reads orders, one JSON object a line,
and answers each with one line. Nothing here knows trio or asyncio: a rig hands in how its tasks run at the
same time. Standard library only, for it runs under other systems' interpreters too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

SMALL_BYTES = 100
ONLY_WAY = "as it is"  # of systems that send a tensor in one way
MIB = 1 << 20

Line = dict[str, Any]  # one JSON object: its values are whatever JSON holds
Action = Callable[[], Awaitable[None]]
Together = Callable[[Sequence[Action]], Awaitable[None]]  # runs all of them at once, until the last has ended


class Rig(Protocol):
    """One system's caller, connected to its server."""

    calls: Mapping[str, Action]  # an echo of 100 bytes; "peer": answered where the connection ends
    ways: Sequence[str]  # in which a tensor can be sent, the usual one first; named for people

    def prepare(self, mebibytes: int) -> None:
        """Makes the tensor that `up` sends."""

    async def up(self, mebibytes: int, way: str) -> None:
        """One float32 tensor to where a model can use it, and its small answer back; checks the answer."""

    def strangers(self, count: int) -> AbstractAsyncContextManager[Sequence[Action]]:
        """So many servers never met before; the actions each open a connection and make a first call."""


@dataclass(frozen=True, slots=True)
class Options:
    """How a rig was started. `host` is where its server listens."""

    serve: bool
    host: str
    server_netns: str | None
    strangers: int  # 0: one server that does everything; otherwise so many that only echo


def options() -> Options:
    parser = argparse.ArgumentParser()
    parser.add_argument("--serve", action="store_true", help="be the server, until stdin ends")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--server-netns", help="network namespace in which the server is started")
    parser.add_argument("--strangers", type=int, default=0)
    parsed = parser.parse_args()
    return Options(parsed.serve, parsed.host, parsed.server_netns, parsed.strangers)


def start_server(module: str, wanted: Options, strangers: int = 0) -> tuple[subprocess.Popen[str], Line]:
    """The same module once more with `--serve`, and its first line. It ends when its stdin does."""
    inside = ["ip", "netns", "exec", wanted.server_netns] if wanted.server_netns else []
    command = [*inside, sys.executable, "-m", module, "--serve", "--host", wanted.host]
    command += ["--strangers", str(strangers)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None  # it was opened as a pipe
    told = server.stdout.readline()
    if not told:
        raise SystemExit(f"the server of {module} ended with {server.wait()}")
    line: Line = json.loads(told)
    return server, line


def end_server(server: subprocess.Popen[str]) -> None:
    assert server.stdin is not None  # both were opened as pipes
    assert server.stdout is not None
    server.stdin.close()
    server.wait()
    server.stdout.close()


def tell(line: Line) -> None:
    print(json.dumps(line), flush=True)


def next_order() -> str:
    """One line of stdin, empty at its end; blocks, so rigs call it in a thread."""
    return sys.stdin.readline()


def read(line: str) -> Line:
    order: Line = json.loads(line)
    return order


async def obey(rig: Rig, server: int, next_line: Callable[[], Awaitable[str]], together: Together) -> None:
    """Takes orders until there are no more. `server` is the process id of the server."""
    tell({"ready": True, "caller": os.getpid(), "server": server, "ways": list(rig.ways)})
    while line := await next_line():
        tell(await perform(read(line), rig, together))


async def perform(order: Line, rig: Rig, together: Together) -> Line:
    """One order; all times in seconds."""
    match order:
        case {"do": "calls", "to": str(to), "count": int(count)}:
            return {"seconds": await timed(rig.calls[to], count)}
        case {"do": "rate", "callers": int(callers), "seconds": float(seconds)}:
            return await rate(rig.calls["peer"], callers, seconds, together)
        case {"do": "prepare", "mebibytes": int(mebibytes)}:
            rig.prepare(mebibytes)
            return {}
        case {"do": "up", "mebibytes": int(mebibytes), "way": str(way), "times": int(times)}:
            return {"seconds": await timed(lambda: rig.up(mebibytes, way), times)}
        case {"do": "connect", "times": int(times)}:
            return {"seconds": await meet(rig, times)}
        case {"do": "beside", "mebibytes": int(mebibytes), "times": int(times), "count": int(count)}:
            return await beside(rig, mebibytes, times, count, together)
    raise SystemExit(f"a rig was asked for {order}")


async def timed(action: Action, count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        started = perf_counter()
        await action()
        seconds.append(perf_counter() - started)
    return seconds


async def rate(call: Action, callers: int, seconds: float, together: Together) -> Line:
    """So many callers who each wait for their answer, for about so long."""
    done = 0
    started = perf_counter()

    async def keep_calling() -> None:
        nonlocal done
        while perf_counter() - started < seconds:
            await call()
            done += 1

    await together([keep_calling] * callers)
    return {"calls": done, "seconds": perf_counter() - started}


async def meet(rig: Rig, times: int) -> list[float]:
    """The first one is not counted: what a caller makes once for all connections, it makes there."""
    async with rig.strangers(1 + times) as greetings:
        return [(await timed(greet, 1))[0] for greet in greetings][1:]


async def beside(rig: Rig, mebibytes: int, times: int, count: int, together: Together) -> Line:
    """Small calls one after the other: `count` in quiet, then as many as fit while a bulk transfer runs."""
    quiet = await timed(rig.calls["peer"], count)
    busy: list[float] = []
    bulk: list[float] = []
    over = False

    async def transfer() -> None:
        nonlocal over
        bulk.extend(await timed(lambda: rig.up(mebibytes, rig.ways[0]), times))
        over = True

    async def keep_calling() -> None:
        while not over:
            busy.extend(await timed(rig.calls["peer"], 1))

    await together([transfer, keep_calling])
    return {"quiet": quiet, "busy": busy, "bulk": bulk}
