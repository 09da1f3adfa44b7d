"""Who is given up and when: a table of silences, and a property over random arrivals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelnet_p2p.node.transport.wire.vitality import (
    ANSWER,
    BODY,
    BYTES_PER_SECOND,
    IDLE,
    REST,
    TAKING,
    TAKING_FLOODED,
    Dead,
    Ping,
    Vitality,
)


def look(
    v: Vitality, now: float, *, written: int = 0, waiting: bool = False, flooded: bool = False
) -> Ping | Dead | None:
    return v.poll(now, written=written, waiting=waiting, flooded=flooded)


def looks(v: Vitality, start: float, end: float, **state: bool) -> list[tuple[float, object]]:
    """What it said at the looks of each second in that time."""
    found, now = list[tuple[float, object]](), start
    while now <= end:
        if (said := look(v, now, **state)) is not None:
            found.append((now, said))
        now += 1.0
    return found


def test_the_figures_keep_the_promise() -> None:
    one_look = 1.0
    assert IDLE + ANSWER + 2 * one_look <= 15
    assert BODY + one_look <= 10
    assert TAKING_FLOODED + 2 * one_look <= 10


def test_silence_is_asked_once_and_then_the_end() -> None:
    v = Vitality(0.0)
    said = looks(v, 0.5, 20.5)
    assert said[0] == (5.5, Ping())
    assert said[1][0] == 13.5
    assert isinstance(said[1][1], Dead)


def test_a_connection_that_nobody_needs_is_asked_rarely_until_something_is_said_on_it() -> None:
    v, now, pings = Vitality(0.0), 0.0, list[float]()
    while now < 10 * REST:  # it answers each ping
        now += 1.0
        if v.poll(now, written=0, waiting=False, flooded=False, resting=True) == Ping():
            pings.append(now)
            v.on_bytes(now + 0.01, 30, len(pings), inside=False)
    assert len(pings) == 9
    assert v.poll(now, written=0, waiting=False, flooded=False, resting=True) is None
    said = [v.poll(now + at, written=100, waiting=False, flooded=False, resting=True) for at in range(1, 20)]
    assert said.index(Ping()) <= IDLE
    ping, end, *_ = (one for one in said if one is not None)
    assert ping == Ping()
    assert isinstance(end, Dead)


def test_what_was_answered_puts_nothing_at_stake() -> None:
    v = Vitality(0.0)
    for now in range(1, 8):  # said, and answered within the second
        v.on_bytes(now - 0.5, 30, now, inside=False)
        assert v.poll(float(now), written=100 * now, waiting=False, flooded=False, resting=True) is None
    for now in range(8, 8 + int(REST) - 2):
        assert v.poll(float(now), written=700, waiting=False, flooded=False, resting=True) is None


def test_where_nothing_changes_it_need_be_asked_only_each_few_seconds() -> None:
    v, polls, written = Vitality(0.0), list[float](), 0
    for now in map(float, range(1, 60)):
        changed = now == 30.0
        if changed:  # it asks something, and is answered
            v.on_bytes(29.5, 30, 1, inside=False)
            written = 100
        if changed or v.due <= now:
            polls.append(now)
            assert v.poll(now, written=written, waiting=False, flooded=False, resting=True) is None
    assert polls == [1.0, 6.0, 11.0, 16.0, 21.0, 26.0, 30.0, 35.0, 40.0, 45.0, 50.0, 55.0]


def test_who_is_not_asked_loses_nothing_by_it() -> None:
    for always in (True, False):
        v, said = Vitality(0.0), list[tuple[float, object]]()
        for now in map(float, range(1, 200)):
            if always or v.due <= now:
                said.append((now, v.poll(now, written=0, waiting=False, flooded=False, resting=True)))
        told = [(at, type(what)) for at, what in said if what is not None][:2]
        assert told == [(REST, Ping), (REST + ANSWER, Dead)]


def test_any_byte_is_a_sign_of_life() -> None:
    v = Vitality(0.0)
    assert [at for at, _ in looks(v, 1.0, 9.0)] == [5.0]
    v.on_bytes(9.5, 1, 0, inside=False)
    assert looks(v, 10.0, 14.0) == []
    assert looks(v, 15.0, 15.0) == [(15.0, Ping())]


def test_three_seconds_of_freeze_harm_nothing_whenever_they_come() -> None:
    for start in range(20):
        v = Vitality(0.0)
        for now in range(1, 40):
            if not start <= now < start + 3 and look(v, float(now)) == Ping():
                v.on_bytes(now + 0.1, 30, now, inside=False)
            elif start <= now < start + 3:
                assert not isinstance(look(v, float(now)), Dead)
                if now == start + 2:
                    v.on_bytes(now + 0.9, 30, now, inside=False)


def test_a_frame_that_has_begun_must_go_on() -> None:
    v = Vitality(0.0)
    v.on_bytes(1.0, 10, 0, inside=True)
    said = [at for at, what in looks(v, 2.0, 10.0) if isinstance(what, Dead)]
    assert said[0] == 7.0


def test_a_trickle_is_borne_at_its_least_rate_and_not_below() -> None:
    for rate, borne in ((BYTES_PER_SECOND + 50, True), (BYTES_PER_SECOND // 2, False)):
        v, said = Vitality(0.0), list[object]()
        for now in range(1, 60):
            v.on_bytes(float(now), rate, 0, inside=True)
            said.append(look(v, now + 0.5))
        assert any(isinstance(s, Dead) for s in said) is not borne


def test_each_frame_has_its_own_time() -> None:
    v = Vitality(0.0)
    for now in range(1, 60):  # a frame a second, and always the beginning of the next one
        v.on_bytes(float(now), 100, now, inside=True)
        assert look(v, now + 0.5) is None


def test_a_pause_of_ours_is_nobodys_fault() -> None:
    v = Vitality(0.0)
    v.on_bytes(1.0, 10, 0, inside=True)
    assert look(v, 1.5) is None
    v.on_overslept(61.5)  # we slept for a minute: what came meanwhile is not read yet
    assert look(v, 62.5) is None
    v = Vitality(0.0)
    assert [at for at, _ in looks(v, 1.0, 6.0)] == [5.0]  # a ping is out
    v.on_overslept(100.0)
    assert looks(v, 101.0, 104.0) == []


def test_paused_reading_counts_for_neither_side() -> None:
    v = Vitality(0.0)
    v.on_bytes(0.5, 10, 0, inside=True)
    for now in range(1, 30):
        v.on_pause(float(now))
        assert look(v, now + 0.5) is None


@pytest.mark.parametrize(("flooded", "patience"), [(False, TAKING), (True, TAKING_FLOODED)])
def test_who_takes_nothing_of_what_we_send_is_given_up(flooded: bool, patience: float) -> None:
    v, end = Vitality(0.0), None
    for now in range(1, 60):
        v.on_bytes(float(now), 5000, now, inside=False)  # it sends all the time
        said = look(v, now + 0.5, written=7 if now >= 3 else now, waiting=True, flooded=flooded)
        if isinstance(said, Dead):
            end = now + 0.5
            break
    assert end is not None
    assert patience <= end - 3.5 <= patience + 1
    v = Vitality(0.0)
    assert looks(v, 1.0, 4.0, waiting=False, flooded=flooded) == []


@given(st.lists(st.tuples(st.floats(0.01, 20.0), st.integers(1, 5000), st.booleans()), max_size=60))
def test_whoever_is_given_up_had_his_time(arrivals: list[tuple[float, int, bool]]) -> None:
    v, now, frames, heard, began = Vitality(0.0), 0.0, 0, 0.0, 0.0
    next_look, pinged = 1.0, False
    for gap, count, inside in arrivals:
        while next_look < now + gap:
            said = look(v, next_look)
            if isinstance(said, Dead):
                silent = next_look - heard >= IDLE + ANSWER - 1 and pinged
                assert silent or next_look - began > BODY
                return
            pinged = pinged or said == Ping()
            next_look += 1.0
        now += gap
        frames += not inside
        v.on_bytes(now, count, frames, inside=inside)
        heard, pinged = now, False
        if not inside:
            began = float("inf")
        elif began == float("inf"):
            began = now
    assert now - heard < IDLE + ANSWER + 2
