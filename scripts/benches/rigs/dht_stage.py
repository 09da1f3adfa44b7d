"""What every DHT is asked to do, and how its times are taken: the same code for each of them.

A rig process holds some peers of one network. It reads orders, one JSON object a line, and answers each with
one line; whoever gives the orders says which peer does what. Standard library only, for it runs under another
system's interpreter too.
"""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

from benches.rigs.stage import Action, Line, Together

CARD_BYTES, OFFER_BYTES = 300, 3500  # of one record: a short one, and nearly the longest that ours may have
FLIGHT = 32  # stores, or gets, of one peer at the same time
MANY, MANY_BYTES = 100, 100  # records under one key, and of each what its system does not add itself


@dataclass(frozen=True, slots=True)
class Got:
    """What a read brought: how many records, and whether its reader held them itself."""

    records: int
    local: bool
    hops: int | None = None  # the longest chain of answers that led to a holder, where its system tells


Store = Callable[[], Awaitable[bool]]  # signs and stores; whether all of it is stored
Get = Callable[[], Awaitable[Got]]


class DhtPeer(Protocol):
    """One peer. What these functions make is made before the time is taken, but for signatures."""

    def storing(self, name: str, size: int) -> Store:
        """One record of `size` bytes under a key of its own."""

    def storing_many(self, name: str, count: int, size: int) -> Store:
        """So many records under one key, in one call."""

    def getting(self, name: str, owner: str) -> Get:
        """All that lies under the key that `owner` stored as `name`, by a walk, every signature checked."""


@dataclass(frozen=True, slots=True)
class Options:
    peers: int
    known: Sequence[str]  # addresses of peers that are there
    network: str


def options() -> Options:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", type=int, required=True)
    parser.add_argument("--known", action="append", default=[])
    parser.add_argument("--network", default="bench")
    parsed = parser.parse_args()
    return Options(parsed.peers, parsed.known, parsed.network)


async def perform(order: Line, peer: DhtPeer, together: Together) -> Line:
    """One order, by the peer that it names; all times in seconds."""
    match order:
        case {"do": "store", "name": str(name), "bytes": int(size)}:
            return await timed_store(peer.storing(name, size))
        case {"do": "store_many", "name": str(name)}:
            return await timed_store(peer.storing_many(name, MANY, MANY_BYTES))
        case {"do": "get", "name": str(name), "owner": str(owner)}:
            return await timed_get(peer.getting(name, owner))
        case {"do": "stores", "name": str(name), "bytes": int(size), "count": int(count)}:
            stores = [peer.storing(numbered(name, at), size) for at in range(count)]
            return await rate(stores, together)
        case {"do": "gets", "name": str(name), "owner": str(owner), "count": int(count)}:
            gets = [peer.getting(numbered(name, at), owner) for at in range(count)]
            return await rate(gets, together)
    raise SystemExit(f"a DHT's rig was asked for {order}")


def numbered(name: str, number: int) -> str:
    return f"{name}-{number}"


async def timed_store(store: Store) -> Line:
    started = perf_counter()
    stored = await store()
    return {"seconds": perf_counter() - started, "ok": stored}


async def timed_get(get: Get) -> Line:
    started = perf_counter()
    got = await get()
    seconds = perf_counter() - started
    return {"seconds": seconds, "records": got.records, "local": got.local, "hops": got.hops}


async def rate(actions: Sequence[Store | Get], together: Together) -> Line:
    """All of these, FLIGHT at the same time; how long, and how many did what they should."""
    waiting, done = iter(actions), 0

    async def work() -> None:
        nonlocal done
        for action in waiting:
            told = await action()
            done += bool(told.records) if isinstance(told, Got) else told

    workers: list[Action] = [work] * FLIGHT
    started = perf_counter()
    await together(workers)
    return {"seconds": perf_counter() - started, "done": done}
