"""Scenarios of life and death: peers are killed, stand still, lie about each other; who notices, and when?

In a watched world every peer serves three models at four keys each, beats, and may watch over others. Only
of the publishers one of the twelve keys holds a record that can be found. A figure is measured where it
matters to a user: in what somebody finds who looks again and again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random

from modelnet_p2p.beats import MAX_WATCHERS
from modelnet_p2p.dht.keyspace import BITS, position
from modelnet_p2p.dht.simulator import Node, Simulator
from modelnet_p2p.identity import PeerId
from modelnet_p2p.records import OfferRecord
from simulation.asking import Caller, Inquiry, Tally
from simulation.false_witness import FalseWitness, witnesses
from simulation.scenario import Phase, World
from simulation.town import Atlas, Publication, Town
from simulation.vigil import PURPOSES, Vigil

KEYS = 12  # of a peer that serves three models: name, provider, task and a tag of each
SETTLE_BEATS = 5  # until all watchers have answered
WARM_SECONDS = 5.0  # somebody has looked for a provider this long before it dies
PAUSE_SECONDS = 0.1  # between two looks
GIVE_UP_SECONDS = 90.0  # after which a death, or a return, was not noticed
GAP_SECONDS = 0.5  # between one freeze and the next
CURVE = 50  # points of a distribution that are kept

Say = Callable[[str], None]


class WatchedTown(Town):
    """A town whose peers all serve and watch over each other."""

    def __init__(self, sim: Simulator, rng: Random, world: World) -> None:
        super().__init__(sim, rng, world)
        self.vigil = Vigil(sim, Random(rng.randbytes(8)))
        self.killed: dict[Node, float] = {}
        self._map: Atlas | None = None
        self._fillers = Random(rng.randbytes(8))

    def settle(self, size: int) -> Iterator[int]:
        yield from super().settle(size)
        self.sim.run(self.sim.now + SETTLE_BEATS * self.vigil.beat)
        self._map = None  # it is of the beginning

    def kill(self, node: Node) -> None:
        super().kill(node)
        self.killed[node] = self.sim.now

    def _begin(self, node: Node) -> None:
        super()._begin(node)
        keys = [publication.key for publication in self._held.get(node.id, ())]
        keys += [b"\x12\x20" + self._fillers.randbytes(32) for _ in range(KEYS - len(keys))]
        self.vigil.begin(node, keys, self._closest(node))

    def _closest(self, node: Node) -> list[PeerId]:
        """Whom a walk to the key of its name would find, where tables are drawn; else it has to walk."""
        if self.world.tables != "drawn" or self.sim.now > 0:
            return []
        self._map = self._map or Atlas.of(self.honest)
        place = position(self.vigil.name_key(node))
        width = BITS
        around = range(len(self.honest))
        while len(closer := self._map.below(place, BITS - width)) > MAX_WATCHERS:
            around, width = closer, width - 1
        near = [self._map.nodes[number].id for number in around]
        return sorted((peer for peer in near if peer != node.id), key=lambda peer: position(peer) ^ place)[
            :MAX_WATCHERS
        ]


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of a phase."""

    trials: int
    figures: Mapping[str, float]
    purposes: Mapping[str, float]  # bytes a second and peer, by what for
    curves: Mapping[str, tuple[float, ...]]  # quantiles, from the first to the last, evenly


@dataclass(slots=True, eq=False)
class Lookout:
    """Somebody looks for one provider until it is gone from what is found, or is there again."""

    town: WatchedTown
    reader: Node
    sought: Publication
    gone: bool  # what is waited for
    since: float  # when it died, or moved again
    seconds: float | None = None  # until a look showed it, its walk and its question included
    over: bool = False
    looks: int = 0

    def look(self) -> None:
        if self.over or not self.reader.alive:
            return
        Inquiry(self.town.vigil, self.reader, self.sought.key, self._on_found)

    def _on_found(self, inquiry: Inquiry) -> None:
        sim = self.town.sim
        self.looks += 1
        records = [
            sealed.record for sealed in inquiry.walk.records if sealed.identity == self.sought.sealed.identity
        ]
        for record in records:  # a read that missed it says nothing of its life
            if (
                isinstance(record, OfferRecord)
                and inquiry.is_dead(record) is self.gone
                and sim.now > self.since
            ):
                self.seconds, self.over = sim.now - self.since, True
                return
        if sim.now - self.since > GIVE_UP_SECONDS:
            self.over = True
            return
        sim.after(PAUSE_SECONDS, self.look)


@dataclass(slots=True, eq=False)
class Stage:
    """One phase of a watched world."""

    town: WatchedTown
    phase: Phase
    say: Say
    deaths: list[Lookout] = field(default_factory=list)
    returns: list[Lookout] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    lying: list[FalseWitness] = field(default_factory=list)
    _callers: dict[bytes, Caller] = field(default_factory=dict)

    def measure(self) -> Measured:
        sim, town, phase = self.town.sim, self.town, self.phase
        if phase.churn or town.churning:
            town.churn(phase.churn)
        self._pass(phase.wait)
        if phase.liars:
            self.lying = witnesses(town.vigil, town.living)
        sent, spent, began = Counter(sim.sent), Counter(sim.sent_bytes), sim.now
        mistaken = len(town.vigil.mistaken)
        self._play()
        self._pass(self._lasting())
        alive, seconds = len(town.living), sim.now - began
        sent, spent = sim.sent - sent, sim.sent_bytes - spent
        while not all(one.over or not one.reader.alive for one in (*self.deaths, *self.returns)):
            self._pass(1.0)
        false_deaths = len(town.vigil.mistaken) - mistaken
        hours = alive * seconds / 3600
        figures = {
            "liveness_messages_per_s": sum(sent[one] for one in PURPOSES) / (alive * seconds),
            "liveness_bytes_per_s": sum(spent[one] for one in PURPOSES) / (alive * seconds),
            "peer_hours": hours,
            "false_deaths": float(false_deaths),
            "false_deaths_per_peer_hour": false_deaths / hours,
        }
        figures |= self._of_lies() | self._of_calls()
        curves: dict[str, tuple[float, ...]] = {}
        trials = self.tally.calls or (0 if self.deaths or self.returns else int(hours))
        for name, lookouts in (("gone", self.deaths), ("cleared", self.returns)):
            valid = [one for one in lookouts if one.reader.alive]
            if valid:
                trials += len(valid)
                figures |= _of_lookouts(name, valid)
                curves[name] = _curve([one.seconds for one in valid if one.seconds is not None])
        purposes = {purpose: count / (alive * seconds) for purpose, count in sorted(spent.items())}
        return Measured(trials, figures, purposes, curves)

    def _pass(self, seconds: float) -> None:
        until = self.town.sim.now + seconds
        while self.town.sim.now < until:
            self.town.sim.run(min(until, self.town.sim.now + 30.0))
            if seconds > 30:
                self.say(f"{self.phase.name}: {until - self.town.sim.now:.0f} s of {seconds:.0f} s left")

    def _lasting(self) -> float:
        """Seconds of this phase; where there are too few to kill it ends with the last of them."""
        town, phase = self.town, self.phase
        if not phase.deaths:
            return phase.seconds * town.world.stretch
        there = sum(publication.node.alive for publication in town.publications)
        return WARM_SECONDS + phase.seconds * min(1.0, there / phase.deaths)

    def _play(self) -> None:
        """All that happens during the seconds of this phase."""
        sim, phase = self.town.sim, self.phase
        for number in range(phase.deaths):
            sim.after(number * phase.seconds / phase.deaths, self._doom)
        for number in range(phase.calls):
            sim.after(number * phase.seconds / phase.calls, self._call)
        every = phase.freeze_every or phase.freeze_seconds + GAP_SECONDS
        if phase.freeze:
            for number in range(int(self._lasting() / every)):
                sim.after(number * every, self._freeze)

    # --- deaths ---

    def _doom(self) -> None:
        """Somebody begins to look for a provider, which then is killed without a word."""
        town, sim = self.town, self.town.sim
        doomed = {lookout.sought.node for lookout in self.deaths}
        left = [p for p in town.publications if p.node.alive and p.told and p.node not in doomed]
        if not left:
            return
        sought = left[int(sim.rng.random() * len(left))]
        reader = self._somebody(sought.node, doomed)
        lookout = Lookout(town, reader, sought, gone=True, since=sim.now + WARM_SECONDS)
        self.deaths.append(lookout)
        lookout.look()

        def die() -> None:
            if self.phase.loud:
                town.vigil.break_off(sought.node)
            town.kill(sought.node)
            lookout.since = sim.now

        sim.after(WARM_SECONDS, die)

    def _somebody(self, but: Node, nor: set[Node]) -> Node:
        living = self.town.living
        while True:
            reader = living[int(self.town.sim.rng.random() * len(living))]
            if reader is not but and reader not in nor:
                return reader

    # --- freezes ---

    def _freeze(self) -> None:
        town, sim, phase = self.town, self.town.sim, self.phase
        living = town.living
        chosen = town.rng.sample(living, max(1, round(phase.freeze * len(living))))
        thaws = sim.now + phase.freeze_seconds
        for node in chosen:
            node.thaws = thaws
        sim.after(phase.freeze_seconds, lambda: self._thaw(chosen, thaws - phase.freeze_seconds))

    def _thaw(self, chosen: list[Node], frozen_at: float) -> None:
        """Those of whom it was found that they are dead are looked for until they are back."""
        town = self.town
        for publication in town.publications:
            node = publication.node
            buried = any(at > frozen_at for at in town.vigil.buried.get(node.id, ()))
            if node in chosen and node.alive and publication.told and buried:
                reader = self._somebody(node, set(chosen))
                lookout = Lookout(town, reader, publication, gone=False, since=town.sim.now)
                self.returns.append(lookout)
                lookout.look()

    # --- lies ---

    def _of_lies(self) -> dict[str, float]:
        if not self.lying:
            return {}
        town = self.town
        about = {ward for one in self.lying for ward in one.wards if town.sim.nodes[ward].alive}
        deceived = sum(
            post.obituaries.of(ward, town.sim.now_us) is not None
            for post in town.vigil.posts.values()
            for ward in about
        )
        return {
            "liars": float(len(self.lying)),
            "lied_about": float(len(about)),
            "lies": float(sum(one.lies for one in self.lying)),
            "deceived_holders": float(deceived),
        }

    # --- calls ---

    def _call(self) -> None:
        town, sim = self.town, self.town.sim
        callers = [node for node in town.honest[: town.world.readers or None] if node.alive]
        key = town.publications[0].key
        if callers:
            node = callers[int(sim.rng.random() * len(callers))]
            caller = self._callers.get(node.id)
            if caller is None:
                caller = Caller(town.vigil, node, key, self.tally, Random(sim.rng.randbytes(8)))
                self._callers[node.id] = caller
            caller.call()

    def _of_calls(self) -> dict[str, float]:
        tally = self.tally
        if not tally.calls:
            return {}
        return {
            "wasted": tally.wasted / tally.calls,
            "nobody": tally.nobody / (tally.calls + tally.nobody),
            "dead_offers": tally.offers_of_dead / max(1, tally.offers),
            "dead_offers_left": tally.left_of_dead / max(1, tally.offers),
            "dead_pings": tally.pings_to_dead / max(1, tally.pings),
            "pings_per_call": tally.pings / tally.calls,
            "call_after_p50": quantile(tally.seconds, 0.5),
            "call_after_p95": quantile(tally.seconds, 0.95),
        }


def _of_lookouts(name: str, lookouts: list[Lookout]) -> dict[str, float]:
    """Whoever was never noticed took forever."""
    seconds = [float("inf") if one.seconds is None else one.seconds for one in lookouts]
    figures = {f"{name}_noticed": sum(one.seconds is not None for one in lookouts) / len(lookouts)}
    for percent in (50, 90, 99):
        value = quantile(seconds, percent / 100)
        figures[f"{name}_p{percent}"] = value if value < float("inf") else GIVE_UP_SECONDS
    return figures


def _curve(seconds: list[float]) -> tuple[float, ...]:
    if not seconds:
        return ()
    ordered = sorted(seconds)
    return tuple(ordered[round(point * (len(ordered) - 1) / CURVE)] for point in range(CURVE + 1))


def quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
