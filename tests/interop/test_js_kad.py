"""Five js-libp2p nodes with the stock kad-dht and five peers of ours are one DHT.

The js side finds providers with its stock `findProviders`, reads and verifies our sealed offers with
`modelnet.mjs`, and publishes one of its own; ours read that like any other.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from modelnet_p2p.identity import KeyPair
from modelnet_p2p.node.peer import Peer
from modelnet_p2p.node.single_error import single_error
from modelnet_p2p.node.transport.libp2p_network import open_libp2p
from modelnet_p2p.tuning import TEST

pytestmark = [pytest.mark.js, pytest.mark.live, pytest.mark.slow]
HERE = Path(__file__).parent
NETWORK = "js-kad"
CALM = replace(TEST, dial_timeout=10.0, request_timeout=5.0, ping_timeout=2.0)
DIGITS = "model/modelnet/digits"


def seed_of(name: str) -> bytes:
    return hashlib.sha256(f"js kad {name}".encode()).digest()


class JsPeer:
    """A js node in a process of its own, told what to do a line at a time."""

    def __init__(self, process: trio.Process, name: str) -> None:
        self.id = KeyPair(seed_of(name)).id.text
        self.process = process
        self.addr = ""
        self._heard = b""

    async def start(self) -> None:
        self.addr = (await self._line("ready"))["addr"]

    async def do(self, what: str, **wanted: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        await self.process.stdin.send_all(json.dumps({"do": what, **wanted}).encode() + b"\n")
        return await self._line(what)

    async def _line(self, event: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        with trio.fail_after(60):
            while b"\n" not in self._heard:
                data = await self.process.stdout.receive_some(65536)
                assert data, f"the js peer ended before it said {event!r}"
                self._heard += data
        line, _, self._heard = self._heard.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        assert said.pop("event") == event, said
        return said


@asynccontextmanager
async def open_js(node: str, name: str, *bootstraps: str) -> AsyncIterator[JsPeer]:
    command = [node, "kad.mjs", NETWORK, seed_of(name).hex(), *bootstraps]
    process = await trio.lowlevel.open_process(
        command, cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        peer = JsPeer(process, name)
        await peer.start()
        yield peer
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                await pipe.aclose()


@asynccontextmanager
async def open_ours(name: str, *bootstraps: str) -> AsyncIterator[Peer]:
    key, where = KeyPair(seed_of(name)), ["/ip4/127.0.0.1/tcp/0"]
    async with (
        open_libp2p(key, listen=where, tuning=CALM, network=NETWORK) as transport,
        Peer.open_on(transport, key, NETWORK, CALM) as peer,
    ):
        if bootstraps:
            assert (await peer.bootstrap(bootstraps)).reached
        yield peer


async def test_five_of_theirs_and_five_of_ours_are_one_network(node: str) -> None:
    with single_error():
        await the_story(node)


async def the_story(node: str) -> None:
    async with AsyncExitStack() as town:

        async def ours(name: str, *bootstraps: str) -> Peer:
            return await town.enter_async_context(open_ours(name, *bootstraps))

        async def js(name: str, *bootstraps: str) -> JsPeer:
            return await town.enter_async_context(open_js(node, name, *bootstraps))

        alice = await ours("alice")
        first, second = await js("first", *alice.addrs), await js("second", *alice.addrs)
        bob = await ours("bob", first.addr)  # who knows nobody but a js peer
        carol = await ours("carol", *bob.addrs)
        third = await js("third", *carol.addrs)

        published: Any = await alice.publish("builtin:digits")
        assert published["holders"]["stored"] == published["holders"]["asked"] >= 2  # ours alone count

        # what we publish, they find with what they have
        for peer in (first, second, third):
            found = await peer.do("find", name=DIGITS)
            assert split(alice.addrs) <= {*found["providers"].get(alice.id, ())}, (peer.id, found)
            read = await peer.do("read", name=DIGITS)
            assert read["refused"] == []
            assert read["offers"][alice.id]["model"] == "modelnet/digits"

        # what one of them publishes, we find like our own
        said = await second.do("publish", model="js/echo", task="x-js/echo")
        assert all(count >= 2 for count in said["stored"].values()), said
        for one in (alice, bob, carol):
            [offer] = await one.find(model="js/echo")
            assert (offer.provider, offer.owner, offer.framework) == (second.id, second.id, "js")
            assert split([second.addr]) <= {*offer.addrs}
            [offer] = await one.find(task="x-js/echo")
            assert offer.provider == second.id

        # and so do those who come later, on either side
        dan = await ours("dan", third.addr)
        fourth = await js("fourth", *dan.addrs)
        fifth = await js("fifth", fourth.addr)
        erin = await ours("erin", fifth.addr)
        everybody = (alice, bob, carol, dan, erin)
        with trio.fail_after(10):  # who came just behind its bootstrap looks around again
            for one in everybody:
                while len(await one.peers()) < 9:
                    await trio.sleep(0.05)
        assert [offer.provider for offer in await erin.find(model="js/echo")] == [second.id]
        assert [offer.provider for offer in await dan.find(model="modelnet/digits")] == [alice.id]
        for peer in (fourth, fifth):
            assert alice.id in (await peer.do("find", name=DIGITS))["providers"]
            assert second.id in (await peer.do("read", name="model/js/echo"))["offers"]

        # they are servers of one DHT: each side is in the other's tables
        for peer in (first, second, third, fourth, fifth):
            assert {one.id for one in everybody} & {*(await peer.do("table"))["peers"]}, peer.id

        # the death of some of them harms nobody
        for peer in (first, third):
            peer.process.kill()
        assert [offer.provider for offer in await erin.find(model="js/echo")] == [second.id]
        republished: Any = await bob.publish("builtin:echo")
        assert republished["holders"]["stored"] >= 3
        assert bob.id in (await fifth.do("find", name="model/modelnet/echo"))["providers"]


def split(addrs: Any) -> set[str]:
    """Without the peer id at their ends."""
    return {addr.partition("/p2p/")[0] for addr in addrs}
