"""What a walk counts as silence: not what its own loop missed, and dialling is part of an answer's time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
import trio.testing

from modelnet_p2p.dht.walks.finding import FindClosest, Send
from modelnet_p2p.dht.walks.lookup import DONE, Done, Wait
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Kind, Message
from modelnet_p2p.node.overlay.course import MAX_GRACE, Course, WalkClock

OpenTown = Callable[[], AbstractAsyncContextManager[Any]]

BOB, CAROL = PeerId(b"bob"), PeerId(b"carol")
PONG = Message(Kind.PING)


@dataclass
class Asked:
    """It has asked two, and is out of patience after a second."""

    waits: float
    heard: list[PeerId] = field(default_factory=list)
    unfinished = False

    def poll(self, now: float) -> Send | Wait | Done:
        return Wait(self.waits) if now < self.waits and len(self.heard) < 2 else DONE

    def on_reply(self, peer: PeerId, reply: Message, now: float) -> None:
        self.heard.append(peer)

    def on_failure(self, peer: PeerId, now: float) -> None: ...
    def on_held(self, peer: PeerId) -> None: ...
    def on_busy(self, peer: PeerId, now: float) -> None: ...


async def drive(course: Course) -> None:
    while isinstance(step := course.poll(), Wait):
        await course.hear(step.until)


async def test_what_came_while_the_loop_stood_still_is_heard_before_anybody_is_given_up(
    mock_clock: trio.testing.MockClock,
) -> None:
    walk = Asked(trio.current_time() + 1.0)
    course = Course(walk)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drive, course)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(3.0)  # one long computation: the answers lie in the kernel's buffers
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        course.tell(BOB, PONG)
        mock_clock.jump(MAX_GRACE / 2)
        await trio.testing.wait_all_tasks_blocked()
        assert walk.heard == [BOB]
        course.tell(CAROL, PONG)
    assert walk.heard == [BOB, CAROL]


async def test_who_is_silent_after_that_is_given_up(mock_clock: trio.testing.MockClock) -> None:
    walk = Asked(trio.current_time() + 1.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drive, Course(walk))
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(60.0)
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks
        mock_clock.jump(MAX_GRACE)
    assert walk.heard == []


async def test_a_loop_that_is_always_late_puts_each_instant_off_once(
    mock_clock: trio.testing.MockClock,
) -> None:
    clock, began = WalkClock(), trio.current_time()
    until = clock.now() + 1.0
    for _ in range(2):
        mock_clock.jump(clock.instant(until) - trio.current_time() + 0.2)  # as late as ever
        clock.on_passed(until)
    assert clock.now() == pytest.approx(until + 0.2)
    assert trio.current_time() - began == pytest.approx(1.6)


async def test_a_loop_that_is_in_time_counts_every_second(mock_clock: trio.testing.MockClock) -> None:
    clock, began = WalkClock(), trio.current_time()
    for at in range(1, 6):
        mock_clock.jump(1.01)
        clock.on_passed(began + at)
    assert clock.now() == trio.current_time()


async def test_a_walk_is_patient_with_whom_it_has_to_dial_first(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    """Who is far away takes five round trips to dial and one to ask: patience is learnt from all six."""
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        overlay, there = bob.parts.overlay, alice.parts.overlay.contact()
        await overlay.network.disconnect(alice.peer_id)
        dial = overlay.network.connect

        async def slowly(peer: PeerId, addrs: Sequence[str]) -> None:
            await trio.sleep(0.6)
            await dial(peer, addrs)

        overlay.network.connect = slowly
        walk = FindClosest(b"anywhere", [there], me=overlay.me, tuning=overlay.tuning)
        await overlay.run(walk)
        assert walk.closest == (alice.peer_id,)
        assert overlay.patience.seconds > 0.6


async def test_an_instant_that_has_passed_has_come_however_it_is_rounded(
    mock_clock: trio.testing.MockClock,
) -> None:
    """Else a walk would say wait until then, again and again, and no clock would move."""
    clock, began = WalkClock(), trio.current_time()
    mock_clock.jump(1.3)
    clock.on_passed(began + 1.0)  # from now on the clock is behind
    for tenths in range(11, 200):
        at = began + tenths / 10
        mock_clock.jump(max(0.0, clock.instant(at) - trio.current_time()))
        clock.on_passed(at)
        assert clock.now() >= at
