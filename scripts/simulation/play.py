"""Plays a scenario: brings the world to each phase, reads in it, and measures what the readers got."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random

from modelnet_p2p.dht.simulator import Node, Run, Simulator
from modelnet_p2p.dht.walks.collecting import Collect
from modelnet_p2p.dht.walks.shards import ShardReads
from modelnet_p2p.records import Identity, Sealed
from modelnet_p2p.tuning import WAN
from simulation import liars, liveness, sieges
from simulation.kinds import figures_of
from simulation.liveness import Measured, WatchedTown, quantile
from simulation.scenario import Mark, Phase, Scenario
from simulation.town import Publication, Town

READ = "read"
COPY = "copy"
PAGE_BYTES = 32 * 1024  # of its own store that a reader takes along
SETTLE_SECONDS = 40.0  # from the Sybils' coming to the publishing, and from there to the reads
Say = Callable[[str], None]


@dataclass(slots=True, eq=False)
class Reading:
    """One reader looks for one publication."""

    reader: Node
    sought: Publication
    walk: Collect  # of the key itself
    records: dict[Identity, Sealed] = field(default_factory=dict)
    messages: int = 0
    told: int = 0  # records of this key that are there to be found
    seconds: float | None = None  # once it has ended
    void: bool = False  # what it sought died meanwhile, so it says nothing
    found: bool = False
    newest: bool = False

    def take(self, walk: Collect) -> None:
        """What lies at the key, or at one of its shards."""
        self.messages += walk.messages
        self.records.update((sealed.identity, sealed) for sealed in walk.records)

    def on_end(self, now: float, began: float) -> None:
        sealed = self.sought.sealed
        self.seconds = now - began
        self.void = not self.sought.node.alive
        found = self.records.get(sealed.identity)
        self.found = found is not None
        self.newest = found is not None and found.envelope == sealed.envelope

    @property
    def share(self) -> float:
        """Of all that is to be found under the key."""
        return len(self.records) / max(1, self.told)

    @property
    def over(self) -> bool:
        return self.seconds is not None or not self.reader.alive


@dataclass(frozen=True, slots=True)
class Verdict:
    """A mark, and what was reached."""

    mark: Mark
    value: float
    trials: int

    @property
    def word(self) -> str:
        if not self.mark.holds(self.value):
            return "missed"
        return "met" if self.mark.claims(self.trials) else "met, in too few trials to claim it"


@dataclass(frozen=True, slots=True)
class Result:
    """A phase, measured."""

    peers: int
    phase: str
    trials: int
    figures: Mapping[str, float]
    verdicts: tuple[Verdict, ...]
    purposes: Mapping[str, float] = field(default_factory=dict)  # bytes a second and peer, by what for
    curves: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # evenly spaced quantiles


def play(scenario: Scenario, seed: int, say: Say) -> Iterator[tuple[Result, str]]:
    """Each phase in a world of each size, with the digest of the world's history so far."""
    smallest: Mapping[str, float] = {}
    for size in scenario.world.peers:
        calm: Mapping[str, float] = {}
        town: Town | None = None
        for phase in scenario.phases:
            if town is None or scenario.world.apart:
                town = _settled(scenario, size, seed, say)
            if phase.attack is not None:
                result = _besieged(town, phase, size)
            elif isinstance(town, WatchedTown):
                found = liveness.Stage(town, phase, say).measure()
                result = _watched(size, phase, found, smallest or found.figures)
                smallest = smallest or found.figures
            else:
                result = _Stage(town, phase, say).measure(size, calm)
            calm = calm or result.figures
            unnamed = result.figures.keys() - figures_of(phase, scenario.world, scenario.phases[0])
            assert not unnamed, f"kinds.py does not say that there are {unnamed}"
            yield result, town.sim.digest


def _settled(scenario: Scenario, size: int, seed: int, say: Say) -> Town:
    rng = Random(seed)
    sim = Simulator(rng, tuning=WAN, weather=scenario.weather)
    town = (WatchedTown if scenario.world.watched else Town)(sim, rng, scenario.world)
    for there in town.settle(size):
        if there % 1000 == 0 or there == size:
            say(f"{scenario.name}: {there} of {size} peers are there")
    return town


def _besieged(town: Town, phase: Phase, size: int) -> Result:
    """A phase that is an attack, measured in its own figures."""
    assert phase.attack is not None
    measured = sieges.play(town, phase.attack)
    verdicts = _verdicts(phase, measured.figures, measured.trials)
    return Result(size, phase.name, measured.trials, measured.figures, verdicts)


def _watched(size: int, phase: Phase, found: Measured, smallest: Mapping[str, float]) -> Result:
    """A phase of a watched world, judged; beside the scenario's smallest world."""
    figures = dict(found.figures)
    for name in ("liveness_messages_per_s", "liveness_bytes_per_s"):
        figures[f"{name}_vs_smallest"] = figures[name] / smallest[name]
    verdicts = _verdicts(phase, figures, found.trials)
    return Result(size, phase.name, found.trials, figures, verdicts, found.purposes, found.curves)


def _verdicts(phase: Phase, figures: Mapping[str, float], trials: int) -> tuple[Verdict, ...]:
    return tuple(Verdict(mark, figures.get(mark.figure, float("nan")), trials) for mark in phase.marks)


class _Stage:
    """One phase."""

    def __init__(self, town: Town, phase: Phase, say: Say) -> None:
        self.town = town
        self.sim = town.sim
        self.phase = phase
        self._say = say
        self._readings: list[Reading] = []
        self._busiest = 0  # requests that one peer served during the reads

    def measure(self, size: int, calm: Mapping[str, float]) -> Result:
        sim, town, phase = self.sim, self.town, self.phase
        targets = self._change()
        spent, began = Counter(sim.sent_bytes), sim.now
        sent = Counter(sim.sent)
        self._let_pass(phase.wait)
        self._read(targets)
        alive, seconds = len(town.living), max(sim.now - began, 1e-9)
        spent, sent = sim.sent_bytes - spent, sim.sent - sent
        valid = [one for one in self._readings if one.seconds is not None and not one.void]
        figures = _figures(valid, sim.weather.round_trip)
        figures["dead_entries"] = _dead_share(sim)
        if town.world.upkeep:
            per_peer = alive * seconds
            figures["upkeep_messages_per_s"] = (sent.total() - sent[READ]) / per_peer
            figures["upkeep_bytes_per_s"] = (spent.total() - spent[READ]) / per_peer
        else:  # where there is upkeep, that is served as well
            figures["copies_per_read"] = sent[COPY] / 2 / max(1, len(valid))
            figures["busiest_share"] = self._busiest / max(1, sent[READ] // 2)
        for name in ("seconds_p95", "messages_mean"):
            if calm.get(name) and name in figures:  # else too few reads ended for either
                figures[f"{name}_vs_first"] = figures[name] / calm[name]
        verdicts = _verdicts(phase, figures, len(valid))
        purposes = {purpose: count / (alive * seconds) for purpose, count in sorted(spent.items())}
        return Result(size, phase.name, len(valid), figures, verdicts, purposes)

    def _change(self) -> list[Publication]:
        """Everything that happens at once; what is read then."""
        sim, town, phase = self.sim, self.town, self.phase
        if phase.cut:
            for node in town.honest:
                node.side = sim.rng.random() < 0.5
            sim.cut = True
        if phase.heal:
            sim.cut = False
        if phase.kill:
            living = town.living
            for node in town.rng.sample(living, round(phase.kill * len(living))):
                town.kill(node)
        if phase.misjudged != 1.0:
            liars.mislead(town, phase.misjudged)
        if phase.churn or town.churning:
            town.churn(phase.churn)
        if phase.update:
            for publication in town.publications:
                if publication.node.alive:
                    town.publish_anew(publication)
        return self._besiege() if phase.sybils else town.publications

    def _besiege(self) -> list[Publication]:
        """New models of some publishers, whose keys were surrounded before they were published."""
        town, phase = self.town, self.phase
        owners = town.rng.sample([p for p in town.publications if p.node.alive], town.world.victims)
        victims = [
            town.plan(owner, f"sim/victim{len(town.publications)}-{number}")
            for number, owner in enumerate(owners)
        ]
        for victim in victims:
            liars.besiege(town, victim.key, phase.sybils, one_net=phase.one_net, spread=phase.spread)
        self._let_pass(SETTLE_SECONDS)
        for victim in victims:
            town.tell(victim)
        self._let_pass(SETTLE_SECONDS)
        return victims

    def _let_pass(self, seconds: float) -> None:
        until = self.sim.now + seconds
        while self.sim.now < until:
            self.sim.run(min(until, self.sim.now + 60.0))
            if seconds > 60:
                self._say(f"{self.phase.name}: {until - self.sim.now:.0f} s of {seconds:.0f} s left")

    def _read(self, targets: list[Publication]) -> None:
        """All reads, spread evenly over the phase's seconds; returns when the last has ended."""
        sim, count = self.sim, self.phase.reads or self.town.world.reads
        before = {node.id: node.served for node in sim.nodes.values()}
        gap = self.phase.seconds / count
        for number in range(count):
            sim.after(number * gap, lambda: self._begin(targets))
        self._let_pass(self.phase.seconds)
        while not all(reading.over for reading in self._readings):
            sim.run(sim.now + 1.0)
        self._busiest = max(node.served - before.get(node.id, 0) for node in sim.nodes.values())

    def _begin(self, targets: list[Publication]) -> None:
        sim, town, rng = self.sim, self.town, self.sim.rng
        known = [p for p in targets if p.node.alive and (p.told or self.phase.sybils)]
        readers = town.living
        if town.world.readers:
            readers = [node for node in town.honest[: town.world.readers] if node.alive]
        if not known or len(readers) < 2:
            return
        sought = known[int(rng.random() * len(known))]
        reader = readers[int(rng.random() * len(readers))]
        if reader is sought.node or not (reader.asleep or len(reader.table)):
            return self._begin(targets)
        if sim.cut and reader.side != sought.node.side:
            return self._begin(targets)  # each side is asked for what is its own
        self._connect(reader)
        walk = self._collect(reader, sought.key)
        held = reader.store.page(sought.key, b"", PAGE_BYTES)
        walk.on_local(held.sealeds, held.contacts)
        reading = Reading(reader, sought, walk, told=sum(p.key == sought.key for p in known))
        self._readings.append(reading)
        shards = ShardReads(sought.key, self._limit, town.rng.shuffle)
        began = sim.now

        def ended(run: Run) -> None:
            assert isinstance(run.walk, Collect)
            reading.take(run.walk)
            if (handover := run.walk.handover()) is not None:
                sim.tell(run, handover, COPY)
            if run.walk is not walk:
                shards.on_read(split=run.walk.split)
            at = shards.next(len(reading.records)) if walk.split else None
            if at is None:
                reading.on_end(sim.now, began)
            else:
                sim.start(reader, self._collect(reader, at), READ, ended)

        sim.start(reader, walk, READ, ended)

    @property
    def _limit(self) -> int | None:
        return None if self.phase.all_records else self.town.world.limit

    def _collect(self, reader: Node, key: bytes) -> Collect:
        sim = self.sim
        seeds = sim.seeds(reader, key)
        return Collect(
            key,
            seeds,
            me=reader.id,
            network=sim.network,
            tuning=sim.tuning,
            now=sim.now,
            now_us=sim.now_us,
            limit=self._limit,
            patience=reader.patience.seconds,
            region=reader.region,
        )

    def _connect(self, reader: Node) -> None:
        """The reader's connections, where the phase says how they are."""
        sim = self.sim
        if self.phase.readers == "as they are":
            return
        for peer in list(reader.connected):
            sim.disconnect(reader, sim.nodes[peer])
        if self.phase.readers == "warm":
            for contact in reader.table:
                sim.connect(reader, sim.nodes[contact.id])


def _figures(readings: list[Reading], round_trip: float) -> dict[str, float]:
    if len(readings) < 2:
        return {"found": float("nan")}
    n = len(readings)
    seconds = [reading.seconds or 0.0 for reading in readings]
    patience = statistics.median(reading.walk.patience for reading in readings)
    found = {
        "found": sum(reading.found for reading in readings) / n,
        "answered": sum(bool(reading.records) for reading in readings) / n,  # with any record at all
        "newest": sum(reading.newest for reading in readings) / n,
        "stale": sum(reading.found and not reading.newest for reading in readings) / n,
        "patience_s": patience,
        "round_trips_p95": (quantile(seconds, 0.95) - patience) / round_trip,
        "messages_mean": statistics.mean(reading.messages for reading in readings),
        "share": statistics.mean(reading.share for reading in readings),
    }
    for name, values in (
        ("seconds", seconds),
        ("hops", [float(reading.walk.hops) for reading in readings]),
        ("messages", [float(reading.messages) for reading in readings]),
    ):
        for percent in (50, 90, 95):
            found[f"{name}_p{percent}"] = quantile(values, percent / 100)
    return found


def _dead_share(sim: Simulator) -> float:
    """Of all entries of all tables of the living, how many are of peers that have died."""
    entries = dead = 0
    for node in sim.nodes.values():
        if node.alive and not node.asleep:
            for contact in node.table:
                entries += 1
                dead += not sim.nodes[contact.id].alive
    return dead / max(1, entries)
