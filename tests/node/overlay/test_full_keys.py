"""A key with more publishers than a holder keeps, between whole peers: nobody is lost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

# Any: the fixture that opens a town, see conftest.py
OpenTown = Any
TASK = "x-modelnet/echo"
CROWD = 12
ROOM = 4  # records under one key


async def test_who_comes_too_late_for_a_key_is_found_in_its_shard_and_is_withdrawn_there(
    open_town: OpenTown,
) -> None:
    async with open_town() as town:
        peers = [await town.peer(f"peer{number}") for number in range(CROWD)]
        for peer in peers:
            store = peer.parts.overlay.server.store
            store.bounds = replace(store.bounds, per_key=ROOM)
        for number, peer in enumerate(peers):
            told = await peer.publish("builtin:echo", model=f"echo{number}", task=TASK)
            assert 2 * told["holders"]["stored"] > told["holders"]["asked"] > 0
        reader = await town.peer("reader", listen=False)
        collect, walks = reader.parts.finder._collect_at, []

        async def counted(keys: Any, limit: Any) -> Any:
            walks.append(len(keys))
            return await collect(keys, limit)

        reader.parts.finder._collect_at = counted  # only listens
        found = await reader.find(task=TASK, limit=50, all=True)
        assert {offer.model for offer in found} == {f"echo{number}" for number in range(CROWD)}
        assert walks == [1, 1, 8, 7, *[1] * CROWD]  # the key, its shards several at once, the models
        few = await reader.find(task=TASK, limit=2)
        assert len(few) == 2
        shown = await reader.show(f"echo{CROWD - 1}")  # under its own name there is room
        assert len(shown) == 1
        for number in (0, CROWD - 1):
            await peers[number].unpublish(f"echo{number}")
        left = await reader.find(task=TASK, limit=50, all=True)
        assert {offer.model for offer in left} == {f"echo{number}" for number in range(1, CROWD - 1)}
