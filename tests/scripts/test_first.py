"""The bench of the first minutes: both faces take turns at the same things, and each has its figures."""

from __future__ import annotations

import time

import numpy as np
import pytest

from benches import first
from benches.first_calls import ECHO, SERVED, SINK, SPRING, Face, Plan, check, one_turn, units
from processes import Failed


def test_a_turn_takes_every_figure_once() -> None:
    asked: list[tuple[str, object, int]] = []

    def batch(model: str, value: object, times: int) -> list[float]:
        asked.append((model, value.nbytes if isinstance(value, np.ndarray) else value, times))
        return [0.5] * times

    face = Face("Peer", batch, lambda model, times: [0.25] * times)
    one_turn(face, Plan(rounds=1, calls=3, finds=2, transfers=4))
    assert face.samples.keys() == units().keys()
    assert face.samples["find_again"] == [250.0, 250.0]  # ms
    assert face.samples["call"] == [500.0] * 3
    assert face.samples["send_1MiB"] == [pytest.approx(2 * 1.048576)] * 4  # MB in half a second
    assert asked[1:] == [(SINK, 1 << 20, 4), (SPRING, 1, 4), (SINK, 16 << 20, 4), (SPRING, 16, 4)]
    assert {model for model, *_ in asked} == {ECHO, SINK, SPRING} == {model for _, model in SERVED}


@pytest.mark.parametrize("nothing", [None, [], np.zeros(0)])
def test_an_empty_answer_is_no_sample(nothing: object) -> None:
    with pytest.raises(Failed, match="empty"):
        check(nothing)


def test_commands_are_timed_in_milliseconds() -> None:
    began = time.perf_counter()
    samples = first.timed(lambda: sum(range(10_000)), 3)
    assert len(samples) == 3
    assert 0 < sum(samples) <= (time.perf_counter() - began) * 1000
