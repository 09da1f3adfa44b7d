"""hivemind's DHT: one process and one Go daemon a peer, signatures on, everything else as it comes.

Peers are forked from one process that has imported everything, as hivemind's own benchmarks do. What is timed
runs inside of the peer's process, around `DHTNode`'s own functions.
"""

from __future__ import annotations

import json
import os
import random
import sys
from functools import partial
from typing import Any

import hivemind
from hivemind.dht.crypto import RSASignatureValidator
from hivemind.dht.node import DHTNode
from hivemind.dht.routing import DHTID, get_dht_time
from hivemind.utils.crypto import RSAPrivateKey

from benches.rigs import dht_stage, stage
from benches.rigs.dht_stage import Get, Got, Store
from benches.rigs.in_asyncio import together

LIFETIME = 3600.0  # seconds
SEED = 1
FIRST_PEERS = 2  # that each newcomer is told


class HivemindPeer:
    """One peer, in its own process. Its validator signs whatever has its public key in the key or subkey."""

    def __init__(self, node: DHTNode, owner: str) -> None:
        self._node = node
        self._mark = owner.encode()

    def storing(self, name: str, size: int) -> Store:
        value, key = os.urandom(size), name.encode() + self._mark

        async def store() -> bool:
            return bool(await self._node.store(key, value, get_dht_time() + LIFETIME))

        return store

    def storing_many(self, name: str, count: int, size: int) -> Store:
        key, value = name.encode() + self._mark, os.urandom(size)
        subkeys = [f"{number}".encode() + self._mark for number in range(count)]

        async def store() -> bool:
            told = await self._node.store_many(
                [key] * count, [value] * count, get_dht_time() + LIFETIME, subkeys=subkeys
            )
            return all(told.values()) and len(told) == count

        return store

    def getting(self, name: str, owner: str) -> Get:
        key = name.encode() + owner.encode()
        place = DHTID.generate(source=key)
        protocol = self._node.protocol

        async def get() -> Got:
            local = protocol.storage.get(place) is not None or protocol.cache.get(place) is not None
            found = await self._node.get(key)
            if found is None:
                return Got(0, local)
            return Got(len(found.value) if isinstance(found.value, dict) else 1, local)

        return get


async def inside(dht: hivemind.DHT, node: DHTNode, *, wish: stage.Line, owner: str) -> stage.Line:
    return await dht_stage.perform(wish, HivemindPeer(node, owner), together)


def main() -> None:
    wanted, rng = dht_stage.options(), random.Random(SEED)
    dhts: list[Any] = []  # hivemind has no types
    owners = []
    for _ in range(wanted.peers):
        validator = RSASignatureValidator(RSAPrivateKey())
        owners.append(validator.local_public_key.decode())
        told = [
            str(addr)
            for dht in rng.sample(dhts, min(FIRST_PEERS, len(dhts)))
            for addr in dht.get_visible_maddrs()
        ]
        dhts.append(
            hivemind.DHT(initial_peers=told or list(wanted.known), start=True, record_validators=[validator])
        )
    stage.tell({"addrs": [str(addr) for addr in dhts[0].get_visible_maddrs()][:1], "owners": owners})
    for line in sys.stdin:
        wish = json.loads(line)
        index = wish["peer"]
        stage.tell(dhts[index].run_coroutine(partial(inside, wish=wish, owner=owners[index])))
    for dht in dhts:
        dht.shutdown()


if __name__ == "__main__":
    main()
