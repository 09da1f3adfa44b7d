"""A reader at a terminal: types what a page says, line by line, and looks at what appears.

The shell is a real bash on a pseudo terminal of its own, so that commands print what they print for people,
and Ctrl-C is a character that is typed; pyte says what is left on the screen when a spinner is gone. Each
command comes to the shell through a pipe and is told apart from the next by a mark that it prints with its
exit status.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import pyte

PATIENCE = 60.0  # seconds for one command, on a machine that is busy with other tests
LEAVING = 10.0  # seconds for what a terminal started to end after SIGTERM; `join` is promised to need 5
ROWS, COLUMNS = 50, 400  # wide enough that no table and no URI folds
PAPER_ROWS = 500  # of the screen that remembers one command's output, longer than any page shows
_MARK = re.compile("\x1e(\\d+)\x1e\r?\n")
# Commands arrive with a NUL behind them. Job control gives each a process group that Ctrl-C reaches alone.
_LOOP = """
set -m; trap : INT; stty -echo
while IFS= read -r -d '' -u 9 command; do eval "$command" 9<&-; printf '\\036%s\\036\\n' $?; done
"""
_JOB_NOTICE = re.compile(r"^\[\d+\][ +-]|^.*: line \d+: +\d+ (?:Killed|Terminated)\b")


class Terminal:
    """A shell in `folder` with exactly this environment; closing it ends all that it started."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self._folder, self._environ = folder, environ
        self._typed = b""
        self.busy = False  # a command stays in the foreground

    def __enter__(self) -> Self:
        self._master, self._slave = pty.openpty()  # its end stays open, or the terminal would hang up
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        orders, self._orders = os.pipe()
        name = os.ttyname(self._slave)
        # the leader of a session takes the first terminal that it opens as its own
        start = f"exec 0<>{name} 1>&0 2>&0 9<&{orders} {orders}<&-; {_LOOP}"
        self._shell = subprocess.Popen(
            ["bash", "--noprofile", "--norc", "-c", start],
            cwd=self._folder,
            env=self._environ,
            pass_fds=(orders,),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            # a shell cannot trap what was ignored when it began, as in a job that runs in the background
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(orders)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._orders)  # no more commands are begun
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + LEAVING
            told: set[int] = set()
            while (others := set(self._others())) and time.monotonic() < deadline:
                for pid in others - told:
                    _send(pid, number)
                told |= others
                self._read(0.05)
        self._shell.kill()
        self._shell.wait()
        os.close(self._slave)
        os.close(self._master)

    def start(self, command: str) -> None:
        """Type a command; what was left over from the one before is forgotten."""
        self._read(0)
        self._typed = b""
        os.write(self._orders, command.encode() + b"\0")
        self.busy = True

    def finish(self, patience: float = PATIENCE) -> tuple[int, list[str]]:
        """Wait until the command has ended: its exit status, and the lines that it printed."""
        found = _MARK.search(self.wait_for(_MARK, patience))
        assert found is not None
        self.busy = False
        return int(found[1]), self.lines()

    def wait_for(self, pattern: re.Pattern[str], patience: float = PATIENCE) -> str:
        """Wait until this has appeared since the command was typed; TimeoutError tells what did appear."""
        deadline = time.monotonic() + patience
        while not pattern.search(text := self._typed.decode(errors="replace")):
            left = deadline - time.monotonic()
            if left <= 0 or not self._read(left):
                raise TimeoutError(f"{pattern.pattern!r} did not appear; this did:\n{text}")
        return text

    def wait_until(self, right: Callable[[list[str]], bool], patience: float = PATIENCE) -> None:
        """Wait until the lines on the screen are right; TimeoutError tells what there was."""
        deadline = time.monotonic() + patience
        while not right(lines := self.lines()):
            if not self._read(max(0.0, deadline - time.monotonic())):
                raise TimeoutError("the screen is not as it should be:\n" + "\n".join(lines))

    def interrupt(self) -> None:
        """Type Ctrl-C. A command that dies of it, rather than ends by itself, takes this shell along."""
        os.write(self._master, b"\x03")

    def lines(self) -> list[str]:
        """What has appeared, without marks, the shell's notices of jobs, and empty lines at the end."""
        screen = pyte.Screen(COLUMNS, PAPER_ROWS)
        pyte.Stream(screen).feed(_MARK.sub("", self._typed.decode(errors="replace")))
        lines = [line.rstrip() for line in screen.display]
        lines = [line for line in lines if not _JOB_NOTICE.match(line)]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def _read(self, patience: float) -> bool:
        """Whether something appeared within so many seconds."""
        if not select.select([self._master], [], [], patience)[0]:
            return False
        self._typed += os.read(self._master, 65536)
        return True

    def _others(self) -> list[int]:
        """The processes of this session other than the shell itself."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self._shell.pid:
                try:
                    mine = os.getsid(int(entry.name)) == self._shell.pid
                    zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
                except OSError:  # gone meanwhile
                    continue
                if mine and not zombie:
                    found.append(int(entry.name))
        return found


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
