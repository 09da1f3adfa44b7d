"""The walk to the peers closest to a position: whom to ask next, when to wait, when it is done.

A pure machine in the shape of rust-libp2p's `ClosestPeersIter`: `poll(now)` says `Ask`, `Wait` or `Done`,
answers and failures are fed in, and time comes with each call. No timer, no socket, no task.

The walk asks the nearest peers that it knows, `alpha` at once, learns nearer ones from the answers, and
ends when the `want` nearest that are not known to fail have answered to some use (k to store, beta to
read). A request that is silent for half of `patience` (a third, to read) is late: the next peer is asked
beside it, so that the dead cost their time together and not one after the other. After all of `patience` it
no longer holds up the end either, but its answer still counts when it comes. A reader without any answer
waits until each of its silent requests has failed: to end would be to say that nobody has what is sought; one
with its beta useful answers waits for nobody who is late. Who asks must report each `Ask` with `on_answer`
or, at the latest at its own timeout, `on_failure`, or `on_busy` where the peer serves others of my requests
first. A request that is held back at my own end (`on_held`) says nothing by its silence: a reader that has
found nothing waits for it, and asks a busy peer again, as long as whoever reads has time.

Against identities that crowd around the target, or lead away from it, two things help where the size of
the network is known. Within the target's `Region` the nearest few of each slot are asked, not the nearest of
all; and outside of it the walk goes along PATHS disjoint paths in turns: a peer belongs to the path on which
it was heard of first, so that whoever names a hundred friends fills one path.

Source: Baumgart, Mies: S/Kademlia (2007) for disjoint paths; `region.py` for the slots.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice, takewhile, zip_longest

from modelnet_p2p.dht.keyspace import position
from modelnet_p2p.dht.walks.region import READ_OF_SLOT, STORED_OF_SLOT, Region
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact

MAX_CLOSER = 32  # contacts believed of one answer: ours name 30, stock peers 20; more is a flood
MAX_KNOWN = 1024  # candidates of a walk, the farthest are forgotten: 50 answers full of strangers
MAX_ASKED = 200  # requests of a walk: honest ones need 30 to 60; a liar cannot lead it on for ever
MAX_ADDRS = 16  # merged from several tellers; as many as one contact may have on the wire
LATE = 2  # a request is late after patience / 2: one more message is cheaper than half a patience
LATE_READ = 3  # ... of a reader, who has fewer in flight: p95 then is 6.8 round trips late and not 12.7
FEW_ANSWERS = 3  # with fewer, or none of use, the walk prefers to wait for its silent requests ...
FEW_PATIENCES = 3  # ... up to this many patiences: in a small world each answer may be the only one
PATHS = 3  # a third of all peers may lie, and one honest path is left in 96 % of walks
PATH_ASKS = 9  # of a walk, three on each path: enough to come to the region from afar
CROWDED_MORE = READ_OF_SLOT  # answers wanted in a crowd: it may hold records, but not the one sought


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask this peer now, then poll again."""

    contact: Contact


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do now; poll again on any answer or failure, or at this instant."""

    until: float


@dataclass(frozen=True, slots=True)
class Done:
    """It has ended: whoever waits for it need not wait for answers that come later."""


DONE = Done()


class State(Enum):
    """Of one candidate: HEARD -> WAITING (-> LATE -> SLOW) -> ANSWERED or FAILED."""

    HEARD = 0  # somebody named it
    WAITING = 1  # asked just now
    LATE = 2  # another is asked beside it; the walk does not end before its patience is over
    SLOW = 3  # patience is over, its answer is still welcome
    ANSWERED = 4
    FAILED = 5  # back to HEARD once, if somebody names an address that was not tried
    # from WAITING, LATE and SLOW back to HEARD, too, where the peer has others of my requests to answer first


ASKED = (State.WAITING, State.LATE, State.SLOW)


@dataclass(slots=True, eq=False)
class Candidate:
    distance: int
    contact: Contact
    depth: int  # how many answers led here; 0 for a seed
    path: int  # on which it was heard of first
    state: State = State.HEARD
    asked: float = 0.0
    revived: bool = False
    silent: bool = False  # its request was late, and it has not answered since
    held: bool = False  # a request of mine has waited here, for its peer is asked too much
    useful: bool = True  # its answer held what the walk is for

    def __lt__(self, other: Candidate) -> bool:
        return self.distance < other.distance

    @property
    def counts(self) -> bool:
        """Whether it takes up room in its slot."""
        return self.state is not State.FAILED and self.state is not State.SLOW


def merged(left: Contact, right: Contact) -> Contact:
    """One peer's addresses from two tellers by turns, without duplicates, the first teller's first: who tells
    as many false ones as there is room for leaves room for the next."""
    if left.addrs == right.addrs or all(addr in left.addrs for addr in right.addrs):
        return left
    by_turns = (addr for turn in zip_longest(left.addrs, right.addrs) for addr in turn if addr is not None)
    return Contact(left.id, tuple(dict.fromkeys(by_turns))[:MAX_ADDRS])


class Lookup:
    """One walk. `want` is beta for a reader, who needs a few answers, and k (beta None) to store.

    With a `region`, one that stores goes on where the k nearest lie too densely in it, until everybody known
    there was asked, a few of each slot.
    """

    def __init__(
        self,
        target: int | bytes,
        seeds: Iterable[Contact],
        *,
        me: PeerId,
        k: int,
        alpha: int,
        patience: float,
        beta: int | None = None,
        region: Region | None = None,
    ) -> None:
        self.target = target if isinstance(target, int) else position(target)
        self.region = region
        self.me = me
        self.k = k
        self.alpha = alpha
        self.want = k if beta is None else beta
        self._reading = beta is not None
        self.patience = patience
        self._late_after = patience / (LATE if beta is None else LATE_READ)
        self.asked = 0
        self.unexpected = 0  # answers and failures of peers that were not asked
        self._known: dict[PeerId, Candidate] = {}
        self._order: list[Candidate] = []  # nearest first
        self._waiting: dict[PeerId, Candidate] = {}  # oldest first
        self._late: dict[PeerId, Candidate] = {}  # oldest first
        self._asked_on: Counter[int] = Counter()  # each path, outside of the region
        self._plan: tuple[Sequence[Candidate], int, int] | None = None  # what `_line` gave, while it holds
        self.crowded = False  # whether a crowd was seen around the target
        self._done = False
        for number, contact in enumerate(seeds):
            self._hear(contact, 0, number % PATHS)

    def poll(self, now: float) -> Ask | Wait | Done:
        """What to do next; call again until it is not Ask."""
        if self._done:
            return DONE
        self._lose_patience(now)
        viable = answers = 0  # nearer than the one at hand, answered or about to; with and without use
        complete, late, held = True, False, False
        line, want, radius = self._line()
        enough = max(want, self.k)
        for candidate in line:
            if (viable >= want or answers >= enough) and candidate.distance >= radius:
                break
            match candidate.state:
                case State.WAITING:
                    viable += 1
                    answers += 1
                    complete = False
                case State.LATE:
                    late = True
                case State.ANSWERED:
                    viable += candidate.useful
                    answers += 1
                case State.HEARD if self.asked >= MAX_ASKED:
                    continue
                case State.HEARD if len(self._waiting) < self.alpha:
                    return self._ask(self._in_turn(candidate, line), now)
                case State.HEARD:  # at capacity: an answer or the oldest request's patience makes room
                    return Wait(self._soonest())
                case State.SLOW:
                    held = held or candidate.held
                case State.FAILED:
                    pass
        if complete and (not late or (self._reading and viable >= want)):
            return self._end(now, held=held)
        return Wait(self._soonest())

    def on_answer(self, peer: PeerId, closer: Iterable[Contact], now: float, *, useful: bool = True) -> bool:
        """`peer` answered and named these; False if it was not asked (then nothing changes).

        An answer that is not `useful` does not count towards `want`, only towards k: the nearest peers
        may be newcomers that hold nothing yet.
        """
        candidate = self._answered(peer, State.ANSWERED)
        if candidate is None:
            return False
        candidate.useful = useful
        for contact in islice(closer, MAX_CLOSER):
            self._hear(contact, candidate.depth + 1, candidate.path)
        return True

    def expects(self, peer: PeerId) -> bool:
        """Whether `peer` was asked and has neither answered nor failed."""
        candidate = self._known.get(peer)
        return candidate is not None and candidate.state in ASKED

    def among_closest(self, peer: PeerId) -> bool:
        """Whether `peer` is one of the k nearest that are known and not known to fail."""
        return any(candidate.contact.id == peer for candidate in self._closest_known())

    def is_likely_holder(self, peer: PeerId) -> bool:
        """Whether this candidate is to be expected among the k closest: in the region, or among the nearest
        that are known once somebody in the region has said who else there is."""
        if self.region is None or self._known[peer].distance < self.region.radius:
            return True
        radius = self.region.radius
        inside = takewhile(lambda candidate: candidate.distance < radius, self._order)
        return any(one.state is State.ANSWERED for one in inside) and self.among_closest(peer)

    @property
    def reach(self) -> int:
        """How far from the target everybody is asked, beside the k nearest of all."""
        return self._line()[2]

    def ask_spread(self, place: int, now: float) -> Ask | None:
        """Of the k nearest known and not asked yet, the one that lies nearest to `place` instead."""
        fresh = [candidate for candidate in self._closest_known() if candidate.state is State.HEARD]
        if not fresh:
            return None
        return self._ask(min(fresh, key=lambda one: position(one.contact.id) ^ place), now)

    def _closest_known(self) -> list[Candidate]:
        return [candidate for candidate in self._order if candidate.state is not State.FAILED][: self.k]

    def on_failure(self, peer: PeerId, now: float) -> bool:
        """`peer` could not be reached, or gave up; False if it was not asked."""
        return self._answered(peer, State.FAILED) is not None

    def on_held(self, peer: PeerId) -> None:
        """The request to `peer` has not gone out, or was sent back: it is I who ask too much."""
        if self.expects(peer):
            self._known[peer].held = True

    def on_busy(self, peer: PeerId, now: float) -> bool:
        """`peer` serves others of my requests first, and is asked once more in its turn."""
        return self._answered(peer, State.HEARD) is not None

    def asked_closest(self, ours: Container[PeerId]) -> list[PeerId] | None:
        """The k nearest of `ours` that have answered, or of all that may do so yet; None while somebody
        nearer than these is still to be asked, and in a crowd."""
        line, _, _ = self._line()
        if self.crowded:
            return None
        found: list[PeerId] = []
        for candidate in line:
            peer = candidate.contact.id
            if candidate.state is State.HEARD:
                return None
            if candidate.state in ASKED or (candidate.state is State.ANSWERED and peer in ours):
                found.append(peer)
            if len(found) == self.k:
                break
        return found

    def reopen(self) -> None:
        """It had ended, and an answer came all the same: whom that names is asked, too."""
        self._done = False

    def closest(self, n: int | None = None) -> tuple[Contact, ...]:
        """The (by default k) nearest that answered, nearest first."""
        found = [c.contact for c in self._order if c.state is State.ANSWERED]
        return tuple(found[: self.k if n is None else n])

    def spread(self) -> tuple[list[Contact], list[Contact]]:
        """All that answered, nearest first: those of whom no crowd can be many, and the rest of a crowd."""
        answered = [c for c in self._order if c.state is State.ANSWERED]
        if self.region is None:
            return [c.contact for c in answered], []
        line, crowded = self.region.line(answered, READ_OF_SLOT)
        if not crowded:
            return [c.contact for c in answered], []
        chosen = {c.contact.id for c in line}
        return [c.contact for c in line], [c.contact for c in answered if c.contact.id not in chosen]

    def contact(self, peer: PeerId) -> Contact | None:
        """What the walk knows of this peer, asked or only heard of."""
        candidate = self._known.get(peer)
        return None if candidate is None else candidate.contact

    @property
    def unanswered(self) -> bool:
        """Whether anybody who was asked has neither answered nor failed yet."""
        return any(c.state in ASKED for c in self._order)

    @property
    def silent(self) -> int:
        """How many of those asked have neither answered nor failed in time: they may be there."""
        return sum(c.silent and c.state is not State.ANSWERED for c in self._order)

    @property
    def hops(self) -> int:
        """The longest chain of answers that led to one of the closest."""
        found = [c.depth + 1 for c in self._order if c.state is State.ANSWERED]
        return max(found[: self.want], default=0)

    def _end(self, now: float, *, held: bool) -> Wait | Done:
        answers = sum(c.state is State.ANSWERED for c in self._order)
        useful = any(c.useful for c in self._order if c.state is State.ANSWERED)
        unheard = held if answers else any(c.state is State.SLOW for c in self._order)
        if self._reading and not useful and unheard:
            return Wait(math.inf)  # each of them still answers or fails
        # a reader that found nothing: it may be the holders that are slow, where the whole machine is
        if answers < min(FEW_ANSWERS, self.want) or (self._reading and not useful):
            slow = [c.asked + FEW_PATIENCES * self.patience for c in self._order if c.state is State.SLOW]
            if slow and max(slow) > now:
                return Wait(max(slow))
        self._done = True
        return DONE

    def _line(self) -> tuple[Sequence[Candidate], int, int]:
        """Whom to ask, in this order; how many useful answers end it; how far everybody is asked."""
        if self._plan is None:
            if self.region is None:
                self._plan = self._order, self.want, 0
            elif self._reading:
                line, self.crowded = self.region.line(self._order, READ_OF_SLOT)
                self._plan = line, self.want + CROWDED_MORE if self.crowded else self.want, 0
            else:
                line, self.crowded = self.region.line(self._order, STORED_OF_SLOT)
                # k beside the crowd, of which more are told than count
                crowd = len(line) - len(self.region.line(self._order, READ_OF_SLOT)[0]) if self.crowded else 0
                wide = self.crowded or self.region.is_dense(line)
                self._plan = line, self.want + crowd, self.region.radius if wide else 0
        return self._plan

    def _in_turn(self, nearest: Candidate, line: Sequence[Candidate]) -> Candidate:
        """Whom to ask instead of the nearest, while that is outside of the region: each path has its turn."""
        led = self._asked_on.total()
        if self.region is None or nearest.distance < self.region.radius or led >= PATH_ASKS:
            return nearest
        heads: dict[int, Candidate] = {}
        for candidate in line:
            if candidate.state is State.HEARD:
                heads.setdefault(candidate.path, candidate)
        chosen = min(heads.values(), key=lambda head: (self._asked_on[head.path], head.distance))
        self._asked_on[chosen.path] += 1
        return chosen

    def _ask(self, candidate: Candidate, now: float) -> Ask:
        candidate.state = State.WAITING
        candidate.asked = now
        self.asked += 1
        self._waiting[candidate.contact.id] = candidate
        return Ask(candidate.contact)

    def _answered(self, peer: PeerId, state: State) -> Candidate | None:
        candidate = self._known.get(peer)
        if candidate is None or candidate.state not in ASKED:
            self.unexpected += 1
            return None
        self._waiting.pop(peer, None)
        self._late.pop(peer, None)
        counted = candidate.counts
        candidate.state = state
        if candidate.counts is not counted:
            self._changed()
        return candidate

    def _changed(self) -> None:
        """Somebody came, or takes up room or none now: who is asked next may be another."""
        if self.region is not None:
            self._plan = None

    def _hear(self, contact: Contact, depth: int, path: int) -> None:
        known = self._known.get(contact.id)
        if known is None:
            if contact.id == self.me:
                return
            candidate = Candidate(position(contact.id) ^ self.target, contact, depth, path)
            self._known[contact.id] = candidate
            insort(self._order, candidate)
            self._forget()
            self._changed()
            return
        if known.contact is contact:
            return
        known.contact, before = merged(known.contact, contact), known.contact
        if known.state is State.FAILED and known.contact is not before and not known.revived:
            known.state, known.revived = State.HEARD, True
            self._changed()

    def _forget(self) -> None:
        if len(self._order) > MAX_KNOWN:
            for index in range(len(self._order) - 1, -1, -1):
                if self._order[index].state in (State.HEARD, State.FAILED):
                    del self._known[self._order.pop(index).contact.id]
                    return

    def _lose_patience(self, now: float) -> None:
        while self._waiting:
            peer, candidate = next(iter(self._waiting.items()))
            if candidate.asked + self._late_after > now:
                break
            candidate.state, candidate.silent = State.LATE, True
            self._late[peer] = self._waiting.pop(peer)
        while self._late:
            peer, candidate = next(iter(self._late.items()))
            if candidate.asked + self.patience > now:
                break
            self._late.pop(peer).state = State.SLOW
            self._changed()

    def _soonest(self) -> float:
        """When the oldest request becomes late or slow."""
        times = [candidate.asked + self._late_after for candidate in list(self._waiting.values())[:1]]
        times += [candidate.asked + self.patience for candidate in list(self._late.values())[:1]]
        return min(times)
