"""A bad record at every hop: told to a holder of ours, and told by a lying holder to a reader of ours.

Beside each lies a sound neighbour. The holder must keep, tell and forward the neighbour and nothing else; the
reader must return it, and what the next holder tells as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from bad_records import Case, World
from modelnet_p2p.dht.lookup import Done
from modelnet_p2p.dht.routing import RoutingTable
from modelnet_p2p.dht.server import KadServer
from modelnet_p2p.dht.store import OfferStore
from modelnet_p2p.dht.walks import Collect, Send
from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.kad import Contact, Kind, Message, decode, encode
from modelnet_p2p.names import Keys, provider_key
from modelnet_p2p.records import (
    CARD_TYPE,
    Manifest,
    OfferRecord,
    Sealed,
    card_of,
    seal_manifest,
    seal_offer,
)
from modelnet_p2p.tuning import TEST
from samples import HOUR_US, key

AT_ONCE = 10  # bad records in one answer: 64 KiB hold no more of the longest
TASK = "text-classification"
CAROL, DAVE, EVE = key("carol"), key("dave"), key("eve")
LIAR, HONEST = Contact(PeerId(b"liar"), (b"there",)), Contact(PeerId(b"honest"), (b"here",))


@dataclass(frozen=True)
class Place:
    """Where and when a case arrives."""

    network: str
    key: bytes
    now_us: int
    model: str
    cards: bool  # whether cards lie there, and not offers
    held: Sealed | None

    @classmethod
    def of(cls, case: Case) -> Place:
        cards = case.kind == CARD_TYPE and case.key is None
        names = Keys(case.network)
        usual = provider_key(names.task(TASK) if cards else names.model(case.model))
        return cls(case.network, case.key or usual, case.now_us, case.model, cards, case.held)

    def neighbour(self, provider: KeyPair) -> Sealed:
        """A sound record that belongs here, whatever the network."""
        manifest = Manifest(provider.id, self.model, TASK, self.now_us // 1_000_000)
        seal, expires_us = seal_manifest(manifest, provider), self.now_us + HOUR_US
        offer = OfferRecord(provider.id, self.network, manifest, seal, 7, self.now_us, expires_us)
        sealed = seal_offer(offer, provider)
        return card_of(sealed, provider) if self.cards else sealed


def wire(message: Message) -> Message:
    """As it arrives."""
    return decode(encode(message))


class Hops:
    """One holder and one reader at a time, kept while cases come for the same place."""

    def __init__(self, world: World) -> None:
        self.refused: Counter[str] = Counter()  # by the holder, why
        self._bob = world.bob.id
        self._place: Place | None = None

    def travel(self, cases: Sequence[Case]) -> None:
        """All of them through both; raises AssertionError, naming what got through."""
        # those of one place together: an answer is about one key
        ordered = sorted(cases, key=lambda case: (case.kind, case.network, case.key or b"", case.now_us))
        for place, group in groupby(ordered, Place.of):
            arrived = list(group)
            self._arrive(place)
            for case in arrived:
                self._hold(case)
            for at in range(0, len(arrived), AT_ONCE):
                self._read(arrived[at : at + AT_ONCE])

    def _arrive(self, place: Place) -> None:
        if place == self._place:
            return
        self._place = place
        table = RoutingTable(EVE.id, 20)
        self._server = KadServer(EVE.id, place.network, table, OfferStore())
        self._near, self._far = place.neighbour(CAROL), place.neighbour(DAVE)
        kept = {CAROL.id: self._near} | ({self._bob: place.held} if place.held is not None else {})
        for sender, sealed in kept.items():
            assert self._add(sender, sealed.envelope).refused == ""
        self._kept = {sealed.envelope for sealed in kept.values()}

    def _add(self, sender: PeerId, envelope: bytes) -> Message:
        assert self._place is not None
        contact = Contact(sender, (b"addr",))
        message = Message(Kind.ADD_PROVIDER, self._place.key, providers=(contact,), records=(envelope,))
        reply = self._server.handle(wire(message), sender, None, 0.0, self._place.now_us)
        assert reply is not None
        return wire(reply)

    def _hold(self, case: Case) -> None:
        assert self._place is not None
        reply = self._add(self._bob, case.envelope)
        assert reply.refused in case.refusals, f"{reply.refused or 'stored'}: {case}"
        proofs = () if case.held is None or reply.refused != "revoked" else (case.held.envelope,)
        assert reply.records == proofs, case
        self.refused[reply.refused] += 1
        asked = wire(Message(Kind.GET_PROVIDERS, self._place.key))
        told = self._server.handle(asked, PeerId(b"reader"), None, 0.0, self._place.now_us)
        assert told is not None
        assert sorted(wire(told).records or ()) == sorted(self._kept), case
        assert len(self._server.store) == len(self._kept), case

    def _read(self, cases: Sequence[Case]) -> None:
        """All of them in one answer, the neighbour in their midst; the next holder is asked as well."""
        place = self._place
        assert place is not None
        walk = Collect(
            place.key,
            [LIAR, HONEST],
            me=EVE.id,
            network=place.network,
            tuning=TEST,
            now=0.0,
            now_us=place.now_us,
        )
        bad = [case.envelope for case in cases]
        held = () if place.held is None else (place.held.envelope,)
        half = len(bad) // 2
        answers = {
            LIAR.id: (*bad[:half], self._near.envelope, *bad[half:]),
            HONEST.id: (*held, self._far.envelope),
        }
        while not isinstance(step := walk.poll(0.0), Done):
            assert isinstance(step, Send)
            reply = Message(Kind.GET_PROVIDERS, place.key, records=answers.pop(step.contact.id))
            walk.on_reply(step.contact.id, wire(reply), 0.0)
        assert not answers
        assert walk.ours == {LIAR.id, HONEST.id}
        live = () if place.held is None or place.held.is_tombstone else (place.held,)
        returned = {sealed.identity: sealed.seq for sealed in walk.records}
        wanted = (self._near, self._far, *live)
        # of two that one key signed with one number, a reader may take either: both are its word
        assert returned == {sealed.identity: sealed.seq for sealed in wanted}, cases[0]
        neighbours = {self._near.envelope, self._far.envelope}
        assert neighbours <= {sealed.envelope for sealed in walk.records}, cases[0]
        if place.held is None:  # else they are sound, and something else stands against them
            assert walk.refused.total() == len({envelope for envelope in bad if envelope}), cases[0]
