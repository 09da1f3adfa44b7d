"""What a peer does by itself while nothing is asked of it: the silent are asked, records are told again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

import trio
import trio.testing

from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Kind, Message
from modelnet_p2p.names import protocol
from modelnet_p2p.node.overlay.driver import REFRESH_SECONDS
from modelnet_p2p.node.transport.contract import Stream
from modelnet_p2p.tuning import TEST

OpenTown = Callable[[], AbstractAsyncContextManager[Any]]
LOOKS = 7  # two until it is doubted, and three until it is given up; a walk comes after ten
QUIET = replace(TEST, beat=60.0, idle_stream=7200.0)  # so that hours of virtual time are soon over


def stores_at(holder: Any) -> list[tuple[PeerId, bytes, float]]:
    """Who stored what there from now on, and when."""
    seen: list[tuple[PeerId, bytes, float]] = []
    handle = holder.parts.overlay.server.handle

    def watched(request: Message, sender: PeerId, *rest: Any) -> Message | None:
        if request.kind is Kind.ADD_PROVIDER:
            seen.append((sender, request.key, trio.current_time()))
        reply: Message | None = handle(request, sender, *rest)
        return reply

    holder.parts.overlay.server.handle = watched
    return seen


async def test_a_peer_that_falls_silent_leaves_the_table_though_nobody_waits_for_its_place(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    tuning = replace(QUIET, k=3)  # so that a walk does not ask everybody
    async with open_town() as town:
        peers = {name: await town.peer(name, tuning=tuning) for name in ("alice", *"bcdefghijk")}
        await trio.sleep(60)
        table = peers["alice"].parts.overlay.table
        far = [name for name, peer in peers.items() if peer.peer_id in table][-1]
        town.freeze(far)
        await trio.sleep(LOOKS * REFRESH_SECONDS)
        assert peers[far].peer_id not in table
        living = sum(peer.peer_id in table for peer in peers.values())
        assert living == len(table) >= 3


async def test_in_a_calm_network_records_are_told_ever_more_rarely(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    tuning = replace(QUIET, republish=600.0, record_lifetime=86400.0)
    async with open_town() as town:
        alice = await town.peer("alice", tuning=tuning)
        bobs = [await town.peer(f"bob{number}", tuning=tuning) for number in range(5)]
        await alice.publish("builtin:digits")
        seen = stores_at(bobs[0])
        hours = 3
        await trio.sleep(hours * 3600)
        keys = {key for _, key, _ in seen}
        assert len(keys) >= 3
        for key in keys:
            times = [at for _, stored, at in seen if stored == key]
            # at a fixed 600 s, less up to a tenth, there would be 18 or more
            assert 2 <= len(times) <= hours * 3
            assert times[-1] - times[-2] > 1500


async def test_where_peers_die_records_are_told_at_once_more_often(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    tuning = replace(QUIET, republish=600.0, record_lifetime=86400.0)
    async with open_town() as town:
        alice = await town.peer("alice", tuning=tuning)
        names = [f"bob{number}" for number in range(12)]
        bobs = [await town.peer(name, tuning=tuning) for name in names]
        await alice.publish("builtin:digits")
        await trio.sleep(3600)
        seen = stores_at(bobs[0])
        while not seen:
            await trio.sleep(10)
        await trio.sleep(500)  # all keys, for their times differ by up to a tenth of the interval
        seen.clear()
        await trio.sleep(800)
        assert not seen  # a fixed 600 s would be over
        for name in names[3:]:
            town.freeze(name)
        await trio.sleep(400)
        assert seen


async def test_who_speaks_our_protocol_but_can_be_dialled_nowhere_is_in_no_table(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice", tuning=QUIET), await town.peer("bob", tuning=QUIET)
        async with town.world.open(town.key("mallory"), listen=False) as mallory:

            async def answer(stream: Stream) -> None:
                raise AssertionError("nobody asks a client")

            mallory.handle(protocol("town", "kad"), answer)
            await mallory.connect(alice.peer_id, alice.addrs)
            await trio.sleep(1)
            assert mallory.id in alice.parts.overlay.network.connected()
            assert mallory.id not in alice.parts.overlay.table
            await trio.sleep(400)
            assert {contact.id for contact in bob.parts.overlay.table} == {alice.peer_id}


async def test_halves_that_gave_each_other_up_meet_again_when_the_network_heals(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        peers = {name: await town.peer(name, tuning=QUIET) for name in "abcdef"}
        await trio.sleep(60)
        town.world.partition([peers[name].peer_id for name in "abc"], [peers[name].peer_id for name in "def"])
        await trio.sleep(900)
        for name, peer in peers.items():
            own = {peers[one].peer_id for one in ("abc" if name in "abc" else "def")} - {peer.peer_id}
            assert {contact.id for contact in peer.parts.overlay.table} == own
        town.world.heal()
        await trio.sleep(200)
        for peer in peers.values():
            assert len(peer.parts.overlay.table) == len(peers) - 1


async def test_who_comes_back_is_told_my_records_again_unless_connections_are_let_go_for_their_number(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    """It may have been started anew, and hold nothing; one that was only let go still holds all."""
    async with open_town() as town:
        alice, bob = await town.peer("alice", tuning=QUIET), await town.peer("bob", tuning=QUIET)
        await alice.publish("builtin:digits")
        await trio.sleep(60)
        network, warmth = alice.parts.network, alice.parts.overlay.warmth

        async def come_back() -> int:
            seen = stores_at(bob)
            await network.disconnect(bob.peer_id)
            await network.connect(bob.peer_id)
            await trio.sleep(tuning.republish / 2)
            return len({key for _, key, _ in seen})

        tuning = replace(QUIET, republish=600.0)
        alice.parts.overlay.tuning = tuning  # from now on nothing is due for long
        await trio.sleep(2 * QUIET.republish)
        warmth.kept = 1
        assert warmth.scarce
        assert await come_back() == 0
        warmth.kept = QUIET.kept_connections
        assert await come_back() >= 3  # as many keys as its records lie under
