"""What a call costs: one after the other, and sixteen callers at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from time import perf_counter

import numpy as np
import trio

from benches.figure import Figure
from benches.host import ECHO, SINK
from benches.swarm import Swarm
from modelnet_p2p import Peer
from processes import Failed

SMALL = "a hundred bytes, " * 5 + "and these fifte"
assert len(SMALL) == 100
WARM_UP = 20  # calls before anything counts: connections, streams and the worker are there
WORKER = "callable"  # so its worker process is part of the way


async def measure(swarm: Swarm) -> AsyncIterator[Figure]:
    home = swarm.troupe.folder / "caller"
    async with Peer.open(bootstrap=[swarm.address], network=swarm.network, home=home) as peer:
        for _ in range(WARM_UP):
            await call(peer)
        yield await invoke_100b(peer, swarm)
        yield await calls_per_s(peer, swarm, callers=16)
        for mebibytes in (1, 16) if swarm.quick else (1, 16, 128):
            yield await tensor_up(peer, swarm, mebibytes)


async def call(peer: Peer) -> None:
    if await peer.invoke(ECHO, SMALL) != SMALL:
        raise Failed("the echo came back changed")


async def invoke_100b(peer: Peer, swarm: Swarm) -> Figure:
    samples = []
    for _ in range(swarm.rounds(200, 1500)):
        started = perf_counter()
        await call(peer)
        samples.append((perf_counter() - started) * 1000)
    return Figure("invoke_100B", "ms", samples, {"bytes": len(SMALL), "model": WORKER})


async def calls_per_s(peer: Peer, swarm: Swarm, callers: int) -> Figure:
    """Whole runs of a fixed length, with that many callers who each wait for their answer."""
    seconds = 1.0 if swarm.quick else 3.0
    samples = []
    for _ in range(swarm.rounds(3, 5)):
        done = 0

        async def keep_calling(until: float) -> None:
            nonlocal done
            while perf_counter() < until:
                await call(peer)
                done += 1

        started = perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(callers):
                nursery.start_soon(keep_calling, started + seconds)
        samples.append(done / (perf_counter() - started))
    return Figure(f"calls_per_s_{callers}", "1/s", samples, {"bytes": len(SMALL), "model": WORKER})


async def tensor_up(peer: Peer, swarm: Swarm, mebibytes: int) -> Figure:
    """One float32 tensor through the whole way of a call, into the model's worker; MB are 10^6 bytes."""
    tensor = np.random.default_rng(2026).random(mebibytes << 18, dtype=np.float32)
    samples = []
    for number in range(1 + swarm.rounds(3, 7)):
        started = perf_counter()
        if await peer.invoke(SINK, tensor, timeout=60) != tensor.nbytes:
            raise Failed("a part of the tensor is missing")
        if number:  # the first one opens the stream and touches fresh memory
            samples.append(tensor.nbytes / 1e6 / (perf_counter() - started))
    return Figure(f"tensor_up_{mebibytes}MiB", "MB/s", samples, {"dtype": "float32", "model": WORKER})
