"""A thousand peers of ours with real sockets, in four processes: does every store and every get succeed?

The peers are those of `dht`, with the limits that they have anywhere: 256 connections each, the preset `lan`.
Their times stand beside what hivemind published for 1,024 peers on a machine of its own; no run here can
repeat that, for 64 of its peers take as much memory as all of these.
"""

from __future__ import annotations

import random
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from rich.console import Console

from benches import usage
from benches.dht import Swarm, open_swarm
from benches.figure import Figure, quantile
from benches.rigs.dht_stage import CARD_BYTES
from benches.rigs.stage import Line
from benches.systems import OURS

PUBLISHED = {"crowd_store": 14.9, "crowd_get": 6.6}  # ms: hivemind's, 1,024 peers, no latency, none failing
FILES = 131_072  # descriptors of one process: 250 peers with 256 connections, twice
SEED = 1000
SAID_EVERY = 40  # peers that joined since it was said last
MS = 1000.0


@dataclass(frozen=True, slots=True)
class Plan:
    peers: int
    stores: int  # each by a peer of its own, each read once by another


FULL = Plan(peers=1000, stores=1000)
QUICK = Plan(peers=200, stores=100)


def measure(quick: bool, against: Sequence[str], console: Console) -> Iterator[Figure]:
    """Nobody else is measured here."""
    plan = QUICK if quick else FULL

    def say(what: str) -> None:
        console.print(f"  {what}", style="dim", highlight=False)

    allow_files(say)
    joining = Joining(plan.peers, say)
    with open_swarm(OURS, plan.peers, joining.on_joined) as swarm:
        params: dict[str, object] = {"peers": len(swarm), "processes": swarm.processes}
        yield Figure("crowd_join_cpu", "s", [joining.cpu_seconds / len(swarm)], params)
        yield Figure("crowd_join_connections", "", [joining.connections / len(swarm)], params)
        say(f"{plan.stores} stores ...")
        yield Figure("crowd_memory", "MiB", [usage.pss(swarm.pids()) / len(swarm)], params)
        yield from stores_and_gets(swarm, plan, params, say)


@dataclass(slots=True)
class Joining:
    """How far it is, said now and then, and what it takes a peer: both ends of each connection are here."""

    peers: int
    say: Callable[[str], None]
    started: float = field(default_factory=time.monotonic)
    cpu_seconds: float = 0.0
    connections: float = 0.0
    said: int = 0

    def on_joined(self, told: Sequence[Line]) -> None:
        joined = sum(line.get("joined", 0) for line in told)
        self.cpu_seconds = sum(line.get("cpu_seconds", 0.0) for line in told)
        self.connections = sum(line.get("connections", 0) for line in told) / 2
        if joined - self.said >= SAID_EVERY or joined == self.peers:
            self.said = joined
            each = f"{self.cpu_seconds / joined:.2f} CPU s and {self.connections / joined:.0f} dials each"
            self.say(f"{joined} of {self.peers} joined after {time.monotonic() - self.started:.0f} s, {each}")


def stores_and_gets(
    swarm: Swarm, plan: Plan, params: dict[str, object], say: Callable[[str], None]
) -> Iterator[Figure]:
    """One after the other, by peers drawn at random; a failure is counted and never tried again."""
    rng = random.Random(SEED)
    taken: dict[str, list[float]] = {"crowd_store": [], "crowd_get": []}
    failed = dict.fromkeys(taken, 0)
    hops: list[float] = []
    keys = []
    for number in range(plan.stores):
        peer, name = rng.randrange(len(swarm)), f"s-{number}"
        told = swarm.order(peer, do="store", name=name, bytes=CARD_BYTES)
        taken["crowd_store"].append(told["seconds"] * MS)
        failed["crowd_store"] += not told["ok"]
        keys.append((peer, name))
        if number % 100 == 99:
            say(f"{number + 1} stored, {failed['crowd_store']} failed")
    for number, (owner, name) in enumerate(keys):
        told = swarm.order(rng.randrange(len(swarm)), do="get", name=name, owner=swarm.owner(owner))
        if told["records"] < 1:
            failed["crowd_get"] += 1
            told_again = swarm.order(owner, do="get", name=name, owner=swarm.owner(owner))
            say(f"{name} was not found; its publisher's own walk tells {told_again['records']} records")
        if not told["local"]:
            taken["crowd_get"].append(told["seconds"] * MS)
            hops.append(told["hops"])
        if number % 100 == 99:
            say(f"{number + 1} read, {failed['crowd_get']} failed")
    for name, samples in taken.items():
        published = {"hivemind_1024": PUBLISHED[name]}
        yield Figure(name, "ms", samples, params | {"bytes": CARD_BYTES} | published)
        yield Figure(f"{name}_failures", "", [failed[name]], params | {"of": plan.stores})
    if hops:  # in a crowd of few everybody holds everything
        yield Figure("crowd_get_hops", "", hops, params | {"p90": quantile(hops, 0.9)})


def allow_files(say: Callable[[str], None]) -> None:
    """As many descriptors as may be had; processes started later inherit them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limits in ((FILES, max(FILES, hard)), (hard, hard)):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        except (ValueError, OSError):
            continue  # only root may go beyond the hard limit
        soft = limits[0]
        break
    if soft < FILES:
        say(f"a process may have {soft} files here, fewer than {FILES}: connections may be refused")
