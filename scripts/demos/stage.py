"""Where a demo shows what it does: steps and answers on stderr, results counted for the last line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from rich.console import Console


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of one model: who gave it, in how many ms seen by the caller, and whether it was right."""

    model: str
    task: str
    provider: str  # peer id
    ms: float
    correct: bool

    def to_map(self) -> dict[str, object]:
        return asdict(self)


@dataclass(slots=True)
class Stage:
    """`names` turns peer ids into the names that people read; `console` writes to stderr."""

    console: Console
    names: dict[str, str] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """A line for what is being done, with its seconds behind it once it is done."""
        started = time.monotonic()
        with self.console.status(what):
            yield
        took = time.monotonic() - started
        self.console.print(f"[green]✓[/] {what} [dim]{took:.1f} s[/]", highlight=False)

    def say(self, text: str) -> None:
        self.console.print(f"  {text}", highlight=False)

    def name(self, peer: str) -> str:
        return f"[cyan]{self.names.get(peer, peer[-8:])}[/]"

    def answer(self, given: Answer, shown: str) -> None:
        """An answer: counted, and shown with who answered in how many ms."""
        self.answers.append(given)
        mark = "[green]right[/]" if given.correct else "[red]WRONG[/]"
        self.say(f"{shown}  {mark}  [dim]{self.name(given.provider)} in {given.ms:.0f} ms[/]")
