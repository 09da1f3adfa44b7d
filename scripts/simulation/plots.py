"""Pictures of what was played, for whoever would rather look than read: needs the dependency group `plot`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib

from simulation.show import Played

matplotlib.use("Agg")  # files, no window

from matplotlib import pyplot as plt

# File name, figure, title, unit, and whether it is drawn over the size of the world or over the phases.
_PICTURES = (
    ("hops", "hops", "Hops of a lookup", "hops", True),
    ("found", "found", "Reads that found the record", "share", False),
    ("seconds", "seconds", "Time of a lookup", "seconds", False),
    ("messages", "messages", "Messages of a lookup", "messages", True),
    ("upkeep", "upkeep_bytes_per_s", "What a peer sends to keep itself up", "bytes a second", False),
)


def draw(played: Sequence[Played], folder: Path) -> list[Path]:
    """A PNG for each picture that these results hold something for."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {one.result.peers for one in played}
    written = []
    for name, figure, title, unit, over_size in _PICTURES:
        over_size = over_size and len(sizes) > 1
        lines = {
            key: [(x, one.result.figures[key]) for x, one in _axis(played, over_size)]
            for key in (figure, f"{figure}_p50", f"{figure}_p95")
            if all(key in one.result.figures for one in played)
        }
        if not lines:
            continue
        plot, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
        for key, points in lines.items():
            x, y = zip(*points, strict=True)
            axes.plot(x, y, marker="o", label=key)
        if over_size:
            axes.set_xscale("log")
            axes.set_xlabel("peers")
        else:
            axes.tick_params(axis="x", labelrotation=30)
        axes.set_ylim(
            bottom=min(0.9, min(y for points in lines.values() for _, y in points)) if name == "found" else 0
        )
        axes.set_title(title)
        axes.set_ylabel(unit)
        axes.grid(alpha=0.3)
        axes.legend()
        path = folder / f"{name}.png"
        plot.savefig(path, dpi=120)
        plt.close(plot)
        written.append(path)
    return written


def _axis(played: Sequence[Played], over_size: bool) -> list[tuple[float | str, Played]]:
    if over_size:
        return [(one.result.peers, one) for one in played]
    many = len({one.scenario for one in played}) > 1
    return [(f"{one.scenario}: {one.result.phase}" if many else one.result.phase, one) for one in played]
