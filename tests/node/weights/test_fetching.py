"""The plan of a download: everything comes, from the fast mostly, whoever dies, lies or dawdles."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelnet_p2p.node.serving.policy.fetching import MAX_COPIES, MAX_WINDOW, Fate, Fetching

SIZE = 1000


@dataclass
class Source:
    """A holder in virtual time: seconds for each piece, one after the other; when it dies; if it lies."""

    seconds: float
    dies: float = float("inf")
    lies: bool = False
    free: float = 0.0


def play(plan: Fetching, sources: dict[str, Source]) -> tuple[float, int]:
    """Until all is there; when that was, and how many pieces were asked."""
    events: list[tuple[float, int, str, int | None]] = []
    now, count, asked = 0.0, 0, 0
    for name, source in sources.items():
        plan.add(name)
        if source.dies < float("inf"):
            heapq.heappush(events, (source.dies, count := count + 1, name, None))
    while not plan.done:
        for name in list(plan.holders):
            source = sources[name]
            while (index := plan.next(name, now)) is not None:
                asked += 1
                source.free = max(source.free, now) + source.seconds
                heapq.heappush(events, (source.free, count := count + 1, name, index))
        assert plan.holders, "nobody is left"
        looks = [at for name in plan.holders if (at := plan.look_again(name, now)) is not None and at > now]
        if looks and (not events or min(looks) < events[0][0]):
            now = min(looks)
            continue
        now, _, name, index = heapq.heappop(events)
        if name not in plan.holders:
            continue
        if index is None:
            plan.gone(name)
        elif sources[name].lies:
            plan.wrong(name)
        else:
            assert plan.came(name, index, now) is not Fate.UNASKED
    return now, asked


def test_the_fast_bring_much_and_the_slow_little() -> None:
    plan = Fetching([SIZE] * 1000)
    took, asked = play(plan, {"fast": Source(0.01), "slow": Source(0.04)})
    assert took < 1.1 * 1000 / (1 / 0.01 + 1 / 0.04)  # nobody was idle
    shares = plan.shares()
    assert 3.5 < shares["fast"].pieces / shares["slow"].pieces < 4.5
    assert asked <= 1000 + MAX_WINDOW
    assert sum(share.bytes for share in shares.values()) == 1000 * SIZE


def test_a_very_slow_one_does_not_hold_up_the_end() -> None:
    plan = Fetching([SIZE] * 200)
    took, _ = play(plan, {"fast": Source(0.01), "endless": Source(1000.0)})
    assert took < 3.0  # not 1000
    assert plan.shares()["endless"].pieces == 0


def test_one_that_dies_is_replaced() -> None:
    plan = Fetching([SIZE] * 300)
    play(plan, {"dying": Source(0.01, dies=0.5), "other": Source(0.02)})
    assert plan.shares()["dying"].pieces in range(40, 51)
    assert plan.shares()["dying"].pieces + plan.shares()["other"].pieces == 300


def test_a_liar_is_asked_once_and_never_again() -> None:
    plan = Fetching([SIZE] * 50)
    play(plan, {"liar": Source(0.001, lies=True), "honest": Source(0.01)})
    assert plan.banned == {"liar"}
    assert not plan.add("liar")
    assert plan.shares()["liar"].pieces == 0


def test_what_is_here_is_not_asked_for() -> None:
    plan = Fetching([SIZE] * 10, have={0, 1, 2, 3, 5, 6, 7, 8, 9})
    plan.add("a")
    plan.add("b")
    assert plan.left == SIZE
    assert plan.next("a", 0.0) == 4
    assert plan.next("a", 0.0) is None
    assert plan.next("b", 0.0) is None  # not yet: it may come at any moment
    at = plan.look_again("b", 0.0)
    assert at is not None
    assert plan.next("b", at) == 4
    assert plan.came("b", 4, at) is Fate.NEW
    assert plan.done
    assert plan.came("a", 4, at) is Fate.DOUBLE
    assert plan.came("a", 4, at) is Fate.UNASKED
    assert (plan.shares()["a"].bytes, plan.shares()["a"].doubles) == (0, SIZE)


def test_nothing_to_fetch() -> None:
    assert Fetching([]).done
    assert Fetching([SIZE], have={0}).done


@pytest.mark.parametrize("seed", range(5))
def test_everything_comes_as_long_as_one_honest_holder_lives(seed: int) -> None:
    rng = random.Random(seed)
    sources = {
        f"holder{at}": Source(
            rng.uniform(0.001, 0.3), rng.choice([0.2, 1.0, float("inf")]), rng.random() < 0.3
        )
        for at in range(rng.randrange(8))
    }
    plan = Fetching([SIZE] * rng.randrange(1, 300))
    play(plan, sources | {"honest": Source(rng.uniform(0.001, 0.3))})
    assert plan.done
    assert plan.left == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.floats(0, 1)), max_size=200))
def test_never_too_many_copies_and_always_in_step(steps: list[tuple[int, int, float]]) -> None:
    plan, now = Fetching([SIZE] * 12), 0.0
    owed: dict[str, list[int]] = {}
    for who, what, later in steps:
        now, name = now + later, f"h{who}"
        if what == 0 and plan.add(name):
            owed.setdefault(name, [])
        elif name in plan.holders:
            match what:
                case 1 | 4:
                    if (index := plan.next(name, now)) is not None:
                        owed[name].append(index)
                case 2 if owed[name]:
                    assert plan.came(name, owed[name].pop(0), now) in (Fate.NEW, Fate.DOUBLE)
                case 3:
                    plan.gone(name)
                    owed[name] = []
        flying = [index for indexes in owed.values() for index in indexes]
        assert all(flying.count(index) <= MAX_COPIES for index in flying)
        assert all(len(set(indexes)) == len(indexes) <= MAX_WINDOW for indexes in owed.values())
    plan.add("last")
    while not plan.done:
        now += 100
        index = plan.next("last", now)
        if index is None:
            for name in [name for name in plan.holders if name != "last"]:
                plan.gone(name)
            continue
        assert plan.came("last", index, now) is Fate.NEW
    assert plan.left == 0
