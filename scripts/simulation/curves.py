"""What the pictures show, out of results as `--json` prints them and `results.jsonl` keeps them.

Of a phase that was played more than once in a world of one size the last result counts. What somebody else
measured stands beside it, with its source.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from simulation.scenario import BadScenario

# Any: a line of JSON; whoever wrote the file is the only one who suffers from what it lacks
Row: TypeAlias = Mapping[str, Any]
Points: TypeAlias = list[tuple[float, float]]
Lines: TypeAlias = dict[str, Points]  # by what the legend says

K = 20  # entries of a bucket: how many peers a walk knows of before its first hop
IPFS = "IPFS, measured (RFM17)"
BAMBOO = "Bamboo, 1,000 nodes (USENIX 2004)"
STOCK = "stock DHT (NDSS 2024)"
DEAD = "15 % of the tables' entries dead"
CALM = 0.01  # share of dead entries up to which a world counts as calm
_CHURN = re.compile(r"(\d+) % a minute")
_SYBILS = re.compile(r"(\d+) Sybils\b,?\s*(.*)")


def read_rows(path: Path) -> list[Row]:
    """The results in a file, one JSON object a line; raises BadScenario."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise BadScenario(f"{path} cannot be read: {error}") from error


def latest(rows: Sequence[Row]) -> list[Row]:
    found = {(row["scenario"], row["peers"], row["phase"]): row for row in rows if "phase" in row}
    return sorted(found.values(), key=lambda row: row["peers"])


def fingerprint(lines: Lines) -> str:
    """Of what a picture shows: it is written into the file, and says whether that is of today's results."""
    return hashlib.sha256(json.dumps(lines, sort_keys=True).encode()).hexdigest()


def hops(rows: Sequence[Row]) -> Lines:
    calm = [row for row in _with(rows, "hops_p50") if _calm(row)]
    lines = {
        "half of the reads (p50)": _over_peers(calm, "hops_p50"),
        "all but a twentieth (p95)": _over_peers(calm, "hops_p95"),
    }
    dead = [row for row in _with(rows, "hops_p90") if row["scenario"] == "dead-entries"]
    lines[f"{DEAD}: p50 and p90"] = _over_peers(dead, "hops_p50") + _over_peers(dead, "hops_p90")
    if sizes := [row["peers"] for row in calm]:
        lines[f"{IPFS}: p50 and p90"] = [(10_000.0, 4.0), (10_000.0, 6.0)]
        ends = sorted({min(sizes), 10 * K, max(*sizes, 100 * K)})
        lines["log2(peers / 20): one bit a hop, Kademlia's bound"] = [
            (float(n), max(1.0, math.log2(n / K))) for n in ends
        ]
    return _filled(lines)


def churn(rows: Sequence[Row]) -> Lines:
    lines: Lines = {}
    for row in _with(rows, "found"):
        if match := _CHURN.fullmatch(row["phase"]):
            label = f"{row['peers']:,} peers"
            lines.setdefault(label, []).append((float(match[1]), row["figures"]["found"]))
    for points in lines.values():
        points.sort()
    return {**lines, "mark": [(1.0, 0.999), (5.0, 0.995), (10.0, 0.99)]} if lines else {}


def detection(rows: Sequence[Row]) -> Lines:
    lines: Lines = {}
    for row in rows:
        for name, values in row.get("curves", {}).items():
            what = row["phase"] if name == "gone" else "refuted, by who stood still for 15 s"
            label = f"{what} ({row['peers']:,} peers)"
            steps = max(1, len(values) - 1)
            if row["scenario"] in ("detection", "refutation") and name in ("gone", "cleared"):
                lines[label] = [(value, at / steps) for at, value in enumerate(values)]
    return lines


def messages(rows: Sequence[Row]) -> Lines:
    calm = [row for row in _with(rows, "messages_p50") if _calm(row)]
    return _filled(
        {
            "half of the lookups (p50)": _over_peers(calm, "messages_p50"),
            "all but a twentieth (p95)": _over_peers(calm, "messages_p95"),
        }
    )


def upkeep(rows: Sequence[Row]) -> Lines:
    kept_up = _with(rows, "upkeep_bytes_per_s")  # of scenarios that first let a network run for minutes
    calm = [row for row in kept_up if row["phase"] == "calm" and row["scenario"].startswith("churn-")]
    alive = [row for row in _with(rows, "liveness_bytes_per_s") if row["scenario"] == "liveness-cost"]
    lines = {
        "liveness: beats, watchers chosen": _over_peers(alive, "liveness_bytes_per_s"),
        "tables refreshed, records stored again": _over_peers(calm, "upkeep_bytes_per_s"),
    }
    if any(lines.values()):
        lines[f"{BAMBOO}: less than 900 B/s"] = [(1000.0, 900.0)]
    return _filled(lines)


def sybils(rows: Sequence[Row]) -> Lines:
    lines: Lines = {}
    for row in _with(rows, "found"):
        if match := _SYBILS.fullmatch(row["phase"]):
            label = match[2] or "in networks of their own"
            lines.setdefault(label, []).append((float(match[1]), row["figures"]["found"]))
    for points in lines.values():
        points.sort()
    if lines:
        lines[f"{STOCK}: 20 hide a key"] = [(0.0, 1.0), (20.0, 0.0)]
    return lines


CURVES: Mapping[str, Callable[[Sequence[Row]], Lines]] = {
    "hops": hops,
    "churn": churn,
    "detection": detection,
    "messages": messages,
    "upkeep": upkeep,
    "sybils": sybils,
}


HEADLINES = (  # of whatever is played: what one would look at first, where nothing is asked of it
    "found",
    "hops_p50",
    "hops_p95",
    "seconds_p95",
    "messages_p95",
    "upkeep_bytes_per_s",
    "gone_p50",
    "cleared_p50",
    "wasted",
    "false_deaths",
    "liveness_bytes_per_s",
    "known_mean",
    "honest_first_20",
    "attempts_mean",
)
MAX_PANELS = 6


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure of one scenario: over the sizes of its world, or phase by phase where it has one size."""

    figure: str
    lines: Lines  # by phase over peers; or of the only size, over the number of the phase from 1
    phases: tuple[str, ...]  # what these numbers stand for; none: x is peers


def panels(rows: Sequence[Row]) -> dict[str, list[Panel]]:
    """What can be shown of each scenario: figures with a mark, then the headlines."""
    played: dict[str, list[Row]] = {}
    for row in rows:
        played.setdefault(row["scenario"], []).append(row)
    return {name: found for name, its in played.items() if (found := _panels(its))}


def _panels(rows: Sequence[Row]) -> list[Panel]:
    by_size: dict[int, list[Row]] = {}
    for row in rows:
        by_size.setdefault(row["peers"], []).append(row)
    marked = [mark["mark"].split()[0] for row in rows for mark in row["marks"]]
    found = []
    for figure in dict.fromkeys([*marked, *HEADLINES]):
        lines: Lines = {}
        for peers, its in sorted(by_size.items()):
            for number, row in enumerate(its, 1):
                if (value := row["figures"].get(figure)) is None:
                    continue
                if len(by_size) > 1:
                    lines.setdefault(f"{number}. {row['phase']}", []).append((float(peers), value))
                else:
                    lines.setdefault(f"{peers:,} peers", []).append((float(number), value))
        if lines:
            phases = () if len(by_size) > 1 else tuple(row["phase"] for row in rows)
            found.append(Panel(figure, lines, phases))
    return found[:MAX_PANELS]


def _with(rows: Sequence[Row], figure: str) -> list[Row]:
    return [row for row in rows if row["figures"].get(figure) is not None]


def _calm(row: Row) -> bool:
    """Nothing has happened, and readers are as they are."""
    calm_scenario: bool = row["phase"] == "calm" and row["figures"].get("dead_entries", 0.0) <= CALM
    return calm_scenario and "upkeep_bytes_per_s" not in row["figures"]


def _over_peers(rows: Sequence[Row], figure: str) -> Points:
    points = {float(row["peers"]): float(row["figures"][figure]) for row in rows}
    return sorted(points.items())


def _filled(lines: Lines) -> Lines:
    return {label: points for label, points in lines.items() if points}
