"""The pace towards a peer that asks to slow down: it finds what the peer allows, and forgets it in time."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelnet_p2p.dht.holding.limits import MAX_TOLD, Limits, SlowDown, Throttle
from modelnet_p2p.dht.pacing import FORGET, MAX_GAP, MAX_HOLD, MIN_HOLD, Pacing
from modelnet_p2p.identity import KeyPair

ALICE, BOB, CAROL = (KeyPair(bytes([n]) * 32).id for n in (1, 2, 3))


class Talk:
    """Alice has `count` requests for bob, at most `window` under way at once, each way taking `delay`."""

    def __init__(self, limits: Limits, *, window: int = 8, delay: float = 0.05) -> None:
        self.limits, self.pacing = limits, Pacing()
        self.window, self.delay = window, delay
        self.now, self._count = 0.0, 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self.told = 0
        self.served: list[float] = []

    def run(self, count: int, *, checks: int = 0) -> None:
        for _ in range(min(self.window, count)):
            self._after(0.0, lambda: self._go(checks))
        self._left = count - min(self.window, count)
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            event()

    def _after(self, delay: float, event: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now + delay, self._count, event))

    def _go(self, checks: int) -> None:
        if (wait := self.pacing.turn(BOB, self.now)) > 0:
            self._after(wait, lambda: self._go(checks))
            return
        sent = self.now
        self._after(self.delay, lambda: self._arrive(sent, checks))

    def _arrive(self, sent: float, checks: int) -> None:
        match self.limits.on_request(ALICE, self.now, checks=checks, ours=True):
            case SlowDown(retry_ms):
                self.told += 1
                self._after(self.delay, lambda: self._told(sent, retry_ms, checks))
            case late:
                self.served.append(self.now + late)
                self._after(late + self.delay, lambda: self._answer(checks))

    def _told(self, sent: float, retry_ms: int, checks: int) -> None:
        self.pacing.slow_down(BOB, sent, retry_ms / 1000, self.now)
        self._go(checks)

    def _answer(self, checks: int) -> None:
        self.pacing.answered(BOB)
        if self._left:
            self._left -= 1
            self._go(checks)


def limits(rate: float, burst: float, checks: float = 1e9) -> Limits:
    return Limits(Throttle(rate, burst), Throttle(checks, checks))


@pytest.mark.parametrize(("rate", "burst", "delay"), [(20, 200, 0.05), (20, 200, 0.005), (100, 100, 0.02)])
def test_who_listens_gets_nearly_all_that_is_allowed_and_is_told_rarely(
    rate: float, burst: float, delay: float
) -> None:
    talk = Talk(limits(rate, burst), delay=delay)
    talk.run(2000)
    assert len(talk.served) == 2000
    assert talk.now < 1.25 * (2000 - burst) / rate + 5
    assert talk.told < 0.25 * 2000


def test_what_is_rarely_too_much_is_served_late_and_nobody_is_told() -> None:
    talk = Talk(limits(500, 500), delay=0.005)
    talk.run(5000)
    assert talk.told == 0
    assert len(talk.pacing) == 0
    assert max(talk.served) > 8.9


def test_signature_checks_have_a_budget_of_their_own() -> None:
    talk = Talk(limits(1000, 1000, checks=100))
    talk.run(500, checks=2)
    assert talk.now == pytest.approx(9, rel=0.25)  # 1,000 checks, of which 100 are free
    assert 0 < talk.told < 100
    free = Talk(limits(1000, 1000, checks=100))
    free.run(500)
    assert free.told == 0


def test_who_does_not_listen_is_told_a_few_times_and_then_served_late() -> None:
    busy = limits(20, 20)
    told = late = 0
    for _ in range(1000):  # all at once
        match busy.on_request(ALICE, 0.0, checks=0, ours=True):
            case SlowDown():
                told += 1
            case delay:
                late += delay > 0
    assert told <= MAX_TOLD + 1 + late
    assert late > 400
    assert busy.on_request(BOB, 0.0, checks=0, ours=True) == 0.0  # nobody pays for another


def test_a_refusal_costs_nothing_and_a_stock_node_never_gets_one() -> None:
    ours, stock = limits(20, 20), limits(20, 20)
    for _ in range(20):
        assert ours.on_request(ALICE, 0.0, checks=0, ours=True) == 0.0
        assert stock.on_request(ALICE, 0.0, checks=0, ours=False) == 0.0
    for _ in range(10):
        assert ours.on_request(ALICE, 0.0, checks=0, ours=True) == SlowDown(50)
    assert ours.on_request(ALICE, 0.05, checks=0, ours=True) == 0.0
    delays = [stock.on_request(ALICE, 0.0, checks=0, ours=False) for _ in range(10)]
    assert delays == pytest.approx([0.05 * number for number in range(1, 11)])


def test_whom_nobody_slows_down_is_asked_at_once_and_so_is_one_long_quiet() -> None:
    pacing = Pacing()
    assert pacing.turn(BOB, 0.0) == 0.0
    assert len(pacing) == 0
    pacing.slow_down(BOB, 0.0, 0.5, 1.0)
    assert pacing.turn(BOB, 1.1) == pytest.approx(0.4)
    assert pacing.turn(CAROL, 1.1) == 0.0
    assert pacing.turn(BOB, 1.5) == 0.0
    assert pacing.turn(BOB, 1.5) == pytest.approx(0.5)  # one at a time from now on
    assert pacing.complained(BOB, 1.0)
    assert not pacing.complained(BOB, 1.1)
    assert pacing.turn(BOB, 1.1 + FORGET) == 0.0
    assert BOB not in pacing


def test_complaints_about_what_was_under_way_count_once() -> None:
    pacing = Pacing()
    for now in (1.0, 1.01, 1.02):
        pacing.slow_down(BOB, 0.9, 0.1, now)
    assert pacing.turn(BOB, 1.2) == 0.0
    assert pacing.turn(BOB, 1.2) == pytest.approx(0.1)
    pacing.slow_down(BOB, 1.2, 0.1, 1.3)
    assert pacing.turn(BOB, 1.5) == 0.0
    assert pacing.turn(BOB, 1.5) == pytest.approx(0.125)


@given(st.lists(st.tuples(st.sampled_from("stac"), st.floats(0, 1e7), st.floats(0, 3)), max_size=80))
def test_whatever_a_peer_says_nobody_waits_for_it_longer_than_the_bound(
    steps: list[tuple[str, float, float]],
) -> None:
    pacing, now, sent = Pacing(max_peers=2), 0.0, 0.0
    for what, retry, passes in steps:
        now += passes
        match what:
            case "s":
                pacing.slow_down(BOB, sent, retry, now)
                assert pacing.turn(BOB, now) + 1e-9 >= MIN_HOLD
            case "t":
                if pacing.turn(BOB, now) == 0.0:
                    sent = now
            case "a":
                pacing.answered(BOB)
            case _:
                pacing.slow_down(CAROL, now, retry, now)
                pacing.slow_down(ALICE, now, retry, now)
        assert pacing.turn(BOB, now) <= MAX_HOLD + MAX_GAP
        assert len(pacing) <= 2
