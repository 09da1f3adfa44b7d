"""Requests to one peer on one stream: what it may do to them, and what they may do to each other."""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from modelnet_p2p.dht.pacing import Pacing
from modelnet_p2p.errors import Code, RemoteError
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.kad import Framer, Kind, Message, frame
from modelnet_p2p.node.overlay.channel import KadChannel
from modelnet_p2p.node.transport.contract import Stream
from modelnet_p2p.node.transport.memory import MemoryWorld
from modelnet_p2p.tuning import TEST

PROTOCOL = "/test/kad"
Replies = Callable[[Stream, Message, int], Awaitable[None]]  # the stream, the request, how many came before


def key_of(name: str) -> KeyPair:
    return KeyPair(hashlib.sha256(name.encode()).digest())


def find(name: str) -> Message:
    return Message(Kind.FIND_NODE, name.encode() * 8)


async def send(stream: Stream, message: Message) -> None:
    await stream.send([frame(message)])


@asynccontextmanager
async def open_channel(replies: Replies) -> AsyncIterator[KadChannel]:
    """carol's channel to bob, who treats each request as `replies` says."""
    world = MemoryWorld()
    asked = 0

    async def handle(stream: Stream) -> None:
        nonlocal asked
        framer, buffer = Framer(), memoryview(bytearray(4096))
        while count := await stream.receive_into(buffer):
            for request in framer.feed(bytes(buffer[:count])):
                asked += 1
                await replies(stream, request, asked - 1)

    async with world.open(key_of("bob")) as bob, world.open(key_of("carol"), listen=False) as carol:
        bob.handle(PROTOCOL, handle)
        await carol.connect(bob.id, bob.addrs)
        async with trio.open_nursery() as nursery:
            yield KadChannel(carol, bob.id, PROTOCOL, Pacing(), nursery)
            nursery.cancel_scope.cancel()


async def echo(stream: Stream, request: Message, before: int) -> None:
    await send(stream, Message(request.kind, request.key, records=()))


async def test_replies_come_to_those_who_asked() -> None:
    async with open_channel(echo) as channel, trio.open_nursery() as nursery:

        async def ask(name: str) -> None:
            assert (await channel.request(find(name), 5)).key == name.encode() * 8

        for number in range(50):
            nursery.start_soon(ask, f"node {number}")


async def test_a_request_that_times_out_costs_the_others_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def ignores_the_first(stream: Stream, request: Message, before: int) -> None:
        if request.key == b"lost" * 8:
            await trio.sleep_forever()
        await echo(stream, request, before)

    answers: list[bytes] = []
    async with open_channel(ignores_the_first) as channel:

        async def impatient() -> None:
            with pytest.raises(RemoteError) as caught:
                await channel.request(find("lost"), 1.0)
            assert caught.value.code is Code.DEADLINE

        async def patient(name: str) -> None:
            await trio.sleep(0.1)
            answers.append((await channel.request(find(name), 5.0)).key)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(impatient)
            for name in "abc":
                nursery.start_soon(patient, name)
        assert sorted(answers) == [b"aaaaaaaa", b"bbbbbbbb", b"cccccccc"]
        assert (await channel.request(find("after"), 5.0)).key == b"after" * 8


async def test_requests_given_up_while_they_are_sent_end_each_by_itself(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def never_reads(stream: Stream, request: Message, before: int) -> None:
        await trio.sleep_forever()

    large = Message(Kind.FIND_NODE, b"k" * 500, records=(bytes(60_000),))
    async with open_channel(never_reads) as channel, trio.open_nursery() as nursery:

        async def ask(timeout: float) -> None:
            with pytest.raises(RemoteError) as caught:
                await channel.request(large, timeout)
            assert caught.value.code in (Code.DEADLINE, Code.UNREACHABLE)

        for number in range(20):  # the first fill the window, the rest wait for it
            nursery.start_soon(ask, 1.0 + number / 10)


@pytest.mark.parametrize("wrong", [Message(Kind.FIND_NODE, b"other" * 8), Message(Kind.PING, b"asked" * 8)])
async def test_an_answer_to_another_question_is_nobodys(wrong: Message) -> None:
    async def confused(stream: Stream, request: Message, before: int) -> None:
        await send(stream, wrong)

    async with open_channel(confused) as channel:
        with pytest.raises(RemoteError, match="another DHT question"):
            await channel.request(find("asked"), 5)


async def test_a_stock_peer_may_leave_the_key_out() -> None:
    async def keyless(stream: Stream, request: Message, before: int) -> None:
        await send(stream, Message(request.kind))

    async with open_channel(keyless) as channel:
        assert (await channel.request(find("asked"), 5)).key == b""


async def test_unasked_replies_end_the_stream_and_the_next_request_has_a_new_one() -> None:
    async def twice(stream: Stream, request: Message, before: int) -> None:
        await echo(stream, request, before)
        await echo(stream, request, before)

    async with open_channel(twice) as channel:
        for name in "abc":
            assert (await channel.request(find(name), 5)).key == name.encode() * 8
            await trio.testing.wait_all_tasks_blocked()


async def test_a_stream_reset_while_it_was_idle_counts_as_no_failure() -> None:
    async def once(stream: Stream, request: Message, before: int) -> None:
        await echo(stream, request, before)
        await stream.reset()

    async with open_channel(once) as channel:
        for name in "abc":
            assert (await channel.request(find(name), 5)).key == name.encode() * 8


async def test_a_peer_that_resets_every_stream_fails_after_one_try() -> None:
    asked: list[int] = []

    async def resets(stream: Stream, request: Message, before: int) -> None:
        asked.append(before)
        await stream.reset()

    async with open_channel(resets) as channel:
        with pytest.raises(RemoteError) as caught:
            await channel.request(find("x"), 5)
        assert caught.value.code is Code.UNREACHABLE
        assert asked == [0]


async def test_messages_without_an_answer_leave_no_stream_behind() -> None:
    heard: list[bytes] = []

    async def stock(stream: Stream, request: Message, before: int) -> None:
        heard.append(request.key)

    async with open_channel(stock) as channel:
        for number in range(TEST.max_streams_per_peer + 10):
            await channel.notify(Message(Kind.ADD_PROVIDER, b"%d" % number), 5)
        assert heard == [b"%d" % number for number in range(TEST.max_streams_per_peer + 10)]


async def test_random_impatience_never_mixes_answers_up(autojump_clock: trio.testing.MockClock) -> None:
    rng = random.Random(11)

    async def moody(stream: Stream, request: Message, before: int) -> None:
        await trio.sleep(rng.choice([0.0, 0.0, 0.05, 0.3]))
        if rng.random() < 0.1:
            await stream.reset()
        else:
            await echo(stream, request, before)

    ends: list[str] = []
    async with open_channel(moody) as channel, trio.open_nursery() as nursery:

        async def ask(number: int) -> None:
            await trio.sleep(rng.random() * 5)
            message = find(f"node {number}")
            with trio.move_on_after(rng.choice([0.01, 0.2, 10.0])):
                try:
                    assert (await channel.request(message, rng.choice([0.1, 3.0]))).key == message.key
                    ends.append("answered")
                except RemoteError:
                    ends.append("failed")
                return
            ends.append("left")

        for number in range(200):
            nursery.start_soon(ask, number)
    assert len(ends) == 200
    assert ends.count("answered") > 20
