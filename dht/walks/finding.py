"""Walks as machines: what all have in common, finding a peer, finding the closest to a key.

Each is a `Lookup` and what goes with it; `collecting` reads records, `storing` stores them. The driver does
nothing but carry messages: `poll(now)` says `Send`, `Wait` or `Done`; every Send that expects a reply is
ended with `on_reply`, `on_failure` or `on_busy`, at the latest at the driver's own timeout. One peer has at
most one request of a walk open at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from modelnet_p2p.dht.keyspace import position
from modelnet_p2p.dht.walks.lookup import DONE, MAX_ADDRS, MAX_CLOSER, Ask, Done, Lookup, Wait
from modelnet_p2p.dht.walks.region import Region
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact, Kind, Message
from modelnet_p2p.tuning import Tuning

TELLERS = 2  # that must name a peer, or its addresses, before they are believed; those of a group are one

GroupOf = Callable[[PeerId], str | None]  # a peer's public IP group; None: unknown, private, or as all others


@dataclass(frozen=True, slots=True)
class Send:
    """Send this to that peer, then poll again. A stock peer does not answer ADD_PROVIDER."""

    contact: Contact
    message: Message
    expects_reply: bool = True


class Walk:
    """What all have in common: a lookup whose requests are one message, and who turned out to be ours."""

    def __init__(
        self,
        target: bytes,
        request: Message,
        seeds: Iterable[Contact],
        *,
        me: PeerId,
        tuning: Tuning,
        patience: float | None,
        reading: bool,
        region: Region | None = None,
    ) -> None:
        self.target = target
        self.request = request
        self.tuning = tuning
        self.patience = tuning.patience if patience is None else patience
        self.messages = 0
        self._reading = reading
        self.lookup = Lookup(
            position(target),
            seeds,
            me=me,
            k=tuning.k,
            alpha=tuning.alpha_read if reading else tuning.alpha,
            beta=tuning.beta if reading else None,
            patience=self.patience,
            region=region,
        )
        self.ours: set[PeerId] = set()  # answered with our extension field

    def poll(self, now: float) -> Send | Wait | Done:
        match self.lookup.poll(now):
            case Ask(contact):
                return self._send(contact, self.request)
            case step:
                return step

    def on_reply(self, peer: PeerId, reply: Message, now: float) -> None:
        """What `peer` answered to the Send that it had last; anything unasked is ignored.

        An answer to another question is a failure of that peer.
        """
        if reply.kind is not self.request.kind:
            self.lookup.on_failure(peer, now)
        elif self.lookup.expects(peer):
            useful = self._on_answer(peer, reply, now)
            self.lookup.on_answer(peer, reply.closer, now, useful=useful)

    def on_failure(self, peer: PeerId, now: float) -> None:
        """`peer` could not be reached, broke off, or did not answer in time."""
        self.lookup.on_failure(peer, now)

    def on_held(self, peer: PeerId) -> None:
        """The Send to `peer` waits, for it is asked too much; how it ends is told later."""
        self.lookup.on_held(peer)

    def on_busy(self, peer: PeerId, now: float) -> None:
        """`peer` had others of my requests to answer first. Who reads must not take that for an answer."""
        if self._reading:
            self.lookup.on_busy(peer, now)
        else:
            self.on_failure(peer, now)

    @property
    def hops(self) -> int:
        return self.lookup.hops

    @property
    def unfinished(self) -> bool:
        """Whether it has ended for whoever waits for it and goes on without them, as answers come late."""
        return False

    def _on_answer(self, peer: PeerId, reply: Message, now: float) -> bool:
        """Take what the answer holds; whether it counts towards the end of the walk."""
        if reply.records is not None:
            self.ours.add(peer)
        return True

    def _send(self, contact: Contact, message: Message, *, expects_reply: bool = True) -> Send:
        self.messages += 1
        return Send(contact, message, expects_reply)


class FindNode(Walk):
    """Asks who is nearest to a key; `on_ours` hears of each of ours that answers, at once."""

    def __init__(
        self,
        target: bytes,
        seeds: Iterable[Contact],
        *,
        me: PeerId,
        tuning: Tuning,
        patience: float | None = None,
        reading: bool = False,
        on_ours: Callable[[PeerId], None] | None = None,
    ) -> None:
        request = Message(Kind.FIND_NODE, target)
        super().__init__(target, request, seeds, me=me, tuning=tuning, patience=patience, reading=reading)
        self._on_ours = on_ours

    def _on_answer(self, peer: PeerId, reply: Message, now: float) -> bool:
        useful = super()._on_answer(peer, reply, now)
        if self._on_ours is not None and peer in self.ours:
            self._on_ours(peer)
        return useful


class FindClosest(FindNode):
    """The k peers closest to a key, each of which has answered: to join, towards my own id."""

    @property
    def closest(self) -> tuple[PeerId, ...]:
        """The k nearest that answered, nearest first."""
        return tuple(contact.id for contact in self.lookup.closest())

    @property
    def closest_ours(self) -> tuple[PeerId, ...]:
        """Those of them that are ours."""
        return tuple(peer for peer in self.closest if peer in self.ours)


def of_no_group(peer: PeerId) -> None:
    """Each by itself: nothing is known of where they are."""


class Tellers:
    """Who says of whom that it is there. Two of one IP group are one teller: who has an address can have
    thousands of peers at it."""

    def __init__(self, group_of: GroupOf) -> None:
        self._group_of = group_of
        self._of: defaultdict[PeerId, set[PeerId | str]] = defaultdict(set)

    def on_told(self, teller: PeerId, named: Iterable[PeerId]) -> bool:
        """Whether any of it was new. The group is asked for while `teller` answers, for then there is a
        connection to it."""
        voice, new = self._group_of(teller) or teller, False
        for peer in named:
            new |= voice not in self._of[peer]
            self._of[peer].add(voice)
        return new

    @property
    def believed(self) -> set[PeerId]:
        return {peer for peer, voices in self._of.items() if len(voices) >= TELLERS}


class Sounding(FindNode):
    """Who lives around a key, without asking all of them: to refresh a far bucket, and to judge how densely
    peers lie there. It ends with the answers of the beta nearest, and costs a sixth of `FindClosest`.

    Whom a single teller names is not believed; the dead that several take for alive are. To answer is to say
    of oneself that one is there, and of whom I knew before I say so too.
    """

    def __init__(
        self,
        target: bytes,
        seeds: Iterable[Contact],
        *,
        me: PeerId,
        tuning: Tuning,
        patience: float | None = None,
        group_of: GroupOf = of_no_group,
    ) -> None:
        seeds = tuple(seeds)
        super().__init__(target, seeds, me=me, tuning=tuning, patience=patience, reading=True)
        self._tellers = Tellers(group_of)
        self._seeds = {contact.id for contact in seeds}

    @property
    def closest(self) -> tuple[PeerId, ...]:
        """The k nearest of those that several tellers say are there, nearest first."""
        believed = self._tellers.believed - {self.lookup.me}
        return tuple(sorted(believed, key=lambda peer: position(peer) ^ self.lookup.target)[: self.tuning.k])

    def _on_answer(self, peer: PeerId, reply: Message, now: float) -> bool:
        self._tellers.on_told(peer, (peer, *(contact.id for contact in reply.closer[:MAX_CLOSER])))
        if peer in self._seeds:
            self._tellers.on_told(self.lookup.me, (peer,))
        return super()._on_answer(peer, reply, now)


class FindPeer(Walk):
    """One peer's addresses, from two tellers where that many know them; only dialling proves them.

    The first address of each teller comes first: who tells many fills his own turns and no more.
    """

    def __init__(
        self,
        peer: PeerId,
        seeds: Iterable[Contact],
        *,
        me: PeerId,
        tuning: Tuning,
        patience: float | None = None,
        group_of: GroupOf = of_no_group,
    ) -> None:
        request = Message(Kind.FIND_NODE, bytes(peer))
        super().__init__(bytes(peer), request, seeds, me=me, tuning=tuning, patience=patience, reading=True)
        self.peer = peer
        self._tellers = Tellers(group_of)
        self._places: dict[bytes, int] = {}  # of each address, the earliest among one teller's

    def poll(self, now: float) -> Send | Wait | Done:
        return DONE if self.peer in self._tellers.believed else super().poll(now)

    @property
    def found(self) -> Contact | None:
        """The peer with all addresses told so far, None if nobody knows any."""
        known = self.lookup.contact(self.peer)
        told = sorted(self._places, key=self._places.__getitem__)
        addrs = tuple(dict.fromkeys((*told, *(known.addrs if known else ()))))[:MAX_ADDRS]
        return Contact(self.peer, addrs) if addrs else None

    def _on_answer(self, peer: PeerId, reply: Message, now: float) -> bool:
        named = (contact for contact in reply.closer[:MAX_CLOSER] if contact.id == self.peer)
        told = self.lookup.contact(peer) if peer == self.peer else next(named, None)
        useful = super()._on_answer(peer, reply, now)
        if told is None or not told.addrs:
            return useful
        if not self._tellers.on_told(peer, (self.peer,)):
            return False  # nor does it bring the end nearer
        for place, addr in enumerate(told.addrs[:MAX_ADDRS]):
            self._places[addr] = min(place, self._places.get(addr, place))
        return useful
