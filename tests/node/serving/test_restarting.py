"""Restarts: at once, then later and later; a long life forgives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from modelnet_p2p.node.serving.policy.restarting import DOWN_AFTER, MAX_DELAY, STEADY_SECONDS, Restarts


def test_the_first_death_is_made_good_at_once_and_the_next_later_and_later() -> None:
    restarts = Restarts()
    delays = []
    for now in range(12):
        restarts.on_start(now)
        delays.append(restarts.on_death(now + 0.1) - (now + 0.1))
        assert restarts.is_down is (now + 1 >= DOWN_AFTER)
    assert [round(delay, 6) for delay in delays] == [0, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_long_life_ends_the_row() -> None:
    restarts = Restarts()
    for now in range(5):
        restarts.on_death(now)  # it could not even be started
    assert restarts.is_down
    restarts.on_start(100)
    assert restarts.on_death(100 + STEADY_SECONDS) == 100 + STEADY_SECONDS
    assert not restarts.is_down


def test_what_was_ended_on_purpose_is_no_crash() -> None:
    restarts = Restarts()
    for now in range(9):
        restarts.on_start(now)
        assert restarts.on_death(now + 0.5, counts=False) == now + 0.5
    assert (restarts.row, restarts.is_down) == (0, False)


@given(st.lists(st.tuples(st.floats(0, 1000), st.booleans()), max_size=200))
def test_a_start_is_never_in_the_past_nor_far_away(lives: list[tuple[float, bool]]) -> None:
    restarts, now = Restarts(), 0.0
    for life, counts in lives:
        restarts.on_start(now)
        now += life
        at = restarts.on_death(now, counts=counts)
        assert now <= at <= now + MAX_DELAY
        now = at
