"""The latest calls of a model, on a clock that the tests turn themselves."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelnet_p2p.errors import Code
from modelnet_p2p.node.serving.policy.recent import (
    MAX_TIMES,
    MAX_WORDS,
    RATE_SECONDS,
    RECENT_SECONDS,
    Recent,
    merged,
)


def test_a_model_that_nobody_calls_has_no_times() -> None:
    recent = Recent(100.0)
    assert recent.pace(200.0).to_map() == {"calls_per_s": 0.0, "p50_ms": None, "p99_ms": None}


def test_a_steady_stream_of_calls() -> None:
    recent = Recent(0.0)
    for i in range(300):  # ten a second, half a minute long
        recent.on_answer(i / 10, i / 10 + 0.005)
    pace = recent.pace(30.0)
    assert pace.calls_per_s == pytest.approx(10, rel=0.02)
    assert [pace.p50_ms, pace.p99_ms] == pytest.approx([5, 5])


def test_the_rate_is_exact_where_times_are_dropped() -> None:
    recent = Recent(0.0)
    for i in range(MAX_TIMES * 20):
        recent.on_answer(20 + i / 1024, 20 + i / 1024)
    pace = recent.pace(30.0)
    assert pace.calls_per_s == pytest.approx(1024, rel=0.15)


def test_calls_in_the_first_second_are_no_flood() -> None:
    recent = Recent(5.0)
    recent.on_answer(5.0, 5.01)
    assert recent.pace(5.02).calls_per_s == 1


def test_what_is_long_over_no_longer_counts() -> None:
    recent = Recent(0.0)
    recent.on_answer(1.0, 2.0)
    assert recent.pace(2.0 + RATE_SECONDS).calls_per_s == 0
    assert recent.pace(2.0 + RECENT_SECONDS).p50_ms == 1000
    assert recent.pace(2.1 + RECENT_SECONDS).p50_ms is None


def test_the_slow_one_in_a_hundred_is_seen() -> None:
    recent = Recent(0.0)
    for took in [0.001] * 98 + [2.0, 2.0]:
        recent.on_answer(5.0, 5.0 + took)
    pace = recent.pace(8.0)
    assert [pace.p50_ms, pace.p99_ms] == pytest.approx([1, 2000])


def test_failures_in_a_row_are_the_models_own_and_end_with_an_answer() -> None:
    recent = Recent(0.0)
    for code in (Code.MODEL_ERROR, Code.BAD_INPUT, Code.BUSY, Code.DEADLINE, Code.MODEL_ERROR):
        recent.on_fault(code, f"it says {code} " + "x" * 1000, 1.0)
    assert recent.failing == 2
    assert recent.words.startswith("it says model-error xxx")
    assert len(recent.words) == MAX_WORDS
    assert recent.pace(1.0).calls_per_s == 5
    recent.on_answer(1.0, 1.1)
    assert recent.failing == 0


def test_several_models_together() -> None:
    quick, slow = Recent(0.0), Recent(0.0)
    for _ in range(9):
        quick.on_answer(1.0, 1.001)
    slow.on_answer(1.0, 2.0)
    together = merged([quick, slow], 2.0)
    assert [together.p50_ms, together.p99_ms] == pytest.approx([1, 1000])
    assert together.calls_per_s == quick.pace(2.0).calls_per_s + slow.pace(2.0).calls_per_s


@given(st.lists(st.floats(0, 100, allow_subnormal=False), min_size=1, max_size=MAX_TIMES))
def test_the_shares_are_what_the_definition_says(times: list[float]) -> None:
    recent = Recent(0.0)
    for took in times:
        recent.on_answer(50.0 - took, 50.0)
    pace = recent.pace(50.0)
    kept = sorted((50.0 - (50.0 - took)) * 1e3 for took in times)
    for share, told in ((0.5, pace.p50_ms), (0.99, pace.p99_ms)):
        assert told == kept[math.ceil(share * len(kept)) - 1]
