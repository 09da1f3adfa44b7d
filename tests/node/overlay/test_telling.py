"""The holders of a dead one's keys are told; on the network in memory."""

from __future__ import annotations

from typing import Any

import trio
import trio.testing

from modelnet_p2p.beats import Obituary, Roster
from modelnet_p2p.dht.keyspace import position
from modelnet_p2p.identity import PeerId
from modelnet_p2p.node.overlay.telling import Telling

# Any: the fixture that opens a town, see conftest.py
OpenTown = Any
ALICE = PeerId.of_key(bytes(32))


async def test_who_is_connected_is_told_at_once_others_as_they_answer_and_nobody_waits_for_the_frozen(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        bob, carol, dave, _ = [await town.peer(name) for name in ("bob", "carol", "dave", "erin")]
        await trio.sleep(5)
        overlay, told = bob.parts.overlay, dict[PeerId, float]()
        knows_of_many(overlay)
        keys = [key_of(overlay, peer) for peer in (carol, dave)]
        town.freeze("erin")
        await overlay.network.disconnect(dave.peer_id)
        began = trio.current_time()

        def tell(peer: PeerId, _: object) -> bool:
            told[peer] = trio.current_time() - began
            return True

        async with trio.open_nursery() as nursery:
            Telling(overlay, tell, nursery).on_death(Obituary(Roster(ALICE, 1, ()), ()), keys)
            assert carol.peer_id in told
            assert dave.peer_id not in told
        took = trio.current_time() - began
        assert told[dave.peer_id] < took / 2  # then it was erin who was waited for


def knows_of_many(overlay: Any) -> None:
    """That peer has been on walks through a larger network."""
    k = overlay.tuning.k
    strangers = [PeerId.of_key(number.to_bytes(32)) for number in range(3 * k)]
    for number in range(64):
        place = position(number.to_bytes(32))
        overlay.density.on_walked(place, sorted(strangers, key=lambda peer: position(peer) ^ place)[:k])


def key_of(overlay: Any, peer: Any) -> bytes:
    """One that this peer is expected to hold what lies at."""
    place, radius = position(peer.peer_id), overlay.density.region.radius
    return next(key for key in map(bytes, zip(range(256))) if position(key) ^ place < radius)
