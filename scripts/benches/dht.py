"""Storing and finding records: our DHT and hivemind's, 64 peers each, by turns in one run.

Only one of the networks is alive at a time; each is made anew for each of its turns. Ours are four processes
of sixteen peers with the limits of the preset `lan`; hivemind's are 64 processes with a Go daemon each. All
records are signed. Who stores and who reads is drawn at random, the same for both.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console

from benches import usage
from benches.figure import Figure
from benches.rigs.dht_stage import CARD_BYTES, FLIGHT, MANY, OFFER_BYTES
from benches.rigs.stage import Line
from benches.systems import OURS, Running, spawn
from processes import Failed, Troupe, undisturbed

RIVAL = "hivemind"  # the only other one that is a DHT
RIGS = {OURS: "benches.rigs.dht_modelnet", RIVAL: "benches.rigs.dht_hivemind"}
PEERS = 64
PROCESSES = {OURS: 4, RIVAL: 1}  # that take orders; hivemind's forks one for each peer
START_TIMEOUT = 900.0  # seconds; hivemind starts one peer after the other, a thousand of ours take minutes
SETTLE_SECONDS = 5.0  # from the last peer's start to the first operation: tables fill, daemons calm down
TRIES = 8  # readers drawn for one key until one holds nothing of it: 20 of our 64 peers hold each
SEED = 64
MIB = 1024.0 * 1024.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is done in each turn of a network; a figure has the samples of all its turns."""

    turns: int
    stores: int  # of each size, each read once
    at_once: int  # stores, then gets, for the rate
    many: int  # times that a hundred records are stored under one key
    many_reads: int  # of each of those
    idle: int  # stand-alone peers whose memory is looked at


FULL = Plan(turns=3, stores=60, at_once=300, many=5, many_reads=4, idle=2)
QUICK = Plan(turns=1, stores=12, at_once=64, many=2, many_reads=2, idle=1)

Key = tuple[int, str]  # who stored it, and its name
OnJoined = Callable[[Sequence[Line]], None]


@dataclass(slots=True)
class Samples:
    """Of one system, by figure and what tells two of them apart."""

    found: dict[tuple[str, str, object], list[float]] = field(default_factory=dict)

    def add(self, name: str, unit: str, what: object, value: float) -> None:
        self.found.setdefault((name, unit, what), []).append(value)


class Swarm:
    """One system's peers, numbered through all of its processes."""

    def __init__(self, via: str, network: str, processes: Sequence[Running]) -> None:
        self.via = via
        self.network = network
        self._processes = processes
        self._places = [
            (process, number) for process in processes for number in range(len(process.ready["owners"]))
        ]
        self._owners = [owner for process in processes for owner in process.ready["owners"]]

    @property
    def address(self) -> str:
        return str(self._processes[0].ready["addrs"][0])

    @property
    def processes(self) -> int:
        return len(self._processes)

    def pids(self) -> set[int]:
        return {pid for process in self._processes for pid in process.pids()}

    def __len__(self) -> int:
        return len(self._places)

    def order(self, peer: int, **order: object) -> Line:
        process, number = self._places[peer]
        return process.order(peer=number, **order)

    def owner(self, peer: int) -> str:
        return str(self._owners[peer])


def measure(quick: bool, against: Sequence[str], console: Console) -> Iterator[Figure]:
    """Figures of ours, and of hivemind's where that is asked for."""
    plan = QUICK if quick else FULL
    systems = [OURS, *(name for name in against if name == RIVAL)]
    samples = {via: Samples() for via in systems}
    for turn in range(plan.turns):
        for via in systems:
            said = f"  {PEERS} peers of {via}, turn {turn + 1} of {plan.turns} ..."
            console.print(said, style="dim", highlight=False)
            with open_swarm(via) as swarm:
                take_turn(swarm, plan, samples[via], turn)
    for via in systems:
        for (name, unit, what), values in samples[via].found.items():
            params = {"peers": PEERS} | ({"bytes": what} if isinstance(what, int) else {"what": what})
            yield Figure(name, unit, values, params, via)


@contextmanager
def open_swarm(via: str, peers: int = PEERS, on_joined: OnJoined = lambda _: None) -> Iterator[Swarm]:
    """All of them joined. `on_joined` gets what the processes told last, now and then."""
    processes: list[Running] = []
    network = f"bench-{secrets.token_hex(3)}"
    each = peers // PROCESSES[via]
    try:
        for number in range(PROCESSES[via]):
            doors = processes[0].ready["addrs"] if processes else []
            known = [word for door in doors for word in ("--known", door)]
            processes.append(spawn(via, RIGS[via], ["--peers", str(each), "--network", network, *known]))
            if not number:
                processes[0].ready = processes[0].read_line(START_TIMEOUT)
        while waiting := [process for process in processes if "owners" not in process.ready]:
            for process in waiting:  # by turns: all of them tell as often, and who is ahead has to wait
                process.ready = process.read_line(START_TIMEOUT)
            on_joined([process.ready for process in processes])
        time.sleep(SETTLE_SECONDS)
        yield Swarm(via, network, processes)
    finally:
        with undisturbed():
            for process in processes:
                process.end()


def take_turn(swarm: Swarm, plan: Plan, samples: Samples, turn: int) -> None:
    rng = random.Random(SEED + turn)
    warm_up(swarm, rng)
    for size, mark in ((CARD_BYTES, "s"), (OFFER_BYTES, "l")):
        names = [f"{mark}{turn}-{number}" for number in range(plan.stores)]
        with cpu_of(swarm, samples, "dht_store_cpu", size, len(names)):
            keys = [store_one(swarm, name, size, samples, rng) for name in names]
        for key in keys:
            if (seconds := read_one(swarm, key, rng)) is not None:
                samples.add("dht_get", "ms", size, seconds * 1000)
    rates(swarm, plan, samples, turn)
    many(swarm, plan, samples, rng, turn)
    for mib in resident(swarm, plan.idle):
        samples.add("peer_rss", "MiB", "a process of its own, idle", mib)


@contextmanager
def cpu_of(swarm: Swarm, samples: Samples, name: str, what: object, count: int) -> Iterator[None]:
    """CPU time of all its processes during so many operations, for each; what runs beside them too.

    A busy machine makes every time longer, and this one little.
    """
    pids = swarm.pids()
    before = usage.cpu_seconds(pids)
    yield
    samples.add(name, "ms", what, (usage.cpu_seconds(pids) - before) / count * 1000)


def warm_up(swarm: Swarm, rng: random.Random) -> None:
    """What is opened once, a connection above all, is opened before anything is timed."""
    names = [(peer, f"s-warm-{peer}") for peer in range(len(swarm))]
    for peer, name in names:
        swarm.order(peer, do="store", name=name, bytes=CARD_BYTES)
    for key in names:
        read_one(swarm, key, rng)


def store_one(swarm: Swarm, name: str, size: int, samples: Samples, rng: random.Random) -> Key:
    peer = rng.randrange(len(swarm))
    told = swarm.order(peer, do="store", name=name, bytes=size)
    if not told["ok"]:
        raise Failed(f"{swarm.via}: {name} was not stored")
    samples.add("dht_store", "ms", size, told["seconds"] * 1000)
    return peer, name


def read_one(swarm: Swarm, key: Key, rng: random.Random) -> float | None:
    """Seconds, by a reader that holds nothing of it and never read it; None where none was drawn."""
    owner, name = key
    others = [peer for peer in range(len(swarm)) if peer != owner]
    for reader in rng.sample(others, min(TRIES, len(others))):
        told = swarm.order(reader, do="get", name=name, owner=swarm.owner(owner))
        if told["records"] < 1:
            raise Failed(f"{swarm.via}: {name} was not found")
        if not told["local"]:
            return float(told["seconds"])
    return None


def rates(swarm: Swarm, plan: Plan, samples: Samples, turn: int) -> None:
    """So many at once by one peer, read by one of another process."""
    what = f"{FLIGHT} in flight"
    storer, reader, name = 0, len(swarm) // 2, f"s{turn}-rate"
    for order, peer in (("stores", storer), ("gets", reader)):
        wish: Line = {"do": order, "name": name, "bytes": CARD_BYTES, "count": plan.at_once}
        with cpu_of(swarm, samples, f"dht_{order[:-1]}_cpu", what, plan.at_once):
            told = swarm.order(peer, owner=swarm.owner(storer), **wish)
        if told["done"] != plan.at_once:
            raise Failed(f"{swarm.via}: {told['done']} of {plan.at_once} {order} succeeded")
        samples.add(f"dht_{order}_per_s", "1/s", what, plan.at_once / told["seconds"])


def many(swarm: Swarm, plan: Plan, samples: Samples, rng: random.Random, turn: int) -> None:
    """A hundred records under one key: stored in one call by one peer, read whole by others."""
    for number in range(plan.many):
        owner, name = rng.randrange(len(swarm)), f"s{turn}-many-{number}"
        told = swarm.order(owner, do="store_many", name=name)
        if not told["ok"]:
            raise Failed(f"{swarm.via}: {MANY} records under one key were not stored")
        samples.add(f"dht_store_{MANY}", "ms", "one key", told["seconds"] * 1000)
        readers = [peer for peer in range(len(swarm)) if peer != owner]
        taken: list[float] = []
        for reader in rng.sample(readers, len(readers)):
            if len(taken) == plan.many_reads:
                break
            told = swarm.order(reader, do="get", name=name, owner=swarm.owner(owner))
            if told["records"] != MANY:
                raise Failed(f"{swarm.via}: {told['records']} of {MANY} records under one key were read")
            if not told["local"]:
                taken.append(told["seconds"] * 1000)
        for milliseconds in taken:
            samples.add(f"dht_read_{MANY}", "ms", "one key", milliseconds)


def resident(swarm: Swarm, count: int) -> list[float]:
    """MiB of peers that are processes of their own, idle members of this network.

    Ours as it says itself, all of it; hivemind's with its daemon, pages that processes share counted once.
    """
    if swarm.via == OURS:
        with Troupe() as troupe:
            troupe.network = swarm.network
            idle = troupe.start(*(f"idle{number}" for number in range(count)), bootstrap=[swarm.address])
            return [troupe.ask(peer, "status")[0]["rss_bytes"] / MIB for peer in idle]
    found = []
    for _ in range(count):
        member = spawn(RIVAL, RIGS[RIVAL], ["--peers", "1", "--known", swarm.address])
        try:
            member.ready = member.read_line(START_TIMEOUT)
            found.append(usage.pss(member.pids()))
        finally:
            with undisturbed():
                member.end()
    return found
