"""The tools on stdin and stdout, as an agent starts them: a process that lives as long as the agent does.

stdout is the protocol's alone; whatever else is written there goes to stderr, and children read nothing from
stdin. The process ends when the agent closes stdin, or by a signal.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, cast

import anyio
import anyio.to_thread
import trio
from mcp.server.stdio import stdio_server

from modelnet_p2p.node.config import Settings
from modelnet_p2p.node.mcp.reaching import reach
from modelnet_p2p.node.mcp.server import build_server
from modelnet_p2p.node.single_error import single_error

READ_BYTES = 1 << 16
MAX_LINE_BYTES = 64 << 20  # of one message: an input of some 16 MiB of tensor, written as JSON
HARD_SECONDS = 2.0  # after a signal: an agent that reads no more must not keep the process


class Lines:
    """The lines of a descriptor, each as text.

    Read in a thread that is left behind when the task is cancelled: a terminal or a pipe may say nothing for
    ever, and Ctrl-C must not wait for it.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    async def __aiter__(self) -> AsyncIterator[str]:
        parts: list[bytes] = []
        size = 0
        read = partial(os.read, self._descriptor, READ_BYTES)
        while data := await anyio.to_thread.run_sync(read, abandon_on_cancel=True):
            *lines, rest = data.split(b"\n")
            for line in lines:
                if size <= MAX_LINE_BYTES:
                    yield b"".join([*parts, line]).decode(errors="replace")
                else:
                    yield "{"  # what the SDK answers with a parse error, or passes over
                parts, size = [], 0
            size += len(rest)
            parts = [*parts, rest] if size <= MAX_LINE_BYTES else []


def serve_stdio(settings: Settings, seconds: float, notice: Callable[[str], None]) -> None:
    """Serve until stdin ends or a signal comes; a call that names no timeout has `seconds`."""
    with single_error():
        trio.run(_serve, settings, seconds, notice)


async def _serve(settings: Settings, seconds: float, notice: Callable[[str], None]) -> None:
    lines = Lines(_taken_stdin())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_on_signal, nursery.cancel_scope)
        async with reach(settings, notice) as peers:
            server = build_server(peers.ask, seconds)
            # the SDK takes an anyio file, and does no more with it than this can
            stdin = cast("anyio.AsyncFile[str]", lines)
            async with stdio_server(stdin=stdin) as (receive, send):
                await server.run(receive, send, server.create_initialization_options())
        nursery.cancel_scope.cancel()


def _taken_stdin() -> int:
    """A descriptor of my own for what stdin is; stdin itself is empty from now on."""
    mine = os.dup(sys.stdin.fileno())
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, sys.stdin.fileno())
    os.close(nothing)
    return mine


async def _end_on_signal(everything: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            watchdog: Any = threading.Timer(HARD_SECONDS, os._exit, (0,))
            watchdog.daemon = True
            watchdog.start()
            everything.cancel()
            return
