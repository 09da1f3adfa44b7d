"""`scripts/simulate rare`: is what one provider of thousands has found, and what does that cost?

The search is the product's own (`Batches`), as are walks, pages, stores and the signed records; the records
are laid where publishers would have stored them, on the 20 peers closest to each key. Every search asks for
something else that one provider alone has, as `find` does: 20 offers are wanted, so that all is gone through.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from modelnet_p2p.dht.holding.server import KadServer
from modelnet_p2p.dht.holding.store import Bounds, Full
from modelnet_p2p.dht.keyspace import BITS, position
from modelnet_p2p.dht.simulator import Node, Run, Simulator
from modelnet_p2p.dht.table.density import Density
from modelnet_p2p.dht.walks.patience import Patience
from modelnet_p2p.dht.walks.shards import Spill
from modelnet_p2p.dht.walks.storing import Stored
from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.kad import Contact
from modelnet_p2p.node.overlay.batches import MAX_MODELS_READ, Batches, Tally
from modelnet_p2p.node.overlay.reading import Reading, read_on
from modelnet_p2p.query import Query
from modelnet_p2p.records import Manifest, OfferRecord, Sealed, Spec, card_of, seal_manifest, seal_offer
from modelnet_p2p.tuning import WAN, Tuning
from simulation.play import Say
from simulation.scenario import World
from simulation.town import Atlas, Town, address, group_of

TASK = "text-generation"
MARK = 0.99
SEED = 2026
WANTED = 20  # as `find` without --limit
PAGE_BYTES = 1 << 20  # of its own store that a reader takes along, as the product's does
COMMON_MODELS = 40  # that six of ten providers serve; the others have models of their own
LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "zh", "ja", "ko", "ru", "ar", "hi")
LICENCES = ("MIT", "Apache-2.0", "GPL-3.0", "CC-BY-4.0", "llama3.1", "")
FORMATS = ("float32", "float16", "bfloat16", "int8", "q4_K_M")


@dataclass(frozen=True, slots=True)
class Size:
    peers: int = 300
    providers: int = 600
    searches: int = 40  # each for what another provider has
    per_key: int = Bounds().per_key


FULL = Size(1000, 10_000, 100)


@dataclass(frozen=True, slots=True)
class Searched:
    """One search."""

    where: str
    found: bool
    tally: Tally
    seconds: float  # of virtual time
    messages: int  # requests and replies
    sent_bytes: int
    cpu: float  # seconds, of reader and holders together


class Market:
    """A world of peers that hold what many providers offer for one task."""

    def __init__(self, size: Size, seed: int) -> None:
        self.size = size
        self.rng = Random(seed)
        self.sim = Simulator(self.rng, tuning=WAN)
        self.town = Town(self.sim, self.rng, World(peers=(size.peers,), publishers=1))
        for _ in self.town.settle(size.peers):
            pass
        for node in self.town.honest:
            node.store.bounds = replace(node.store.bounds, per_key=size.per_key)
        self.atlas = Atlas.of(self.town.honest)
        self.sought: list[tuple[PeerId, str]] = []  # a provider, and what it alone has
        self.published = self.kept = 0  # records, each under one of its keys
        self._owner = KeyPair(self.rng.randbytes(32))
        self._manifests: dict[str, tuple[Manifest, bytes]] = {}

    def fill(self) -> None:
        """Everybody publishes."""
        for number in range(self.size.providers):
            key = KeyPair(self.rng.randbytes(32))
            rare = self._rare(number) if number < self.size.searches else ("", {})
            if rare[0]:
                self.sought.append((key.id, rare[0]))
            addr = address(self.size.peers + number)
            offer = self._offer(key, number, rare[1])
            for record in (offer, card_of(offer, key)):
                for place in record.keys:
                    self._lay(place, record, Contact(key.id, (addr,)))

    def search(self, provider: PeerId, rare: str) -> Searched:
        """As somebody at random would."""
        sim, tally = self.sim, Tally()
        reader = self.town.honest[int(self.rng.random() * len(self.town.honest))]
        query = Query.asked(where=f"task:{TASK} and ({rare})", network=sim.network)
        batches = Batches(Desk(sim, reader, self.rng).read, query, WANTED, tally, MAX_MODELS_READ)
        cpu, began = time.process_time(), sim.now
        messages, sent = sim.sent["search"], sim.sent_bytes["search"]
        offers = _awaited(_all(batches))
        return Searched(
            rare,
            any(sealed.identity.provider == provider for sealed in offers),
            tally,
            sim.now - began,
            sim.sent["search"] - messages,
            sim.sent_bytes["search"] - sent,
            time.process_time() - cpu,
        )

    def _rare(self, number: int) -> tuple[str, dict[str, Any]]:
        """A search that means this provider alone, and what its offer says for it."""
        word = f"rare-{number}"
        kinds: tuple[tuple[str, dict[str, Any]], ...] = (
            (f"language:{word}", {"languages": ("en", word)}),
            (f"licence:{word}", {"licence": word}),
            (f"precision:{word} and not licence:none", {"precision": word}),
            (f"family:{word} or family:{word}-2", {"family": word}),
            (f"gives:{word}", {"gives": ("answer", word)}),
            (f"tag:{word}", {"tags": (word,)}),
            (f"output:{word} and tier:edge", {"outputs": (Spec("y", "tensor", word),), "tier": "edge"}),
            (f"parameters:{13 + number}", {"parameters": 13 + number}),
            (f"context>={10**9 + number}", {"context_length": 10**9 + number}),
            ("access:" + word, {"access": word}),
        )
        where, said = kinds[number % len(kinds)]
        if where.startswith("context"):  # the others of this kind have more, or less, by one at least
            where = f"context:{10**9 + number}"
        return where, said

    def _offer(self, key: KeyPair, number: int, rare: dict[str, Any]) -> Sealed:
        """What most say, drawn, and what only this one does."""
        rng, said = self.rng, dict(rare)
        common = rng.random() < 0.6
        name = f"common/chat-{int(rng.random() * COMMON_MODELS)}" if common else f"maker-{number}/chat"
        licence = said.pop("licence", None)
        if licence is not None:
            name = f"maker-{number}/chat"
        manifest, envelope = self._manifest(name, licence, key)
        now_us = self.sim.now_us
        usual: dict[str, Any] = {
            "framework": rng.choice(("torch", "llama.cpp", "onnx")),
            "precision": rng.choice(FORMATS),
            "inputs": (Spec("prompt", "text"),),
            "outputs": (Spec("text", "text"),),
            "parameters": rng.choice((1, 3, 7, 13, 70)) * 10**9,
            "context_length": 1 << rng.choice((12, 13, 15, 17)),
            "languages": tuple(rng.sample(LANGUAGES, 1 + int(rng.random() * 4))),
            "gives": ("answer", "items", "idempotent"),
            "tier": rng.choice(("device", "edge", "cloud")),
            "price": {"usd_per_mtoken": 100_000} if rng.random() < 0.3 else {},
        }
        record = OfferRecord(
            provider=key.id,
            network=self.sim.network,
            manifest=manifest,
            manifest_envelope=envelope,
            seq=1,
            issued_us=now_us,
            expires_us=now_us + int(self.sim.tuning.record_lifetime * 1e6),
            **{**usual, **said},
        )
        return seal_offer(record, key)

    def _manifest(self, name: str, licence: str | None, key: KeyPair) -> tuple[Manifest, bytes]:
        """Common models are one owner's, the others their providers' own."""
        known = self._manifests.get(name)
        if known is None:
            owner = self._owner if name.startswith("common/") else key
            licence = self.rng.choice(LICENCES) if licence is None else licence
            made = Manifest(owner.id, name, TASK, self.sim.now_us // 1_000_000, licence=licence)
            known = self._manifests[name] = made, seal_manifest(made, owner)
        return known

    def _lay(self, key: bytes, record: Sealed, contact: Contact) -> None:
        """With all holders of the key, or of its provider's shard where it is full."""
        spill = Spill(key, contact.id, self.sim.tuning.record_lifetime)
        at: bytes | None = spill.start(self.sim.now)
        while at is not None:
            holders = self._closest(at)
            told = [node.store.add(at, record, contact, group_of(contact.addrs[0])) for node in holders]
            refused = Counter(str(reason) for reason in told if reason is not None)
            kept = told.count(None)
            promised, split = 2 * kept > len(told), refused[Full.KEY]
            report = Stored(at, len(told), kept, promised, refused, split)
            self.kept += report.promised
            at = spill.after(report)
        self.published += 1

    def _closest(self, key: bytes) -> list[Node]:
        """The k closest: they lie together, among those that share most leading bits with the key."""
        place, places = position(key), self.atlas.places
        for width in range(BITS - len(places).bit_length() + 1, BITS + 1):
            low = (place >> width) << width
            first, last = bisect_left(places, low), bisect_left(places, low + (1 << width))
            if last - first >= min(self.sim.tuning.k, len(places)):
                break
        near = sorted(range(first, last), key=lambda number: places[number] ^ place)
        return [self.atlas.nodes[number] for number in near[: self.sim.tuning.k]]


class Desk:
    """A peer of the simulator as the search sees its overlay."""

    def __init__(self, sim: Simulator, node: Node, rng: Random) -> None:
        self._sim = sim
        self._node = node
        self._rng = rng

    @property
    def me(self) -> PeerId:
        return self._node.id

    @property
    def name(self) -> str:
        return self._sim.network

    @property
    def tuning(self) -> Tuning:
        return self._sim.tuning

    @property
    def patience(self) -> Patience:
        return self._node.patience

    @property
    def density(self) -> Density:
        assert isinstance(self._node.server, KadServer)
        return self._node.server.density

    def seeds(self, key: bytes) -> list[Contact]:
        return self._sim.seeds(self._node, key)

    def now(self) -> float:
        return self._sim.now

    def wall_us(self) -> int:
        return self._sim.now_us

    async def read(self, keys: Sequence[bytes], limit: int) -> list[Reading]:
        """Walks to all of these at once; virtual time passes meanwhile."""
        walks = await self._read(keys, limit)
        for walk in walks:
            await read_on(walk, limit, self._rng.shuffle, self._read)
        return walks

    async def _read(self, keys: Sequence[bytes], limit: int | None) -> list[Reading]:
        runs: list[Run] = []
        walks = [Reading(key, self, limit) for key in keys]
        for walk in walks:
            held = self._node.store.page(walk.target, b"", PAGE_BYTES)
            walk.on_local(held.sealeds, held.contacts)
            runs.append(self._sim.start(self._node, walk, "search"))
        while not all(run.ended is not None for run in runs):
            self._sim.run(self._sim.now + 0.02)
        return walks


async def _all(batches: Batches) -> list[Sealed]:
    """As `Finder.offers` reads them."""
    found: list[Sealed] = []
    while len(found) < WANTED and (batch := await batches.more()) is not None:
        found += batch.sealeds
    return found


def _awaited(work: Coroutine[Any, Any, list[Sealed]]) -> list[Sealed]:  # Any: what it would await
    """Its result; nothing in it waits for anything but virtual time."""
    try:
        work.send(None)
    except StopIteration as end:
        found: list[Sealed] = end.value
        return found
    raise RuntimeError("the search waits for something that this world does not have")


def measure(size: Size, seed: int, say: Say = lambda _: None) -> dict[str, Any]:
    """All figures of a world, by name."""
    market = Market(size, seed)
    market.fill()
    say(f"rare: {size.providers} have published")
    searched: list[Searched] = []
    for provider, rare in market.sought:
        searched.append(market.search(provider, rare))
        if len(searched) % 10 == 0:
            say(
                f"rare: {len(searched)} searches, {sum(one.found for one in searched)} found what they sought"
            )
    columns: dict[str, list[float]] = {
        "requests": [one.tally.messages for one in searched],
        "messages": [one.messages for one in searched],
        "mib": [one.sent_bytes / 2**20 for one in searched],
        "seconds": [one.seconds for one in searched],
        "cpu_s": [one.cpu for one in searched],
        "cards": [one.tally.cards for one in searched],
        "offers_read": [one.tally.read for one in searched],
    }
    return {
        "scenario": "rare",
        "seed": seed,
        "peers": size.peers,
        "providers": size.providers,
        "trials": len(searched),
        "found": sum(one.found for one in searched) / len(searched),
        "missed": [one.where for one in searched if not one.found],
        "ruled_out": sum(one.tally.cards_ruled_out for one in searched)
        / max(1, sum(one.tally.cards for one in searched)),
        **{f"{name}_p50": round(statistics.median(values), 3) for name, values in columns.items()},
        **{f"{name}_max": round(max(values), 3) for name, values in columns.items()},
        "kept": market.kept / market.published,
        "digest": market.sim.digest,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/simulate rare", description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--full", action="store_true", help="10,000 providers: minutes")
    parser.add_argument("--peers", type=int)
    parser.add_argument("--providers", type=int)
    parser.add_argument("--searches", type=int)
    parser.add_argument("--per-key", type=int, help="records that a holder keeps under one key")
    options = parser.parse_args()
    asked = ("peers", "providers", "searches", "per_key")
    given = {name: getattr(options, name) for name in asked if getattr(options, name) is not None}
    size = replace(FULL if options.full else Size(), **given)
    figures = measure(size, options.seed, lambda line: print(line, file=sys.stderr, flush=True))
    print(json.dumps(figures))
    return 0 if figures["found"] >= MARK else 1


if __name__ == "__main__":
    sys.exit(main())
