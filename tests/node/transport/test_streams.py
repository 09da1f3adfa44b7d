"""The contract of streams: bytes in order, three distinct ends, and cancelling that harms nobody."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import pytest
import trio
import trio.testing

from modelnet_p2p.errors import Code, RemoteError
from modelnet_p2p.node.transport.contract import (
    ConnectionLost,
    Network,
    Stream,
    StreamReset,
)
from modelnet_p2p.node.transport.ping import PING

Opener = Callable[..., AbstractAsyncContextManager[Network]]
Exactly = Callable[[Stream, int], Awaitable[bytes]]
ToEnd = Callable[..., Awaitable[bytes]]
BYTE = 1


def byte() -> memoryview:
    return memoryview(bytearray(BYTE))


async def echo(stream: Stream) -> None:
    buffer = memoryview(bytearray(50_000))
    while n := await stream.receive_into(buffer):
        await stream.send([buffer[:n]])


async def test_bytes_come_back_in_order_through_buffers_of_every_size(
    open_peer: Opener, exactly: Exactly
) -> None:
    sent = bytes(range(256)) * 8192  # 2 MiB: many windows
    async with open_peer("alice") as alice, open_peer("bob") as bob:
        bob.handle("/echo", echo)
        await alice.connect(bob.id, bob.addrs)
        async with await alice.open_stream(bob.id, "/echo") as stream, trio.open_nursery() as nursery:
            parts: list[bytes | memoryview] = [
                b"",
                sent[:1],
                memoryview(sent)[1:100_003],
                b"",
                sent[100_003:],
            ]
            nursery.start_soon(stream.send, parts)
            assert await exactly(stream, len(sent)) == sent
        assert (stream.peer, stream.protocol) == (bob.id, "/echo")


async def test_a_stream_opened_once_answers_again_and_again(open_peer: Opener, exactly: Exactly) -> None:
    async with open_peer("alice") as alice, open_peer("bob") as bob:
        bob.handle("/echo", echo)
        await alice.connect(bob.id, bob.addrs)
        async with await alice.open_stream(bob.id, "/echo") as stream:
            for i in range(50):
                await stream.send([b"%03d" % i])
                assert await exactly(stream, 3) == b"%03d" % i


async def test_what_is_sent_without_waiting_keeps_its_place_and_is_refused_whole(
    open_peer: Opener, exactly: Exactly
) -> None:
    async def deaf(stream: Stream) -> None:
        await trio.sleep_forever()

    async with open_peer("alice") as alice, open_peer("bob") as bob:
        bob.handle("/echo", echo)
        bob.handle("/deaf", deaf)
        await alice.connect(bob.id, bob.addrs)
        async with await alice.open_stream(bob.id, "/echo") as stream:
            sent = b""
            for number in range(50):
                piece = b"%03d" % number
                if not stream.send_now(piece):  # the stock stack never can
                    await stream.send([piece])
                await stream.send([b"-"])
                sent += piece + b"-"
            assert await exactly(stream, len(sent)) == sent
            await stream.finish()
            if type(stream).send_now is not Stream.send_now:
                with pytest.raises(trio.ClosedResourceError):
                    stream.send_now(b"more")
        async with await alice.open_stream(bob.id, "/deaf") as stream:
            took = [stream.send_now(bytes(4096)) for _ in range(1000)]
            assert not took[-1]  # nobody reads: somewhere there is no more room
            assert took == sorted(took, reverse=True)


async def test_memory_of_other_types_is_sent_as_its_bytes(open_peer: Opener, exactly: Exactly) -> None:
    from array import array

    floats = array("f", [1.0, 2.0, 3.0])
    async with open_peer("alice") as alice, open_peer("bob") as bob:
        bob.handle("/echo", echo)
        await alice.connect(bob.id, bob.addrs)
        async with await alice.open_stream(bob.id, "/echo") as stream:
            await stream.send([memoryview(floats)])
            assert await exactly(stream, 12) == floats.tobytes()


async def test_an_end_is_clean_and_leaves_the_other_direction_open(
    open_peer: Opener, exactly: Exactly, to_end: ToEnd
) -> None:
    async def count(stream: Stream) -> None:
        total = len(await to_end(stream))
        await stream.send([b"%d" % total])

    async with open_peer("alice") as alice, open_peer("bob") as bob:
        bob.handle("/count", count)
        await alice.connect(bob.id, bob.addrs)
        stream = await alice.open_stream(bob.id, "/count")
        await stream.send([b"x" * 100_000])
        await stream.finish()
        await stream.finish()
        assert await to_end(stream) == b"100000"
        assert await stream.receive_into(byte()) == 0
        with pytest.raises(trio.ClosedResourceError):
            await stream.send([b"more"])
        await stream.reset()


async def test_a_reset_is_told_from_an_end_and_comes_after_the_bytes_before_it(
    open_peer: Opener, exactly: Exactly
) -> None:
    async def give_up(stream: Stream) -> None:
        await exactly(stream, 2)
        await stream.send([b"so far"])
        await stream.reset()

    async with open_peer("alice") as alice, open_peer("bob") as bob:
        bob.handle("/give-up", give_up)
        await alice.connect(bob.id, bob.addrs)
        stream = await alice.open_stream(bob.id, "/give-up")
        await stream.send([b"go"])
        await trio.sleep(0.05)  # both the bytes and the reset lie here before we look
        assert await exactly(stream, 6) == b"so far"
        for _ in range(2):
            with pytest.raises(StreamReset) as caught:
                await stream.receive_into(byte())
        assert caught.value.peer == str(bob.id)
        assert caught.value.retryable
        with pytest.raises(StreamReset):
            await stream.send([b"x"])
        assert bob.id in alice.connected()


async def test_a_lost_connection_is_told_from_both_after_the_bytes_that_arrived(
    open_peer: Opener, exactly: Exactly
) -> None:
    async def talk(stream: Stream) -> None:
        await exactly(stream, 2)
        await stream.send([b"last words"])
        await trio.sleep_forever()

    async with open_peer("alice") as alice, open_peer("bob") as bob:
        bob.handle("/talk", talk)
        await alice.connect(bob.id, bob.addrs)
        stream = await alice.open_stream(bob.id, "/talk")
        await stream.send([b"go"])
        assert await exactly(stream, 4) == b"last"
        with trio.fail_after(5):
            await bob.disconnect(alice.id)
            while bob.id in alice.connected():
                await trio.sleep(0.01)
        assert await exactly(stream, 6) == b" words"
        with pytest.raises(ConnectionLost) as caught:
            await stream.receive_into(byte())
        assert caught.value.peer == str(bob.id)
        with pytest.raises(ConnectionLost):
            await stream.send([b"x"])
        await stream.reset()


async def test_an_end_that_came_before_the_loss_stays_an_end(open_peer: Opener, to_end: ToEnd) -> None:
    ended = trio.Event()

    async def speech(stream: Stream) -> None:
        await stream.send([b"all I have to say"])
        await stream.finish()
        ended.set()
        await trio.sleep_forever()

    async with open_peer("alice") as alice, open_peer("bob") as bob:
        bob.handle("/speech", speech)
        await alice.connect(bob.id, bob.addrs)
        stream = await alice.open_stream(bob.id, "/speech")
        await stream.send([b"?"])
        with trio.fail_after(5):
            await ended.wait()
            await bob.disconnect(alice.id)
            while bob.id in alice.connected():
                await trio.sleep(0.01)
        assert await to_end(stream) == b"all I have to say"


async def test_a_waiting_reader_and_a_waiting_writer_learn_of_the_loss(open_peer: Opener) -> None:
    async def deaf(stream: Stream) -> None:
        await trio.sleep_forever()

    async with open_peer("alice") as alice, open_peer("bob") as bob:
        bob.handle("/deaf", deaf)
        await alice.connect(bob.id, bob.addrs)
        stream = await alice.open_stream(bob.id, "/deaf")
        outcomes: list[str] = []

        async def read() -> None:
            with pytest.raises(ConnectionLost):
                await stream.receive_into(byte())
            outcomes.append("reader")

        async def write() -> None:
            with pytest.raises(ConnectionLost):
                await stream.send([bytes(4 << 20)])
            outcomes.append("writer")

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                nursery.start_soon(write)
                await trio.sleep(0.05)
                await bob.disconnect(alice.id)
        assert sorted(outcomes) == ["reader", "writer"]


async def test_a_failing_handler_ends_its_stream_and_nothing_else(
    open_peer: Opener, exactly: Exactly, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(stream: Stream) -> None:
        await exactly(stream, 1)
        raise KeyError("a bug of ours")

    async def fails_in_a_task(stream: Stream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails, stream)
            nursery.start_soon(trio.sleep_forever)

    async with open_peer("alice") as alice, open_peer("bob") as bob:
        bob.handle("/fails", fails)
        bob.handle("/fails-in-a-task", fails_in_a_task)
        bob.handle("/echo", echo)
        await alice.connect(bob.id, bob.addrs)
        good = await alice.open_stream(bob.id, "/echo")
        for protocol in ("/fails", "/fails-in-a-task"):
            bad = await alice.open_stream(bob.id, protocol)
            await bad.send([b"x"])
            with pytest.raises(StreamReset):
                await bad.receive_into(byte())
        await good.send([b"still here"])
        assert await exactly(good, 10) == b"still here"
        await good.reset()
    logged = [record for record in caplog.records if "handler-failed" in record.message]
    assert len(logged) == 2
    assert all(record.exc_info and alice.id.short in record.message for record in logged)


async def test_a_handler_that_returns_ends_its_side(open_peer: Opener, to_end: ToEnd) -> None:
    async def hello(stream: Stream) -> None:
        await stream.send([b"hello"])

    async with open_peer("alice") as alice, open_peer("bob") as bob:
        bob.handle("/hello", hello)
        await alice.connect(bob.id, bob.addrs)
        async with await alice.open_stream(bob.id, "/hello") as stream:
            assert await to_end(stream) == b"hello"


async def test_a_stranger_to_the_protocol_says_so(open_peer: Opener) -> None:
    async with open_peer("alice") as alice, open_peer("bob") as bob:
        await alice.connect(bob.id, bob.addrs)
        for _ in range(3):
            with pytest.raises(RemoteError) as caught:
                await alice.open_stream(bob.id, "/nobody/speaks/this")
            assert caught.value.code is Code.UNKNOWN_METHOD
            assert caught.value.peer == str(bob.id)
            assert "/nobody/speaks/this" in caught.value.message


async def test_a_slow_reader_holds_the_sender_and_loses_nothing(open_peer: Opener, exactly: Exactly) -> None:
    size = 3 << 20
    go = trio.Event()

    async def slow(stream: Stream) -> None:
        await go.wait()
        await exactly(stream, size)
        await stream.send([b"k"])

    async with open_peer("alice") as alice, open_peer("bob") as bob:
        bob.handle("/slow", slow)
        await alice.connect(bob.id, bob.addrs)
        async with await alice.open_stream(bob.id, "/slow") as stream:
            sent = trio.Event()

            async def send() -> None:
                await stream.send([bytes(size)])
                sent.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                await trio.sleep(0.2)
                assert not sent.is_set()
                go.set()
                with trio.fail_after(20):
                    assert await exactly(stream, 1) == b"k"


async def test_a_cancelled_send_resets_its_stream_and_spares_the_others(
    open_peer: Opener, exactly: Exactly
) -> None:
    fate: list[type[Exception]] = []
    told = trio.Event()

    async def deaf_for_a_while(stream: Stream) -> None:
        await trio.sleep(0.2)
        try:
            while True:
                await exactly(stream, 1000)
        except StreamReset as error:
            fate.append(type(error))
            told.set()
            raise

    async with open_peer("alice") as alice, open_peer("bob") as bob:
        bob.handle("/deaf", deaf_for_a_while)
        bob.handle("/echo", echo)
        await alice.connect(bob.id, bob.addrs)
        other = await alice.open_stream(bob.id, "/echo")
        for _ in range(3):
            stream = await alice.open_stream(bob.id, "/deaf")
            with trio.move_on_after(0.05) as scope:
                await stream.send([bytes(2 << 20)])
            assert scope.cancelled_caught
            with pytest.raises(trio.ClosedResourceError):
                await stream.receive_into(byte())
            await other.send([b"unharmed"])
            assert await exactly(other, 8) == b"unharmed"
        with trio.fail_after(5):
            await told.wait()
        assert fate[0] is StreamReset
        await other.reset()


async def test_cancelling_hundreds_of_sends_at_random_moments_harms_no_other_stream(
    open_peer: Opener, exactly: Exactly
) -> None:
    import random

    rng = random.Random(7)
    async with open_peer("alice") as alice, open_peer("bob") as bob:
        bob.handle("/echo", echo)
        await alice.connect(bob.id, bob.addrs)
        steady = await alice.open_stream(bob.id, "/echo")
        for round_ in range(100):
            stream = await alice.open_stream(bob.id, "/echo")
            with trio.move_on_after(rng.random() * 0.004):
                await stream.send([bytes(rng.randrange(1, 300_000))])
                await exactly(stream, 300_000)
            await stream.reset()
            note = b"%08d" % round_
            await steady.send([note])
            with trio.fail_after(5):
                assert await exactly(steady, 8) == note
        await steady.reset()


async def test_a_cancelled_receive_loses_nothing(open_peer: Opener, exactly: Exactly) -> None:
    async def dribble(stream: Stream) -> None:
        for i in range(100):
            await stream.send([b"%02d" % i])
            await trio.sleep(0.001)
        await trio.sleep_forever()

    async with open_peer("alice") as alice, open_peer("bob") as bob:
        bob.handle("/dribble", dribble)
        await alice.connect(bob.id, bob.addrs)
        async with await alice.open_stream(bob.id, "/dribble") as stream:
            found, buffer = bytearray(), memoryview(bytearray(3))
            with trio.fail_after(20):
                while len(found) < 200:
                    with trio.move_on_after(0.0007):
                        n = await stream.receive_into(buffer)
                        found += buffer[:n]
            assert bytes(found) == b"".join(b"%02d" % i for i in range(100))


async def test_whoever_watches_a_stream_hears_at_once_that_it_broke(
    open_peer: Opener, exactly: Exactly
) -> None:
    heard: list[str] = []
    held: list[Stream] = []

    async def give_up(stream: Stream) -> None:
        await exactly(stream, 2)
        await stream.reset()

    async def hold(stream: Stream) -> None:
        held.append(stream)
        await trio.sleep_forever()

    async def heard_all(*expected: str) -> None:
        with trio.fail_after(5):
            while len(heard) < len(expected):
                await trio.sleep(0.005)
        assert heard == list(expected)

    async with open_peer("alice") as alice, open_peer("bob") as bob:
        bob.handle("/give-up", give_up)
        bob.handle("/hold", hold)
        await alice.connect(bob.id, bob.addrs)

        doomed = await alice.open_stream(bob.id, "/give-up")
        doomed.on_broken(lambda: heard.append("never: taken back"))
        doomed.on_broken(None)
        doomed.on_broken(lambda: heard.append("reset by bob"))
        await doomed.send([b"go"])
        await heard_all("reset by bob")
        doomed.on_broken(lambda: heard.append("it was already"))
        assert heard.pop() == "it was already"
        await doomed.reset()

        mine, other = await alice.open_stream(bob.id, "/hold"), await alice.open_stream(bob.id, "/hold")
        for stream in (mine, other):
            await stream.send([b"?"])
        with trio.fail_after(5):
            while len(held) < 2:
                await trio.sleep(0.005)
        mine.on_broken(lambda: heard.append("never: my own reset"))
        other.on_broken(lambda: heard.append("lost"))
        for stream in held:
            stream.on_broken(lambda: heard.append("reset by alice"))
        await mine.reset()
        await heard_all("reset by bob", "reset by alice")
        await alice.disconnect(bob.id)
        with trio.fail_after(5):
            while bob.connected():
                await trio.sleep(0.005)
        assert sorted(heard[2:]) == ["lost", "reset by alice"]  # in this process the latter is bob's loss


async def test_that_the_far_side_has_ended_is_told_at_once_too(
    open_peer: Opener, to_end: ToEnd, request: pytest.FixtureRequest
) -> None:
    if request.node.callspec.params["open_peer"] == "ours dials stock":
        pytest.skip("stock yamux says nowhere that an end has come")
    heard: list[str] = []
    there = trio.Event()

    async def listen(stream: Stream) -> None:
        stream.on_broken(lambda: heard.append("ended"))
        await stream.receive_into(byte())
        there.set()
        while not heard:
            await trio.sleep(0.005)
        assert await to_end(stream) == b"that is all"

    async with open_peer("alice") as alice, open_peer("bob") as bob:
        bob.handle("/listen", listen)
        await alice.connect(bob.id, bob.addrs)
        stream = await alice.open_stream(bob.id, "/listen")
        await stream.send([b"!that is all"])
        with trio.fail_after(5):
            await there.wait()
            assert heard == []
            await stream.finish()
            assert await to_end(stream) == b""  # the handler has heard, and read the rest
        assert heard == ["ended"]
        await stream.reset()


async def test_misuse_is_an_error_of_the_program(open_peer: Opener) -> None:
    async with open_peer("alice") as alice, open_peer("bob") as bob:
        bob.handle("/echo", echo)
        with pytest.raises(ValueError, match="handler already"):
            bob.handle("/echo", echo)
        await alice.connect(bob.id, bob.addrs)
        stream = await alice.open_stream(bob.id, "/echo")
        with pytest.raises(ValueError, match="empty buffer"):
            await stream.receive_into(memoryview(b"").cast("B"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.receive_into, byte())
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(trio.BusyResourceError):
                await stream.receive_into(byte())
            nursery.cancel_scope.cancel()
        await stream.reset()
        await stream.reset()
        with pytest.raises(trio.ClosedResourceError):
            await stream.send([b"x"])
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_into(byte())
        await stream.finish()


async def test_too_many_streams_are_refused_as_busy_and_the_places_come_back(
    open_peer: Opener, exactly: Exactly, max_streams: int
) -> None:
    async with open_peer("alice") as alice, open_peer("bob") as bob:
        bob.handle("/echo", echo)
        await alice.connect(bob.id, bob.addrs)
        await alice.protocols(bob.id)
        with trio.fail_after(20):
            for _ in range(2):
                streams: list[Stream] = []
                with pytest.raises(RemoteError) as caught:
                    while len(streams) <= max_streams:
                        streams.append(await alice.open_stream(bob.id, "/echo"))
                assert caught.value.code is Code.BUSY
                assert caught.value.retryable
                assert len(streams) >= max_streams - 2  # identify may hold one
                for i, stream in enumerate(streams):
                    if i % 2:
                        await stream.reset()
                    else:
                        await stream.finish()
                        assert await stream.receive_into(byte()) == 0
            for _ in range(300):  # more than yamux's 256, one after the other
                async with await alice.open_stream(bob.id, "/echo") as stream:
                    await stream.send([b"x"])
                    assert await exactly(stream, 1) == b"x"


async def test_every_network_answers_pings(open_peer: Opener, exactly: Exactly) -> None:
    async with open_peer("alice") as alice, open_peer("bob") as bob:
        await alice.connect(bob.id, bob.addrs)
        async with await alice.open_stream(bob.id, PING) as stream:
            for payload in (b"a" * 32, b"b" * 32):
                await stream.send([payload])
                assert await exactly(stream, 32) == payload
