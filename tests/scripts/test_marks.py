"""The bench's verdicts: ratios of medians within one run, against the best that the others can do."""

from __future__ import annotations

import json

import pytest

from benches.figure import Figure, quantile
from benches.marks import MARKS, Mark, Sense, Verdict, judge, show

FAST = Mark("speed", Sense.AT_LEAST, 2.0, "other")
QUICK = Mark("delay", Sense.AT_MOST, 0.5, "other")
SMALL = Mark("memory", Sense.AT_MOST, 16.0)


def verdict(figures: list[Figure], mark: Mark) -> Verdict:
    [only] = judge(figures, [mark])
    return only


def test_a_ratio_is_of_medians_and_holds_at_the_bound() -> None:
    ours, other = Figure("speed", "MB/s", [1, 200, 999]), Figure("speed", "MB/s", [100], via="other")
    at_bound = verdict([ours, other], FAST)
    assert (at_bound.reached, at_bound.theirs, at_bound.holds) == (2.0, 100, True)
    assert not verdict([Figure("speed", "MB/s", [199]), other], FAST).holds


def test_lower_is_better_where_a_mark_says_at_most() -> None:
    other = Figure("delay", "ms", [10], via="other")
    assert verdict([Figure("delay", "ms", [5]), other], QUICK).holds
    assert not verdict([Figure("delay", "ms", [6]), other], QUICK).holds


def test_the_best_of_their_ways_counts() -> None:
    ways = [Figure("speed", "MB/s", [speed], {"way": str(speed)}, "other") for speed in (80, 120, 100)]
    assert verdict([Figure("speed", "MB/s", [200]), *ways], FAST).theirs == 120
    delays = [Figure("delay", "ms", [delay], via="other") for delay in (9, 7, 8)]
    assert verdict([Figure("delay", "ms", [1]), *delays], QUICK).theirs == 7


def test_a_plain_bound_is_judged_at_either_end() -> None:
    ends = [Figure("memory", "MiB", [mib], {"end": end}) for end, mib in (("caller", 3), ("server", 17))]
    assert [one.holds for one in judge(ends, [SMALL])] == [True, False]


def test_who_was_not_measured_is_not_compared() -> None:
    assert judge([Figure("speed", "MB/s", [200])], [FAST, QUICK, SMALL]) == []


def test_a_mark_holds_for_the_figures_that_it_names() -> None:
    mark = Mark("delay", Sense.AT_MOST, 0.5, "other", {"answered": "in the peer"})
    ours = [Figure("delay", "ms", [ms], {"answered": where}) for where, ms in (("in the peer", 1), ("x", 99))]
    assert verdict([*ours, Figure("delay", "ms", [10], via="other")], mark).holds


def test_the_table_says_yes_and_no(capsys: pytest.CaptureFixture[str]) -> None:
    other = Figure("speed", "MB/s", [100], via="other")
    memory = Figure("memory", "MiB", [17], {"end": "server"})
    show(judge([Figure("speed", "MB/s", [250]), other, memory], [FAST, SMALL]), to_stderr=False)
    fast, small = (line for line in capsys.readouterr().out.splitlines() if line.startswith("│"))
    assert [text in fast for text in ("speed", "2.50x", "yes")] == [True] * 3
    assert [text in small for text in ("memory server", "NO")] == [True] * 2


def test_every_mark_is_of_a_figure_with_a_known_rival() -> None:
    assert {mark.against for mark in MARKS} == {None, "hivemind", "grpc", "trio_tls", "trio"}


def test_a_quantile_is_a_sample() -> None:
    assert quantile([3, 1, 2], 0.5) == 2
    assert quantile(list(range(1, 101)), 0.99) == 99
    assert quantile([7], 0.99) == 7


def test_a_figure_is_the_contracts_line() -> None:
    line = json.loads(json.dumps(Figure("join", "ms", [3, 1, 2], {"peers": 16}).to_map()))
    assert line == {
        "figure": "join", "via": "modelnet", "unit": "ms",
        "median": 2, "min": 1, "max": 3, "n": 3, "params": {"peers": 16},
    }  # fmt: skip
