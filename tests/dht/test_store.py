"""What a holder keeps: versions, bounds, order, pages, expiry."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelnet_p2p.dht.store import CURSOR_BYTES, BadCursor, Bounds, Full, OfferStore
from modelnet_p2p.kad import Contact
from modelnet_p2p.records import Refusal, Sealed

if TYPE_CHECKING:
    from tests.dht.conftest import Person


@pytest.fixture(scope="session")
def crowd(person: Callable[[str], Person]) -> list[Person]:
    return [person(f"peer {number}") for number in range(40)]


@pytest.fixture(scope="session")
def cards(crowd: list[Person]) -> list[Sealed]:
    """One card of each, for one task."""
    return [one.card() for one in crowd]


def everything(store: OfferStore, key: bytes, max_bytes: int) -> list[Sealed]:
    found, cursor = list[Sealed](), b""
    for _ in range(1000):
        page = store.page(key, cursor, max_bytes)
        found += page.sealeds
        cursor = page.cursor
        if not cursor:
            return found
    raise AssertionError("the pages do not end")


def test_newer_replaces_older_and_equal_is_acknowledged(alice: Person, model_key: bytes) -> None:
    store = OfferStore()
    first, second = alice.offer(seq=1), alice.offer(seq=2)
    assert store.add(model_key, first, alice.contact) is None
    assert store.add(model_key, first, Contact(alice.id)) is None
    assert store.add(model_key, second, Contact(alice.id)) is None
    assert store.add(model_key, first, alice.contact) is Refusal.STALE
    assert store.add(model_key, alice.offer(seq=2, family="other"), alice.contact) is Refusal.STALE
    page = store.page(model_key, b"", 65536)
    assert (page.sealeds, page.contacts, page.cursor) == ((second,), (alice.contact,), b"")
    assert store.renew(model_key, second.envelope, Contact(alice.id, (b"moved",)))
    assert store.page(model_key, b"", 65536).contacts == (Contact(alice.id, (b"moved",)),)
    assert not store.renew(model_key, first.envelope, alice.contact)
    assert not store.renew(b"elsewhere", second.envelope, alice.contact)
    assert len(store) == store.keys == 1


def test_a_tombstone_wins_a_tie_and_outlives_its_offer(alice: Person, model_key: bytes) -> None:
    store = OfferStore()
    offer, gone = alice.offer(seq=1), alice.tombstone(seq=1)
    assert store.add(model_key, offer, alice.contact) is None
    assert store.add(model_key, gone, alice.contact) is None
    assert store.add(model_key, offer, alice.contact) is Refusal.STALE
    page = store.page(model_key, b"", 65536)
    assert (page.sealeds, page.contacts) == ((gone,), ())
    assert store.expire(offer.expires_us) == 0
    assert (
        store.add(model_key, offer, alice.contact) is Refusal.STALE
    )  # a clock that is behind brings it back
    assert store.expire(gone.expires_us) == 1
    assert len(store) == store.keys == 0


def test_each_bound_refuses_and_leaves_what_is_there(
    crowd: list[Person], cards: list[Sealed], alice: Person, task_key: bytes
) -> None:
    def fill(bounds: Bounds, group: str | None = None) -> Full | Refusal | None:
        store = OfferStore(bounds)
        for one, card in zip(crowd[:3], cards, strict=False):
            assert store.add(task_key, card, one.contact, group) is None
        reason = store.add(task_key, cards[3], crowd[3].contact, group)
        assert store.add(task_key, cards[0], crowd[0].contact, group) is None  # what is kept is renewed
        assert len(store) == 3
        return reason

    assert fill(Bounds(per_key=3)) is Full.KEY
    assert fill(Bounds(total=3)) is Full.TOTAL
    assert fill(Bounds(per_group=3), "198.51.100.0/24") is Full.GROUP
    assert fill(Bounds(per_group_and_key=3), "198.51.100.0/24") is Full.GROUP

    for bounds in (Bounds(per_provider=1), Bounds(per_provider_and_key=1)):
        store = OfferStore(bounds)
        assert store.add(task_key, alice.card("alice/a"), alice.contact) is None
        assert store.add(task_key, alice.card("alice/b"), alice.contact) is Full.PROVIDER
    store = OfferStore(Bounds(keys=1))
    assert store.add(task_key, alice.card("alice/a"), alice.contact) is None
    assert store.add(b"another key", alice.card("alice/a"), alice.contact) is Full.TOTAL


def test_readers_see_one_of_each_network_before_the_second_of_any(
    crowd: list[Person], cards: list[Sealed], task_key: bytes
) -> None:
    store = OfferStore()
    for number, (one, card) in enumerate(zip(crowd, cards, strict=True)):
        group = "198.51.100.0/24" if number < 38 else f"203.0.{number}.0/24"
        assert store.add(task_key, card, one.contact, group) is None
    assert {38, 39} <= {cards.index(sealed) for sealed in everything(store, task_key, 65536)[:3]}


@pytest.mark.parametrize("cursor", [b"x", bytes(CURSOR_BYTES - 1), bytes(CURSOR_BYTES + 1), bytes(256)])
def test_a_cursor_of_another_shape_is_refused(cursor: bytes, alice: Person, task_key: bytes) -> None:
    store = OfferStore()
    for key in (task_key, b"empty"):
        store.add(task_key, alice.card(), alice.contact)
        with pytest.raises(BadCursor):
            store.page(key, cursor, 65536)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), max_bytes=st.integers(1, 8000))
def test_pages_give_everything_once_within_their_size_while_others_come_and_go(
    seed: int, max_bytes: int, crowd: list[Person], cards: list[Sealed], task_key: bytes
) -> None:
    rng, store = Random(seed), OfferStore()
    order = rng.sample(range(40), 40)
    for number in order[:30]:
        group = rng.choice([None, "a", "b"])
        assert store.add(task_key, cards[number], crowd[number].contact, group) is None
    found, cursor = list[Sealed](), b""
    for number in order[30:]:
        page = store.page(task_key, cursor, max_bytes)
        size = sum(len(sealed.envelope) for sealed in page.sealeds)
        assert size <= max_bytes or len(page.sealeds) == 1
        assert {contact.id for contact in page.contacts} == {s.identity.provider for s in page.sealeds}
        found += page.sealeds
        cursor = page.cursor
        if not cursor:
            break
        store.add(task_key, cards[number], crowd[number].contact, None)
        store.page(task_key, rng.randbytes(CURSOR_BYTES), max_bytes)  # a hostile reader beside
    while cursor:
        page = store.page(task_key, cursor, max_bytes)
        found += page.sealeds
        cursor = page.cursor
    assert len(set(found)) == len(found)
    assert {cards[number] for number in order[:30]} <= set(found)
    held = len(store)
    assert store.expire(cards[0].expires_us) == held
    assert len(store) == store.keys == 0
    assert list(store.records()) == []


def test_no_record_comes_first_of_its_turn_at_every_holder(crowd: list[Person], cards: list[Sealed]) -> None:
    firsts = set()
    for holder in range(20):
        store = OfferStore(secret=bytes([holder]))
        for one, card in zip(crowd, cards, strict=True):
            store.add(b"key", card, one.contact, f"203.0.{crowd.index(one)}.0/24")
        firsts.add(everything(store, b"key", 4096)[0].identity.provider)
    assert len(firsts) > 10
