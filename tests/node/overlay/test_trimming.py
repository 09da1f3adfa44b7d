"""More peers than connections: the house stays half empty, and nothing is lost by it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import trio
import trio.testing

from modelnet_p2p.dht.table.checking import Check
from modelnet_p2p.dht.table.routing import MAX_FAILURES
from modelnet_p2p.dht.table.warmth import REST_SECONDS
from modelnet_p2p.node.overlay.driver import TRIM_SECONDS
from tests.node.conftest import TOWN

# Any: the fixture that opens a town, see conftest.py
OpenTown = Any
KEPT = 6
CROWD = 20
NARROW = replace(TOWN, kept_connections=KEPT, max_connections=64)


async def test_connections_that_only_the_overlay_uses_are_closed_and_made_again(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        peers = [await town.peer(f"peer{number}", tuning=NARROW) for number in range(CROWD)]
        await peers[3].publish("builtin:digits")
        network = peers[7].parts.network
        await peers[7].find(model="modelnet/digits")
        async with await network.open_stream(peers[3].peer_id, "/ipfs/ping/1.0.0"):
            await trio.sleep(10 * (TRIM_SECONDS + REST_SECONDS))
            assert peers[3].peer_id in network.connected()  # somebody is at it
        counts = sorted(len(peer.parts.network.connected()) for peer in peers)
        print(f"\nconnections of {CROWD} peers: {counts}")
        assert counts[CROWD // 2] <= 2 * KEPT  # each end decides for itself, and beats keep some
        assert all(len(peer.parts.overlay.table) > KEPT for peer in peers)  # whom it knows, it still knows
        for reader in (peers[0], peers[12], peers[CROWD - 1]):
            [offer] = await reader.find(model="modelnet/digits")
            assert offer.provider == peers[3].id


async def test_who_was_given_up_and_answers_after_all_is_known_again(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        overlay = alice.parts.overlay
        for _ in range(MAX_FAILURES):  # it stood still for a while; the connection lives
            overlay.table.failed(bob.peer_id, trio.current_time())
        assert bob.peer_id not in overlay.table
        await overlay.run(Check(overlay.table.doubtful(trio.current_time(), 300.0), 3))
        with trio.fail_after(5):
            while bob.peer_id not in overlay.table:
                await trio.sleep(0.01)
