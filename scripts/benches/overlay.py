"""Joining and finding in a swarm of our own; storing, reading and memory beside another DHT (`dht`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from time import perf_counter

import trio
from rich.console import Console

from benches import dht, finding
from benches.figure import Figure
from benches.host import ECHO_TASK
from benches.swarm import PEERS, Swarm, open_swarm
from modelnet_p2p import Peer
from processes import Failed


def measure(quick: bool, against: Sequence[str], console: Console) -> Iterator[Figure]:
    """Joining and finding are ours alone: the systems that compare do not find by task."""
    console.print(f"  starting a swarm of {PEERS} peers ...", style="dim", highlight=False)
    with open_swarm(quick) as swarm:
        yield trio.run(join, swarm)
        yield trio.run(find_task, swarm)
    yield from finding.measure(quick, console)
    yield from dht.measure(quick, against, console)


async def join(swarm: Swarm) -> Figure:
    """From `Peer.open` to inside it, in a process that has imported everything."""
    samples = []
    for number in range(swarm.rounds(5, 20)):
        home = swarm.troupe.folder / f"join-{number}"
        started = perf_counter()
        async with Peer.open(bootstrap=[swarm.address], network=swarm.network, home=home):
            samples.append((perf_counter() - started) * 1000)
    return Figure("join", "ms", samples, {"peers": PEERS})


async def find_task(swarm: Swarm) -> Figure:
    """One peer asks again and again; the first time, which opens connections, is not counted."""
    samples = []
    home = swarm.troupe.folder / "finder"
    async with Peer.open(bootstrap=[swarm.address], network=swarm.network, home=home) as peer:
        for _ in range(1 + swarm.rounds(30, 300)):
            started = perf_counter()
            if not await peer.find(task=ECHO_TASK):
                raise Failed(f"nobody was found for {ECHO_TASK}")
            samples.append((perf_counter() - started) * 1000)
    return Figure("find_task", "ms", samples[1:], {"peers": PEERS})
