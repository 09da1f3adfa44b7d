"""What the figures must reach, beside what they are: ratios within one run, and some plain bounds."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from statistics import median

from rich.table import Table

from benches.figure import Figure, console_on
from benches.systems import OURS


class Sense(Enum):
    """Which side of a bound is good."""

    AT_LEAST = ">="
    AT_MOST = "<="


@dataclass(frozen=True, slots=True)
class Mark:
    """Our figure against a bound: times the median of `against` in the same run, or plain where that is None.

    It holds for our figures whose params have all of `only`, and against those of theirs that are the `same`.
    """

    figure: str
    sense: Sense
    bound: float
    against: str | None = None
    only: Mapping[str, object] = field(default_factory=dict)
    same: tuple[str, ...] = ()  # params in which theirs must be like ours


IN_PEER = {"answered": "in the peer"}
AT_LEAST, AT_MOST = Sense.AT_LEAST, Sense.AT_MOST

MARKS = (
    Mark("tensor_up_128MiB", AT_LEAST, 4.0, "hivemind"),
    Mark("tensor_up_128MiB", AT_LEAST, 1.0, "grpc"),
    Mark("tensor_up_128MiB", AT_LEAST, 0.9, "trio_tls"),
    Mark("tensor_up_16MiB", AT_LEAST, 3.5, "hivemind"),
    Mark("tensor_up_1MiB", AT_LEAST, 2.5, "hivemind"),
    Mark("cpu_s_per_GB", AT_MOST, 2.5),
    Mark("invoke_100B", AT_MOST, 0.7, "hivemind", IN_PEER),
    Mark("invoke_100B", AT_MOST, 0.8, "grpc", IN_PEER),
    Mark("calls_per_s_16", AT_LEAST, 1.0, "hivemind"),
    Mark("calls_per_s_64", AT_LEAST, 1.0, "hivemind"),
    Mark("connect_first_call", AT_MOST, 0.6, "hivemind"),
    Mark("extra_memory_128MiB", AT_MOST, 16.0),
    Mark("small_call_p99_during_bulk", AT_MOST, 5.0),
    Mark("slow_link_128MiB", AT_LEAST, 0.8, "trio"),
    Mark("handshake_cpu", AT_MOST, 5.0),
    Mark("dht_store", AT_MOST, 0.6, "hivemind", same=("bytes",)),
    Mark("dht_get", AT_MOST, 0.8, "hivemind", same=("bytes",)),
    Mark("dht_stores_per_s", AT_LEAST, 1.5, "hivemind"),
    Mark("dht_gets_per_s", AT_LEAST, 1.5, "hivemind"),
    Mark("dht_store_100", AT_MOST, 0.5, "hivemind"),
    Mark("dht_read_100", AT_MOST, 0.3, "hivemind"),
    Mark("peer_rss", AT_MOST, 0.5, "hivemind"),
    Mark("find_task_cold", AT_MOST, 15.0),
    Mark("find_task_cold_p99", AT_MOST, 60.0),
    Mark("visible_to_all", AT_MOST, 1000.0),
    Mark("gone_after_kill", AT_MOST, 20.0),
    Mark("crowd_store_failures", AT_MOST, 0.0),
    Mark("crowd_get_failures", AT_MOST, 0.0),
    Mark("expert_b1_over_model", AT_MOST, 1.5),
    Mark("expert_b1_calls_per_s_16", AT_LEAST, 3.0, "hivemind"),
    Mark("expert_b32_calls_per_s_16", AT_LEAST, 1.1, "hivemind"),
    Mark("gateway_ttft_over", AT_MOST, 5.0),
    Mark("gateway_tokens_share", AT_LEAST, 0.95),
    Mark("gateway_small_call_share", AT_MOST, 1.2),
    Mark("gateway_streams", AT_LEAST, 300.0),
    Mark("gateway_tokens_lost", AT_MOST, 0.0),
    Mark("batching_gain", AT_LEAST, 3.0),
    Mark("batching_p99_share", AT_MOST, 2.0),
    Mark("worker_fault", AT_MOST, 1000.0),
    Mark("worker_back", AT_MOST, 5000.0),
    Mark("help", AT_MOST, 300.0),
    Mark("join_ready", AT_MOST, 3000.0),
    Mark("sync_overhead", AT_MOST, 0.3),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A mark and what was reached: a ratio where it is against somebody, the median otherwise."""

    mark: Mark
    ours: Figure
    theirs: float | None
    reached: float

    @property
    def holds(self) -> bool:
        mark = self.mark
        return self.reached >= mark.bound if mark.sense is AT_LEAST else self.reached <= mark.bound


def judge(figures: Sequence[Figure], marks: Sequence[Mark] = MARKS) -> list[Verdict]:
    """The marks that this run can say something about, in their order."""
    verdicts = []
    for mark in marks:
        for ours in figures:
            fits = ours.name == mark.figure and ours.via == OURS and mark.only.items() <= ours.params.items()
            theirs = [median(f.samples) for f in figures if fits and compares(f, ours, mark)]
            if not fits or (mark.against and not theirs):
                continue
            value = median(ours.samples)
            best = max if mark.sense is AT_LEAST else min  # of the ways in which they can do it
            other = best(theirs) if mark.against else None
            verdicts.append(Verdict(mark, ours, other, value / other if other else value))
    return verdicts


def compares(other: Figure, ours: Figure, mark: Mark) -> bool:
    """Whether this figure is one that the mark holds ours against."""
    alike = all(other.params.get(key) == ours.params.get(key) for key in mark.same)
    return other.name == mark.figure and other.via == mark.against and alike


def show(verdicts: Sequence[Verdict], *, to_stderr: bool) -> None:
    """A row for each mark."""
    table = Table(title="beside the marks (medians of this run)")
    for heading in ("figure", "ours", "against", "theirs", "reached", "mark", ""):
        table.add_column(heading, justify="left" if heading in ("figure", "against") else "right")
    for verdict in verdicts:
        mark, times = verdict.mark, "x" if verdict.mark.against else ""
        params = [
            str(value)
            for key, value in verdict.ours.params.items()
            if key in ("end", "answered", "bytes", "model", "streams")
        ]
        table.add_row(
            " ".join([mark.figure, *params]),
            f"{median(verdict.ours.samples):.2f} {verdict.ours.unit}",
            mark.against or "",
            "" if verdict.theirs is None else f"{verdict.theirs:.2f}",
            f"{verdict.reached:.2f}{times}",
            f"{mark.sense.value} {mark.bound:g}{times}",
            "yes" if verdict.holds else "NO",
        )
    console_on(sys.stderr if to_stderr else sys.stdout).print(table)
