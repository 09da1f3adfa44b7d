"""A hundred thousand streams between two peers of one process that has done nothing else before.

python streams_by_thousands.py    # plays it, and prints one line of JSON: what there was more of at the end

Alone, for in the heap of a process that has run many tests holes of other sizes come and go by the dozen of
megabytes, and what is to be shown is that nothing of some bytes a stream is kept.
"""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import replace
from pathlib import Path

import trio

from modelnet_p2p.identity import KeyPair
from modelnet_p2p.node.transport.contract import Stream
from modelnet_p2p.node.transport.libp2p_network import Libp2pNetwork, open_libp2p
from modelnet_p2p.tuning import TEST

WARM = (1000, 4000)  # streams one by one, and by the hundred, until all is as large as it gets
MANY = (35_000, 60_000)
CALM = replace(TEST, dial_timeout=5.0)
PAYLOAD = b"0123456789" * 10


async def echo(stream: Stream) -> None:
    buffer = memoryview(bytearray(4096))
    while n := await stream.receive_into(buffer):
        await stream.send([buffer[:n]])


async def call(alice: Libp2pNetwork, bob: Libp2pNetwork) -> None:
    buffer, got = memoryview(bytearray(len(PAYLOAD))), 0
    async with await alice.open_stream(bob.id, "/echo") as stream:
        await stream.send([PAYLOAD])
        while got < len(PAYLOAD):
            count = await stream.receive_into(buffer[got:])
            assert count
            got += count
        await stream.finish()


async def calls(alice: Libp2pNetwork, bob: Libp2pNetwork, one_by_one: int, by_the_hundred: int) -> None:
    for _ in range(one_by_one):
        await call(alice, bob)
    for _ in range(by_the_hundred // 100):
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(call, alice, bob)


async def settled(alice: Libp2pNetwork, bob: Libp2pNetwork) -> dict[str, int]:
    """What there is when all streams are over: a handler's task ends a little after its stream."""
    [one], [other] = bob._connections.values(), alice._connections.values()
    connections = (*one, *other)
    with trio.fail_after(10):
        while any(each.link.session.flows or each._serving for each in connections):
            await trio.sleep(0.01)
    gc.collect()
    return {
        "bytes": int(Path("/proc/self/statm").read_text().split()[1]) * 4096,
        "objects": len(gc.get_objects()),
        "tasks": len(bob._tasks.child_tasks) + len(alice._tasks.child_tasks),
    }


async def main() -> None:
    local = "/ip4/127.0.0.1/tcp/0"
    async with (
        open_libp2p(KeyPair(bytes(32)), listen=[local], tuning=CALM, network="test") as bob,
        open_libp2p(KeyPair(b"\x01" * 32), listen=[], tuning=CALM, network="test") as alice,
    ):
        bob.handle("/echo", echo)
        await alice.connect(bob.id, bob.addrs)
        await alice.protocols(bob.id)
        await calls(alice, bob, *WARM)
        before = await settled(alice, bob)
        await calls(alice, bob, *MANY)
        after = await settled(alice, bob)
    sys.stdout.write(json.dumps({name: after[name] - before[name] for name in before}) + "\n")


if __name__ == "__main__":
    trio.run(main)
