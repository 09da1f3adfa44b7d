"""Admission: its table, and that no ticket is ever lost, starved or admitted twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelnet_p2p.node.serving.policy.admission import Admission, Decision


def test_slots_then_queue_then_refusal() -> None:
    admission = Admission(slots=1, queue=2)
    assert admission.load == 0
    decisions = [admission.enter(ticket) for ticket in range(4)]
    assert decisions == [Decision.ADMITTED, Decision.QUEUED, Decision.QUEUED, Decision.REFUSED]
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
                assert decision is Decision.ADMITTED
                running.append(ticket)
            elif len(waiting) < queue:
                assert decision is Decision.QUEUED
                waiting.append(ticket)
            else:
                assert decision is Decision.REFUSED
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
