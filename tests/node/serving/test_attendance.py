"""Who is there and when to ask again: the table of it, and what holds for every course of events."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelnet_p2p.node.serving.policy.attendance import Attendance, Rhythm

RHYTHM = Rhythm(between=10, again=1, failures=3, longest=60)


def test_it_takes_three_failures_to_be_away_and_one_answer_to_be_back() -> None:
    one = Attendance(RHYTHM, 100)
    assert (one.is_here, one.next_at) == (False, 100)
    one.on_answer(100)
    assert (one.is_here, one.next_at) == (True, 110)
    seen = []
    now = 110.0
    for _ in range(10):
        one.on_silence(now)
        seen.append((one.is_here, one.next_at - now))
        now = one.next_at
    assert seen[:4] == [(True, 1), (True, 1), (False, 1), (False, 2)]
    assert seen[-1] == (False, 60)
    one.on_answer(now)
    assert (one.is_here, one.next_at) == (True, now + 10)


def test_doubt_brings_the_next_look_forward_and_no_nearer_than_a_second() -> None:
    one = Attendance(RHYTHM, 0)
    one.on_answer(0)
    for _ in range(100):
        one.on_doubt()
    assert one.next_at == 1
    one.on_answer(1)
    assert one.next_at == 11


@given(st.lists(st.sampled_from(["answer", "silence", "doubt"]), max_size=40))
def test_looks_are_never_nearer_than_a_second_nor_further_than_a_minute(events: list[str]) -> None:
    one, now = Attendance(RHYTHM, 0), 0.0
    for event in events:
        if event == "doubt":
            one.on_doubt()
            continue
        now = max(now, one.next_at)
        one.on_answer(now) if event == "answer" else one.on_silence(now)
        assert now + 1 <= one.next_at <= now + 60
