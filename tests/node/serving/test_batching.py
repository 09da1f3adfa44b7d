"""Batching: its table; that every call runs once, in a step of its kind, with nobody overtaken for ever."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelnet_p2p.node.serving.policy.batching import GATHER_SHARE, MAX_GATHER, Batching, Run, Wait


def test_a_lone_caller_never_waits() -> None:
    batching = Batching(32)
    now = 0.0
    for ticket in range(100):
        assert batching.poll(now) is None
        batching.add(ticket, "alice", "a", 1)
        assert batching.poll(now) == Run((ticket,))
        now += 0.010
        batching.ended(now)
        now += 0.0001


def test_what_comes_during_a_step_shares_the_next_one() -> None:
    batching = Batching(8)
    batching.add(0, "alice", "a", 1)
    assert batching.poll(0) == Run((0,))
    for ticket, kind in enumerate("aabaNa", 1):
        batching.add(ticket, "alice", None if kind == "N" else kind, 1)
        assert batching.poll(0) is None  # one step at a time
    batching.ended(0)
    assert batching.poll(0) == Run((1, 2, 4, 6))
    batching.ended(0)
    assert batching.poll(0) == Run((3,))
    batching.ended(0)
    assert batching.poll(0) == Run((5,))
    batching.ended(0)
    assert batching.poll(0) is None


def test_a_step_is_no_larger_than_the_model_takes() -> None:
    batching = Batching(8)
    for ticket, rows in enumerate((9, 5, 4, 3, 1)):
        batching.add(ticket, "alice", "a", rows)
    assert batching.poll(0) == Run((0,))  # more than fits: alone, as without batching
    batching.ended(0)
    assert batching.poll(0) == Run((1, 3))
    batching.ended(0)
    assert batching.poll(0) == Run((2, 4))


def test_callers_take_turns() -> None:
    batching = Batching(4)
    for ticket in range(6):
        batching.add(ticket, "alice", "a", 1)
    batching.add(6, "bob", "a", 1)
    batching.add(7, "carol", "a", 1)
    assert batching.poll(0) == Run((0, 6, 7, 1))


def test_after_a_shared_step_the_next_one_waits_for_those_who_were_answered() -> None:
    batching = Batching(8)
    for ticket in range(3):
        batching.add(ticket, f"caller {ticket}", "a", 1)
    assert batching.poll(0) == Run((0, 1, 2))
    batching.add(3, "dora", "a", 1)
    batching.ended(0.004)
    until = 0.004 + min(MAX_GATHER, 0.004 * GATHER_SHARE)
    assert batching.poll(0.004) == Wait(until)
    batching.add(4, "caller 0", "a", 1)
    batching.add(5, "caller 1", "a", 1)
    assert batching.poll(0.0041) == Wait(until)
    batching.add(6, "caller 2", "a", 1)  # all are back
    assert batching.poll(0.0042) == Run((3, 4, 5, 6))


def test_a_wait_is_short_and_ends_when_the_step_is_full() -> None:
    batching = Batching(2)
    for ticket in range(3):
        batching.add(ticket, "alice", "a", 1)
    assert batching.poll(0) == Run((0, 1))
    batching.ended(60)
    assert batching.poll(60) == Wait(60 + MAX_GATHER)
    batching.add(3, "bob", "a", 1)
    assert batching.poll(60) == Run((2, 3))


def test_who_waits_for_nobody_stops_waiting() -> None:
    batching = Batching(8)
    now, waits = 0.0, 0
    batching.add(-1, "alice", "a", 1)
    batching.poll(now)
    for ticket in range(200):  # two callers, each of whom comes back only when the next step runs
        batching.add(ticket, "bob", "a", 1)
        now += 0.004
        batching.ended(now)
        decision = batching.poll(now)
        if isinstance(decision, Wait):
            waits += 1
            now = decision.until
            decision = batching.poll(now)
        assert decision == Run((ticket,))
    assert 3 <= waits <= 10


def test_one_who_gave_up_is_not_run() -> None:
    batching = Batching(8)
    for ticket in range(3):
        batching.add(ticket, "alice", "a", 1)
    batching.remove(0)
    batching.remove(99)
    assert batching.poll(0) == Run((1, 2))
    batching.remove(1)  # it runs: its driver knows
    batching.ended(0)
    assert batching.poll(0) is None
    with pytest.raises(ValueError, match="already in"):
        for _ in range(2):
            batching.add(5, "alice", "a", 1)


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 80))
def test_every_call_runs_once_with_its_like_and_in_time(seed: int, limit: int, calls: int) -> None:
    rng = random.Random(seed)
    batching = Batching(limit)
    now, came, left = 0.0, 0, set[int]()
    facts: dict[int, tuple[object, int]] = {}
    since: dict[int, int] = {}  # the steps begun when it came
    ran: list[int] = []
    running: tuple[int, ...] = ()
    steps = 0
    while came < calls or batching.waiting or running:
        move = rng.random()
        if move < 0.5 and came < calls:
            facts[came] = rng.choice([None, "a", "b", 7]), rng.randint(1, 4)
            batching.add(came, rng.choice("xyz"), *facts[came])
            since[came] = steps
            came += 1
        elif move < 0.6 and came and (gone := rng.randrange(came)) not in (*ran, *left):
            batching.remove(gone)
            left.add(gone)
        elif running:
            now += rng.random() * 0.02
            batching.ended(now)
            running = ()
        match batching.poll(now):
            case Run(tickets):
                assert not running
                kinds = {facts[ticket][0] for ticket in tickets}
                assert len(kinds) == 1
                assert len(tickets) == 1 or (None not in kinds and sum(facts[t][1] for t in tickets) <= limit)
                assert min(tickets) == min(t for t in range(came) if t not in (*ran, *left))
                assert steps - since[min(tickets)] <= calls
                ran += tickets
                running = tickets
                steps += 1
            case Wait(until):
                assert now < until <= now + MAX_GATHER
                now = until
            case None:
                assert running or not batching.waiting
    assert sorted([*ran, *left]) == list(range(calls))
