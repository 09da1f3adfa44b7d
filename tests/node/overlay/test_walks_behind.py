"""A walk may let its caller go before it has ended; what goes on behind is bounded."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from modelnet_p2p.dht.walks.finding import Send
from modelnet_p2p.dht.walks.lookup import DONE, Done
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact, Kind, Message
from modelnet_p2p.node.overlay.driver import MAX_BEHIND, Overlay

OpenTown = Callable[[], AbstractAsyncContextManager[Any]]
BOB = Contact(PeerId(b"bob"), ())
PONG = Message(Kind.PING)


class Tail:
    """It asks one, and lets its caller go before the answer."""

    def __init__(self) -> None:
        self.asked = False
        self.unfinished = True

    def poll(self, now: float) -> Send | Done:
        if self.asked:
            return DONE
        self.asked = True
        return Send(BOB, PONG, expects_reply=True)

    def on_reply(self, peer: PeerId, reply: Message, now: float) -> None:
        self.unfinished = False

    def on_failure(self, peer: PeerId, now: float) -> None: ...
    def on_held(self, peer: PeerId) -> None: ...
    def on_busy(self, peer: PeerId, now: float) -> None: ...


def listen_to(overlay: Overlay, answers: list[Callable[[], None]]) -> None:
    """Whatever it is to send is answered by a call of what is appended here."""

    def send(to: Contact, message: Message, tell: Callable[[PeerId, Message], None]) -> None:
        answers.append(partial(tell, to.id, message))

    overlay.asking.send = send  # type: ignore[method-assign,assignment]


async def test_with_many_walks_behind_callers_wait_for_their_own_or_until_they_are_fewer(
    open_town: OpenTown, mock_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        overlay: Overlay = (await town.peer("alice")).parts.overlay
        answers: list[Callable[[], None]] = []
        listen_to(overlay, answers)
        gone: list[int] = []

        async def store(number: int) -> None:
            await overlay.run(Tail())
            gone.append(number)

        async def after(number: int) -> set[int]:
            answers[number]()
            await trio.testing.wait_all_tasks_blocked()
            return set(gone)

        async with trio.open_nursery() as callers:
            for number in range(MAX_BEHIND + 3):
                callers.start_soon(store, number)
                await trio.testing.wait_all_tasks_blocked()
            at_once = set(range(MAX_BEHIND))
            assert set(gone) == at_once
            assert await after(MAX_BEHIND + 1) == {*at_once, MAX_BEHIND + 1}  # its own has ended
            assert await after(0) == {*at_once, MAX_BEHIND + 1}
            assert await after(1) == set(range(MAX_BEHIND + 3))
        for number in (*range(2, MAX_BEHIND + 1), MAX_BEHIND + 2):
            await after(number)


async def test_walks_that_only_wait_for_who_is_silent_hold_up_nobody(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        overlay: Overlay = (await town.peer("alice")).parts.overlay
        answers: list[Callable[[], None]] = []
        listen_to(overlay, answers)
        began = trio.current_time()
        async with trio.open_nursery() as callers:
            for _ in range(3 * MAX_BEHIND):
                callers.start_soon(overlay.run, Tail())
        assert trio.current_time() - began == pytest.approx(overlay.patience.seconds)
        await overlay.run(Tail())
        assert trio.current_time() - began == pytest.approx(overlay.patience.seconds)
        for answer in answers:
            answer()
