"""A thousand providers of nothing under one key: are the first offers that a reader sees all theirs?

Their records are sound, their models useless. They own a few /24s, send to each holder in another order, and
grind what decides between records of one turn (a version costs one hash), so that at every holder other ones
of them come first. With `feigned` each says that it is in a network of its own, where nobody can call it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from modelnet_p2p.dht.simulator import Node, Run
from modelnet_p2p.dht.turns import Turns
from modelnet_p2p.dht.walks import Collect
from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.kad import Contact, Kind, Message
from modelnet_p2p.records import Identity, Sealed
from simulation.attack import Attack, Measured
from simulation.town import Publication, Town, address, group_of

NET = 0x500000  # the number of the first /24 of theirs
FIRST = 20  # offers that count
LIMIT = 80  # records read, as `find` does for 20 offers
GROUND = 16  # versions tried for each: the best comes before 15 of 16 honest records of its turn
TOLD_SECONDS = 60.0  # that an honest publish may take
READ_SECONDS = 10.0  # over which the reads of a key are spread
END_SECONDS = 60.0  # after which all have ended


@dataclass(frozen=True, slots=True)
class Junk:
    """One of them."""

    sealed: Sealed
    contact: Contact
    group: str


class Told(Collect):
    """A read whose answers are taken in turns, as the product's reader takes them."""

    turns: Turns

    def on_reply(self, peer: PeerId, reply: Message, now: float) -> None:
        super().on_reply(peer, reply, now)
        self.turns.on_told(peer, reply.records or (), reply.providers)


@dataclass(slots=True, eq=False)
class Tally:
    """Where in the order of each read the honest provider stood, from 0; none: nowhere."""

    ranks: list[int | None] = field(default_factory=list)

    def on_end(self, walk: Told, sought: Publication, _: Run) -> None:
        seen = [sealed.identity for sealed in walk.turns.of(walk.records)]
        self.ranks.append(seen.index(sought.sealed.identity) if sought.sealed.identity in seen else None)


def play(town: Town, attack: Attack) -> Measured:
    """`attack.trials` reads, of each victim's key as many as of the others."""
    sim, tally = town.sim, Tally()
    owners = town.publications[: town.world.victims]
    for number, owner in enumerate(owners):
        victim = town.plan(owner, f"sim/victim{number}")
        junk = _junk(town, attack, victim)
        if not attack.late:
            _flood(town, victim, junk)
        town.tell(victim)
        sim.run(sim.now + TOLD_SECONDS)
        if attack.late:
            _flood(town, victim, junk)
        count = attack.trials // len(owners)
        for read in range(count):
            reader = town.rng.choice(town.living)
            if reader is not victim.node:
                sim.after(read * READ_SECONDS / count, partial(_read, town, reader, victim, tally))
        sim.run(sim.now + READ_SECONDS + END_SECONDS)
    ranks = [FIRST * FIRST if rank is None else rank for rank in tally.ranks]
    return Measured(
        len(ranks),
        {
            "honest_first_20": sum(rank < FIRST for rank in ranks) / len(ranks),
            "found": sum(rank is not None for rank in tally.ranks) / len(ranks),
            "rank_worst": float(max(ranks)),
        },
    )


def _junk(town: Town, attack: Attack, victim: Publication) -> list[Junk]:
    found = []
    for number in range(attack.gang):
        pair = KeyPair(town.rng.randbytes(32))
        names = (Identity(pair.id, pair.id, victim.model, f"v{version}", "") for version in range(GROUND))
        sealed = town.sign(pair, victim.model, 1, version=min(names, key=_tie).version)
        home = address(NET + number % attack.nets)
        host = home[:4] + bytes([1 + number // attack.nets % 254]) + home[5:]
        said = address(NET + attack.nets + number) if attack.feigned else host
        found.append(Junk(sealed, Contact(pair.id, (said,)), group_of(host)))
    return found


def _tie(identity: Identity) -> bytes:
    """What a store that keeps no secret decides by."""
    return hashlib.sha256(repr(tuple(identity)).encode()).digest()


def _flood(town: Town, victim: Publication, junk: Sequence[Junk]) -> None:
    """To each of the closest in another order: they answer as to anybody."""
    sim = town.sim
    for peer in sim.closest_alive(victim.key, sim.tuning.k):
        server = sim.nodes[peer].server
        for one in town.rng.sample(junk, len(junk)):
            add = Message(
                Kind.ADD_PROVIDER, victim.key, providers=(one.contact,), records=(one.sealed.envelope,)
            )
            server.handle(add, one.contact.id, one.group, sim.now, sim.now_us)


def _read(town: Town, reader: Node, victim: Publication, tally: Tally) -> None:
    sim = town.sim
    walk = Told(
        victim.key,
        sim.seeds(reader, victim.key),
        me=reader.id,
        network=sim.network,
        tuning=sim.tuning,
        now=sim.now,
        now_us=sim.now_us,
        limit=LIMIT,
        patience=reader.patience.seconds,
    )
    walk.turns = Turns()
    held = reader.store.page(victim.key, b"", 1 << 20)
    walk.on_local(held.sealeds, held.contacts)
    walk.turns.on_told(reader.id, [sealed.envelope for sealed in held.sealeds], held.contacts)
    sim.start(reader, walk, "read", partial(tally.on_end, walk, victim))
