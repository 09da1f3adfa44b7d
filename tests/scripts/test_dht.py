"""The bench's DHTs as real processes: what one peer stores another finds, and every figure has samples."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
from rich.console import Console

from benches import crowd, dht, environment, finding
from benches.dht import RIVAL, Plan, Samples, Swarm, open_swarm
from benches.figure import Figure
from benches.marks import Mark, Sense, judge
from benches.rigs.dht_stage import CARD_BYTES, MANY, OFFER_BYTES
from benches.systems import OURS
from processes import Failed

SMALL = Plan(turns=1, stores=3, at_once=40, many=2, many_reads=2, idle=1)
QUIET = Console(quiet=True)
SYSTEMS = [
    OURS,
    pytest.param(
        RIVAL, marks=pytest.mark.skipif(environment.missing() is not None, reason=environment.missing() or "")
    ),
]


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dht, "SETTLE_SECONDS", 1.0)
    monkeypatch.setattr(finding, "SETTLE_SECONDS", 1.0)
    monkeypatch.setattr(dht, "PROCESSES", {OURS: 2, RIVAL: 1})


@pytest.fixture
def swarm(request: pytest.FixtureRequest) -> Iterator[Swarm]:
    with open_swarm(request.param, 6) as swarm:
        yield swarm


def gone(pids: set[int]) -> bool:
    return not any(os.path.exists(f"/proc/{pid}") for pid in pids)


@pytest.mark.live
@pytest.mark.parametrize("swarm", SYSTEMS, indirect=True)
def test_what_one_peer_stores_another_finds(swarm: Swarm) -> None:
    assert len(swarm) == 6
    for name, size in (("s1", CARD_BYTES), ("l1", OFFER_BYTES)):
        assert swarm.order(1, do="store", name=name, bytes=size)["ok"]
        told = swarm.order(5, do="get", name=name, owner=swarm.owner(1))
        assert told["records"] == 1
        assert 0 < told["seconds"] < 5
    assert swarm.order(5, do="get", name="s2", owner=swarm.owner(1))["records"] == 0
    assert swarm.order(2, do="store_many", name="s3")["ok"]
    assert swarm.order(4, do="get", name="s3", owner=swarm.owner(2))["records"] == MANY
    assert swarm.order(0, do="stores", name="s4", bytes=CARD_BYTES, count=40)["done"] == 40
    assert swarm.order(3, do="gets", name="s4", owner=swarm.owner(0), count=41)["done"] == 40


@pytest.mark.live
def test_a_turn_fills_every_figure_and_leaves_nobody() -> None:
    samples = Samples()
    with open_swarm(OURS, 44) as swarm:  # far more than the 20 that hold a record, and whoever has a copy
        pids = swarm.pids()
        dht.take_turn(swarm, SMALL, samples, 0)
    assert gone(pids)
    names = {name for name, _, _ in samples.found}
    one = {"dht_store", "dht_get", "dht_store_cpu", "dht_get_cpu", "peer_rss"}
    assert names == one | {"dht_stores_per_s", "dht_gets_per_s", "dht_store_100", "dht_read_100"}
    assert all(value > 0 for values in samples.found.values() for value in values)


class Forgetful(Swarm):
    """Stores nothing and says that it did."""

    def __init__(self) -> None:
        self.via = "forgetful"

    def __len__(self) -> int:
        return 4

    def owner(self, peer: int) -> str:
        return ""

    def pids(self) -> set[int]:
        return set()

    def order(self, peer: int, **order: object) -> dict[str, object]:
        return {"ok": True, "records": 0, "local": False, "seconds": 0.001, "done": 0}


def test_what_is_not_found_is_no_sample_but_the_end() -> None:
    with pytest.raises(Failed, match="was not found"):
        dht.read_one(Forgetful(), (0, "s1"), random.Random(1))
    with pytest.raises(Failed, match="0 of 40 stores"):
        dht.rates(Forgetful(), SMALL, Samples(), 0)


@pytest.mark.live
def test_finding_across_processes_has_all_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "PEERS", 3)
    monkeypatch.setattr(finding, "READERS", 2)
    monkeypatch.setattr(finding, "QUICK", finding.Plan(tasks=1, publishes=1, kills=1))
    figures = {figure.name: figure for figure in finding.measure(True, QUIET)}
    assert list(figures) == ["find_task_cold", "find_task_cold_p99", "visible_to_all", "gone_after_kill"]
    assert len(figures["find_task_cold"].samples) == 6
    assert max(figures["find_task_cold"].samples) == figures["find_task_cold_p99"].samples[0]


@pytest.mark.live
def test_a_crowd_counts_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "QUICK", crowd.Plan(peers=24, stores=12))
    figures = {figure.name: figure for figure in crowd.measure(True, [], QUIET)}
    assert figures["crowd_store_failures"].samples == [0]
    assert figures["crowd_get_failures"].samples == [0]
    assert len(figures["crowd_store"].samples) == 12
    assert figures["crowd_memory"].samples[0] > 1


def test_figures_are_held_against_their_like() -> None:
    mark = Mark("dht_store", Sense.AT_MOST, 0.6, "other", same=("bytes",))
    figures = [Figure("dht_store", "ms", [ms], {"bytes": size}) for size, ms in ((300, 5), (3500, 20))]
    figures += [
        Figure("dht_store", "ms", [ms], {"bytes": size}, "other") for size, ms in ((300, 10), (3500, 40))
    ]
    assert [one.reached for one in judge(figures, [mark])] == [0.5, 0.5]
