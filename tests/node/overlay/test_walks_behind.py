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
from samples import own_offer

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


def listen_to(overlay: Overlay, patch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """Whatever it is to send from now on is answered by a call of what is appended here."""
    answers: list[Callable[[], None]] = []

    def send(to: Contact, message: Message, tell: Callable[[PeerId, Message], None]) -> None:
        answers.append(partial(tell, to.id, message))

    patch.setattr(overlay.asking, "send", send)
    return answers


async def test_with_many_walks_behind_who_keeps_pace_waits_until_they_are_fewer(
    open_town: OpenTown, mock_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_town() as town:
        overlay: Overlay = (await town.peer("alice")).parts.overlay
        answers, gone = listen_to(overlay, monkeypatch), trio.Event()

        async def keep_pace() -> None:
            await overlay.keep_pace()
            gone.set()

        async with trio.open_nursery() as nursery:
            for number in range(MAX_BEHIND + 2):
                await overlay.run(Tail())
                if number < MAX_BEHIND:
                    await overlay.keep_pace()
            nursery.start_soon(keep_pace)
            for number in range(2):
                await trio.testing.wait_all_tasks_blocked()
                assert not gone.is_set()
                answers[number]()
        assert gone.is_set()
        for late in answers[2:]:
            late()


async def test_walks_that_only_wait_for_who_is_silent_hold_up_nobody_for_longer_than_a_patience(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_town() as town:
        overlay: Overlay = (await town.peer("alice")).parts.overlay
        answers, began = listen_to(overlay, monkeypatch), trio.current_time()
        for _ in range(3 * MAX_BEHIND):
            await overlay.run(Tail())
        for _ in range(2):
            await overlay.keep_pace()
            assert trio.current_time() - began == pytest.approx(overlay.patience.seconds)
        for late in answers:
            late()


async def test_who_publishes_is_answered_however_much_goes_on_behind_and_the_next_store_waits(
    open_town: OpenTown, mock_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        await town.peer("bob")
        alice = await town.peer("alice")
        overlay, publisher = alice.parts.overlay, alice.parts.publisher
        with pytest.MonkeyPatch.context() as patch:
            answers = listen_to(overlay, patch)
            for _ in range(MAX_BEHIND + 1):
                await overlay.run(Tail())
        await publisher.publish(own_offer(town.key("alice"), "acme/one", "x-acme/many", "town"))
        await trio.testing.wait_all_tasks_blocked()
        assert publisher._storing.borrowed_tokens, "whatever is published next finds fewer free places"
        for late in answers:
            late()
        await trio.testing.wait_all_tasks_blocked()
        assert not publisher._storing.borrowed_tokens
