"""The pace at which one sender is served."""

from __future__ import annotations

import random

import pytest

from modelnet_p2p.dht.holding.limits import Throttle
from modelnet_p2p.identity import KeyPair

ALICE, BOB, CAROL = (KeyPair(bytes([n]) * 32).id for n in (1, 2, 3))


def test_a_burst_is_free_and_then_each_request_waits_its_turn() -> None:
    throttle = Throttle(rate=10, burst=3)
    assert [throttle.delay(ALICE, 100.0) for _ in range(5)] == pytest.approx([0, 0, 0, 0.1, 0.2])
    assert throttle.delay(BOB, 100.0) == 0  # nobody pays for another


def test_who_waits_long_enough_has_a_burst_again_and_no_more() -> None:
    throttle = Throttle(rate=10, burst=3)
    for _ in range(5):
        throttle.delay(ALICE, 0.0)
    assert throttle.delay(ALICE, 0.5) == 0
    delays = [throttle.delay(ALICE, 1000.0) for _ in range(4)]
    assert delays == pytest.approx([0, 0, 0, 0.1])


def test_a_clock_that_stands_still_or_goes_back_gives_nothing_away() -> None:
    throttle = Throttle(rate=1, burst=1)
    assert throttle.delay(ALICE, 10.0) == 0
    assert throttle.delay(ALICE, 5.0) == 1


def test_senders_are_forgotten_the_longest_unheard_first() -> None:
    throttle = Throttle(rate=1, burst=1, max_senders=2)
    throttle.delay(ALICE, 0.0)
    throttle.delay(BOB, 0.0)
    throttle.delay(ALICE, 0.0)
    throttle.delay(CAROL, 0.0)  # bob is forgotten
    assert len(throttle) == 2
    assert throttle.delay(ALICE, 0.0) == 2
    assert throttle.delay(BOB, 0.0) == 0


def test_over_any_time_no_more_than_burst_and_rate_are_served() -> None:
    rng = random.Random(7)
    throttle = Throttle(rate=20, burst=50)
    now, served = 0.0, []
    for _ in range(2000):
        now += rng.expovariate(100)
        served.append(now + throttle.delay(ALICE, now))
    for start in range(0, len(served), 97):
        within = [at for at in served if served[start] <= at < served[start] + 2]
        assert len(within) <= 50 + 2 * 20 + 1


@pytest.mark.parametrize(("rate", "burst", "senders"), [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_limits_that_serve_nobody_are_a_mistake(rate: float, burst: float, senders: int) -> None:
    with pytest.raises(ValueError, match="serve nobody"):
        Throttle(rate, burst, senders)
