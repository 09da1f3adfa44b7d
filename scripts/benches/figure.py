"""A figure: some samples of one quantity, told by their median and their spread."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from statistics import median
from typing import TextIO

from rich.console import Console
from rich.table import Table

FILE_WIDTH = 160  # characters


@dataclass(frozen=True, slots=True)
class Figure:
    """`params` say what one has to know to compare it: sizes, counts, how many peers."""

    name: str
    unit: str
    samples: Sequence[float]
    params: Mapping[str, object] = field(default_factory=dict)
    via: str = "modelnet"

    def to_map(self) -> dict[str, object]:
        """The contract's line."""
        return {
            "figure": self.name,
            "via": self.via,
            "unit": self.unit,
            "median": round(median(self.samples), 4),
            "min": round(min(self.samples), 4),
            "max": round(max(self.samples), 4),
            "n": len(self.samples),
            "params": dict(self.params),
        }


def quantile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least this share of all samples do not exceed."""
    ordered = sorted(samples)
    return ordered[max(0, ceil(share * len(ordered)) - 1)]


def console_on(file: TextIO) -> Console:
    """As wide as the terminal; wide enough for every column where there is none."""
    return Console(file=file, width=None if file.isatty() else FILE_WIDTH)


def show(figures: Sequence[Figure]) -> None:
    """All of them as a table on stdout."""
    table = Table()
    for heading in ("figure", "via", "median", "min", "max", "unit", "n"):
        right = heading in ("median", "min", "max", "n")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    table.add_column("with")
    for figure in figures:
        line = figure.to_map()
        numbers = [f"{line[key]:.2f}" for key in ("median", "min", "max")]
        params = ", ".join(f"{key} {value}" for key, value in figure.params.items())
        table.add_row(figure.name, figure.via, *numbers, figure.unit, str(line["n"]), params)
    console_on(sys.stdout).print(table)
