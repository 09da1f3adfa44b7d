"""The bench of serving as real processes: every figure has samples, of each system, and nothing is left."""

from __future__ import annotations

import os
import time
from importlib.util import find_spec

import pytest
from rich.console import Console

from benches import environment, gateway, serving
from benches.rigs.serving_stage import EXPERT
from benches.serving import RIGS, RIVAL, Plan
from benches.systems import OURS, rigs

pytestmark = pytest.mark.live
needs_torch = pytest.mark.skipif(find_spec("torch") is None, reason="torch is not installed")

QUIET = Console(quiet=True)
SMALL = Plan(rounds=1, calls=3, rate_seconds=0.1, kills=1)


def gone(pids: set[int]) -> bool:
    return not any(os.path.exists(f"/proc/{pid}") for pid in pids)


@needs_torch
def test_every_figure_of_ours_has_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "WARM_UP", 1)
    monkeypatch.setattr(serving, "KILLED", {"napping": "a Python callable"})
    monkeypatch.setenv("BENCH_MODELS", "napping")  # each of the others loads torch
    with rigs({OURS: RIGS[OURS]}) as [ours]:
        figures = [
            *serving.calls([ours], SMALL, 1),
            *serving.calls_per_s([ours], SMALL, 1),
            *serving.batching(ours, SMALL, on="napping", off="napping"),
            *serving.killed(ours, SMALL),
        ]
    names = {figure.name for figure in figures}
    assert names >= {"expert_b1", "expert_b1_over_model", "expert_b1_calls_per_s_16"}
    assert names >= {"expert_b1_alone", "expert_b1_packed", "expert_b1_over_packed"}
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


def test_the_gateway_has_all_its_figures_and_loses_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = gateway.Plan(rounds=1, answers=1, tokens=5, fast=50, calls=5, streams=20, crowd_tokens=3)
    monkeypatch.setattr(gateway, "QUICK", plan)
    monkeypatch.setattr(gateway, "PROVIDERS", 2)
    figures = list(gateway.measure(True, QUIET))
    names = [figure.name for figure in figures]
    assert names[:3] == ["gateway_ttft_over", "gateway_tokens_share", "gateway_tokens_per_s"]
    assert {"gateway_small_call_share", "gateway_streams"} <= set(names)
    lost = [figure for figure in figures if figure.name == "gateway_tokens_lost"]
    assert [(figure.samples, figure.params["streams"]) for figure in lost] == [([0.0], 1), ([0.0], 20)]


def test_words_that_are_lost_or_out_of_their_place_are_counted() -> None:
    assert gateway.in_order(["0 ", "1 ", "2 "]) == 3
    assert gateway.in_order(["0 ", "2 ", "1 "]) == 1
    assert gateway.in_order([]) == 0
    assert gateway.piece_of('data: {"choices": [{"delta": {"content": "0 "}}]}') == "0 "
    assert gateway.piece_of(b'data: {"choices": [], "usage": {}}\n') is None
    assert gateway.piece_of("data: [DONE]") is None
