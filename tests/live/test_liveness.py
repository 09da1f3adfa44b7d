"""A provider that dies or stands still, as a real process: how soon do strangers know and unlearn it?"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio

from modelnet_p2p.node.peer import Peer
from modelnet_p2p.offers import State

pytestmark = [pytest.mark.live, pytest.mark.slow]
Shell = Any  # of conftest.py, which tests cannot import
NAME = "modelnet/digits"


async def seconds_until(what: Callable[[], Awaitable[bool]], limit: float) -> float:
    began = trio.current_time()
    with trio.fail_after(limit):
        while not await what():
            await trio.sleep(0.1)
    return trio.current_time() - began


async def test_the_frozen_and_the_killed_are_dead_to_strangers_within_seconds(
    shell: Shell, capsys: pytest.CaptureFixture[str]
) -> None:
    network = shell.env["MODELNET_NETWORK"]
    with shell.join("alice", "--publish", "builtin:digits") as (process, ready):
        async with AsyncExitStack() as stack:
            known = ready["addrs"][:1]
            for _ in range(5):
                await stack.enter_async_context(Peer.open(bootstrap=known, network=network))
            bob = await stack.enter_async_context(Peer.open(bootstrap=known, network=network))
            carol = await stack.enter_async_context(
                Peer.open(bootstrap=bob.addrs, network=network, listen=[])
            )

            async def state_is(state: State) -> bool:
                return [offer.state for offer in await carol.find(model=NAME, all=True)] == [state]

            async def watched() -> bool:
                return alice in bob.parts.watching.watcher.wards or len(bob.parts.network.connected()) > 5

            (offer,) = await carol.find(model=NAME)
            assert offer.state is State.ALIVE
            alice = offer.record.provider
            await seconds_until(watched, 10)
            await trio.sleep(8)  # alice, who came first, gets her watchers as they come
            process.send_signal(signal.SIGSTOP)  # as a power cut: every connection stays, nothing moves
            frozen = await seconds_until(lambda: state_is(State.DEAD), 30)
            assert await carol.find(model=NAME) == []
            process.send_signal(signal.SIGCONT)
            thawed = await seconds_until(lambda: state_is(State.ALIVE), 30)
            await trio.sleep(4)
            process.kill()
            killed = await seconds_until(lambda: state_is(State.DEAD), 20)
            proven = await seconds_until(lambda: _proven(carol, alice), 20)
            with capsys.disabled():
                print(
                    f" frozen {frozen:.1f} s, thawed {thawed:.1f} s, killed {killed:.1f}+{proven:.1f} s ",
                    end="",
                )
            assert frozen <= 20
            assert thawed <= 5
            assert killed + proven <= 20


async def _proven(reader: Peer, provider: Any) -> bool:
    """Whether the obituary, and not just the reader's own ping, has reached it."""
    await reader.find(model=NAME, all=True)
    return reader.parts.watching.is_dead(provider, 0)
