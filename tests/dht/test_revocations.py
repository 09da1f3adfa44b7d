"""Alice owns a model that bob serves, and her key is stolen: what holders and readers do who hear of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelnet_p2p.dht.holding.revocations import MAX_NEWS, PINNED, READ, Revocations
from modelnet_p2p.dht.holding.server import KadServer
from modelnet_p2p.dht.holding.store import Bounds, OfferStore
from modelnet_p2p.dht.table.routing import RoutingTable
from modelnet_p2p.dht.walks.collecting import Collect
from modelnet_p2p.dht.walks.finding import Send
from modelnet_p2p.dht.walks.storing import Store
from modelnet_p2p.envelope import seal
from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.kad import Contact, Kind, Message, Value
from modelnet_p2p.names import Keys, provider_key
from modelnet_p2p.records import (
    CLOCK_SKEW_US,
    MAX_LIFETIME_US,
    REVOCATION_TYPE,
    OfferRecord,
    Refusal,
    Revocation,
    Sealed,
    card_of,
    seal_manifest,
    seal_offer,
    seal_revocation,
    seal_tombstone,
    tombstone_of,
)
from modelnet_p2p.tuning import TEST

if TYPE_CHECKING:
    from tests.dht.conftest import Person

People = Callable[[str], "Person"]
HOLDERS = [Contact(PeerId(b"holder%d" % number), (b"addr",)) for number in range(3)]


def revoke(person: Person, now_us: int, reason: str = "stolen", successor: PeerId | None = None) -> Sealed:
    return seal_revocation(Revocation(person.id, now_us, reason, successor), person.key)


def served_by(provider: Person, owner: Person, seq: int = 1) -> Sealed:
    """An offer of the owner's model by somebody else."""
    offer = provider.offer(seq=seq).record
    assert isinstance(offer, OfferRecord)
    manifest = replace(offer.manifest, owner=owner.id)
    return seal_offer(
        replace(offer, manifest=manifest, manifest_envelope=seal_manifest(manifest, owner.key)), provider.key
    )


class Holder:
    """Carol's peer, as others talk to it."""

    def __init__(self, carol: Person, now_us: int, bounds: Bounds | None = None) -> None:
        self.now_us = now_us
        self.server = KadServer(carol.id, "public", RoutingTable(carol.id, 20), OfferStore(bounds))

    def add(self, key: bytes, sealed: Sealed | bytes, sender: Person, group: str | None = None) -> Message:
        envelope = sealed if isinstance(sealed, bytes) else sealed.envelope
        message = Message(Kind.ADD_PROVIDER, key, providers=(sender.contact,), records=(envelope,))
        reply = self.server.handle(message, sender.id, group, 0.0, self.now_us)
        assert reply is not None
        return reply

    def read(self, key: bytes) -> set[bytes]:
        reply = self.server.handle(
            Message(Kind.GET_PROVIDERS, key), PeerId(b"reader"), None, 0.0, self.now_us
        )
        assert reply is not None
        assert reply.records is not None
        return set(reply.records)


@pytest.fixture
def holder(carol: Person, now_us: int) -> Holder:
    return Holder(carol, now_us)


@pytest.fixture
def dave(person: People) -> Person:
    return person("dave")


def test_a_holder_drops_what_a_revoked_owner_sealed_and_tells_why_where_it_lay(
    holder: Holder, model_key: bytes, task_key: bytes, alice: Person, bob: Person, dave: Person, now_us: int
) -> None:
    offer, other = served_by(bob, alice), dave.offer()
    for key, sealed, sender in (
        (model_key, offer, bob),
        (task_key, card_of(offer, bob.key), bob),
        (model_key, other, dave),
    ):
        assert holder.add(key, sealed, sender).refused == ""
    end = revoke(alice, now_us)
    owner_key = provider_key(Keys("public").owner(alice.id))
    assert holder.add(owner_key, end, dave).refused == ""  # anybody may bring it
    assert holder.read(model_key) == {end.envelope, other.envelope}
    assert holder.read(task_key) == holder.read(owner_key) == {end.envelope}
    again = holder.add(model_key, served_by(bob, alice, seq=2), bob)
    assert (again.refused, again.records) == (Refusal.REVOKED, (end.envelope,))
    assert holder.server.refused[Refusal.REVOKED] == 1
    assert holder.server.revocations.take_news() == [alice.id]


def test_a_provider_whose_key_is_stolen_takes_all_of_it_back(
    holder: Holder, model_key: bytes, task_key: bytes, alice: Person, bob: Person, dave: Person, now_us: int
) -> None:
    offer = served_by(bob, alice)
    holder.add(model_key, offer, bob)
    end = revoke(bob, now_us)
    assert holder.add(model_key, end, dave).refused == ""
    assert holder.read(model_key) == {end.envelope}
    for key, sealed in (
        (model_key, bob.offer(seq=9)),
        (task_key, bob.card(seq=9)),
        (model_key, seal_tombstone(tombstone_of(offer, seq=10, now_us=now_us), bob.key)),
    ):
        assert holder.add(key, sealed, bob).refused == Refusal.REVOKED
    assert holder.add(model_key, served_by(dave, alice), dave).refused == ""  # alice is nobody's fault


def test_the_way_there_is_told_also_where_the_records_come_later(
    holder: Holder, model_key: bytes, task_key: bytes, alice: Person, bob: Person, now_us: int
) -> None:
    """Told in advance it only lies there; the first record that it speaks of makes it remembered."""
    end = revoke(alice, now_us)
    holder.add(model_key, end, bob)
    assert len(holder.server.revocations) == 0
    assert holder.add(model_key, alice.offer(), alice).refused == Refusal.REVOKED
    assert holder.server.revocations.of(alice.id) == end
    assert holder.add(task_key, alice.card(), alice).refused == Refusal.REVOKED  # where nobody told it
    assert holder.read(task_key) == {end.envelope}


def test_what_is_not_signed_by_the_revoked_key_revokes_nothing(
    holder: Holder, model_key: bytes, alice: Person, bob: Person, person: People, now_us: int
) -> None:
    offer, mallory = alice.offer(), person("mallory")
    holder.add(model_key, offer, alice)
    end = revoke(mallory, now_us, "I am alice")
    name = bytes(mallory.id)
    forged = end.envelope.replace(name, bytes(alice.id))
    assert forged != end.envelope
    another = seal(REVOCATION_TYPE, Revocation(alice.id, now_us).to_payload(), mallory.key)
    for envelope, refusal in (
        (forged, Refusal.FORGED),
        (another, Refusal.WRONG_OWNER),
        (end.envelope[:-1] + bytes([end.envelope[-1] ^ 1]), Refusal.FORGED),
    ):
        assert holder.add(model_key, envelope, mallory).refused == refusal
    assert holder.add(model_key, end, mallory).refused == ""  # her own key she may well revoke, anywhere
    assert holder.read(model_key) == {offer.envelope, end.envelope}
    assert holder.add(model_key, alice.offer(seq=2), alice).refused == ""
    early = seal_revocation(Revocation(bob.id, now_us + CLOCK_SKEW_US + 1), bob.key)
    assert holder.add(model_key, early, bob).refused == Refusal.EXPIRED


def test_the_first_of_two_revocations_stays_and_the_other_is_acknowledged(
    holder: Holder, model_key: bytes, task_key: bytes, alice: Person, bob: Person, now_us: int
) -> None:
    first, second = revoke(alice, now_us), revoke(alice, now_us - 1, "by the thief", bob.id)
    for known in (False, True):
        assert [holder.add(model_key, end, bob).refused for end in (first, second)] == ["", ""]
        assert holder.read(model_key) == {first.envelope}
        if not known:
            holder.add(model_key, alice.offer(), alice)
    assert holder.add(task_key, second, bob).refused == ""
    assert holder.read(task_key) == {first.envelope}
    assert holder.server.revocations.of(alice.id) == first


def test_it_is_no_value_and_it_stays_a_day_longer_whenever_it_is_told_again(
    holder: Holder, model_key: bytes, alice: Person, bob: Person, now_us: int
) -> None:
    end = revoke(alice, now_us)
    message = Message(Kind.PUT_VALUE, b"/modelnet/rec/x", value=Value(b"/modelnet/rec/x", end.envelope))
    reply = holder.server.handle(message, bob.id, None, 0.0, now_us)
    assert reply is not None
    assert reply.refused == Refusal.FOREIGN_KEY
    holder.add(model_key, end, bob)
    holder.now_us += MAX_LIFETIME_US - 1
    assert holder.add(model_key, end, bob).refused == ""
    holder.now_us += MAX_LIFETIME_US - 1
    assert holder.read(model_key) == {end.envelope}
    holder.now_us += 1
    assert holder.read(model_key) == set()
    assert len(holder.server.store) == 0


def test_my_own_key_is_remembered_wherever_its_end_is_told(
    holder: Holder, model_key: bytes, carol: Person, bob: Person, now_us: int
) -> None:
    assert holder.server.keep_own(model_key, [carol.offer()], carol.contact)
    holder.add(model_key, revoke(carol, now_us), bob)
    assert holder.server.revocations.take_news() == [carol.id]
    assert not holder.server.keep_own(model_key, [carol.offer(seq=2)], carol.contact)
    assert len(holder.read(model_key)) == 1


def test_a_flood_of_revocations_costs_its_senders_their_own_room_and_nobody_else(
    carol: Person, model_key: bytes, alice: Person, bob: Person, person: People, now_us: int
) -> None:
    holder = Holder(carol, now_us, Bounds(per_group_and_key=8, per_key=20))
    holder.add(model_key, alice.offer(), alice, "203.0.113.0/24")
    flood = [revoke(person(f"m{number}"), now_us) for number in range(30)]
    refused = [holder.add(model_key, end, bob, "198.51.100.0/24").refused for end in flood]
    assert refused == [""] * 8 + ["full_group"] * 22
    assert len(holder.server.revocations) == 0  # they meet nothing
    end = revoke(alice, now_us)
    assert holder.add(model_key, end, alice, "203.0.113.0/24").refused == ""
    assert end.envelope in holder.read(model_key)
    assert holder.server.revocations.of(alice.id) == end


def ends(account: str, count: int, now_us: int) -> list[Sealed]:
    keys = [KeyPair(f"{account} {number}".encode().ljust(32, b".")[:32]) for number in range(count)]
    return [seal_revocation(Revocation(key.id, now_us), key) for key in keys]


def test_the_largest_account_gives_way_its_newest_first_and_what_is_pinned_never(now_us: int) -> None:
    known = Revocations(most=6)
    [mine] = ends("mine", 1, now_us)
    loud, quiet = ends("loud", 9, now_us), ends("quiet", 4, now_us)
    assert known.remember(mine, PINNED)
    assert [known.remember(end, "loud") for end in loud] == [True] * 5 + [False] * 4
    assert [known.remember(end, "quiet") for end in quiet] == [True, True, False, False]
    kept = [end for end in (mine, *loud, *quiet) if known.of(end.record.provider) is not None]
    assert kept == [mine, *loud[:3], *quiet[:2]]
    assert known.remember(quiet[0], READ)  # it was already
    assert known.account_of(quiet[0].record.provider) == "quiet"
    assert known.remember(quiet[0], PINNED)
    assert known.account_of(quiet[0].record.provider) is PINNED
    assert len(known) == 6


ACCOUNTS = (PINNED, READ, "", "a", "b")


@given(told=st.lists(st.tuples(st.sampled_from(ACCOUNTS), st.integers(0, 9)), max_size=60))
def test_whatever_is_told_it_stays_within_bounds_and_pinned_ones_stay(
    told: list[tuple[str | None, int]],
) -> None:
    known = Revocations(most=5)
    pinned: set[PeerId] = set()
    pool = {account: ends(str(account), 10, 1) for account in ACCOUNTS}
    for account, number in told:
        end = pool[account][number]
        if known.remember(end, account) and account is PINNED:
            pinned.add(end.record.provider)
        assert len(known) <= 5
        assert all(known.of(key) is not None for key in pinned)
    assert len(known.take_news()) <= MAX_NEWS
    assert known.take_news() == []


# --- reading and storing ---


def collect(key: bytes, me: PeerId, now_us: int, known: Revocations | None = None) -> Collect:
    return Collect(
        key, HOLDERS, me=me, network="public", tuning=TEST, now=0.0, now_us=now_us, revocations=known
    )


def answered(walk: Collect, *pages: tuple[Sealed, ...]) -> Collect:
    asked = []
    while isinstance(step := walk.poll(0.0), Send):
        asked.append(step)
    for send, page in zip(asked, pages, strict=True):
        reply = Message(Kind.GET_PROVIDERS, records=tuple(sealed.envelope for sealed in page))
        walk.on_reply(send.contact.id, reply, 0.0)
    return walk


def test_one_holder_that_has_heard_is_enough_for_a_reader(
    model_key: bytes, alice: Person, bob: Person, carol: Person, dave: Person, now_us: int
) -> None:
    stolen, sound, end = served_by(bob, alice), dave.offer(), revoke(alice, now_us)
    for pages in (((stolen, sound), (stolen,), (end,)), ((end,), (stolen, sound), (stolen,))):
        walk = answered(collect(model_key, carol.id, now_us), *pages)
        assert (walk.records, walk.condemned) == ((sound,), (stolen,))
        assert walk.proofs == {alice.id: end}
        assert walk.proof_against(stolen) == end


def test_who_has_heard_before_needs_no_holder_s_word(
    model_key: bytes, alice: Person, bob: Person, carol: Person, now_us: int
) -> None:
    known = Revocations()
    known.remember(revoke(alice, now_us), READ)
    stolen, own = served_by(bob, alice), bob.offer("acme/sentiment", seq=3)
    walk = answered(collect(model_key, carol.id, now_us, known), (stolen,), (stolen, own), ())
    assert walk.records == (own,)


def test_a_liar_s_revocation_does_not_reach_the_reader_s_owner(
    model_key: bytes, alice: Person, bob: Person, carol: Person, now_us: int
) -> None:
    offer, end = served_by(bob, alice), revoke(carol, now_us)
    forged = replace(end, envelope=end.envelope.replace(bytes(carol.id), bytes(alice.id)))
    walk = answered(collect(model_key, carol.id, now_us), (forged,), (offer,), (end,))
    assert walk.records == (offer,)
    assert walk.refused == {Refusal.FORGED: 1}


def test_who_publishes_with_a_revoked_key_is_told_the_proof(
    model_key: bytes, alice: Person, bob: Person, carol: Person, now_us: int
) -> None:
    end = revoke(alice, now_us)
    server = Holder(carol, now_us).server
    server.revoke(end, PINNED)
    told: list[bytes] = []
    walk = Store(
        model_key,
        [served_by(bob, alice)],
        bob.contact,
        HOLDERS[:1],
        tuning=TEST,
        on_proofs=told.extend,
    )
    while isinstance(step := walk.poll(0.0), Send):
        reply = server.handle(step.message, bob.id, None, 0.0, now_us)
        assert reply is not None
        walk.on_reply(step.contact.id, reply, 0.0)
    assert not walk.report.promised
    assert walk.report.refused == {"revoked": 1}
    assert told == [end.envelope]
