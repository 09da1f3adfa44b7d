"""Our DHT, by the product's own objects: `Peer.open`'s peers, their publishers' stores, their finders' walks.

A store signs one record (a card where it is short, an offer where it is long) and runs the walk that stores
it under one key, as `publish` does for each of its keys. A get is one walk to one key, every signature
checked; asking who of the providers is dead, and a ping, are what `find` adds.
"""

from __future__ import annotations

import gc
import json
import random
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from time import process_time
from typing import Protocol

import trio

from benches.rigs import dht_stage, stage
from benches.rigs.dht_stage import CARD_BYTES, Get, Got, Store
from benches.rigs.in_trio import order, together
from modelnet_p2p import Peer
from modelnet_p2p.identity import PeerId
from modelnet_p2p.names import Keys, provider_key
from modelnet_p2p.node.overlay.reading import Reading
from modelnet_p2p.records import (
    Manifest,
    OfferRecord,
    Sealed,
    Spec,
    card_of,
    cards_of_all,
    seal_manifest,
    seal_offer,
)

OWNER = "bench"  # namespace of models and tasks
LIFETIME_US = 3600 * 1_000_000
LONG = (
    "l"  # names that begin so are those of long records, and lie under a model's key, others under a task's
)
JOINING = 1  # peer of one process that joins at a time: more only wait for each other's handshakes
TOLD_EVERY = 10  # peers that have joined, how many there are is told
CONNECTIONS_SHARE = 0.8  # of a process's files are for the connections that its peers keep; the rest is for
# those that walks open until they are trimmed, for listening, and for what a machine's own limits are
ROOMY = 32  # peers of one process; more share a heap that one peer's garbage collector is not made for
# so many objects, and rounds, until each generation of such a heap is looked through for garbage: the oldest
# once in 500 million objects, for that takes a second
YOUNG = 10_000, 50, 1000
MET = 2  # peers that a newcomer is told of
LOOK_SECONDS = 0.1  # between two looks at whether all have met somebody
DOORS = 8  # peers of a process whose addresses are told to others
PAGE_BYTES = 1 << 20  # of what a reader holds itself
MOST = 16  # limits, or prices, or specs in both directions, that one offer may have
MAX_LABEL_BYTES, MAX_SPEC_BYTES = 32, 48  # of the name of a limit, of a spec
LANGUAGE_BYTES = 7  # in msgpack: six characters and their length
ENVELOPE_BYTES = 140  # that sealing adds


class Starting(Protocol):
    """What a nursery's `start` hands to the task that it starts."""

    def started(self, peer: Peer) -> None: ...


class ModelnetPeer:
    """One peer in this process."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._overlay, self._publisher = peer.parts.overlay, peer.parts.publisher
        self._key = peer.parts.publisher._signing.key
        self._keys = Keys(peer.network_name)

    def storing(self, name: str, size: int) -> Store:
        place = self._place(name)
        if size <= CARD_BYTES:
            offer = seal_offer(self._offer(name, name), self._key)
            return self._store(place, lambda: [card_of(offer, self._key)])
        draft = filled(self._offer(name, name), size)
        return self._store(place, lambda: [seal_offer(draft, self._key)])

    def storing_many(self, name: str, count: int, size: int) -> Store:
        """Cards of so many models of one task; a card says more than `size` bytes by itself."""
        offers = [seal_offer(self._offer(f"{name}-{at}", name), self._key) for at in range(count)]
        return self._store(self._place(name), lambda: [card for [card] in cards_of_all(offers, self._key)])

    def getting(self, name: str, owner: str) -> Get:
        key, overlay = self._place(name), self._overlay

        async def get() -> Got:
            walk = Reading(key, overlay, None)
            held = overlay.server.store.page(key, b"", PAGE_BYTES)
            walk.on_local(held.sealeds, held.contacts)
            await overlay.run(walk)
            return Got(len(walk.records), bool(held.sealeds), walk.hops)

        return get

    def _store(self, key: bytes, sign: Callable[[], Sequence[Sealed]]) -> Store:
        async def store() -> bool:
            report = await self._publisher._store(key, sign())
            await self._overlay.keep_pace()  # as the publisher does, once it has told that it is stored
            return report.promised and not report.alone

        return store

    def _place(self, name: str) -> bytes:
        text = (
            self._keys.model(f"{OWNER}/{name}") if name.startswith(LONG) else self._keys.task(task_of(name))
        )
        return provider_key(text)

    def _offer(self, model: str, task: str) -> OfferRecord:
        now_us, key = self._overlay.wall_us(), self._key
        manifest = Manifest(key.id, f"{OWNER}/{model}", task_of(task), now_us // 1_000_000)
        return OfferRecord(
            provider=key.id,
            network=self._peer.network_name,
            manifest=manifest,
            manifest_envelope=seal_manifest(manifest, key),
            seq=now_us // 1000,
            issued_us=now_us,
            expires_us=now_us + LIFETIME_US,
        )


def task_of(name: str) -> str:
    return f"x-{OWNER}/{name}"


def filled(offer: OfferRecord, size: int) -> OfferRecord:
    """The offer with inputs, outputs, limits and languages until it has about `size` bytes, sealed."""
    full = replace(
        offer,
        inputs=_specs("in"),
        outputs=_specs("out"),
        limits={f"limit-{number}".ljust(MAX_LABEL_BYTES, "x"): 10**9 for number in range(MOST)},
        price={f"price-{number}".ljust(MAX_LABEL_BYTES, "x"): 10**9 for number in range(MOST)},
    )
    missing = size - ENVELOPE_BYTES - len(full.to_payload())
    return replace(full, languages=tuple(f"x-{number:04}" for number in range(missing // LANGUAGE_BYTES)))


def _specs(way: str) -> tuple[Spec, ...]:
    return tuple(
        Spec(f"{way}-{number}".ljust(MAX_SPEC_BYTES, "x"), "tensor", "float32", (None, 3, 1024, 1024))
        for number in range(MOST // 2)
    )


@dataclass(slots=True)
class Crowd:
    """The peers of this process, and what it took to let them in."""

    wanted: dht_stage.Options
    opened: list[Peer] = field(default_factory=list)
    connections: int = 0  # that came about at their ends; each has two, most of them in another process
    rng: random.Random = field(default_factory=random.Random)

    def add(self, peer: Peer) -> None:
        self.opened.append(peer)
        self.connections += len(peer.parts.overlay.network.connected())
        peer.parts.overlay.network.on_connected(self._on_connected)
        if len(self.opened) % TOLD_EVERY == 0:
            if self.wanted.peers > ROOMY:
                # to look through the heap of eighty peers for garbage, again and again, takes a third of
                # their time and holds all up for a second. Who has joined stays to the end
                gc.freeze()
            stage.tell(self.progress())

    def known(self) -> list[str]:
        """Of whom a newcomer is told: somebody here and a door elsewhere, so that nobody has to know all."""
        mine = [peer.addrs[0] for peer in self.opened]
        told = self.rng.sample(self.wanted.known, min(1, len(self.wanted.known)))
        return told + self.rng.sample(mine, min(MET - len(told), len(mine)))

    def progress(self) -> stage.Line:
        doors = [peer.addrs[0] for peer in self.opened[:DOORS]]
        return {
            "addrs": doors,
            "joined": len(self.opened),
            "connections": self.connections,
            "cpu_seconds": process_time(),
        }

    def _on_connected(self, peer: PeerId) -> None:
        self.connections += 1


async def serve(wanted: dht_stage.Options) -> None:
    """Until stdin ends."""
    crowd = Crowd(wanted)
    opened = crowd.opened
    if wanted.peers > ROOMY:
        gc.set_threshold(*YOUNG)
    async with trio.open_nursery() as nursery:
        places = trio.CapacityLimiter(JOINING)

        async def join() -> None:
            async with places:
                peer = await nursery.start(live, wanted, crowd.known())
                crowd.add(peer)

        await join()  # whom the others meet
        async with trio.open_nursery() as joining:
            for _ in range(wanted.peers - 1):
                joining.start_soon(join)
        met = min(MET, wanted.peers - 1 + len(wanted.known))
        while any(len(peer.parts.overlay.table) < met for peer in opened):  # a busy machine lets dials fail
            await trio.sleep(LOOK_SECONDS)
        if wanted.peers > ROOMY:
            gc.freeze()
        peers = [ModelnetPeer(peer) for peer in opened]
        stage.tell({**crowd.progress(), "owners": [peer.id for peer in opened]})
        while line := await order():
            wish = json.loads(line)
            stage.tell(await dht_stage.perform(wish, peers[wish["peer"]], together))
        nursery.cancel_scope.cancel()


async def live(
    wanted: dht_stage.Options,
    known: Sequence[str],
    *,
    task_status: Starting,
) -> None:
    """One peer, in a task of its own, until that is cancelled."""
    async with Peer.open(bootstrap=known, network=wanted.network) as peer:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # which hundreds of peers share here
        room = int(CONNECTIONS_SHARE * files / wanted.peers)
        peer.parts.overlay.warmth.kept = min(peer.parts.overlay.warmth.kept, room)
        task_status.started(peer)
        await trio.sleep_forever()


def main() -> None:
    trio.run(serve, dht_stage.options())


if __name__ == "__main__":
    main()
