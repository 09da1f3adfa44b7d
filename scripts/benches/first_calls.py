"""What a newcomer's program waits for: finds, calls and tensors, awaited and by the synchronous face.

Both faces are of one peer with one connection, and take turns, so that their difference is the face alone.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from time import perf_counter

import numpy as np
import trio

from benches.figure import Figure
from modelnet_p2p import Peer, Swarm
from processes import Failed

ECHO, SINK, SPRING = "modelnet/echo", "bench/sink", "bench/spring"
SERVED = (("builtin:echo", ECHO), ("echo:size", SINK), ("echo:zeros", SPRING))  # source and name of each
SMALL_BYTES = 100
SIZES = (1, 16)  # MiB
MIB, MB = 1 << 20, 1e6
TIMEOUT = 60.0  # seconds; far more than 16 MiB take on loopback
AWAITED, PLAIN = "Peer", "Swarm"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of each; in each round both faces have a turn."""

    rounds: int
    calls: int  # a round
    finds: int  # a round
    transfers: int  # a round


FULL = Plan(10, 200, 20, 5)
QUICK = Plan(2, 40, 4, 2)


@dataclass(slots=True)
class Face:
    """One way to call: a batch is done and timed where such a program would do it, in seconds each."""

    name: str
    batch: Callable[[str, object, int], list[float]]  # model, input, times
    finds: Callable[[str, int], list[float]]  # model, times
    samples: dict[str, list[float]] = field(default_factory=dict)  # by figure

    def add(self, figure: str, samples: Sequence[float]) -> None:
        self.samples.setdefault(figure, []).extend(samples)


def measure(known: Sequence[str], network: str, plan: Plan) -> Iterator[Figure]:
    """By a peer that only asks those who are known, and finds there what `SERVED` says."""
    inside: list[tuple[Peer, trio.lowlevel.TrioToken]] = []

    @asynccontextmanager
    async def opening() -> AsyncIterator[Peer]:
        async with Peer.open(bootstrap=known, listen=(), network=network) as peer:
            inside.append((peer, trio.lowlevel.current_trio_token()))
            yield peer

    with Swarm.open_on(opening) as swarm:
        [(peer, token)] = inside
        faces = [awaited(peer, token), plain(swarm)]
        differences = []
        for number in range(1 + plan.rounds):
            for face in faces:
                one_turn(face, plan)
            if number == 0:  # connections were opened and caches filled
                for face in faces:
                    face.samples.clear()
                continue
            # of this round: what stands at the end of all samples
            waited, called = (median(face.samples["call"][-plan.calls :]) for face in faces)
            differences.append(called - waited)
    for name, unit in units().items():
        for face in faces:
            yield Figure(name, unit, face.samples[name], {"by": face.name})
    yield Figure("sync_overhead", "ms", differences, {"call": f"{SMALL_BYTES} B", "beside": AWAITED})


def units() -> dict[str, str]:
    """Of the figures that each face has, in their order."""
    transfers = {f"{way}_{size}MiB": "MB/s" for size in SIZES for way in ("send", "fetch")}
    return {"find_again": "ms", "call": "ms", **transfers}


def one_turn(face: Face, plan: Plan) -> None:
    """All figures once, by one face."""
    face.add("find_again", [taken * 1000 for taken in face.finds(ECHO, plan.finds)])
    face.add("call", [taken * 1000 for taken in face.batch(ECHO, os.urandom(SMALL_BYTES), plan.calls)])
    for size in SIZES:
        moved = size * MIB / MB
        tensor = np.zeros(size * MIB // 4, np.float32)
        face.add(f"send_{size}MiB", [moved / taken for taken in face.batch(SINK, tensor, plan.transfers)])
        face.add(f"fetch_{size}MiB", [moved / taken for taken in face.batch(SPRING, size, plan.transfers)])


def awaited(peer: Peer, token: trio.lowlevel.TrioToken) -> Face:
    """The peer's own words, in its own thread."""

    async def times(action: Callable[[], Awaitable[object]], count: int) -> list[float]:
        samples = []
        for _ in range(count):
            started = perf_counter()
            result = await action()
            samples.append(perf_counter() - started)
            check(result)
        return samples

    def batch(model: str, value: object, count: int) -> list[float]:
        action = partial(peer.invoke, model, value, timeout=TIMEOUT)
        return trio.from_thread.run(times, action, count, trio_token=token)

    def finds(model: str, count: int) -> list[float]:
        return trio.from_thread.run(times, partial(peer.find, model=model), count, trio_token=token)

    return Face(AWAITED, batch, finds)


def plain(swarm: Swarm) -> Face:
    """The synchronous words, in this thread."""

    def times(action: Callable[[], object], count: int) -> list[float]:
        samples = []
        for _ in range(count):
            started = perf_counter()
            result = action()
            samples.append(perf_counter() - started)
            check(result)
        return samples

    return Face(
        PLAIN,
        lambda model, value, count: times(partial(swarm.invoke, model, value, timeout=TIMEOUT), count),
        lambda model, count: times(partial(swarm.find, model=model), count),
    )


def check(result: object) -> None:
    """Raises Failed where nothing came back."""
    if (isinstance(result, list | np.ndarray) and not len(result)) or result is None:
        raise Failed("an answer was empty")
