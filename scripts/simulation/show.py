"""Results as people and as programs read them: a table with the marks below it, or a JSON object a phase."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console
from rich.table import Table

from simulation.play import Result

FILE_WIDTH = 160  # characters, where there is no terminal
COLUMNS = {  # of the table: heading and form
    "found": ("found", "{:.4f}"),
    "seconds_p50": ("s p50", "{:.2f}"),
    "seconds_p95": ("s p95", "{:.2f}"),
    "hops_p50": ("hops", "{:.0f}"),
    "hops_p95": ("p95", "{:.0f}"),
    "messages_p50": ("messages", "{:.0f}"),
    "messages_p95": ("p95", "{:.0f}"),
    "busiest_share": ("busiest", "{:.3f}"),
    "dead_entries": ("dead", "{:.3f}"),
    "upkeep_bytes_per_s": ("B/s", "{:.0f}"),
    "liveness_messages_per_s": ("liveness/s", "{:.1f}"),
    "liveness_bytes_per_s": ("B/s", "{:.0f}"),
    "false_deaths": ("false deaths", "{:.0f}"),
    "gone_p50": ("gone p50", "{:.1f}"),
    "gone_p99": ("p99", "{:.1f}"),
    "cleared_p50": ("cleared p50", "{:.1f}"),
    "cleared_p99": ("p99", "{:.1f}"),
    "wasted": ("wasted", "{:.4f}"),
}


@dataclass(frozen=True, slots=True)
class Played:
    """One phase of a scenario that was played."""

    scenario: str
    seed: int
    result: Result
    digest: str  # of all that has happened in its world until then

    def to_map(self) -> dict[str, object]:
        result = self.result
        return {
            "scenario": self.scenario,
            "seed": self.seed,
            "peers": result.peers,
            "phase": result.phase,
            "trials": result.trials,
            "figures": _rounded(result.figures),
            "bytes_per_s_per_peer": _rounded(result.purposes),
            "marks": [
                {"mark": str(v.mark), "value": _number(v.value), "verdict": v.word} for v in result.verdicts
            ],
            **({"curves": curves} if (curves := _curves(result.curves)) else {}),
            "digest": self.digest,
        }

    @property
    def missed(self) -> bool:
        return any(verdict.word == "missed" for verdict in self.result.verdicts)


def console_on(file: TextIO) -> Console:
    return Console(file=file, width=None if file.isatty() else FILE_WIDTH, highlight=False)


def table(title: str, played: Sequence[Played], beside: str) -> None:
    """What was measured, and beneath it what it should have been."""
    console = console_on(sys.stdout)
    shown = Table(title=title)
    shown.add_column("peers", justify="right")
    shown.add_column("phase")
    shown.add_column("trials", justify="right")
    columns = {name: it for name, it in COLUMNS.items() if any(name in one.result.figures for one in played)}
    for heading, _ in columns.values():
        shown.add_column(heading, justify="right")
    for one in played:
        figures = one.result.figures
        cells = [
            form.format(figures[name]) if name in figures and not math.isnan(figures[name]) else ""
            for name, (_, form) in columns.items()
        ]
        shown.add_row(str(one.result.peers), one.result.phase, str(one.result.trials), *cells)
    console.print(shown)
    for one in played:
        for verdict in one.result.verdicts:
            line = f"{one.result.phase}: {verdict.mark}: {verdict.value:.4g}, {verdict.word}"
            style = "red" if verdict.word == "missed" else None
            console.print(f"  {one.result.peers} peers, {line}", style=style, markup=False)
    if beside:
        console.print(f"  beside: {beside}", markup=False)
    console.print(f"  seed {played[-1].seed}, events {played[-1].digest[:16]}", markup=False)


def _rounded(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in figures.items()}


def _curves(curves: Mapping[str, tuple[float, ...]]) -> dict[str, list[float]]:
    return {name: [round(value, 2) for value in values] for name, values in curves.items() if values}


def _number(value: float) -> float | None:
    """JSON knows no NaN: nothing was measured."""
    return None if math.isnan(value) else round(value, 5)
