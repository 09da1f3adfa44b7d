"""What a command prints: results on stdout, everything else on stderr, for people or as NDJSON.

Text from other peers is stripped of control characters before it reaches a terminal: an escape
sequence in a model's answer could otherwise rewrite the screen. rich is imported only when stdout
or stderr is a terminal.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from modelnet_p2p.jsonvalue import to_json

if TYPE_CHECKING:
    from rich.status import Status

# C0, DEL and C1, and the characters that turn the direction of text around; tab and newline may stay
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")

BAR_BYTES = 8 << 20  # a transfer below this is over before anybody has read what it says


def plain(text: str) -> str:
    """`text` without control characters, newline and tab excepted."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str) -> str:
    """`text` as one line without control characters."""
    return plain(" ".join(text.split()))


def duration(seconds: float) -> str:
    """How long something lasts, for people."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


class Output:
    """Where one command's results, notices and progress go."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json
        self._status: Status | None = None
        for stream in (sys.stdout, sys.stderr):
            reconfigure = getattr(stream, "reconfigure", None)  # a test's stream may have none
            if reconfigure is not None:
                reconfigure(encoding="utf-8", errors="backslashreplace")

    @property
    def to_terminal(self) -> bool:
        return sys.stdout.isatty()

    def line(self, value: dict[str, Any]) -> None:
        """One object of NDJSON, flushed: whoever reads the pipe sees it now."""
        print(json.dumps(to_json(value), ensure_ascii=False, allow_nan=False), flush=True)

    def text(self, text: str, *, end: str = "\n") -> None:
        """Text for people, as it is into a pipe, harmless to a terminal."""
        print(plain(text) if self.to_terminal else text, end=end, flush=True)

    def answer(self, value: dict[str, Any], text: str) -> None:
        """One object of NDJSON, or these words for people."""
        if self.as_json:
            self.line(value)
        else:
            self.text(text)

    def fields(self, pairs: Sequence[tuple[str, object]]) -> None:
        """Names and values, one pair a line."""
        width = max((len(name) for name, _ in pairs), default=0)
        for name, value in pairs:
            print(f"{name:<{width}}  {one_line(str(value))}")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table: drawn by rich on a terminal, aligned columns in a pipe."""
        cells = [["-" if cell is None else one_line(str(cell)) for cell in row] for row in rows]
        if not self.to_terminal:
            widths = [max(len(row[i]) for row in [list(columns), *cells]) for i in range(len(columns))]
            for row in [[name.upper() for name in columns], *cells]:
                print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:  # the last, an id, address or number, folds where the terminal is narrow
            table.add_column(column, no_wrap=column != columns[-1])
        for row in cells:
            table.add_row(*(Text(cell, overflow="fold") for cell in row))
        Console(no_color=no_color()).print(table)

    def notice(self, text: str) -> None:
        """One line for people on stderr."""
        line = one_line(text)
        if self._status is not None:
            self._status.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def step(self, text: str) -> None:
        """What is being done now: the spinner's words on a terminal, a line of its own elsewhere."""
        if self._status is not None:
            from rich.markup import escape

            self._status.update(escape(one_line(text)))
        else:
            self.notice(text)

    @contextmanager
    def progress(self, text: str) -> Iterator[None]:
        """A spinner on stderr while the block runs, if stderr is a terminal; otherwise one plain line."""
        if not _draws():
            self.notice(text)
            yield
            return
        from rich.console import Console
        from rich.markup import escape

        console = Console(stderr=True, no_color=no_color())
        with console.status(escape(text)) as self._status:
            try:
                yield
            finally:
                self._status = None

    @contextmanager
    def transfer(self, text: str, total: int) -> Iterator[Callable[[int], object]]:
        """A bar of `total` bytes on stderr; the block tells of each piece that is through.

        What is small needs none; where stderr is no terminal the bar is one plain line.
        """
        if total < BAR_BYTES:
            yield _ignore
            return
        if not _draws():
            self.notice(f"{text}: {total / 2**20:.0f} MiB")
            yield _ignore
            return
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        if self._status is not None:
            self._status.stop()  # two cannot draw on one terminal
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
        )
        with Progress(
            *columns, console=Console(stderr=True, no_color=no_color()), transient=True
        ) as progress:
            task = progress.add_task(one_line(text), total=total)
            yield lambda count: progress.advance(task, count)
        if self._status is not None:
            self._status.start()

    def quiet(self) -> None:
        """Results begin: the spinner would fight with them for the terminal."""
        if self._status is not None:
            self._status.stop()
            self._status = None


def _draws() -> bool:
    """Whether stderr is a terminal on which something may move."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _ignore(count: int) -> None:
    pass


def no_color() -> bool:
    """Whether the user wants none."""
    return bool(os.environ.get("NO_COLOR"))
