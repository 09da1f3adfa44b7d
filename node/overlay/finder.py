"""Who offers what, and who of them is alive: one walk for the records, one ping for the life.

Keys that many share hold cards; the offers behind them are read from their models' own keys, so that
what is returned was checked with both seals. The best few are then pinged at the same time: one round
trip tells who is there, how far away, and how loaded.

What holders tell is taken from all of them in turns. One that tells thousands of records, or a dozen
false addresses of somebody else's provider, fills its own turns and no more.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import trio

from modelnet_p2p.dht.walks import MAX_MERGED, Collect
from modelnet_p2p.errors import Code, LocalError, RemoteError
from modelnet_p2p.events import Call
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact, Message
from modelnet_p2p.names import Keys, provider_key
from modelnet_p2p.node.calls.client import CallClient
from modelnet_p2p.node.calls.server import PING
from modelnet_p2p.node.overlay.driver import Overlay, texts
from modelnet_p2p.node.overlay.publisher import Publisher
from modelnet_p2p.offers import Offer, State
from modelnet_p2p.query import Query
from modelnet_p2p.records import Card, Identity, OfferRecord, Sealed

log = logging.getLogger(__name__)

PAGE_BYTES = 1 << 20  # of my own store's records under one key, read at once
READ_AHEAD = 4  # cards read for each offer wanted: some are withdrawn, expired, or do not match
MAX_MODELS_READ = 64  # models whose keys one search reads: each is a walk of its own
MAX_PROVIDERS_READ = 512  # of one such model: 64 times as many are 128 MiB at the very worst
MAX_ADDRS = 16  # of one provider: as many as one dial tries
MAX_SOUGHT = 8  # providers of whom no holder told an address, and for whom a walk is made
PING_BODY_BYTES = 64 << 10  # an honest answer has a load for each of at most 64 models
MAX_LOADS = 256  # models of one provider whose load is remembered
MAX_PINGS = 8  # candidates pinged at the same time
PING_ROUNDS = 3  # if all of the first candidates are dead, the next ones are asked
VITAL_SECONDS = 2.0  # how long a sign of life is believed
MAX_VITALS = 4096  # providers whose signs of life are remembered


@dataclass(frozen=True, slots=True)
class Vital:
    """One provider's sign of life, or the lack of it."""

    state: State
    at: float  # monotonic seconds
    rtt_ms: float | None = None
    loads: dict[str, float] | None = None  # by model name


class _Reading(Collect):
    """A read that remembers in which place of its holder's answer each record and address stood."""

    # `Collect` merges in the order of arrival: whoever answers first with most would be all that is seen
    def __init__(self, key: bytes, overlay: Overlay, limit: int | None) -> None:
        super().__init__(
            key,
            overlay.seeds(key),
            me=overlay.me,
            network=overlay.name,
            tuning=overlay.tuning,
            now=trio.current_time(),
            now_us=overlay.wall_us(),
            limit=limit,
            patience=overlay.patience.seconds,
        )
        self._me = overlay.me
        self._told: Counter[PeerId] = Counter()  # records that each holder has told so far
        self._places: dict[bytes, int] = {}
        self._addrs: defaultdict[PeerId, dict[bytes, int]] = defaultdict(dict)

    def on_local(self, sealeds: Iterable[Sealed], contacts: Iterable[Contact]) -> None:
        sealeds, contacts = list(sealeds), list(contacts)
        super().on_local(sealeds, contacts)
        self._note(self._me, [sealed.envelope for sealed in sealeds], contacts)

    def on_reply(self, peer: PeerId, reply: Message, now: float) -> None:
        super().on_reply(peer, reply, now)
        self._note(peer, reply.records or (), reply.providers)

    @property
    def in_turns(self) -> list[Sealed]:
        """The live records: the first of every holder, then the second of every holder, and so on."""
        return sorted(self.records, key=lambda sealed: self._places.get(sealed.envelope, MAX_MERGED))

    def addresses(self, provider: PeerId) -> tuple[bytes, ...]:
        """Where this provider is said to be, the first address of every teller first."""
        places = self._addrs.get(provider, {})
        return tuple(sorted(places, key=places.__getitem__))[:MAX_ADDRS]

    def _note(self, holder: PeerId, envelopes: Iterable[bytes], contacts: Iterable[Contact]) -> None:
        for envelope in envelopes:
            place = self._told[holder]
            self._told[holder] += 1
            if envelope in self._places or len(self._places) < MAX_MERGED:
                self._places[envelope] = min(place, self._places.get(envelope, place))
        for contact in contacts:
            if contact.id not in self._addrs and len(self._addrs) >= MAX_MERGED:
                continue
            places = self._addrs[contact.id]
            for place, addr in enumerate(contact.addrs[:MAX_ADDRS]):
                places[addr] = min(place, places.get(addr, place))


class Finder:
    """The reading side of the overlay for one peer."""

    def __init__(
        self,
        overlay: Overlay,
        publisher: Publisher,
        client: CallClient,
        rank: Callable[[Sequence[Offer]], list[Offer]],
    ) -> None:
        self._overlay = overlay
        self._publisher = publisher
        self._client = client
        self._rank = rank
        self._vitals: dict[PeerId, Vital] = {}
        self.refused: dict[str, int] = {}  # bad records met while reading, by reason

    async def find(self, query: Query, limit: int, *, with_dead: bool = False) -> list[Offer]:
        """Offers that match, best first, at most `limit`; the dead ones only `with_dead`."""
        offers = await self._with_signs_of_life(await self.offers(query, limit))
        ranked = self._rank(offers)
        return [offer for offer in ranked if with_dead or offer.state is not State.DEAD][:limit]

    async def offers(self, query: Query, limit: int) -> list[Offer]:
        """Offers that match, whoever is alive; both seals of each were checked."""
        # who asks for one version or owner must not lose it behind a crowd of others of the same name
        narrow = query.version is not None or query.owner is not None
        enough = max(limit * READ_AHEAD, MAX_PROVIDERS_READ if narrow else 0)
        first = await self._collect(query.key(), enough)
        found = {sealed.identity: sealed for sealed in first.in_turns if query.matches(sealed.record)}
        walks = [first]
        if query.finds_cards():
            wanted = list(found.values())[: limit * READ_AHEAD]
            walks = await self._read_models(query, wanted)
            found = self._behind(wanted, walks, query)
        sealeds = list(found.values())[: limit * READ_AHEAD]
        addrs = await self._addresses([sealed.identity.provider for sealed in sealeds], walks)
        return [
            Offer(sealed.record, sealed.envelope, addrs[sealed.identity.provider])
            for sealed in sealeds
            if isinstance(sealed.record, OfferRecord)
        ]

    async def _collect(self, key: bytes, limit: int | None) -> _Reading:
        overlay = self._overlay
        walk = _Reading(key, overlay, limit)
        held = overlay.server.store.page(key, b"", PAGE_BYTES)
        walk.on_local(held.sealeds, held.contacts)
        walk.on_local(self._publisher.under(key), [overlay.contact()])
        await overlay.run(walk)
        for reason, count in walk.refused.items():
            self.refused[reason.value] = self.refused.get(reason.value, 0) + count
        return walk

    async def _read_models(self, query: Query, cards: Sequence[Sealed]) -> list[_Reading]:
        """The walks to the keys of all models that the cards name."""
        keys = Keys(query.network)
        names = list(dict.fromkeys(card.identity.name for card in cards))[:MAX_MODELS_READ]
        walks: list[_Reading] = []

        async def read(name: str) -> None:
            walks.append(await self._collect(provider_key(keys.model(name)), MAX_PROVIDERS_READ))

        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(read, name)
        return walks

    def _behind(
        self, cards: Sequence[Sealed], walks: Sequence[_Reading], query: Query
    ) -> dict[Identity, Sealed]:
        """The offers that the cards stand for: the very bytes, or a newer version that still matches."""
        read = {sealed.identity: sealed for walk in walks for sealed in walk.records}
        found: dict[Identity, Sealed] = {}
        for card in cards:
            offer = read.get(card.identity)
            if (
                not isinstance(card.record, Card)
                or offer is None
                or not isinstance(offer.record, OfferRecord)
            ):
                continue
            same = hashlib.sha256(offer.envelope).digest() == card.record.offer_sha256
            if (same or offer.seq > card.seq) and query.matches(offer.record):
                found[offer.identity] = offer
        return found

    async def _addresses(
        self, providers: Iterable[PeerId], walks: Sequence[_Reading]
    ) -> dict[PeerId, tuple[str, ...]]:
        """Text addresses of all these; those of whom no holder told any are looked up, a few of them."""
        overlay = self._overlay
        found: dict[PeerId, tuple[str, ...]] = {}
        for provider in dict.fromkeys(providers):
            if provider == overlay.me:
                found[provider] = tuple(overlay.network.addrs)
                continue
            told = dict.fromkeys(addr for walk in walks for addr in texts(walk.addresses(provider)))
            found[provider] = tuple(told)[:MAX_ADDRS] or overlay.known_addrs(provider)

        async def look_up(provider: PeerId) -> None:
            found[provider] = await overlay.find_peer(provider)

        lost = [provider for provider, addrs in found.items() if not addrs and provider != overlay.me]
        with trio.move_on_after(overlay.tuning.request_timeout):
            async with trio.open_nursery() as nursery:
                for provider in lost[:MAX_SOUGHT]:
                    nursery.start_soon(look_up, provider)
        return found

    # --- signs of life ---

    async def _with_signs_of_life(self, offers: Sequence[Offer]) -> list[Offer]:
        """The offers with state, round trip and load; pings the best ones, until somebody is alive."""
        for _ in range(PING_ROUNDS):
            offers = self._rank([self._annotated(offer) for offer in offers])
            unknown = {o.record.provider: o.addrs for o in offers if o.state is State.UNKNOWN}
            async with trio.open_nursery() as nursery:
                for provider in list(unknown)[:MAX_PINGS]:
                    nursery.start_soon(self._examine, provider, unknown[provider])
            offers = [self._annotated(offer) for offer in offers]
            if not unknown or any(offer.state is State.ALIVE for offer in offers):
                break
        return list(offers)

    def _annotated(self, offer: Offer) -> Offer:
        vital = self._vitals.get(offer.record.provider)
        if vital is None or trio.current_time() - vital.at > VITAL_SECONDS:
            return replace(offer, state=State.UNKNOWN, rtt_ms=None, load=None)
        load = (vital.loads or {}).get(offer.record.name)
        return replace(offer, state=vital.state, rtt_ms=vital.rtt_ms, load=load)

    async def _examine(self, peer: PeerId, addrs: Sequence[str]) -> None:
        if len(self._vitals) >= MAX_VITALS:
            self._vitals.clear()  # two seconds' worth of pings; keeping the newest would be no better
        self._vitals[peer] = await self.ping(peer, addrs)

    def vital(self, peer: PeerId) -> Vital | None:
        """The last sign of life of this peer, however old."""
        return self._vitals.get(peer)

    async def ping(self, peer: PeerId, addrs: Sequence[str]) -> Vital:
        """One sign of life: `alive` with its round trip, `suspect` if silent, `dead` if nobody is there."""
        timeout = self._overlay.tuning.ping_timeout
        try:
            with trio.fail_after(timeout):
                if peer != self._overlay.me:
                    await self._overlay.network.connect(peer, addrs)
            started = trio.current_time()
            call = Call(target="", method=PING)
            result = await self._client.unary(peer, addrs, call, timeout, max_body=PING_BODY_BYTES)
        except trio.TooSlowError:
            return Vital(State.SUSPECT, trio.current_time())
        except RemoteError as error:
            log.debug("%s gave no sign of life: %s", peer.short, error.message)
            state = State.DEAD if error.code is Code.UNREACHABLE else State.SUSPECT
            return Vital(state, trio.current_time())
        except LocalError as error:  # told addresses that are none
            log.debug("%s cannot be dialled: %s", peer.short, error.message)
            return Vital(State.DEAD, trio.current_time())
        now = trio.current_time()
        return Vital(State.ALIVE, now, (now - started) * 1e3, _loads(result.value))


def _loads(value: object) -> dict[str, float]:
    """The loads in a ping's answer; whatever has another form is left out."""
    models = value.get("models") if isinstance(value, dict) else None
    if not isinstance(models, dict):
        return {}
    return {
        name: min(1.0, max(0.0, float(load)))
        for name, load in islice(models.items(), MAX_LOADS)
        if isinstance(load, int | float) and not isinstance(load, bool) and load == load
    }
