"""A peer that echoes, as a process of its own: it prints its address and runs until it is killed."""

from __future__ import annotations

import trio

from modelnet_p2p.identity import KeyPair
from modelnet_p2p.node.transport.contract import Stream
from modelnet_p2p.node.transport.libp2p_network import open_libp2p
from modelnet_p2p.tuning import TEST


async def echo(stream: Stream) -> None:
    buffer = memoryview(bytearray(65536))
    while n := await stream.receive_into(buffer):
        await stream.send([buffer[:n]])


async def main() -> None:
    where = ["/ip4/127.0.0.1/tcp/0"]
    async with open_libp2p(KeyPair(b"c" * 32), listen=where, tuning=TEST, network="test") as network:
        network.handle("/echo", echo)
        print(network.addrs[0], flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main)
