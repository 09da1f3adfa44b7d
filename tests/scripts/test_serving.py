"""The bench of serving as real processes: every figure has samples, of each system, and nothing is left."""

from __future__ import annotations

import os
import time

import pytest
from rich.console import Console

from benches import environment, serving
from benches.rigs.serving_stage import EXPERT
from benches.serving import RIGS, RIVAL, Plan
from benches.systems import OURS, rigs

pytest.importorskip("torch")
pytestmark = pytest.mark.live

QUIET = Console(quiet=True)
SMALL = Plan(rounds=1, calls=3, rate_seconds=0.1, kills=1)


def gone(pids: set[int]) -> bool:
    return not any(os.path.exists(f"/proc/{pid}") for pid in pids)


def test_every_figure_of_ours_has_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "QUICK", SMALL)
    monkeypatch.setattr(serving, "WARM_UP", 1)
    monkeypatch.setattr(serving, "KILLED", {"napping": "a Python callable"})
    figures = list(serving.measure(True, [], QUIET))
    names = {figure.name for figure in figures}
    assert names >= {
        "expert_b1",
        "expert_b1_over_model",
        "expert_b1_calls_per_s_16",
        "expert_b32_calls_per_s_16",
    }
    assert names >= {"batching_gain", "batching_p99_share", "worker_fault", "worker_back"}
    assert all(figure.samples and figure.via == OURS for figure in figures)
    [fault] = [figure for figure in figures if figure.name == "worker_fault"]
    [back] = [figure for figure in figures if figure.name == "worker_back"]
    assert 0 < fault.samples[0] < back.samples[0]


@pytest.mark.skipif(environment.missing() is not None, reason=environment.missing() or "")
def test_the_other_expert_server_does_what_is_asked_and_leaves_nobody() -> None:
    with rigs({RIVAL: RIGS[RIVAL]}) as [system]:
        everybody = system.pids()
        with system.awake():
            assert len(system.order(do="calls", model=EXPERT, rows=1, count=2)["seconds"]) == 2
            assert len(system.order(do="alone", rows=1, count=2)["seconds"]) == 2
            told = system.order(do="rate", model=EXPERT, rows=1, callers=4, seconds=0.1)
            assert told["calls"] == len(told["each"]) >= 4
    until = time.monotonic() + 20
    while not gone(everybody):  # its own helpers look now and then whether their parent is there
        assert time.monotonic() < until
        time.sleep(0.05)
