"""Providers that say they are idle and are full: how many are asked for one call?

Everything that decides is the product's own: which offers are pinged, how they are ranked and drawn, what is
remembered of those called (`policy/ranking`, `policy/memory`), who is admitted (`policy/admission`). Some of
the liars refuse as busy, the others answer slowly. Ranks are made as a search does: the best few are pinged,
and believed for two seconds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from random import Random

from modelnet_p2p.dht.simulator import Simulator
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.node.serving.policy.admission import Admission, Admitted, Queued, Refused
from modelnet_p2p.node.serving.policy.memory import Memory
from modelnet_p2p.offers import Offer, State
from modelnet_p2p.records import OfferRecord
from simulation.attack import Attack, Measured
from simulation.town import Town

PINGED, ROUNDS, BELIEVED_SECONDS = 8, 3, 2.0  # of the finder, see there
MAX_ATTEMPTS = 5  # of the router
FOUND_SECONDS = 2.0  # ... for which a search is good
SLOTS, QUEUE = 2, 4  # of a provider: a short queue, so that honest ones refuse as well where all is full
WORK_SECONDS = 0.2  # of one call, on average
SLOW_SECONDS = 10.0  # that a slow liar takes
LEARNT = 20  # calls of a caller, after which it is measured ...
COUNTED = 20  # ... over so many
ROUND_TRIPS = (0.04, 0.2)  # seconds, from the nearest to the farthest
AT_ONCE = 5  # callers: more would be the load, and not meet it
BUSYNESS = 0.4  # of the honest providers, by calls of others


@dataclass(slots=True, eq=False)
class Provider:
    """One that serves the model, or says so."""

    offer: Offer
    rtt: float  # seconds there and back
    lies: bool
    slow: bool  # of the liars: it answers, in its time
    admission: Admission = field(default_factory=lambda: Admission(SLOTS, QUEUE))

    @property
    def load(self) -> float:
        return 0.0 if self.lies else self.admission.load


@dataclass(slots=True, eq=False)
class Call:
    """One call of a caller, as the router makes it."""

    started: float
    order: list[Offer]
    fresh: bool  # whether the offers were sought for this call
    attempts: int = 0
    to_liars: int = 0  # of them
    asked: set[str] = field(default_factory=set)
    seconds: float | None = None  # once it was answered
    failed: bool = False


@dataclass(slots=True, eq=False)
class Caller:
    """One peer that calls the model again and again."""

    fair: Fair
    memory: Memory
    name: str
    vitals: dict[str, tuple[float, Offer]] = field(default_factory=dict)
    found: tuple[float, list[Offer]] | None = None
    calls: list[Call] = field(default_factory=list)
    told: list[Offer] = field(default_factory=list)  # in the order in which the holders tell them to it

    def __post_init__(self) -> None:
        self.told = [provider.offer for provider in self.fair.providers.values()]
        self.fair.rng.shuffle(self.told)

    def begin(self) -> None:
        sim = self.fair.sim
        recalled = self.found if self.found and sim.now - self.found[0] <= FOUND_SECONDS else None
        order = self.memory.draw(recalled[1]) if recalled else self._seek()
        call = Call(sim.now, order, fresh=recalled is None)
        self.calls.append(call)
        self._try(call)

    def _seek(self) -> list[Offer]:
        """What `Finder.find` and `Router.find` do."""
        offers = self.told
        for _ in range(ROUNDS):
            offers = self.memory.rank([self._annotated(offer) for offer in offers])
            unknown = [offer for offer in offers if offer.state is State.UNKNOWN][:PINGED]
            for offer in unknown:
                provider = self.fair.providers[offer.provider]
                alive = replace(offer, state=State.ALIVE, rtt_ms=provider.rtt * 1e3, load=provider.load)
                self.vitals[offer.provider] = (self.fair.sim.now, alive)
            offers = [self._annotated(offer) for offer in offers]
            if not unknown or any(offer.state is State.ALIVE for offer in offers):
                break
        ranked = self.memory.rank(offers)[: self.fair.limit]
        self.found = (self.fair.sim.now, ranked)
        return self.memory.draw(ranked)

    def _annotated(self, offer: Offer) -> Offer:
        at, known = self.vitals.get(offer.provider, (float("-inf"), offer))
        fresh = self.fair.sim.now - at <= BELIEVED_SECONDS
        return known if fresh else replace(offer, state=State.UNKNOWN, rtt_ms=None, load=None)

    def _try(self, call: Call) -> None:
        offer = next((one for one in call.order if one.provider not in call.asked), None)
        if call.attempts >= MAX_ATTEMPTS or offer is None:
            call.failed = True
            return
        call.attempts += 1
        call.asked.add(offer.provider)
        provider = self.fair.providers[offer.provider]
        call.to_liars += provider.lies
        told = partial(self._told, call, offer)
        self.fair.sim.after(provider.rtt / 2, partial(self.fair.arrive, provider, told, self.name))

    def _told(self, call: Call, offer: Offer, served: bool) -> None:
        """The provider has answered, or refused."""
        if served:
            call.seconds = self.fair.sim.now - call.started
            self.memory.succeeded(offer, call.seconds * 1e3)
            return
        self.found = None
        self.memory.failed(offer, busy=True)
        if not call.fresh:
            call.fresh, call.order = True, self._seek()
        self._try(call)


class Fair:
    """All who offer the model and all who call it."""

    limit = 20  # offers of a search that the router sees

    def __init__(self, town: Town, attack: Attack) -> None:
        self.sim: Simulator = town.sim
        self.rng: Random = town.rng
        self.providers: dict[str, Provider] = {}
        self._tickets = count()
        self._waiting: dict[int, Callable[[], None]] = {}  # to begin the work of these tickets, or refuse it
        self._refusals: dict[int, Callable[[], None]] = {}
        liars = round(attack.share * attack.gang)
        for number in range(attack.gang):
            record = town.sign(KeyPair(self.rng.randbytes(32)), "sim/busy", 1).record
            assert isinstance(record, OfferRecord)
            offer = Offer(record, b"")
            rtt, slow = self.rng.uniform(*ROUND_TRIPS), number < attack.slow * liars
            self.providers[offer.provider] = Provider(offer, rtt, number < liars, slow)

    def work(self, until: float) -> None:
        """Calls of others at the honest providers, until then."""
        for provider in self.providers.values():
            at, rate = self.sim.now, BUSYNESS * SLOTS / WORK_SECONDS
            while not provider.lies and (at := at + self.rng.expovariate(rate)) < until:
                self.sim.after(at - self.sim.now, partial(self.arrive, provider, lambda _: None, "others"))

    def arrive(self, provider: Provider, tell: Callable[[bool], None], caller: str) -> None:
        """A call reaches a provider; `tell` is called when the caller hears what became of it."""
        back = provider.rtt / 2
        if provider.lies:
            if provider.slow:
                self.sim.after(SLOW_SECONDS + back, partial(tell, True))
            else:
                self.sim.after(back, partial(tell, False))
            return
        ticket = next(self._tickets)
        begin = partial(self._begin, provider, ticket, tell)
        refuse = partial(self.sim.after, back, partial(tell, False))
        match provider.admission.enter(ticket, caller):
            case Admitted():
                begin()
            case Refused():
                refuse()
            case Queued(evicted):
                self._waiting[ticket], self._refusals[ticket] = begin, refuse
                if evicted is not None:
                    del self._waiting[evicted]
                    self._refusals.pop(evicted)()

    def _begin(self, provider: Provider, ticket: int, tell: Callable[[bool], None]) -> None:
        def end() -> None:
            following = provider.admission.leave(ticket)
            if following is not None:
                del self._refusals[following]
                self._waiting.pop(following)()
            self.sim.after(provider.rtt / 2, partial(tell, True))

        self.sim.after(self.rng.expovariate(1 / WORK_SECONDS), end)


def play(town: Town, attack: Attack) -> Measured:
    """`attack.trials` callers, a few at a time, each calling every `attack.every` seconds."""
    fair, sim = Fair(town, attack), town.sim
    span = (LEARNT + COUNTED) * attack.every
    gap = span / AT_ONCE
    began = sim.now
    fair.work(began + span + gap * attack.trials)
    callers = []
    for number in range(attack.trials):
        caller = Caller(fair, Memory(town.rng.randrange, lambda: sim.now), f"caller {number}")
        callers.append(caller)
        for call in range(LEARNT + COUNTED):
            sim.after(number * gap + call * attack.every, caller.begin)
    sim.run(began + span + gap * attack.trials + 2 * SLOW_SECONDS)
    first = [call for caller in callers for call in caller.calls[:LEARNT]]
    later = [call for caller in callers for call in caller.calls[LEARNT:]]
    assert all(call.seconds is not None or call.failed for call in first + later)
    return Measured(
        len(callers),
        {
            "attempts_mean": statistics.mean(call.attempts for call in later),
            "attempts_mean_before": statistics.mean(call.attempts for call in first),
            "failed": sum(call.failed for call in later) / len(later),
            "seconds_mean": statistics.mean(call.seconds or 0.0 for call in later),
            "to_liars": statistics.mean(call.to_liars for call in later),
        },
    )
