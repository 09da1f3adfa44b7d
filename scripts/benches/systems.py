"""The systems that are compared: where each one's rig runs, and a running one that takes orders.

Only the one whose turn it is runs: the processes of all others are stopped (SIGSTOP), so that their
daemons take no time from it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import IO

from benches import environment, usage
from benches.rigs.stage import Line
from processes import LOG_LINES, Failed, undisturbed

SCRIPTS = Path(__file__).resolve().parent.parent
OURS = "modelnet"
MODULES: Mapping[str, str] = MappingProxyType(
    {
        OURS: "benches.rigs.with_modelnet",
        "hivemind": "benches.rigs.with_hivemind",
        "grpc": "benches.rigs.with_grpc",
        "trio_tls": "benches.rigs.with_trio_tls",
        "trio": "benches.rigs.with_trio",
    }
)
ABROAD = frozenset({"hivemind", "grpc"})  # run under the interpreter of the environment that is made for them
READY_TIMEOUT = 180.0  # seconds; a server with three torch models takes ten, and a minute on a busy machine
ORDER_TIMEOUT = 300.0  # seconds; 1 GiB at a tenth of the slowest system's speed does not take longer
END_TIMEOUT = 10.0  # seconds; then it is killed


@dataclass(slots=True)
class Running:
    """One system's caller and server, stopped unless `awake`."""

    via: str
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    ready: Line = field(default_factory=dict)
    _rest: bytes = b""

    def pids(self) -> set[int]:
        return usage.tree(self.process.pid)

    def ends(self) -> dict[str, set[int]]:
        """The processes at either end, daemons and workers included."""
        server = usage.tree(self.ready["server"])
        return {"caller": self.pids() - server, "server": server}

    @property
    def ways(self) -> list[str]:
        """In which it can send a tensor, the usual one first."""
        return list(self.ready["ways"])

    def order(self, **order: object) -> Line:
        """What the rig answers; it must be awake. Raises Failed."""
        self.ask(**order)
        return self.read_line(ORDER_TIMEOUT)

    def ask(self, **order: object) -> None:
        """Only tells it; the answer is the next line. Raises Failed."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self.failed(f"could not be asked for {order}") from None

    def read_line(self, patience: float) -> Line:
        out = self.process.stdout
        assert out is not None
        deadline = time.monotonic() + patience
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([out], [], [], left)[0]:
                raise self.failed(f"said nothing for {patience:.0f} s")
            piece = os.read(out.fileno(), 1 << 16)
            if not piece:
                raise self.failed(f"ended with {self.process.wait()}")
            self._rest += piece
        text, _, self._rest = self._rest.partition(b"\n")
        line: Line = json.loads(text)
        return line

    def failed(self, what: str) -> Failed:
        self.log.seek(0)
        said = self.log.read().decode(errors="replace").splitlines()[-LOG_LINES:]
        return Failed("\n".join([f"{self.via} {what}", *said]))

    @contextmanager
    def awake(self) -> Iterator[None]:
        self.signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.signal(signal.SIGSTOP)

    def signal(self, number: int) -> None:
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self) -> None:
        """Lets it end by itself: a rig does when its stdin does; kills what is still there then."""
        everybody = self.pids()
        self.signal(signal.SIGCONT)
        assert self.process.stdin is not None  # both were opened as pipes
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(END_TIMEOUT)
        if self.process.poll() is None:
            for pid in everybody | self.pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
        self.process.stdout.close()
        self.log.close()


@dataclass(frozen=True, slots=True)
class Place:
    """Where a system's two ends run: network namespaces, and the address at which the server listens."""

    host: str = "127.0.0.1"
    caller_netns: str | None = None
    server_netns: str | None = None


LOOPBACK = Place()


@contextmanager
def running(names: Sequence[str], place: Place = LOOPBACK) -> Iterator[list[Running]]:
    """These systems, each connected and then stopped; ended with the block, however that ends."""
    with _asleep(partial(start, name, place) for name in names) as systems:
        yield systems


@contextmanager
def rigs(modules: Mapping[str, str]) -> Iterator[list[Running]]:
    """The same with rigs of another kind: a module for each system, by its name."""
    with _asleep(partial(spawn, name, module, []) for name, module in modules.items()) as systems:
        yield systems


@contextmanager
def _asleep(starts: Iterable[Callable[[], Running]]) -> Iterator[list[Running]]:
    systems: list[Running] = []
    try:
        for begin in starts:
            systems.append(begin())
            systems[-1].ready = systems[-1].read_line(READY_TIMEOUT)
            systems[-1].signal(signal.SIGSTOP)
        yield systems
    finally:
        with undisturbed():  # a second Ctrl-C must not leave stopped processes behind
            for system in systems:
                system.end()


def start(name: str, place: Place) -> Running:
    inside = ["ip", "netns", "exec", place.caller_netns] if place.caller_netns else []
    arguments = ["--host", place.host]
    if place.server_netns:
        arguments += ["--server-netns", place.server_netns]
    return spawn(name, MODULES[name], arguments, inside)


def spawn(name: str, module: str, arguments: Sequence[str], inside: Sequence[str] = ()) -> Running:
    """A module of the scripts as a process that takes orders, under the interpreter of that system."""
    python = str(environment.PYTHON) if name in ABROAD else sys.executable
    command = [*inside, python, "-m", module, *arguments]
    log = tempfile.TemporaryFile()  # noqa: SIM115 closed by Running.end
    rest = {key: value for key, value in os.environ.items() if not key.startswith(("MODELNET_", "PYTHON"))}
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        env=rest | {"PYTHONPATH": str(SCRIPTS)},
        start_new_session=True,  # Ctrl-C reaches the bench alone, which then ends them
    )
    return Running(name, process, log)
