"""The reader's side of liveness: a read and the question who is dead, then pings, then the call.

As `Finder`, `Watching.learn` and `Router` do it, with their bounds, and with the product's own ranking; a
caller remembers what it saw as they do. What a provider answers to a call is not played: whether it was
there to be called is all that is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from modelnet_p2p.beats import MAX_ASKED, Ask, Obituary
from modelnet_p2p.dht.keyspace import position
from modelnet_p2p.dht.liveness.obituaries import covers, is_timely
from modelnet_p2p.dht.simulator import Node, Run
from modelnet_p2p.dht.walks.collecting import Collect
from modelnet_p2p.identity import PeerId
from modelnet_p2p.node.calls.found import FOUND_SECONDS
from modelnet_p2p.node.calls.router import MAX_CANDIDATES
from modelnet_p2p.node.overlay.batches import most_read
from modelnet_p2p.node.overlay.finder import VITAL_SECONDS, pings_at_once
from modelnet_p2p.node.overlay.watching import HOLDERS_ASKED
from modelnet_p2p.node.serving.policy.ranking import Experience, draw, rank
from modelnet_p2p.offers import Offer, State
from modelnet_p2p.records import OfferRecord
from simulation.vigil import AROUND_BYTES, Vigil, size

PAGE_BYTES = 32 * 1024  # of its own store that a reader takes along
FRAME_BYTES = AROUND_BYTES + 120  # a call's frame with little in it, either way
MODEL_MS = 50.0  # that each model works, so that a caller's experience is of something


class Inquiry:
    """One read under a key, and the question to the closest who answered: which of these providers is dead?

    `then` is called with this when both are answered; the question waits for one patience at most.
    """

    def __init__(self, vigil: Vigil, node: Node, key: bytes, then: Callable[[Inquiry], None]) -> None:
        self.vigil = vigil
        self.post = vigil.post(node)
        self.key = key
        self._learned: dict[PeerId, Obituary] = {}
        self._then = then
        self._awaited = 0
        self._over = False
        sim = vigil.sim
        self.walk = Collect(
            key,
            sim.seeds(node, key),
            me=node.id,
            network=sim.network,
            tuning=sim.tuning,
            now=sim.now,
            now_us=sim.now_us,
            limit=most_read(MAX_CANDIDATES),
            patience=node.patience.seconds,
        )
        held = node.store.page(key, b"", PAGE_BYTES)
        self.walk.on_local(held.sealeds, held.contacts)
        sim.start(node, self.walk, "read", self._learn)

    def is_dead(self, record: OfferRecord) -> bool:
        """As `Watching.is_dead`: what I know as a holder, and what holders answered just now."""
        issued_us, now_us = record.issued_us, self.vigil.sim.now_us
        if self.post.obituaries.of(record.provider, now_us, issued_us=issued_us) is not None:
            return True
        learned = self._learned.get(record.provider)
        return learned is not None and covers(learned, issued_us)

    def offers(self) -> list[Offer]:
        found = [(sealed.record, sealed.envelope) for sealed in self.walk.records]
        return [Offer(record, envelope) for record, envelope in found if isinstance(record, OfferRecord)]

    def _learn(self, _: Run) -> None:
        node, sim = self.post.node, self.vigil.sim
        providers = (sealed.identity.provider for sealed in self.walk.records)
        subjects = tuple(dict.fromkeys(peer for peer in providers if peer.public_key and peer != node.id))
        place = position(self.key)
        # a set of bytes has another order in another process; distances have not
        ours = sorted(self.walk.ours, key=lambda holder: position(holder) ^ place)
        holders = [sim.nodes[holder] for holder in ours if holder in node.connected][:HOLDERS_ASKED]
        if not subjects or not holders:
            return self._finish()
        self._awaited = len(holders)
        sim.after(node.patience.seconds, self._finish)
        for holder in holders:
            self._ask(holder, Ask(subjects[:MAX_ASKED]))

    def _ask(self, holder: Node, question: Ask) -> None:
        node, sim = self.post.node, self.vigil.sim

        def answer() -> None:
            known = (self.vigil.post(holder).obituaries.of(peer, sim.now_us) for peer in question.subjects)
            answers = [obituary for obituary in known if obituary is not None]
            weight = AROUND_BYTES + sum(size(one) - AROUND_BYTES for one in answers)
            sim.carry(holder, node, weight, "ask", lambda: self._hear(answers), reply=True)

        sim.carry(node, holder, size(question), "ask", answer)

    def _hear(self, answers: Sequence[Obituary]) -> None:
        for answer in answers:
            if is_timely(answer, self.vigil.sim.now_us):
                self._learned[answer.subject] = answer
        self._awaited -= 1
        if not self._awaited:
            self._finish()

    def _finish(self) -> None:
        if not self._over and self.post.node.alive:
            self._over = True
            self._then(self)


@dataclass(slots=True)
class Tally:
    """What callers met, all together."""

    calls: int = 0
    wasted: int = 0  # of the calls: sent to a provider that was dead
    nobody: int = 0  # there was no candidate left to call
    offers: int = 0  # read
    offers_of_dead: int = 0
    left_of_dead: int = 0  # ... and not known to be dead after the question to the holders
    pings: int = 0
    pings_to_dead: int = 0
    seconds: list[float] = field(default_factory=list)  # from wanting to call to calling


@dataclass(frozen=True, slots=True)
class Vital:
    state: State
    at: float
    rtt_ms: float | None = None


class Caller:
    """One peer that calls whoever serves under a key, again and again."""

    def __init__(self, vigil: Vigil, node: Node, key: bytes, tally: Tally, rng: Random) -> None:
        self.node = node
        self._vigil = vigil
        self._sim = vigil.sim
        self._key = key
        self._tally = tally
        self._rng = rng
        self._vitals: dict[PeerId, Vital] = {}
        self._experience: dict[str, Experience] = {}
        self._found: tuple[float, list[Offer]] = (float("-inf"), [])

    def call(self) -> None:
        """Call one of what was found just now, or else find first."""
        wanted, (at, offers) = self._sim.now, self._found
        if offers and self._sim.now - at <= FOUND_SECONDS:
            self._send(self._drawn(offers), wanted)
        else:
            Inquiry(self._vigil, self.node, self._key, lambda inquiry: self._on_read(inquiry, wanted))

    def _on_read(self, inquiry: Inquiry, wanted: float) -> None:
        offers, alive = inquiry.offers(), self._alive
        of_dead = [offer for offer in offers if not alive(offer)]
        self._tally.offers += len(offers)
        self._tally.offers_of_dead += len(of_dead)
        self._tally.left_of_dead += sum(not inquiry.is_dead(offer.record) for offer in of_dead)
        self._look(inquiry, offers, 0, wanted)

    def _look(self, inquiry: Inquiry, offers: list[Offer], number: int, wanted: float) -> None:
        """Ping the best of whom nothing is known; the next ones if nobody is alive."""
        offers = self._ranked([self._annotated(inquiry, offer) for offer in offers])
        unknown = list(dict.fromkeys(o.record.provider for o in offers if o.state is State.UNKNOWN))
        if not unknown or (number and any(offer.state is State.ALIVE for offer in offers)):
            return self._found_all(offers, wanted)
        asked = unknown[: pings_at_once(number)]
        open_pings = set(asked)

        def heard(peer: PeerId, vital: Vital) -> None:
            if peer in open_pings and self.node.alive:
                open_pings.discard(peer)
                self._vitals[peer] = vital
                if not open_pings:
                    self._look(inquiry, offers, number + 1, wanted)

        for peer in asked:
            self._ping(peer, heard)

    def _ping(self, peer: PeerId, heard: Callable[[PeerId, Vital], None]) -> None:
        sim, there = self._sim, self._sim.nodes[peer]
        self._tally.pings += 1
        self._tally.pings_to_dead += not there.alive

        def arrived() -> None:
            answered = sim.now  # the round trip is measured once the connection stands

            def back() -> None:
                heard(peer, Vital(State.ALIVE, sim.now, 2e3 * (sim.now - answered)))

            sim.carry(there, self.node, FRAME_BYTES, "ping", back, reply=True)

        if there is self.node:
            sim.after(0.0, lambda: heard(peer, Vital(State.ALIVE, sim.now, 0.0)))
            return
        sim.carry(self.node, there, FRAME_BYTES, "ping", arrived)
        timeout = sim.tuning.ping_timeout
        sim.after(timeout, lambda: heard(peer, Vital(State.SUSPECT, sim.now)))

    def _found_all(self, offers: list[Offer], wanted: float) -> None:
        found = [offer for offer in offers if offer.state is not State.DEAD][:MAX_CANDIDATES]
        self._found = self._sim.now, found
        self._send(self._drawn(found), wanted)

    def _send(self, order: list[Offer], wanted: float) -> None:
        """The call itself: to the first of these."""
        if not order:
            self._tally.nobody += 1
            return
        first, alive = order[0], self._alive(order[0])
        self._tally.calls += 1
        self._tally.wasted += not alive
        self._tally.seconds.append(self._sim.now - wanted)
        seen = self._experience.setdefault(first.provider, Experience())
        if alive:
            seen.succeeded((first.rtt_ms or 0.0) + MODEL_MS)
        else:
            self._found = (float("-inf"), [])
            self._sim.after(self._sim.tuning.request_timeout, lambda: seen.failed(self._sim.now))

    def _alive(self, offer: Offer) -> bool:
        return self._sim.nodes[offer.record.provider].alive

    def _annotated(self, inquiry: Inquiry, offer: Offer) -> Offer:
        vital = self._vitals.get(offer.record.provider)
        if vital is None or self._sim.now - vital.at > VITAL_SECONDS:
            dead = inquiry.is_dead(offer.record)
            return replace(offer, state=State.DEAD if dead else State.UNKNOWN, rtt_ms=None)
        return replace(offer, state=vital.state, rtt_ms=vital.rtt_ms)

    def _recall(self, offer: Offer) -> Experience | None:
        return self._experience.get(offer.provider)

    def _ranked(self, offers: Sequence[Offer]) -> list[Offer]:
        return rank(offers, self._recall, self._sim.now)

    def _drawn(self, offers: Sequence[Offer]) -> list[Offer]:
        return draw(offers, self._recall, self._sim.now, self._rng.randrange)
