"""What this peer offers: signed, stored with its holders, told again, signed anew, withdrawn."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from copy import copy
from dataclasses import dataclass, field, replace
from math import inf

import trio

from modelnet_p2p.dht.republish import Due, Renew, Republisher
from modelnet_p2p.dht.walks.lookup import Wait
from modelnet_p2p.dht.walks.shards import Spill
from modelnet_p2p.dht.walks.storing import Store, Stored
from modelnet_p2p.errors import LocalError, RemoteError
from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.node.overlay.announcing import Announcement, Published, Reports
from modelnet_p2p.node.overlay.driver import Overlay
from modelnet_p2p.node.overlay.signing import Signing
from modelnet_p2p.records import (
    MAX_LIFETIME_US,
    Identity,
    OfferRecord,
    Revocation,
    Sealed,
    kept_until,
    seal_tombstone,
    tombstone_of,
)

log = logging.getLogger(__name__)

PACE_SECONDS = 30.0  # at most, until the calendar is told again how fast peers die
RENEW_RETRY = 60.0  # seconds until a renewal is tried again that the disk did not allow
STORE_ATTEMPTS = 3  # walks of one publish; what still lacks its majority then is retried in the background
STORES_AT_ONCE = 16  # keys of offers that somebody waits for: one has up to 13, a hundred have two hundred
TELLERS = 4  # that tell what is published: a batch whose holders are silent holds up no other


@dataclass(slots=True, eq=False)
class _Order:
    """A publish that somebody waits for."""

    draft: OfferRecord
    ended: trio.Event = field(default_factory=trio.Event)
    announcement: Announcement | None = None  # once it is signed ...
    refused: LocalError | None = None  # ... unless it cannot be


class Publisher:
    """This peer's own records. `take_seq` gives sequence numbers that never repeat, across restarts."""

    def __init__(self, overlay: Overlay, key: KeyPair, take_seq: Callable[[], int]) -> None:
        self._overlay = overlay
        self._signing = Signing(key, overlay.wall_us, overlay.tuning.record_lifetime)
        self._take_seq = take_seq
        self._offers: dict[Identity, Sealed] = {}  # what is kept stored
        self._records: dict[Identity, Mapping[bytes, Sealed]] = {}
        self._spills: dict[bytes, Spill] = {}  # of the keys that were full
        self._calendar = Republisher(overlay.tuning.republish)
        self._ordering, self._orders = trio.open_memory_channel[_Order](inf)
        self._gathering = trio.Lock()  # one teller at a time takes what is ordered, and all of it
        self._storing = trio.CapacityLimiter(STORES_AT_ONCE)
        self._changed = trio.Event()
        self.signed = trio.Event()  # set, and another in its place, when an offer is signed
        self.on_revoked: Callable[[Sequence[bytes], set[PeerId]], None] = lambda proofs, signers: None
        overlay.on_newcomer(self._on_newcomer)

    def under(self, key: bytes) -> list[Sealed]:
        """My own records at this key: I know them without asking anybody."""
        return [records[key] for records in self._records.values() if key in records]

    def offers(self) -> list[Sealed]:
        """What of mine is offered now."""
        return list(self._offers.values())

    def keys(self) -> set[bytes]:
        """The keys under which offers of mine are kept stored, shards where a key was full."""
        keys = {key for identity in self._offers for key in self._records.get(identity, ())}
        return {self._spills[key].at if key in self._spills else key for key in keys}

    def signed_us(self) -> int:
        """When the newest of these offers was signed, in unix microseconds by my clock; 0 without any."""
        offers = (sealed.record for sealed in self._offers.values())
        return max((offer.issued_us for offer in offers if isinstance(offer, OfferRecord)), default=0)

    def seq(self, identity: Identity) -> int | None:
        """The sequence number under which this offer of mine is known now."""
        offer = self._offers.get(identity)
        return offer.seq if offer else None

    async def publish(self, draft: OfferRecord) -> Published:
        """Sign `draft` (its sequence is taken, its times are set here), store it, and keep it stored.

        Those that are published at once are signed and told together: a key that they have in common costs
        one walk, and its holders one check.

        Raises RemoteError (unreachable) when no majority of the holders could be reached; the offer
        stays published here and is stored again in the background, as it is when this is cancelled.
        LocalError (bad-input, too-large) when no sound record can be made of it; then nothing has changed.
        """
        order = _Order(draft)
        self._ordering.send_nowait(order)
        try:
            await order.ended.wait()
        except trio.Cancelled:
            self._sign_orders([order])  # if it is not: it is published, and can be taken back
            raise
        if order.refused is not None:
            raise order.refused
        assert order.announcement is not None
        return _published(order.announcement)

    def check(self, draft: OfferRecord) -> None:
        """Raises LocalError (bad-input, too-large) when no sound record can be made of `draft`."""
        self._signing.together([draft])

    def entomb(self, identity: Identity) -> Sealed:
        """The tombstone of an offer that is published; nothing changes until `bury`.

        Raises LocalError when no sequence number can be taken for it.
        """
        tombstone = tombstone_of(self._offers[identity], seq=self._take_seq(), now_us=self._overlay.wall_us())
        return seal_tombstone(tombstone, self._signing.key)

    async def bury(self, sealed: Sealed) -> Published:
        """Tell the holders that an offer is taken back, and keep telling until it would have expired.

        Raises RemoteError when no majority heard of it yet; that changes nothing here.
        """
        self._offers.pop(sealed.identity, None)
        self._calendar.remove(sealed.identity)
        now_us = self._overlay.wall_us()
        for identity, known in list(self._records.items()):
            if all(record.is_tombstone and record.expires_us <= now_us for record in known.values()):
                del self._records[identity]
        return await self._take_back(sealed, sealed.keys)

    def abandon(self, identity: Identity) -> tuple[bytes, ...]:
        """Tell no more of an offer that nobody takes; under which keys it lay."""
        self._offers.pop(identity, None)
        self._calendar.remove(identity)
        return tuple(self._records.pop(identity, {}))

    async def revoke(self, sealed: Sealed, keys: Sequence[bytes]) -> Published:
        """Tell a revocation under all these keys, and keep telling it; raises RemoteError as `bury` does."""
        return await self._take_back(sealed, keys)

    async def keep(self) -> None:
        """Tell what is published, and carry out the calendar, for as long as the peer lives."""
        overlay = self._overlay
        async with trio.open_nursery() as nursery:
            for _ in range(TELLERS):
                nursery.start_soon(self._tell_orders)
            while True:
                changed, now = self._changed, trio.current_time()
                self._calendar.pace(overlay.table.churn.interval(now, overlay.tuning.republish))
                match self._calendar.poll(now):
                    case Due(key, sealeds):
                        nursery.start_soon(self._store_due, key, sealeds)
                    case Renew(identities):
                        self._renew(identities)
                    case Wait(until):
                        with trio.move_on_at(min(until, now + PACE_SECONDS)):
                            await changed.wait()

    # --- the steps of it ---

    def _renew(self, identities: Iterable[Identity]) -> None:
        now, drafts = trio.current_time(), dict[Identity, OfferRecord]()
        failed = dict[Identity, LocalError]()
        for identity in identities:
            offer = self._offers[identity].record
            assert isinstance(offer, OfferRecord)
            try:
                drafts[identity] = replace(offer, seq=self._take_seq())
            except LocalError as error:
                failed[identity] = error
        for identity, signed in zip(drafts, self._signing.each(list(drafts.values())), strict=True):
            if isinstance(signed, LocalError):
                failed[identity] = signed
            else:
                self._keep(signed)
                self._schedule(signed, stored=False)
        for identity, why in failed.items():
            log.error("the offer of %s cannot be signed anew yet: %s", identity.name, why.message)
            self._calendar.add(self._records[identity], now, renew_at=now + RENEW_RETRY, stored=True)

    def _sign_orders(self, orders: Sequence[_Order]) -> None:
        """Those that are not: whose publisher gave up waiting was signed then."""
        orders = [order for order in orders if order.announcement is None and order.refused is None]
        for order, signed in zip(orders, self._signing.each([order.draft for order in orders]), strict=True):
            if isinstance(signed, LocalError):
                order.refused = signed
                order.ended.set()
            else:
                order.announcement, signed.ended = signed, order.ended
                self._keep(signed)

    def _keep(self, one: Announcement) -> None:
        self._offers[one.sealed.identity] = one.sealed
        self._records[one.sealed.identity] = one.under
        self.signed.set()
        self.signed = trio.Event()

    def _is_mine(self, one: Announcement) -> bool:
        """Whether nobody has said otherwise since."""
        return self._records.get(one.sealed.identity) is one.under

    async def _tell_orders(self) -> None:
        """Whatever is published by the time that this is free."""
        while True:
            async with self._gathering:
                orders = [await self._orders.receive()]
                with suppress(trio.WouldBlock):
                    while True:
                        orders.append(self._orders.receive_nowait())
            self._sign_orders(orders)
            await self._tell([order.announcement for order in orders if order.announcement is not None])

    async def _take_back(self, sealed: Sealed, keys: Iterable[bytes]) -> Published:
        """Tell under these keys what takes something back; raises RemoteError."""
        one = Announcement(sealed, dict.fromkeys(keys, sealed), sealed.expires_us)
        self._records[sealed.identity] = one.under
        await self._tell([one])
        return _published(one)

    async def _tell(self, announcements: Sequence[Announcement]) -> None:
        """Store all of them, with one walk for each key; each ends as soon as its promise is kept."""
        began, reports = trio.current_time(), Reports()
        try:
            for attempt in range(STORE_ATTEMPTS):
                untold = [one for one in announcements if one.outcome is None]
                missing = reports.missing(one for one in untold if attempt == 0 or self._is_mine(one))
                async with trio.open_nursery() as nursery:
                    for key, some in missing:
                        nursery.start_soon(self._store_into, reports, key, some)
        except trio.Cancelled:  # whoever waited for it has given up
            for one in announcements:
                if one.outcome is None and self._is_mine(one):
                    self._schedule(one, stored=False)
            raise
        because = self._overlay.asking.asked_too_much(began)
        for one in announcements:
            if one.outcome is None:
                self._end(one, reports, because)

    async def _store_into(self, reports: Reports, key: bytes, announcements: Sequence[Announcement]) -> None:
        withdraws = any(one.withdraws for one in announcements)
        async with nullcontext() if withdraws else self._storing:
            report = await self._store(key, [one.under[key] for one in announcements])
            for one in announcements:
                reports.add(key, one, report)
                if one.outcome is None and reports.promised(one):
                    self._end(one, reports)
            if not withdraws:  # its publishers have their answer, and the next store waits
                await self._overlay.keep_pace()

    def _end(self, one: Announcement, reports: Reports, because: str = "") -> None:
        if self._is_mine(one):
            self._schedule(one, stored=reports.promised(one))
            for key in reports.alone(one):
                self._calendar.alone(key)
        one.end(reports.outcome(one, because))

    def _schedule(self, one: Announcement, *, stored: bool) -> None:
        now = trio.current_time()
        if one.expires_us is None:
            half = self._overlay.tuning.record_lifetime / 2
            self._calendar.add(one.under, now, renew_at=now + half, stored=stored)
        else:
            over = now + (one.expires_us - self._overlay.wall_us()) / 1e6
            self._calendar.add(one.under, now, forget_at=over, stored=stored)
        self._wake()

    async def _store(self, key: bytes, sealeds: Iterable[Sealed]) -> Stored:
        """Under the key, or under its shard where it is full."""
        overlay, sealeds = self._overlay, list(sealeds)
        known = self._spills.get(key)  # of two stores of one key at the same time each has its own
        spill = copy(known) if known else Spill(key, overlay.me, overlay.tuning.record_lifetime)
        deepest = 0
        if known is not None and any(sealed.is_tombstone for sealed in sealeds):
            # some holders of the key itself may have kept what is taken back, beside those of the shard
            spill, deepest = Spill(key, overlay.me, overlay.tuning.record_lifetime), known.depth
        at: bytes | None = spill.start(trio.current_time())
        while at is not None:
            report = await self._store_at(at, sealeds)
            at = spill.after(report, deepest)
        if spill.depth:
            self._spills[key] = spill
        else:
            self._spills.pop(key, None)
        return replace(report, key=key)

    async def _store_at(self, key: bytes, sealeds: Sequence[Sealed]) -> Stored:
        overlay = self._overlay
        contact = overlay.contact()
        signers = {signer for sealed in sealeds for signer in sealed.identity[:2]}
        walk = Store(
            key,
            sealeds,
            contact,
            overlay.seeds(key),
            tuning=overlay.tuning,
            patience=overlay.patience.seconds,
            region=overlay.density.region,
            ours=overlay.asking.is_ours,
            on_proofs=lambda proofs: self.on_revoked(proofs, signers),
        )
        await overlay.run(walk)
        overlay.server.keep_own(key, [_placed(sealed, overlay.wall_us()) for sealed in sealeds], contact)
        return walk.report

    async def _store_due(self, key: bytes, sealeds: tuple[Sealed, ...]) -> None:
        report = await self._store(key, sealeds)
        log.debug("stored %d records again on %d of %d peers", len(sealeds), report.stored, report.asked)
        self._calendar.on_stored(key, trio.current_time(), promised=report.promised, alone=report.alone)
        self._wake()

    def _on_newcomer(self, peer: PeerId) -> None:
        """A peer has entered the table: the first neighbour, or one that should hold some of my records."""
        table, now = self._overlay.table, trio.current_time()

        def holds(key: bytes) -> bool:
            return any(contact.id == peer for contact in table.closest(key, table.k))

        self._calendar.on_neighbour(now)
        self._calendar.on_newcomer(holds, now)
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _published(one: Announcement) -> Published:
    """How its telling went; raises RemoteError."""
    if isinstance(one.outcome, RemoteError):
        raise one.outcome
    assert one.outcome is not None
    return one.outcome


def _placed(sealed: Sealed, now_us: int) -> Sealed:
    """A revocation lies in my own store as it does in others': a day at a time."""
    return kept_until(sealed, now_us + MAX_LIFETIME_US) if isinstance(sealed.record, Revocation) else sealed
