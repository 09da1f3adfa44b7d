"""A peer that knows few looks around again: whom it asked first may have come just before it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import trio
import trio.testing

OpenTown = Callable[[], AbstractAsyncContextManager[Any]]


async def test_who_asks_somebody_who_knows_nobody_yet_finds_the_others_soon(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        alice = await town.peer("alice")
        carol = await town.peer("carol", alone=True)
        bob = await town.peer("bob")
        alice.parts.overlay.table.add(carol.parts.overlay.contact(), trio.current_time(), None)
        assert carol.peer_id not in bob.parts.overlay.table
        await trio.sleep(5)
        assert carol.peer_id in bob.parts.overlay.table


async def test_a_lonely_pair_asks_ever_more_rarely(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        asked: list[float] = []
        handle = alice.parts.overlay.server.handle

        def counted(*args: Any) -> Any:
            asked.append(trio.current_time())
            return handle(*args)

        alice.parts.overlay.server.handle = counted
        await trio.sleep(280)
        assert bob.peer_id in alice.parts.overlay.table
        assert 4 <= len(asked) <= 12
