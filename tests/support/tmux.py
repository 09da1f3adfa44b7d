"""A person at a terminal: commands typed into tmux, and the screen as that person reads it.

tmux, because it is a whole terminal: what it shows went through escape sequences, spinners and folded
lines, and Ctrl-C is a key. bash numbers its prompts, so the answer of a command is what stands between two of
them; nothing is told apart by time.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

PATIENCE = 60.0  # seconds for one command, on a machine that is busy with other tests
LEAVING = 10.0  # seconds for what was started to end after its terminal is gone; then it is killed
LOOK_EVERY = 0.05  # seconds
COLUMNS, ROWS = 120, 40
HISTORY = 5000  # lines that can be read back
# number of the command that is typed here, status of the one before; on a new line, whatever came before it
_PROMPT = "\n\\#:$?> "


@dataclass(frozen=True, slots=True)
class Told:
    """What a command said and how it ended."""

    status: int
    text: str

    @property
    def hint(self) -> str:
        """The next step that an error named, empty where it named none."""
        hints = re.findall(r"^hint: (.+)$", self.text, re.MULTILINE)
        return hints[-1] if hints else ""


class Tmux:
    """A tmux server of its own; leaving the block ends it, and all that was started in it."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.folder = folder
        self._environ = {**environ, "TERM": "xterm-256color", "PS1": _PROMPT, "LC_ALL": "C.UTF-8"}
        self._panes: list[Pane] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        started = [pid for pane in self._panes for pid in _session(pane.pid)]
        if self._panes:
            self.tell("kill-server")
        deadline = time.monotonic() + LEAVING
        while any(map(_lives, started)) and time.monotonic() < deadline:
            time.sleep(LOOK_EVERY)
        for pid in filter(_lives, started):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def open(self, name: str) -> Pane:
        """One more terminal with a shell in it."""
        size = ["-x", str(COLUMNS), "-y", str(ROWS)]
        shell = ["bash", "--noprofile", "--norc"]
        self.tell("new-session", "-d", "-s", name, *size, "-c", str(self.folder), *shell)
        self._panes.append(Pane(self, name))
        return self._panes[-1]

    def tell(self, *words: str) -> str:
        """One tmux command; what it printed."""
        settings = self.folder / ".tmux.conf"
        if not settings.exists():
            settings.write_text(f"set -g history-limit {HISTORY}\nset -g status off\n")
        command = ["tmux", "-u", "-S", str(self.folder / ".tmux"), "-f", str(settings), *words]
        done = subprocess.run(command, env=self._environ, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout


class Pane:
    """One terminal."""

    def __init__(self, tmux: Tmux, name: str) -> None:
        self._tmux, self._name = tmux, name
        self.pid = int(tmux.tell("display-message", "-p", "-t", f"{name}:", "#{pane_pid}"))
        self._number = 1  # of the next prompt

    def screen(self) -> str:
        """All that this terminal has shown, folded lines in one piece."""
        shown = self._tmux.tell("capture-pane", "-p", "-J", "-S", "-", "-t", f"{self._name}:")
        return "\n".join(line.rstrip() for line in shown.splitlines())

    def shown(self) -> str:
        """What has appeared since the command that was typed last."""
        return re.split(rf"^{self._number - 1}:\d+>", self.screen(), maxsplit=1, flags=re.MULTILINE)[-1]

    def run(self, command: str) -> Told:
        """Type a command and wait for its end."""
        self.start(command)
        return self.finish()

    def start(self, command: str) -> None:
        """Type a command, which may stay in the foreground."""
        self.wait_for(rf"^{self._number}:\d+>")
        self._tmux.tell("send-keys", "-t", f"{self._name}:", "-l", command)
        self.press("Enter")
        self._number += 1

    def finish(self) -> Told:
        """Wait until the command that was typed last has ended."""
        found = self.wait_for(rf"^{self._number}:(\d+)>")
        text = found.string[: found.start()].partition("\n")[2]  # what was typed stands in the first line
        return Told(int(found[1]), text)

    def wait_for(self, pattern: str, patience: float = PATIENCE) -> re.Match[str]:
        """Wait until this has appeared, since the command that was typed last; not beyond that one's end."""
        deadline, over = time.monotonic() + patience, rf"^{self._number}:\d+>"
        while (found := re.search(pattern, shown := self.shown(), re.MULTILINE)) is None:
            late = time.monotonic() >= deadline or re.search(over, shown, re.MULTILINE)
            assert not late, f"{pattern!r} did not appear; this did:\n{shown}"
            time.sleep(LOOK_EVERY)
        return found

    def press(self, key: str) -> None:
        """A key by tmux's name for it, such as `Enter` or `C-c`."""
        self._tmux.tell("send-keys", "-t", f"{self._name}:", key)


def missing() -> str:
    """Why no terminal can be opened here, empty where one can."""
    return "" if shutil.which("tmux") and shutil.which("bash") else "needs tmux and bash"


def _session(leader: int) -> list[int]:
    """The processes in the session of a pane's shell, itself included (Linux only, others see none)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(ProcessLookupError):  # it ended meanwhile
            if os.getsid(int(entry.name)) == leader:
                found.append(int(entry.name))
    return found


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
