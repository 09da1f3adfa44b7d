"""Peers as real processes, for demos and bench: started, asked by the command line, ended by their pid.

Everything that a troupe leaves behind lies in one temporary folder, and every process that it started is
ended when its `with` block ends, however it ends: SIGTERM first, SIGKILL for what is still there later.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, MappingProxyType, TracebackType
from typing import Any, Self

COMMAND = Path(sys.executable).with_name("modelnet-peer")
READY_TIMEOUT = 30.0  # seconds; a start takes one on a quiet machine, and five peers may start at once
ASK_TIMEOUT = 40.0  # seconds; longer than the command line's own 30, so that it speaks first
LEAVE_TIMEOUT = 5.0  # seconds; the contract's for `join` after SIGTERM
LOG_LINES = 15  # of a process that failed, shown with the failure

Line = dict[str, Any]  # one JSON object of the command line: its values are whatever JSON holds


class Failed(Exception):
    """A peer or a command did not do what it should; the message is for people."""


@dataclass(slots=True)
class PeerProcess:
    """One `modelnet-peer join`: its folders, its process, and its ready line once there is one."""

    name: str
    home: Path
    runtime: Path
    process: subprocess.Popen[bytes]
    ready: Line

    @property
    def id(self) -> str:
        return str(self.ready["peer"])

    @property
    def address(self) -> str:
        return str(self.ready["addrs"][0])

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.process.kill()
        self.process.wait()


class Troupe:
    """Some peers of one network name that nobody else uses, all below one temporary folder.

    Each has a home and a runtime directory of its own, as if on a machine of its own: none can find another
    by the rendezvous file in the runtime directory, only by the addresses it is told.
    """

    def __init__(self) -> None:
        # short, because Unix socket paths end at about 107 bytes
        self.folder = Path(tempfile.mkdtemp(prefix="mn-"))
        self.network = f"troupe-{self.folder.name}"
        self.peers: dict[str, PeerProcess] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with undisturbed():  # a second Ctrl-C must not leave processes behind
            end([peer.process for peer in self.peers.values()])
            shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, *names: str, bootstrap: Sequence[str] = ()) -> list[PeerProcess]:
        """Starts these peers at the same time and waits until each says that it is ready."""
        arguments = [word for address in bootstrap for word in ("--bootstrap", address)]
        started = []
        for name in names:
            started.append(self._spawn(name, [COMMAND, "join", *arguments, "--json"]))
        return self._await_ready(started)

    def start_module(
        self, *names: str, module: str, arguments: Sequence[str], cwd: Path
    ) -> list[PeerProcess]:
        """The same for processes that run a module of the scripts; it prints a ready line of its own."""
        command = [sys.executable, "-m", module, *arguments]
        scripts = {"PYTHONPATH": str(Path(__file__).resolve().parent)}
        return self._await_ready([self._spawn(name, command, scripts, cwd) for name in names])

    def ask(self, peer: PeerProcess, *arguments: str | Path, cwd: Path | None = None) -> list[Line]:
        """The lines that `modelnet-peer ARGUMENTS --json` prints, asked of that peer's control socket."""
        words = [str(argument) for argument in arguments]
        try:
            done = subprocess.run(
                [COMMAND, *words, "--json"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=ASK_TIMEOUT,
                check=False,
                cwd=cwd,
                env=self._environ(peer.home, peer.runtime),
            )
        except subprocess.TimeoutExpired as error:
            raise Failed(f"`modelnet-peer {' '.join(words)}` said nothing for {ASK_TIMEOUT:.0f} s") from error
        if done.returncode:
            raise Failed(f"`modelnet-peer {' '.join(words)}` at {peer.name}: {reason(done.stderr)}")
        return [json.loads(line) for line in done.stdout.splitlines()]

    def _environ(self, home: Path, runtime: Path) -> Mapping[str, str]:
        """This process's, without what would lead the peer to other networks, homes or modules."""
        ours = ("MODELNET_", "PYTHONPATH")
        rest = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return rest | {
            "MODELNET_HOME": str(home),
            "MODELNET_NETWORK": self.network,
            "XDG_RUNTIME_DIR": str(runtime),
        }

    def _spawn(
        self, name: str, command: Sequence[str | Path], extra: Mapping[str, str] = MappingProxyType({}),
        cwd: Path | None = None,
    ) -> PeerProcess:  # fmt: skip
        home, runtime = self.folder / name, self.folder / f"r-{name}"
        home.mkdir(mode=0o700)
        runtime.mkdir(mode=0o700)
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=cwd,
                env={**self._environ(home, runtime), **extra},
                start_new_session=True,  # Ctrl-C reaches this process alone, which then ends them
            )
        self.peers[name] = PeerProcess(name, home, runtime, process, {})
        return self.peers[name]

    def _await_ready(self, started: list[PeerProcess]) -> list[PeerProcess]:
        deadline = time.monotonic() + READY_TIMEOUT
        for peer in started:
            peer.ready = first_line(peer, deadline)
        return started


def first_line(peer: PeerProcess, deadline: float) -> Line:
    """The first line of the peer's stdout as JSON; raises Failed where none comes until then."""
    out = peer.process.stdout
    assert out is not None  # it was opened as a pipe
    text = b""
    while not text.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([out], [], [], left)[0]:
            raise Failed(f"{peer.name} was not ready after {READY_TIMEOUT:.0f} s\n{tail(peer.home)}")
        piece = os.read(out.fileno(), 65536)
        if not piece:
            raise Failed(f"{peer.name} ended with {peer.process.wait()}\n{tail(peer.home)}")
        text += piece
    line: Line = json.loads(text.splitlines()[0])
    return line


def reason(stderr: str) -> str:
    """The message in a command's last stderr line, the line itself where it is no JSON."""
    last = (stderr.strip().splitlines() or ["no reason given"])[-1]
    try:
        error = json.loads(last)["error"]
        return f"{error['code']}: {error['message']}"
    except (ValueError, KeyError, TypeError):
        return last


def tail(home: Path) -> str:
    return "\n".join((home / "log").read_text(errors="replace").splitlines()[-LOG_LINES:])


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """SIGTERM to each that lives, SIGKILL to each that lives 5 s later; by pid, and waited for."""
    living = [process for process in processes if process.poll() is None]
    for process in living:
        process.terminate()
    deadline = time.monotonic() + LEAVE_TIMEOUT
    for process in living:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for process in processes:
        if process.stdout is not None:
            process.stdout.close()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Holds back Ctrl-C and SIGTERM while it lasts; what arrives meanwhile would only end what is ending."""
    held = {signal.SIGINT, signal.SIGTERM}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        while held & signal.sigpending():
            signal.sigwait(held)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_on_sigterm() -> None:
    """Makes SIGTERM and SIGHUP unwind like Ctrl-C, so that `with` blocks end what they started."""

    def unwind(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        with suppress(ValueError):  # not in the main thread
            signal.signal(number, unwind)
