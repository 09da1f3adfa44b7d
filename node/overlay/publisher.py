"""What this peer offers: signed, stored with its holders, told again, signed anew, withdrawn."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace

import trio

from modelnet_p2p.dht.republish import Due, Renew, Republisher
from modelnet_p2p.dht.walks.lookup import Wait
from modelnet_p2p.dht.walks.shards import Spill
from modelnet_p2p.dht.walks.storing import Store, Stored
from modelnet_p2p.errors import Code, LocalError, RemoteError
from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.node.overlay.driver import Overlay
from modelnet_p2p.records import (
    MAX_LIFETIME_US,
    Identity,
    OfferRecord,
    Refusal,
    Revocation,
    Sealed,
    cards_of,
    kept_until,
    seal_offer,
    seal_tombstone,
    tombstone_of,
)

log = logging.getLogger(__name__)

PACE_SECONDS = 30.0  # at most, until the calendar is told again how fast peers die
RENEW_RETRY = 60.0  # seconds until a renewal is tried again that the disk did not allow
STORE_ATTEMPTS = 3  # walks of one publish; what still lacks its majority then is retried in the background


@dataclass(frozen=True, slots=True)
class Published:
    """How a publish or a withdrawal went; the holders are those of the key that fewest acknowledged."""

    sealed: Sealed
    asked: int
    stored: int


class Publisher:
    """This peer's own records. `take_seq` gives sequence numbers that never repeat, across restarts."""

    def __init__(self, overlay: Overlay, key: KeyPair, take_seq: Callable[[], int]) -> None:
        self._overlay = overlay
        self._key = key
        self._take_seq = take_seq
        self._offers: dict[Identity, Sealed] = {}  # what is kept stored
        self._records: dict[Identity, Mapping[bytes, Sealed]] = {}
        self._spills: dict[bytes, Spill] = {}  # of the keys that were full
        self._calendar = Republisher(overlay.tuning.republish)
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

        Raises RemoteError (unreachable) when no majority of the holders could be reached; the offer
        stays published here and is stored again in the background, as it is when this is cancelled.
        LocalError (bad-input, too-large) when no sound record can be made of it; then nothing has changed.
        """
        sealed, records = self._sign(draft, draft.seq)
        self._keep(sealed)
        return await self._tell(sealed, records, expires=None)

    def check(self, draft: OfferRecord) -> None:
        """Raises LocalError (bad-input, too-large) when no sound record can be made of `draft`."""
        self._sign(draft, draft.seq)

    def entomb(self, identity: Identity) -> Sealed:
        """The tombstone of an offer that is published; nothing changes until `bury`.

        Raises LocalError when no sequence number can be taken for it.
        """
        tombstone = tombstone_of(self._offers[identity], seq=self._take_seq(), now_us=self._overlay.wall_us())
        return seal_tombstone(tombstone, self._key)

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
        records = dict.fromkeys(sealed.keys, sealed)
        return await self._tell(sealed, records, expires=sealed.expires_us)

    def abandon(self, identity: Identity) -> tuple[bytes, ...]:
        """Tell no more of an offer that nobody takes; under which keys it lay."""
        self._offers.pop(identity, None)
        self._calendar.remove(identity)
        return tuple(self._records.pop(identity, {}))

    async def revoke(self, sealed: Sealed, keys: Sequence[bytes]) -> Published:
        """Tell a revocation under all these keys, and keep telling it; raises RemoteError as `bury` does."""
        return await self._tell(sealed, dict.fromkeys(keys, sealed), expires=sealed.expires_us)

    async def keep(self) -> None:
        """Carry out the calendar for as long as the peer lives."""
        overlay = self._overlay
        async with trio.open_nursery() as nursery:
            while True:
                changed, now = self._changed, trio.current_time()
                self._calendar.pace(overlay.table.churn.interval(now, overlay.tuning.republish))
                match self._calendar.poll(now):
                    case Due(key, sealeds):
                        nursery.start_soon(self._store_due, key, sealeds)
                    case Renew(identity):
                        self._renew(identity)
                    case Wait(until):
                        with trio.move_on_at(min(until, now + PACE_SECONDS)):
                            await changed.wait()

    # --- the steps of it ---

    def _sign(self, draft: OfferRecord, seq: int) -> tuple[Sealed, dict[bytes, Sealed]]:
        now_us = self._overlay.wall_us()
        offer = replace(
            draft,
            seq=seq,
            issued_us=now_us,
            expires_us=now_us + int(self._overlay.tuning.record_lifetime * 1e6),
        )
        sealed = seal_offer(offer, self._key)
        return sealed, records_of(sealed, self._key)

    def _renew(self, identity: Identity) -> None:
        offer = self._offers[identity].record
        assert isinstance(offer, OfferRecord)
        try:
            sealed, records = self._sign(offer, self._take_seq())
        except LocalError as error:
            log.error("the offer of %s cannot be signed anew yet: %s", identity.name, error.message)
            now = trio.current_time()
            self._calendar.add(self._records[identity], now, renew_at=now + RENEW_RETRY, stored=True)
            return
        self._keep(sealed)
        self._schedule(sealed, records, expires=None, stored=False)

    def _keep(self, sealed: Sealed) -> None:
        self._offers[sealed.identity] = sealed
        self.signed.set()
        self.signed = trio.Event()

    async def _tell(self, sealed: Sealed, records: Mapping[bytes, Sealed], expires: int | None) -> Published:
        self._records[sealed.identity] = records
        began, reports = trio.current_time(), dict[bytes, Stored]()
        unheard: set[bytes] = set()  # keys of which nobody was told, for those who are known were silent
        promised = False

        def kept(key: bytes) -> bool:
            """Whom I have given up for being silent just now, I was not alone with."""
            report = reports.get(key)
            return report is not None and report.promised and not (report.alone and key in unheard)

        try:
            for _ in range(STORE_ATTEMPTS):
                missing = [key for key in records if not kept(key)]
                async with trio.open_nursery() as nursery:
                    for key in missing:
                        nursery.start_soon(self._store_into, reports, key, records[key])
                unheard.update(key for key, report in reports.items() if report.silent and not report.asked)
                promised = all(map(kept, records))
                if promised:
                    break
        finally:  # also when whoever waited for it has given up
            if self._records.get(sealed.identity) is records:  # and nobody has said otherwise meanwhile
                self._schedule(sealed, records, expires, stored=promised)
        for key, report in reports.items():
            if report.alone:
                self._calendar.alone(key)
        weakest = min(reports.values(), key=lambda report: (kept(report.key), report.stored))
        if not promised:
            because = self._overlay.asking.asked_too_much(began)
            raise _untold(sealed, weakest, because, withdrawn=expires is not None)
        return Published(sealed, weakest.asked, weakest.stored)

    def _schedule(
        self, sealed: Sealed, records: Mapping[bytes, Sealed], expires: int | None, *, stored: bool
    ) -> None:
        now = trio.current_time()
        self._records[sealed.identity] = records
        if expires is None:
            half = self._overlay.tuning.record_lifetime / 2
            self._calendar.add(records, now, renew_at=now + half, stored=stored)
        else:
            over = now + (expires - self._overlay.wall_us()) / 1e6
            self._calendar.add(records, now, forget_at=over, stored=stored)
        self._wake()

    async def _store_into(self, reports: dict[bytes, Stored], key: bytes, sealed: Sealed) -> None:
        reports[key] = await self._store(key, (sealed,))

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
        walk = Store(
            key,
            sealeds,
            contact,
            overlay.seeds(key),
            tuning=overlay.tuning,
            patience=overlay.patience.seconds,
            region=overlay.density.region,
            ours=overlay.asking.is_ours,
        )
        await overlay.run(walk)
        overlay.server.keep_own(key, [_placed(sealed, overlay.wall_us()) for sealed in sealeds], contact)
        if walk.proofs:
            signers = {signer for sealed in sealeds for signer in sealed.identity[:2]}
            self.on_revoked(walk.proofs, signers)
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


def _placed(sealed: Sealed, now_us: int) -> Sealed:
    """A revocation lies in my own store as it does in others': a day at a time."""
    return kept_until(sealed, now_us + MAX_LIFETIME_US) if isinstance(sealed.record, Revocation) else sealed


def records_of(sealed: Sealed, key: KeyPair) -> dict[bytes, Sealed]:
    """An offer as it is stored: itself at its own keys, a card at the key of its task and of each tag."""
    records = dict.fromkeys(sealed.keys, sealed)
    for card in cards_of(sealed, key):
        records.update(dict.fromkeys(card.keys, card))
    return records


def _untold(sealed: Sealed, weakest: Stored, because: str, *, withdrawn: bool) -> RemoteError:
    """No majority of those holders heard of it; `because` some of them asked to slow down, if they did."""
    about, what = sealed.identity.name, "it is withdrawn here" if withdrawn else "it stays published"
    if isinstance(sealed.record, Revocation):
        about, what = f"the end of {sealed.record.revoked}", "it is kept"
    elif withdrawn:
        about = f"the withdrawal of {about}"
    reasons = ", ".join(sorted(weakest.refused)) or "no answer"
    words = f"only {weakest.stored} of {weakest.asked} holders keep the record of {about} ({reasons})"
    if not weakest.asked:
        words = f"nobody else was told of {about} yet: no peer that is known here answered"
    words += f"; {because}" if because else ""
    hint = f"{what}, and the holders are told again in the background"
    if (
        2 * weakest.refused[Refusal.EXPIRED] > weakest.asked
    ):  # it was signed just now, and is told only while valid
        wrong = "is probably wrong" if weakest.asked > 1 else "or that holder's is wrong"
        words += f": this machine's clock {wrong}"
        hint = f"date -u, and set it; modelnet-peer doctor compares it with others'; {hint}"
    return RemoteError(Code.UNREACHABLE, words, hint=hint)
