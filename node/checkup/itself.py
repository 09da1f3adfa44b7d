"""The installation itself: two peers in a network of their own call each other, and a worker process.

Whatever the settings and the network are: if this fails, the cause lies here.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from modelnet_p2p.errors import Code, ModelnetError
from modelnet_p2p.identity import SEED_BYTES, KeyPair
from modelnet_p2p.node.assembly import LOOPBACK
from modelnet_p2p.node.checkup.finding import Tell, failed, ok
from modelnet_p2p.node.peer import Peer
from modelnet_p2p.node.transport.libp2p_network import open_libp2p
from modelnet_p2p.tuning import preset

CALL_SECONDS = 8.0  # for a call over loopback: a few milliseconds, seconds where the machine is loaded
WORKER_SECONDS = 15.0  # until a worker process answers: under a second, ten on a machine that is loaded
SELF = "doctor-self-test"  # the network of these two peers


async def check_self(tell: Tell) -> None:
    """Two peers in a network of their own: publish, store, find, call; then a model in a worker process."""
    async with _alone(LOOPBACK) as alice, _alone() as bob:
        if not (await bob.bootstrap(alice.addrs)).reached:
            why = "; ".join(bob.bootstrapped.causes.values())
            hint = "is loopback up? ip addr show lo"
            tell(
                failed(
                    "call",
                    "a peer here cannot be reached from here",
                    why=why,
                    hint=hint,
                    code=Code.UNREACHABLE,
                )
            )
            return
        await alice.publish("builtin:echo")
        began = trio.current_time()
        answer = await bob.invoke("modelnet/echo", "hello", timeout=CALL_SECONDS)
        ms = (trio.current_time() - began) * 1000
        if answer != "hello":
            tell(failed("call", f"an echo came back as {str(answer)[:40]!r}", code=Code.INTERNAL))
            return
        tell(ok("call", f"published, found in the DHT and called over loopback in {ms:.0f} ms"))
        await _check_worker(alice, bob, tell)


async def _check_worker(alice: Peer, bob: Peer, tell: Tell) -> None:
    began = trio.current_time()
    hint = "its last words are above; a file here may hide a module: try it in an empty directory"
    with trio.move_on_after(WORKER_SECONDS):
        try:
            await alice.publish(f"{__name__}:shout", model="doctor/shout")
            answer = await bob.invoke("doctor/shout", "hello", timeout=WORKER_SECONDS)
        except ModelnetError as error:
            tell(
                failed(
                    "worker", error.message, why=f"in {os.getcwd()}", hint=error.hint or hint, code=error.code
                )
            )
            return
        seconds = trio.current_time() - began
        assert answer == "HELLO", answer
        tell(ok("worker", f"a function in a process of its own answered after {seconds:.1f} s"))
        return
    text = f"a function in a process of its own did not answer within {WORKER_SECONDS:g} s"
    tell(
        failed(
            "worker", text, why="starting Python takes that long here", hint="time python3 -c 'import numpy'"
        )
    )


def shout(text: str) -> str:
    """The function that the worker check publishes."""
    return text.upper()


@asynccontextmanager
async def _alone(*listen: str) -> AsyncIterator[Peer]:
    async with brief_peer(SELF, "lan", listen) as peer:
        yield peer


@asynccontextmanager
async def brief_peer(network: str, tuning: str, listen: Sequence[str]) -> AsyncIterator[Peer]:
    """Not `Peer.open`: that one tells the peers of this user of itself, and asks them."""
    key, chosen = KeyPair(os.urandom(SEED_BYTES)), preset(tuning)
    async with (
        open_libp2p(key, listen=listen, tuning=chosen, network=network) as transport,
        Peer.open_on(transport, key, network, chosen) as peer,
    ):
        yield peer
