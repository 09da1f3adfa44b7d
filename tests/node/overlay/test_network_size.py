"""What a peer says of the size of its network."""

from __future__ import annotations

from typing import Any

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
