"""Reading a peer's log back: its last lines, then those that come, across rotation.

Apart from the writing side, for it needs neither threads nor handlers: `logs` starts as quickly as `status`.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TextIO

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.disk.files import reason
from modelnet_p2p.node.disk.home import Home

OLD_FILES = 3  # kept beside the newest: enough to look back behind a flood
_LINE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}) ([A-Z]+) ([\w.]+): (.*)", re.DOTALL)


def log_path(home: Home) -> Path:
    """Where the peer on `home` writes; older lines are in the same name with .1 to .3 behind it."""
    return home.path / "log" / "peer.log"


def log_files(home: Home) -> list[Path]:
    """All names that a log may have, newest first."""
    path = log_path(home)
    return [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, OLD_FILES + 1))]


def parse_line(line: str) -> dict[str, str | None]:
    """A line's time, level, source and message; further lines of a traceback have only the last."""
    found = _LINE.fullmatch(line)
    if found is None:
        return {"time": None, "level": None, "source": None, "message": line}
    return dict(zip(("time", "level", "source", "message"), found.groups(), strict=True))


class Tail:
    """The last lines of a log, then those that come, across rotation. Close it by `with`."""

    def __init__(self, home: Home) -> None:
        """Raises LocalError: not-running where no peer has ever kept a log here, bad-state if unreadable."""
        self._home = home
        self._files: list[tuple[TextIO, int]] = []  # newest first, with the inode of each
        self._rest = ""
        # a rotation meanwhile moves a file towards the older names: it is seen twice, never missed
        for path in log_files(home):
            self._add(path)
        if not self._files:
            raise LocalError(
                Code.NOT_RUNNING,
                f"no peer has written a log yet: there is no {log_path(home)}",
                hint="modelnet-peer join writes one",
            )

    def __enter__(self) -> Tail:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def last(self, count: int) -> list[str]:
        """The newest `count` lines, oldest first; the reader stands behind them then."""
        lines: list[str] = []
        for number, (file, _inode) in enumerate(self._files):
            text = file.read()
            if number == 0:
                text, newline, self._rest = text.rpartition("\n")
                text += newline
            if len(lines) < count:
                lines = text.rstrip("\n").split("\n") * bool(text) + lines
        self._close(keep=1)
        return lines[-count:] if count else []

    def more(self) -> list[str]:
        """The whole lines that came since; looks whether the file was rotated."""
        lines = self._read()
        if self._moved():
            lines += self._read()  # what was still written between the read and the rotation
            self._close()
            self._add(log_path(self._home))
            lines += self._read()
        return lines

    def _close(self, keep: int = 0) -> None:
        for file, _ in self._files[keep:]:
            file.close()
        del self._files[keep:]

    def _moved(self) -> bool:
        try:
            return not self._files or os.stat(log_path(self._home)).st_ino != self._files[0][1]
        except OSError:
            return False  # between the renaming and the new file: the next look sees it

    def _read(self) -> list[str]:
        if not self._files:
            return []
        *lines, self._rest = (self._rest + self._files[0][0].read()).split("\n")
        return lines

    def _add(self, path: Path) -> None:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        except OSError as error:
            raise LocalError(Code.BAD_STATE, f"cannot read {path}: {reason(error)}") from error
        status = os.fstat(descriptor)
        inode, regular = status.st_ino, stat.S_ISREG(status.st_mode)
        if not regular or any(inode == known for _, known in self._files):
            os.close(descriptor)
            if not regular:
                raise LocalError(Code.BAD_STATE, f"cannot read {path}: it is not a regular file")
            return
        file = open(descriptor, encoding="utf-8", errors="replace", newline="\n")  # noqa: SIM115  see __exit__
        self._files.append((file, inode))
