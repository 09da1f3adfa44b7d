"""Finding by task across processes: by readers new to the key, right after a publish, after a kill -9.

Sixteen peers serve, each a process of its own. Each of them is among the 20 closest to every key, and so
holds every record; the readers are therefore four more that only ask and hold nothing.
"""

from __future__ import annotations

import secrets
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console

from benches.figure import Figure, quantile
from benches.systems import ORDER_TIMEOUT, OURS, Running, spawn
from processes import Failed, undisturbed

MODULE = "benches.rigs.finding"
PEERS, READERS = 16, 4
START_TIMEOUT = 60.0  # seconds; twenty interpreters start at once
SETTLE_SECONDS = 5.0  # from the last reader's start to the first read
VITAL_SECONDS = 2.1  # a reader believes a sign of life for two: each read here needs one of its own
MS = 1000.0


@dataclass(frozen=True, slots=True)
class Plan:
    tasks: int  # that each peer serves, each read once by each reader
    publishes: int  # that everybody waits for
    kills: int


FULL = Plan(tasks=4, publishes=8, kills=4)  # 256 reads: a 99th percentile stands on two of them
QUICK = Plan(tasks=1, publishes=2, kills=1)


@dataclass(frozen=True, slots=True)
class Town:
    peers: Sequence[Running]
    readers: Sequence[Running]


def measure(quick: bool, console: Console) -> Iterator[Figure]:
    plan = QUICK if quick else FULL
    console.print(f"  {PEERS} peers and {READERS} readers, a process each ...", style="dim", highlight=False)
    params = {"peers": PEERS, "readers": READERS}
    with open_town() as town:
        cold = list(find_cold(town, plan))
        yield Figure("find_task_cold", "ms", cold, params)
        yield Figure("find_task_cold_p99", "ms", [quantile(cold, 0.99)], params | {"reads": len(cold)})
        everybody = {"peers": PEERS + READERS}
        yield Figure("visible_to_all", "ms", list(visible(town, plan)), everybody)
        yield Figure("gone_after_kill", "s", list(gone(town, plan)), everybody)


@contextmanager
def open_town() -> Iterator[Town]:
    started: list[Running] = []
    network = f"bench-{secrets.token_hex(3)}"

    def start(*arguments: str) -> Running:
        started.append(spawn(OURS, MODULE, ["--network", network, *arguments]))
        return started[-1]

    def ready(running: Sequence[Running]) -> None:
        for one in running:
            one.ready = one.read_line(START_TIMEOUT)

    try:
        first = start()
        ready([first])
        known = ["--known", first.ready["addrs"][0]]
        others = [start(*known) for _ in range(PEERS - 1)]
        readers = [start(*known, "--client") for _ in range(READERS)]
        ready([*others, *readers])
        time.sleep(SETTLE_SECONDS)
        yield Town([first, *others], readers)
    finally:
        with undisturbed():
            for one in started:
                one.end()


def find_cold(town: Town, plan: Plan) -> Iterator[float]:
    """Milliseconds of each read, one after the other; every task is read once by each reader."""
    for number in range(plan.tasks):
        tasks = [f"x-bench/cold-{number}-{peer}" for peer in range(PEERS)]
        for peer, task in zip(town.peers, tasks, strict=True):
            peer.order(do="publish", model=f"bench/cold-{number}", task=task)
        time.sleep(VITAL_SECONDS)
        for task in tasks:
            for reader in town.readers:
                told = reader.order(do="find", task=task)
                if told["found"] != 1 or told["local"]:
                    raise Failed(f"a reader found {told['found']} offers of {task}, local: {told['local']}")
                yield told["seconds"] * MS


def visible(town: Town, plan: Plan) -> Iterator[float]:
    """Milliseconds from a publish's return until the last of all others has found it."""
    for number in range(plan.publishes):
        provider = town.peers[number % PEERS]
        task = f"x-bench/new-{number}"
        published = provider.order(do="publish", model=f"bench/new-{number}", task=task)["at"]
        yield (last([*town.peers, *town.readers], provider, task, there=True) - published) * MS


def gone(town: Town, plan: Plan) -> Iterator[float]:
    """Seconds from a provider's kill -9 until nobody finds it any more."""
    peers = list(town.peers)
    for number in range(plan.kills):
        provider = peers.pop()
        task = f"x-bench/doomed-{number}"
        provider.order(do="publish", model=f"bench/doomed-{number}", task=task)
        last([*peers, *town.readers], provider, task, there=True)
        killed = time.monotonic()
        provider.process.send_signal(signal.SIGKILL)
        yield last([*peers, *town.readers], provider, task, there=False) - killed


def last(everybody: Sequence[Running], provider: Running, task: str, *, there: bool) -> float:
    """When the last of the others finds it, or finds it no more; they all look at the same time."""
    others = [one for one in everybody if one is not provider]
    for one in others:
        one.ask(do="await", task=task, there=there)
    return float(max(one.read_line(ORDER_TIMEOUT)["at"] for one in others))
