"""Admission: its table, and that no ticket is ever lost, starved or admitted twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelnet_p2p.node.serving.policy.admission import Admission, Admitted, Queued, Refused


def test_slots_then_queue_then_refusal() -> None:
    admission = Admission(slots=1, queue=2)
    assert admission.load == 0
    decisions = [admission.enter(ticket) for ticket in range(4)]
    assert decisions == [Admitted(), Queued(), Queued(), Refused()]
    assert (admission.in_flight, admission.queued, admission.load) == (1, 2, 1.0)
    assert admission.leave(1) is None  # gave up waiting
    assert admission.leave(0) == 2
    assert admission.leave(2) is None
    assert admission.load == 0


def test_illegal_moves_raise() -> None:
    admission = Admission(1)
    admission.enter(1)
    with pytest.raises(ValueError, match="already in"):
        admission.enter(1)
    with pytest.raises(ValueError):
        admission.leave(2)
    with pytest.raises(ValueError):
        Admission(0)


@given(
    st.integers(1, 3),
    st.integers(0, 4),
    st.lists(st.one_of(st.none(), st.integers(0, 100)), max_size=60),
)
def test_first_come_first_served_within_the_bounds(slots: int, queue: int, moves: list[int | None]) -> None:
    """None: somebody comes. A number: that one, of those who are in, leaves."""
    admission = Admission(slots, queue)
    running: list[int] = []
    waiting: list[int] = []
    for ticket, move in enumerate(moves):
        if move is None:
            decision = admission.enter(ticket)
            if len(running) < slots:
                assert decision == Admitted()
                running.append(ticket)
            elif len(waiting) < queue:
                assert decision == Queued()
                waiting.append(ticket)
            else:
                assert decision == Refused()
        elif inside := running + waiting:
            leaving = inside[move % len(inside)]
            following = admission.leave(leaving)
            if leaving in waiting:
                waiting.remove(leaving)
                assert following is None
            else:
                running.remove(leaving)
                assert following == (waiting[0] if waiting else None)
                if waiting:
                    running.append(waiting.pop(0))
        assert (admission.in_flight, admission.queued) == (len(running), len(waiting))
        assert 0 <= admission.load <= 1


def test_who_floods_a_model_waits_for_himself() -> None:
    admission = Admission(slots=1, queue=4)
    for ticket in range(5):  # mallory takes the slot and all of the queue
        admission.enter(ticket, "mallory")
    assert admission.enter(5, "mallory") == Refused()
    assert admission.enter(6, "alice") == Queued(evicted=4)  # his last one gives way
    assert admission.enter(7, "bob") == Queued(evicted=3)
    assert admission.enter(8, "bob") == Refused()  # two of mallory's wait, one of bob's: near enough
    order, following = [], admission.leave(0)
    while following is not None:
        order.append(following)
        following = admission.leave(following)
    assert order == [1, 6, 7, 2]  # in turns, and nobody twice before the others
    with pytest.raises(ValueError, match="not in"):
        admission.leave(4)  # an evicted ticket is out already


@given(st.integers(1, 3), st.integers(0, 5), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 99))))
def test_whoever_comes_no_ticket_is_lost_or_admitted_twice(
    slots: int, queue: int, moves: list[tuple[int, int]]
) -> None:
    """A move: a caller comes (1 to 3), or somebody of those who are in leaves (0)."""
    admission = Admission(slots, queue)
    running: set[int] = set()
    waiting: set[int] = set()
    for ticket, (caller, which) in enumerate(moves):
        if caller:
            match admission.enter(ticket, str(caller)):
                case Admitted():
                    running.add(ticket)
                case Queued(evicted):
                    if evicted is not None:
                        waiting.remove(evicted)
                    waiting.add(ticket)
        elif inside := sorted(running | waiting):
            leaving = inside[which % len(inside)]
            following = admission.leave(leaving)
            assert (following is None) == (leaving in waiting or not waiting)
            running.discard(leaving)
            waiting.discard(leaving)
            if following is not None:
                waiting.remove(following)
                running.add(following)
        assert (admission.in_flight, admission.queued) == (len(running), len(waiting))
        assert len(running) <= slots
        assert len(waiting) <= queue
