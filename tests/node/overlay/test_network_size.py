"""What a peer says of the size of its network."""

from __future__ import annotations

from typing import Any

from modelnet_p2p.kad import Contact

# Any: the fixture that opens a town, see conftest.py
OpenTown = Any


async def test_a_peer_counts_whom_it_found_around_itself(open_town: OpenTown) -> None:
    async with open_town() as town:
        alone = await town.peer("alice")
        assert (await alone.status())["network_size"] is None
        for name in ("bob", "carol", "dave"):
            await town.peer(name)
        newest = town.peers["dave"]
        assert (await newest.status())["network_size"] == 4


async def test_neighbours_are_one_teller_where_there_are_others_too(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice", host="8.8.4.4"), await town.peer("bob", host="8.8.4.5")
        overlay, reader = bob.parts.overlay, await town.peer("heidi", host="8.8.8.8", listen=False)
        assert overlay.group_of(alice.peer_id) is None  # one laboratory
        overlay.table.add(Contact(reader.peer_id), 0.0, "8.8.8.0/24")
        assert overlay.group_of(alice.peer_id) == "8.8.4.0/24"
