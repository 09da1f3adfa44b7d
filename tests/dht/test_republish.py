"""The calendar of what alice's peer tells its holders again."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from modelnet_p2p.dht.republish import (
    FIRST_AGAIN,
    FIRST_RETRY,
    MAX_OPEN,
    NEWCOMER_DELAY,
    NEWCOMER_PAUSE,
    Due,
    Renew,
    Republisher,
)
from modelnet_p2p.dht.walks.lookup import Wait

if TYPE_CHECKING:
    from tests.dht.conftest import Person

HOUR = 3600.0


def stored_until(calendar: Republisher, end: float) -> float:
    """All that is due is stored at once, again and again until `end`; when the next store is due."""
    now = 0.0
    while True:
        match calendar.poll(now):
            case Due(key):
                calendar.on_stored(key, now, promised=True)
            case Wait(until) if until > end:
                return until
            case Wait(until):
                now = until


def test_a_record_is_due_at_once_then_in_a_while_and_renewed_at_half_its_life(alice: Person) -> None:
    calendar, offer, card = Republisher(600.0), alice.offer(), alice.card()
    calendar.add({b"model": offer, b"task": card}, 0.0, renew_at=HOUR)
    assert [calendar.poll(0.0), calendar.poll(0.0)] == [Due(b"model", (offer,)), Due(b"task", (card,))]
    assert calendar.poll(0.0) == Wait(HOUR)  # both are being stored
    for key in (b"model", b"task"):
        calendar.on_stored(key, 1.0, promised=True)
    step = calendar.poll(1.0)
    assert isinstance(step, Wait)
    assert 0.9 * FIRST_AGAIN <= step.until <= FIRST_AGAIN + 1.0
    assert isinstance(calendar.poll(step.until), Due)
    assert calendar.poll(HOUR) == Renew((offer.identity,))
    assert calendar.poll(HOUR) != Renew((offer.identity,))
    calendar.add({b"model": alice.offer(seq=2)}, HOUR, renew_at=2 * HOUR, stored=True)
    assert len(calendar) == 1
    calendar.remove(offer.identity)
    calendar.remove(offer.identity)
    assert calendar.poll(9 * HOUR) == Wait(float("inf"))


def test_what_is_to_be_signed_anew_at_nearly_the_same_time_is_signed_together(alice: Person) -> None:
    """So that models that were published one after another come to share a signature."""
    calendar = Republisher(600.0)
    offers = [alice.offer(f"alice/{name}") for name in "abc"]
    for offer, at in zip(offers, (0.0, 50.0, 70.0), strict=True):
        calendar.add({b"key": offer}, at, renew_at=HOUR + at, stored=True)
    stored_until(calendar, HOUR - 700)
    assert calendar.poll(HOUR) == Renew((offers[0].identity, offers[1].identity))
    assert not isinstance(calendar.poll(HOUR + 50), Renew)
    assert calendar.poll(HOUR + 70) == Renew((offers[2].identity,))


def test_what_is_new_is_told_again_soon_and_then_ever_more_rarely_up_to_the_interval(alice: Person) -> None:
    calendar, now, delays = Republisher(600.0), 0.0, list[float]()
    calendar.add({b"key": alice.offer()}, 0.0, stored=True)
    for _ in range(6):
        step = calendar.poll(now)
        assert isinstance(step, Wait)
        delays.append(step.until - now)
        now = step.until
        assert isinstance(calendar.poll(now), Due)
        calendar.on_stored(b"key", now, promised=True)
    for delay, most in zip(delays, (60.0, 120.0, 240.0, 480.0, 600.0, 600.0), strict=True):
        assert 0.9 * most <= delay <= most


def test_what_is_signed_anew_is_not_new(alice: Person) -> None:
    calendar = Republisher(600.0)
    calendar.add({b"key": alice.offer()}, 0.0, stored=True)
    stored_until(calendar, HOUR)
    calendar.add({b"key": alice.offer(seq=2), b"more": alice.offer(seq=2)}, HOUR, stored=True)
    soon = calendar.poll(HOUR)
    assert isinstance(soon, Wait)
    assert soon.until <= HOUR + FIRST_AGAIN  # under the key that came with it
    assert isinstance(due := calendar.poll(soon.until), Due)
    assert due.key == b"more"
    calendar.on_stored(b"more", soon.until, promised=True)
    calendar.add({b"key": alice.offer(seq=3)}, soon.until, stored=True)
    later = calendar.poll(soon.until)
    assert isinstance(later, Wait)
    assert later.until >= soon.until + 540


def test_several_records_of_one_key_share_the_walk(alice: Person) -> None:
    calendar = Republisher(600.0)
    first, second = alice.card("alice/a"), alice.card("alice/b")
    calendar.add({b"task": first}, 0.0, stored=True)
    calendar.add({b"task": second}, 100.0, stored=True)
    assert calendar.poll(601.0) == Due(b"task", (first, second))


def test_a_store_without_its_majority_is_tried_again_sooner_and_sooner_no_more(alice: Person) -> None:
    calendar, offer = Republisher(600.0), alice.offer()
    calendar.add({b"key": offer}, 0.0)
    now, delays = 0.0, []
    for _ in range(9):
        assert calendar.poll(now) == Due(b"key", (offer,))
        calendar.on_stored(b"key", now, promised=False)
        step = calendar.poll(now)
        assert isinstance(step, Wait)
        delays.append(step.until - now)
        now = step.until
    assert delays[:3] == [FIRST_RETRY, 2 * FIRST_RETRY, 4 * FIRST_RETRY]
    assert 540 <= delays[-1] <= 600


def test_what_was_stored_on_nobody_is_due_when_the_first_neighbour_appears(alice: Person) -> None:
    calendar, offer = Republisher(600.0), alice.offer()
    calendar.add({b"key": offer}, 0.0, stored=True)
    calendar.alone(b"key")
    assert isinstance(calendar.poll(1.0), Wait)
    calendar.on_neighbour(2.0)
    assert calendar.poll(2.0) == Due(b"key", (offer,))
    calendar.on_stored(b"key", 3.0, promised=True)
    calendar.on_neighbour(4.0)  # it has holders now
    assert isinstance(calendar.poll(4.0), Wait)


def test_a_newer_version_is_due_even_if_the_older_one_is_being_stored(alice: Person) -> None:
    calendar, newer = Republisher(600.0), alice.offer(seq=2)
    calendar.add({b"key": alice.offer()}, 0.0)
    assert isinstance(calendar.poll(0.0), Due)
    calendar.add({b"key": newer}, 1.0)
    calendar.on_stored(b"key", 2.0, promised=True)
    assert calendar.poll(2.0) == Due(b"key", (newer,))


def test_a_tombstone_is_told_until_it_ends(alice: Person) -> None:
    calendar = Republisher(600.0)
    calendar.add({b"key": alice.tombstone()}, 0.0, forget_at=700.0)
    assert isinstance(calendar.poll(0.0), Due)
    calendar.on_stored(b"key", 0.0, promised=True)
    assert isinstance(calendar.poll(650.0), Due)
    assert calendar.poll(700.0) == Wait(float("inf"))
    calendar.on_stored(b"key", 701.0, promised=True)  # of what is forgotten
    assert len(calendar) == 0


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_nothing_is_forgotten_and_nothing_told_too_often(seed: int, alice: Person) -> None:
    rng, calendar = Random(seed), Republisher(100.0)
    sealeds = [alice.card(f"alice/m{number}") for number in range(4)]
    told: dict[tuple[bytes, bytes], list[float]] = {}
    for sealed in sealeds:
        keys = rng.sample([b"a", b"b", b"c", b"d", b"e", b"f"], 3)
        calendar.add(dict.fromkeys(keys, sealed), 0.0)
        told.update({(key, sealed.envelope): [] for key in keys})
    now, storing = 0.0, list[bytes]()
    while now < 1000.0:
        match calendar.poll(now):
            case Due(key, due):
                storing.append(key)
                assert len(storing) <= MAX_OPEN
                for sealed in due:
                    told[key, sealed.envelope].append(now)
            case Wait() if storing:
                now += rng.random()
                calendar.on_stored(storing.pop(rng.randrange(len(storing))), now, promised=True)
            case Wait(until):
                assert until > now
                now = until
            case Renew():
                raise AssertionError("nothing has an end here")
    for times in told.values():
        assert times[0] < 20.0
        assert times[-1] > 850.0
        assert all(50.0 < later - earlier < 130.0 for earlier, later in pairwise(times))


def test_newcomers_close_to_a_key_are_told_of_it_soon_and_together(alice: Person) -> None:
    calendar, offer, card = Republisher(600.0), alice.offer(), alice.card()
    calendar.add({b"model": offer, b"task": card}, 0.0, stored=True)
    for now in (20.0, 20.2, 20.4):  # three join at about the same time, close to one of the keys
        calendar.on_newcomer(lambda key: key == b"model", now)
    assert calendar.poll(20.5) == Wait(20.0 + NEWCOMER_DELAY)
    assert calendar.poll(21.0) == Due(b"model", (offer,))
    calendar.on_newcomer(lambda key: key == b"model", 21.2)  # too late for the store that is under way
    calendar.on_stored(b"model", 22.0, promised=True)
    calendar.on_newcomer(lambda key: True, 23.0)
    step = calendar.poll(23.0)
    assert step == Wait(23.0 + NEWCOMER_DELAY)  # the other key, which was not stored lately
    assert calendar.poll(24.0) == Due(b"task", (card,))
    assert calendar.poll(31.9) == Wait(22.0 + NEWCOMER_PAUSE)
    assert calendar.poll(32.0) == Due(b"model", (offer,))


def test_a_longer_interval_counts_from_the_next_store_and_a_shorter_one_at_once(alice: Person) -> None:
    calendar, offer = Republisher(600.0), alice.offer()
    calendar.add({b"key": offer}, 0.0, stored=True)
    due = stored_until(calendar, 9 * HOUR)
    calendar.pace(3600.0)
    assert calendar.poll(due - 1.0) == Wait(due)
    assert isinstance(calendar.poll(due), Due)
    calendar.on_stored(b"key", due, promised=True)
    later = calendar.poll(due)
    assert isinstance(later, Wait)
    assert due + 3240 <= later.until <= due + 3600
    calendar.pace(60.0)  # peers began to die
    soon = calendar.poll(due + 10.0)
    assert isinstance(soon, Wait)
    assert due + 54 <= soon.until <= due + 60
    assert calendar.poll(due + 100.0) == Due(b"key", (offer,))


def test_a_retry_that_is_due_sooner_is_not_put_off_by_the_pace(alice: Person) -> None:
    calendar = Republisher(600.0)
    calendar.add({b"key": alice.offer()}, 0.0)
    assert isinstance(calendar.poll(0.0), Due)
    calendar.on_stored(b"key", 1.0, promised=False)
    for interval in (3600.0, 60.0):
        calendar.pace(interval)
        assert calendar.poll(1.0) == Wait(1.0 + FIRST_RETRY)
