"""Pictures of results, for whoever would rather look than read: needs the dependency group `plot`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

from simulation.curves import BAMBOO, CURVES, DEAD, IPFS, STOCK, Lines, Row, fingerprint, latest, panels

matplotlib.use("Agg")  # files, no window

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

WIDTH, HEIGHT, DPI = 7.5, 4.2, 100  # inches; a picture of the documentation has less than 100 kB
PANEL_HEIGHT = 2.6  # inches, of each of a scenario's figures
TICK = 28  # characters of a phase's name below the axis
OTHERS = (IPFS, BAMBOO, STOCK)  # what somebody else measured is drawn in another hand
MARKS = ((6, 0.5), (20, 0.99))  # seconds until so many of the killed must be gone
BOUNDS = ("log2", "mark")


@dataclass(frozen=True, slots=True)
class Frame:
    """What is around the lines of one picture."""

    title: str
    x: str
    y: str
    log_x: bool = False
    share: bool = False  # y is one, from 0 to 1


FRAMES = {
    "hops": Frame("Hops of a lookup", "peers", "hops", log_x=True),
    "churn": Frame("Reads that found the record", "peers that leave in a minute, %", "share", share=True),
    "detection": Frame(
        "When somebody who looks all the time sees it",
        "seconds after it happened",
        "share of cases",
        share=True,
    ),
    "messages": Frame("Requests of a lookup", "peers", "requests", log_x=True),
    "upkeep": Frame("What one peer sends to keep itself up", "peers", "bytes a second", log_x=True),
    "sybils": Frame(
        "Reads that found a record around which Sybils lie", "Sybils closest to its key", "share", share=True
    ),
}


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """A PNG for each picture that these results hold something for."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = latest(rows)
    written = []
    for name, curve in CURVES.items():
        if not (lines := curve(rows)):
            continue
        plot, axes = plt.subplots(figsize=(WIDTH, HEIGHT), layout="constrained")
        _paint(axes, FRAMES[name], lines)
        if name == "churn":
            least = min(y for points in lines.values() for _, y in points)
            axes.set_ylim(least - 0.1 * (1.0005 - least), 1.0005)  # the misses are what is looked for
        if name == "detection":
            for seconds, share in MARKS:
                axes.plot(seconds, share, marker="v", color="black", linestyle="")
                said = f"mark: {share:.0%} within {seconds} s"
                axes.annotate(
                    said,
                    (seconds, share),
                    (0, -16),
                    textcoords="offset points",
                    ha="right" if seconds > 10 else "left",
                )
        path = folder / f"{name}.png"
        metadata = {"Description": fingerprint(lines), "Software": None}
        plot.savefig(path, dpi=DPI, metadata=metadata)
        plt.close(plot)
        written.append(path)
    return written


def draw_own(rows: Sequence[Row], folder: Path) -> list[Path]:
    """A PNG for each scenario, whatever it is: its figures over the sizes of its world, or by phase."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, shown in panels(rows).items():
        plot, grid = plt.subplots(
            len(shown), figsize=(WIDTH, PANEL_HEIGHT * len(shown)), layout="constrained", squeeze=False
        )
        for axes, panel in zip(grid[:, 0], shown, strict=True):
            _paint(
                axes,
                Frame(panel.figure, "" if panel.phases else "peers", "", log_x=not panel.phases),
                panel.lines,
            )
            if panel.phases:
                short = [one if len(one) <= TICK else one[: TICK - 1] + "…" for one in panel.phases]
                axes.set_xticks(range(1, len(short) + 1), short, rotation=15, ha="right", fontsize="small")
            else:
                sizes = sorted({x for points in panel.lines.values() for x, _ in points})
                axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
                axes.minorticks_off()
            values = [y for points in panel.lines.values() for _, y in points]
            least, most = min(0.0, *values), max(0.0, *values)  # round_trips_p95 may be below 0
            edge = 0.1 * (most - least or 1.0)
            axes.set_ylim(least - edge * (least < 0), most + edge)
        plot.suptitle(name)
        path = folder / f"scenario-{name}.png"
        plot.savefig(path, dpi=DPI, metadata={"Software": None})
        plt.close(plot)
        written.append(path)
    return written


def _paint(axes: Axes, frame: Frame, lines: Lines) -> None:
    for label, points in lines.items():
        x, y = zip(*points, strict=True)
        if label.startswith(OTHERS):
            axes.plot(x, y, marker="*", markersize=12, linestyle=":", color="black", label=label)
        elif label.startswith(DEAD):
            axes.plot(x, y, marker="D", markersize=9, fillstyle="none", linestyle="", label=label)
        elif label.startswith(BOUNDS):
            axes.plot(x, y, linestyle="--", marker="v" if label == "mark" else "", color="gray", label=label)
        else:
            axes.plot(x, y, marker="" if len(points) > 20 else "o", markersize=5, label=label)
    if frame.log_x:
        axes.set_xscale("log")
    if frame.share:
        axes.set_ylim(-0.03, 1.03)
    else:
        axes.set_ylim(bottom=0)
    axes.set_title(frame.title)
    axes.set_xlabel(frame.x)
    axes.set_ylabel(frame.y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
