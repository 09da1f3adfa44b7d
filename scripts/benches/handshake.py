"""What a handshake costs: from two connected sockets to a secured, multiplexed link, both ends in here."""

from __future__ import annotations

import os
from time import process_time

import trio

from benches.figure import Figure
from modelnet_p2p.identity import SEED_BYTES, KeyPair, PeerId
from modelnet_p2p.node.transport.upgrade import Upgrader
from modelnet_p2p.tuning import preset

WARM_UP = 3  # handshakes that do not count: they import and fill caches


def measure(times: int) -> Figure:
    """CPU time of both ends together, all threads of the process."""
    return Figure("handshake_cpu", "ms", trio.run(handshakes, times), {"ends": 2})


async def handshakes(times: int) -> list[float]:
    max_streams = preset("lan").max_streams_per_peer
    keys = [KeyPair(os.urandom(SEED_BYTES)) for _ in range(2)]
    dialler, answerer = (Upgrader(key, max_streams) for key in keys)
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    samples = []
    async with listener:
        for _ in range(WARM_UP + times):
            here = await trio.open_tcp_stream(*listener.socket.getsockname()[:2])
            there = await listener.accept()

            async def upgrade(upgrader: Upgrader, stream: trio.SocketStream, expect: PeerId | None) -> None:
                link = await upgrader.upgrade(stream, expect)
                link.lose()

            started = process_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(upgrade, dialler, here, keys[1].id)
                nursery.start_soon(upgrade, answerer, there, None)
            samples.append((process_time() - started) * 1000)
    return samples[WARM_UP:]
