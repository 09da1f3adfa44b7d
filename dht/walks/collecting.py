"""Reading the records under one key, from several holders: one holder's answer is never the truth."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from modelnet_p2p.dht.holding.cache import MAX_RECORDS as MAX_COPIES
from modelnet_p2p.dht.holding.revocations import Revocations, revoked_by
from modelnet_p2p.dht.holding.store import Full
from modelnet_p2p.dht.keyspace import position
from modelnet_p2p.dht.walks.finding import Send, Walk
from modelnet_p2p.dht.walks.lookup import DONE, MAX_ADDRS, Done, Wait, merged
from modelnet_p2p.dht.walks.region import Region
from modelnet_p2p.envelope import Roots
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact, Kind, Message
from modelnet_p2p.records import MAX_RECORD_BYTES, BadRecord, Identity, Refusal, Sealed, admit, newest
from modelnet_p2p.tuning import Tuning

MAX_RECORDS_PER_REPLY = 512  # 64 KiB hold no more; each may cost two signature checks of some 100 us
MAX_PAGES = 128  # of one holder's answer: more than any holder of ours keeps under one key
MAX_BUSY = 8  # times that one holder of pages is asked again: each has taken a request's timeout
MAX_BAD = 1024  # refused records that are recognised when another holder sends them too
MAX_MERGED = 8192  # records, and providers, of one read: 32 MiB at the very worst
MAX_OF_HOLDER = 4096  # of those, of one holder: as many as one of ours keeps under a key
COPIES_BYTES = 32 * 1024  # of records handed over: with two addresses each they fit one message
HOLDERS = 2  # true ones that a read with copies needs: one may lack a record, or hide it


@dataclass(slots=True)
class _Page:
    """A further page of one holder's answer that was asked for."""

    contact: Contact
    cursor: bytes
    until: float  # the walk waits for it


class Collect(Walk):
    """The records under one key, merged from several holders: one holder's answer is never the truth.

    Each record is admitted by itself, so a bad one costs nobody but itself. Ends when the beta closest peers
    that hold any record here have answered (or the k closest, whatever they hold: the very closest may be
    newcomers whom no publisher has told yet), and further pages were read until `limit` live records are
    known (None: all pages). Where somebody on the way had copies, HOLDERS true ones beside them are enough;
    they are chosen by who I am, so that not all readers of a hot key ask the nearest. In a crowd of
    identities around the key copies shorten nothing.
    """

    def __init__(
        self,
        key: bytes,
        seeds: Iterable[Contact],
        *,
        me: PeerId,
        network: str,
        tuning: Tuning,
        now: float,
        now_us: int,
        limit: int | None = None,
        patience: float | None = None,
        region: Region | None = None,
        revocations: Revocations | None = None,
    ) -> None:
        request = Message(Kind.GET_PROVIDERS, key)
        super().__init__(
            key, request, seeds, me=me, tuning=tuning, patience=patience, reading=True, region=region
        )
        self.network = network
        self.limit = limit
        self.refused: Counter[Refusal] = Counter()
        self.providers: dict[PeerId, Contact] = {}  # also those that only stock peers know of
        self.proofs: dict[PeerId, Sealed] = {}  # keys that were revoked, as the holders tell
        self._revocations = Revocations() if revocations is None else revocations
        self._now, self._now_us = now, now_us
        self._merged: dict[Identity, Sealed] = {}
        self._admitted: set[bytes] = set()
        self._bad: set[bytes] = set()
        self._checked: Counter[PeerId] = Counter()  # records of each holder
        self._next: deque[tuple[Contact, bytes]] = deque()  # pages to ask for
        self._open: dict[PeerId, _Page] = {}  # pages asked for
        self._pages: Counter[PeerId] = Counter()
        self._busy: Counter[PeerId] = Counter()
        self._told_by: set[PeerId] = set()  # holders that told records of this key
        self._split_by: set[PeerId] = set()  # ... and that it has shards
        self._place = position(me)
        self.copies = 0  # answers that were copies
        self._holders: set[PeerId] = set()  # that told records of their own
        self._held: dict[bytes, None] = {}  # what true holders told, in their order
        self._without: list[PeerId] = []  # peers of ours that had neither
        self._chosen: list[PeerId] = []  # holders asked for the sake of copies ...
        self._chosen_until = 0.0  # ... which are waited for until then

    @property
    def split(self) -> bool:
        """Whether to read the key's shards too: two holders say so, or the only one does."""
        return len(self._split_by) >= min(2, max(1, len(self._told_by)))

    @property
    def records(self) -> tuple[Sealed, ...]:
        """The newest version of each record, without the withdrawn ones and those of revoked keys."""
        if not self.proofs and not self._revocations:  # as in nearly all walks, which ask this all the time
            return tuple(self._live())
        return tuple(sealed for sealed in self._live() if self.proof_against(sealed) is None)

    @property
    def condemned(self) -> tuple[Sealed, ...]:
        """Those that were left out because a key was revoked."""
        return tuple(sealed for sealed in self._live() if self.proof_against(sealed) is not None)

    def proof_against(self, sealed: Sealed) -> Sealed | None:
        """What is known against the keys that sealed it, before this walk or by it."""
        record = sealed.record
        told = self.proofs.get(record.provider) or self.proofs.get(record.owner)
        return told or self._revocations.condemning(record)

    def contact(self, provider: PeerId) -> Contact:
        """Where this provider is said to be; without addresses if nobody said."""
        return self.providers.get(provider) or self.lookup.contact(provider) or Contact(provider, ())

    def on_local(self, sealeds: Iterable[Sealed], contacts: Iterable[Contact]) -> None:
        """What my own store holds under the key: I am one holder among the others."""
        for sealed in sealeds:
            self._merge(sealed)
        self._tell(contacts)

    def poll(self, now: float) -> Send | Wait | Done:
        if self.copies and not self.lookup.crowded:
            if sum(map(self._is_near, self._holders)) >= HOLDERS and (self._enough() or not self._next):
                return DONE
            if (wait := self._choose_holder(now)) is not None:
                return wait
        step = super().poll(now)
        if not isinstance(step, Done):
            return step
        self._open = {peer: page for peer, page in self._open.items() if page.until > now}
        if self._enough():
            return DONE
        if self._next and len(self._open) < self.tuning.alpha_read:
            contact, cursor = self._next.popleft()
            self._open[contact.id] = _Page(contact, cursor, now + self.patience)
            return self._send(contact, Message(Kind.GET_PROVIDERS, self.target, cursor=cursor))
        return Wait(min(page.until for page in self._open.values())) if self._open else DONE

    def on_reply(self, peer: PeerId, reply: Message, now: float) -> None:
        if self._open.pop(peer, None) is None:
            super().on_reply(peer, reply, now)
        elif reply.kind is Kind.GET_PROVIDERS:
            self._on_answer(peer, reply, now)

    def on_failure(self, peer: PeerId, now: float) -> None:
        if self._open.pop(peer, None) is None:
            super().on_failure(peer, now)

    def on_held(self, peer: PeerId) -> None:
        page = self._open.get(peer)
        if page is None:
            super().on_held(peer)
        else:
            page.until = math.inf  # it still is answered, fails, or is asked for again

    def on_busy(self, peer: PeerId, now: float) -> None:
        page = self._open.pop(peer, None)
        if page is None:
            super().on_busy(peer, now)
        elif self._busy[peer] < MAX_BUSY:
            self._busy[peer] += 1
            self._next.append((page.contact, page.cursor))

    def handover(self) -> Send | None:
        """What a read that has ended leaves on its way: copies, for the closest peer that had none."""
        if self.copies or not self._holders or not self._without:
            return None
        target = position(self.target)
        nearest = min(self._without, key=lambda peer: position(peer) ^ target)
        contact = self.lookup.contact(nearest)
        live = {sealed.envelope: sealed.identity.provider for sealed in self.records}
        envelopes, room = list[bytes](), COPIES_BYTES
        for envelope in self._held:
            room -= len(envelope)
            if envelope in live and room >= 0 and len(envelopes) < MAX_COPIES:
                envelopes.append(envelope)
        if contact is None or not envelopes:
            return None
        message = Message(
            Kind.ADD_PROVIDER,
            self.target,
            providers=tuple(_hint(self.contact(live[envelope])) for envelope in envelopes),
            records=tuple(envelopes),
            cached=True,
        )
        return self._send(contact, message)

    def _choose_holder(self, now: float) -> Send | Wait | None:
        """Ask some of the closest, not the nearest, and wait for them a while; None: as without copies."""
        if len(self._chosen) < HOLDERS and (ask := self.lookup.ask_spread(self._place, now)) is not None:
            self._chosen.append(ask.contact.id)
            self._chosen_until = now + self.patience / 2
            return self._send(ask.contact, self.request)
        waits = now < self._chosen_until and any(map(self.lookup.expects, self._chosen))
        return Wait(self._chosen_until) if waits else None

    def _is_near(self, peer: PeerId) -> bool:
        """Whether a holder is to be expected there, by what is known now: far ones are nobody's holders."""
        region = self.lookup.region
        if region is not None:
            return position(peer) ^ self.lookup.target < region.radius
        return self.lookup.among_closest(peer)

    def _note(self, peer: PeerId, reply: Message, *, holds: bool) -> bool:
        """Whose word an answer was; whether it counts towards the end of the walk."""
        if reply.cached:
            self.copies += holds
            return False
        if holds:
            self._holders.add(peer)
            sound = (envelope for envelope in (reply.records or ()) if envelope in self._admitted)
            self._held.update(dict.fromkeys(islice(sound, MAX_COPIES)))
        elif reply.records is not None and not reply.cursor:
            self._without.append(peer)
        return holds

    def _on_answer(self, peer: PeerId, reply: Message, now: float) -> bool:
        super()._on_answer(peer, reply, now)
        holds = False
        now_us, roots = self._now_us + int((now - self._now) * 1e6), Roots()
        for envelope in (reply.records or ())[:MAX_RECORDS_PER_REPLY]:
            if envelope in self._admitted:  # several holders send the same bytes: one check is enough
                holds = True
            elif self._may_check(envelope, peer):
                self._checked[peer] += 1
                try:
                    sealed = admit(
                        envelope, network=self.network, now_us=now_us, key=self.target, roots=roots
                    )
                    self._merge(sealed)
                    holds = True
                except BadRecord as bad:
                    self.refused[bad.refusal] += 1
                    self._remember_bad(envelope)
        if holds and not reply.cached:
            self._told_by.add(peer)
            if reply.refused == Full.KEY:
                self._split_by.add(peer)
        self._tell(reply.providers)
        contact = self.lookup.contact(peer)
        if reply.cursor and contact is not None and self._pages[peer] < MAX_PAGES:
            self._pages[peer] += 1
            self._next.append((contact, reply.cursor))
        return self._note(peer, reply, holds=holds)

    def _may_check(self, envelope: bytes, holder: PeerId) -> bool:
        """Whether this is worth a check, and nobody's turn to be checked is taken by this holder's many."""
        new = bool(envelope) and envelope not in self._bad
        return new and len(self._admitted) < MAX_MERGED and self._checked[holder] < MAX_OF_HOLDER

    def _live(self) -> Iterable[Sealed]:
        return (sealed for sealed in self._merged.values() if not sealed.is_tombstone)

    def _merge(self, sealed: Sealed) -> None:
        self._admitted.add(sealed.envelope)
        self.proofs.update(revoked_by([sealed]))
        self._merged[sealed.identity] = newest(self._merged.get(sealed.identity), sealed)

    def _remember_bad(self, envelope: bytes) -> None:
        if len(self._bad) < MAX_BAD and len(envelope) <= MAX_RECORD_BYTES:
            self._bad.add(envelope)

    def _tell(self, contacts: Iterable[Contact]) -> None:
        for contact in contacts:
            known = self.providers.get(contact.id)
            if known is not None:
                self.providers[contact.id] = merged(known, contact)
            elif len(self.providers) < MAX_MERGED:
                self.providers[contact.id] = Contact(contact.id, contact.addrs[:MAX_ADDRS])

    def _enough(self) -> bool:
        return self.limit is not None and len(self.records) >= self.limit


def _hint(contact: Contact) -> Contact:
    """Where a provider may be: two addresses of a usual length, for whoever keeps copies vouches for none."""
    return Contact(contact.id, tuple(addr for addr in contact.addrs if len(addr) <= 128)[:2])
