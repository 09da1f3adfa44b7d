"""Storing some of my records under one key: a walk to its surroundings, then a few messages to each holder.

The k that count for the promise are the closest, but no more of one slot of the region than a reader asks
there: a crowd of identities around the key cannot make a publish succeed, or fail, by itself. Where the k
closest lie denser than they should, everybody else of ours in the region is told too, so that there is no
place near the key where a reader finds only the crowd.

Who is known to be of ours and lies where holders are expected gets the records at once, and its answer names
closer peers as one to FIND_NODE does: nearly every holder costs one request instead of two.

Source: Trautwein et al.: Optimistic Provide (libp2p, 2023), which stores early by an estimate of the size.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from modelnet_p2p.dht.holding.store import Full
from modelnet_p2p.dht.keyspace import position
from modelnet_p2p.dht.walks.finding import Send, Walk
from modelnet_p2p.dht.walks.lookup import DONE, Ask, Done, Wait
from modelnet_p2p.dht.walks.region import Region
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import MAX_MESSAGE_BYTES, MAX_RECORDS_ADDED, Contact, Kind, Message
from modelnet_p2p.records import Sealed
from modelnet_p2p.tuning import Tuning

MAX_PROOFS = 8  # taken of the answers to one store: the provider's key, the owners', and room for nonsense
ROOM = MAX_MESSAGE_BYTES - 8192  # for records: the rest is more than key and addresses take
TAG_BYTES = 4  # around a record


@dataclass(frozen=True, slots=True)
class Stored:
    """How a store went. Stock peers are told beside ours and never counted, but while it goes on those count
    that have not said yet what they are."""

    key: bytes
    asked: int
    stored: int  # holders that acknowledged every record
    promised: bool  # a majority of min(k, known) acknowledged, or nobody of ours is there
    refused: Counter[str]  # reasons of those that refused
    split: int = 0  # holders of those asked that say the key is full
    silent: int = 0  # peers on the way that may be there and did not answer

    @property
    def alone(self) -> bool:
        return self.promised and self.asked == 0


class Store(Walk):
    """My records for one key, to each of its holders; a bad or refused one keeps no other from being stored.

    Ends when the promise is kept: each of the k nearest that are known was asked, and more than half of them
    have acknowledged. It goes on without its caller (if that was not cancelled) until the last request has
    ended: with the rest of these, with nearer ones that answers name, and where a whole site stands still for
    a second and others, farther away, kept the promise, with the nearest once it moves again. With fewer than
    k, in a crowd, and where something is taken back, it ends when all have answered, or the promise is kept
    and the silent have lost their patience.

    Late answers lead it on for one request timeout, for so long may those answer who were asked before. Then
    who answers is told, and nobody else asked: each of a gang could name the next just before it is given up.
    """

    def __init__(
        self,
        key: bytes,
        sealeds: Sequence[Sealed],
        provider: Contact,
        seeds: Iterable[Contact],
        *,
        tuning: Tuning,
        patience: float | None = None,
        region: Region | None = None,
        ours: Callable[[PeerId], bool] | None = None,
        on_proofs: Callable[[Sequence[bytes]], None] = lambda proofs: None,
    ) -> None:
        """`ours` says who is known to answer as one of ours; a stock peer would be waited for in vain.
        `on_proofs` hears at once, from holders that refuse records, that a key which sealed them was revoked.
        """
        request = Message(Kind.FIND_NODE, key)
        super().__init__(
            key,
            request,
            seeds,
            me=provider.id,
            tuning=tuning,
            patience=patience,
            reading=False,
            region=region,
        )
        self._provider = provider
        self._to_all = any(sealed.is_tombstone for sealed in sealeds)  # who keeps it yet would bring it back
        self._messages = [
            Message(Kind.ADD_PROVIDER, key, providers=(provider,), records=batch)
            for batch in batches(sealeds)
        ]
        self._is_ours = ours or (lambda peer: False)
        # two answers may come between two polls: nobody stands in a line twice
        self._stock: dict[PeerId, Contact] = {}
        self._ready: dict[PeerId, Contact] = {}  # to send the next message to
        self._open: dict[PeerId, float] = {}  # sent a message, and when
        self._sent: Counter[PeerId] = Counter()  # messages sent to each
        self._acknowledged: Counter[PeerId] = Counter()
        self._released = False  # whoever waited is: the promise is kept
        self._chosen = False  # the holders are, for the walk to them is over
        self._led_until = math.inf  # then late answers lead nowhere any more
        self._counted: tuple[PeerId, ...] = ()  # those of them that make the promise
        self._refused: Counter[str] = Counter()
        self._split_by: set[PeerId] = set()
        self._on_proofs = on_proofs
        self._proofs: set[bytes] = set()

    def poll(self, now: float) -> Send | Wait | Done:
        step = self._next(now)
        enough = 2 * len(self._acknowledged) > self.tuning.k  # else the report need not be made
        if isinstance(step, Wait) and enough and not self._released and not self._to_all:
            report = self.report
            self._released = report.promised and report.asked >= self.tuning.k
            return DONE if self._released else step
        return step

    def _next(self, now: float) -> Send | Wait | Done:
        if not self._chosen:
            match self.lookup.poll(now) if now < self._led_until else DONE:
                case Ask(contact):
                    return self._ask(contact)
                case Wait() as step:
                    return step
                case Done():
                    self._choose(now)
        if self._stock:
            stock = Message(Kind.ADD_PROVIDER, self.target, providers=(self._provider,))
            contact = self._stock.pop(next(iter(self._stock)))
            self._sent[contact.id] += 1
            return self._send(contact, stock, expects_reply=False)
        if self._ready:
            contact = self._ready.pop(next(iter(self._ready)))
            self._open[contact.id] = now
            return self._send_next(contact)
        if not self._open:
            return DONE
        if not self.report.promised:
            return Wait(float("inf"))  # each of them still ends, at the latest at the driver's timeout
        until = max(self._open.values()) + self.patience
        return Wait(until) if until > now else DONE

    def _ask(self, contact: Contact) -> Send:
        """The walk's question, or the records themselves where this peer is likely to be a holder."""
        early = self._messages and not self._sent[contact.id] and self._is_ours(contact.id)
        if early and self.lookup.is_likely_holder(contact.id):
            return self._send_next(contact)
        return self._send(contact, self.request)

    def _send_next(self, contact: Contact) -> Send:
        message = self._messages[self._sent[contact.id]]
        self._sent[contact.id] += 1
        return self._send(contact, message)

    def on_reply(self, peer: PeerId, reply: Message, now: float) -> None:
        if self._open.pop(peer, None) is not None:
            self._settle(peer, reply)
            if self._sent[peer] < len(self._messages) and (contact := self.lookup.contact(peer)) is not None:
                self._ready[peer] = contact
        elif self.lookup.expects(peer):
            if self._sent[peer]:
                self._on_early(peer, reply, now)
            else:
                super().on_reply(peer, reply, now)
            if self._chosen:  # it is late: it may be a holder itself, or name some
                self.lookup.reopen()
                self._chosen = False

    def _on_early(self, peer: PeerId, reply: Message, now: float) -> None:
        """What it answers to the records that it was sent instead of the walk's question."""
        self._settle(peer, reply)
        if reply.kind is Kind.ADD_PROVIDER and reply.records is not None:
            self.ours.add(peer)
            self.lookup.on_answer(peer, reply.closer, now)
        else:
            self.lookup.on_failure(peer, now)

    def _settle(self, peer: PeerId, reply: Message) -> None:
        """What a holder says of the records that it was sent last."""
        if reply.kind is not Kind.ADD_PROVIDER or reply.records is None:
            self._refused["unacknowledged"] += 1
        elif reply.refused:
            self._refused[reply.refused] += 1
            if reply.refused == Full.KEY:
                self._split_by.add(peer)
            self._hear(reply.records)
        else:
            self._acknowledged[peer] += 1

    def on_failure(self, peer: PeerId, now: float) -> None:
        if self._open.pop(peer, None) is None:
            del self._sent[peer]  # it has nothing; found again, it is sent the records again
            super().on_failure(peer, now)

    def _hear(self, proofs: Iterable[bytes]) -> None:
        new = [proof for proof in dict.fromkeys(proofs) if proof not in self._proofs]
        new = new[: MAX_PROOFS - len(self._proofs)]
        self._proofs.update(new)
        if new:
            self._on_proofs(new)

    @property
    def report(self) -> Stored:
        counted = self._counted if self._chosen else self._expected()
        stored = sum(self._acknowledged[peer] == len(self._messages) for peer in counted)
        # with nobody of ours there it succeeds; but known peers that are all silent are not nobody
        nobody = self._chosen and not counted and (self.lookup.asked == 0 or bool(self.lookup.closest(1)))
        promised = self._released or nobody or 2 * stored > len(counted)
        split = len(self._split_by.intersection(counted))
        refused, silent = Counter(self._refused), self.lookup.silent
        return Stored(self.target, len(counted), stored, promised, refused, split, silent)

    def _expected(self) -> Sequence[PeerId]:
        """Who makes the promise if nobody nearer turns up; nobody while one of them is still to be asked."""
        return self.lookup.asked_closest(self.ours) or ()

    @property
    def unfinished(self) -> bool:
        return not self._chosen or bool(self._open) or self.lookup.unanswered

    def _choose(self, now: float) -> None:
        first, rest = ([c for c in part if c.id in self.ours] for part in self.lookup.spread())
        counted, others = first[: self.tuning.k], first[self.tuning.k :] + rest
        self._counted = tuple(contact.id for contact in counted)
        place, reach = self.lookup.target, self.lookup.reach
        # nobody who has some of the records is left without the rest
        counted += [c for c in others if position(c.id) ^ place < reach or self._sent[c.id]]
        stock = (c for c in self.lookup.closest() if c.id not in self.ours and not self._sent[c.id])
        self._stock.update((contact.id, contact) for contact in stock)
        missing = (c for c in counted if self._sent[c.id] < len(self._messages) and c.id not in self._open)
        self._ready.update((contact.id, contact) for contact in missing)
        self._chosen = True
        self._led_until = min(self._led_until, now + self.tuning.request_timeout)


def batches(sealeds: Iterable[Sealed]) -> list[tuple[bytes, ...]]:
    """The envelopes in messages that each have room for theirs."""
    found: list[list[bytes]] = []
    size = 0
    for sealed in sealeds:
        cost = len(sealed.envelope) + TAG_BYTES
        if not found or size + cost > ROOM or len(found[-1]) >= MAX_RECORDS_ADDED:
            found.append([])
            size = 0
        found[-1].append(sealed.envelope)
        size += cost
    return [tuple(batch) for batch in found]
