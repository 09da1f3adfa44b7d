"""Stories of a pull: from several at once, past those who lie, die or dawdle, on after an interruption."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import trio

from modelnet_p2p.errors import Code, LocalError, RemoteError
from modelnet_p2p.node.transport.contract import Stream
from modelnet_p2p.node.weights import patience
from modelnet_p2p.node.weights import puller as puller_module
from modelnet_p2p.node.weights.hashing import artifact_of
from modelnet_p2p.node.weights.puller import Progress
from modelnet_p2p.pieces import Ask, Asks, Kind, Status, answer_head

# Any: the fixture that opens a square, see conftest.py
OpenSquare = Any
Step = Callable[[Stream, Ask], Any]


def answering(step: Step) -> Callable[[Stream], Any]:
    """A holder that answers each ask as `step` does."""

    async def handle(stream: Stream) -> None:
        asks = Asks()
        while count := await stream.receive_into(asks.buffer()):
            if (ask := asks.received(count)) is not None:
                await step(stream, ask)

    return handle


async def test_several_holders_at_once_and_a_second_time_nothing(open_square: OpenSquare) -> None:
    async with open_square() as square:
        holders = [await square.holder(name) for name in ("alice", "bob", "dave")]
        puller = await square.puller()
        with trio.fail_after(30):
            pulled = await puller.pull(square.found.root, holders, square.tell)
        assert square.is_here()
        assert pulled.fetched == square.found.size
        assert pulled.artifact == square.found.artifact
        assert {peer.peer.text for peer in holders} == pulled.shares.keys()
        assert sum(share.bytes for share in pulled.shares.values()) == square.found.size
        here = [progress.here for progress in square.told]
        assert here == sorted(here)
        assert (here[0], here[-1]) == (0, square.found.size)
        assert not list(square.cache.path.glob("*.part"))


async def test_past_a_liar_a_dying_and_an_endlessly_slow_one(open_square: OpenSquare) -> None:
    async with open_square() as square:

        async def lie(stream: Stream, ask: Ask) -> None:
            data = square.found.listing
            if ask.kind is Kind.PIECE:
                data = b"\0" * square.found.artifact.pieces[ask.index].size
            await stream.send([answer_head(Status.HERE, len(data)), data])

        async def dawdle(stream: Stream, ask: Ask) -> None:
            size = square.found.artifact.pieces[ask.index].size
            await stream.send([answer_head(Status.HERE, size)])
            for _ in range(size - 1):  # the last byte never comes: it would be a lie
                await stream.send([b"\0"])
                await trio.sleep(0.02)
            await trio.sleep_forever()

        liar = await square.holder("liar", answering(lie))
        slow = await square.holder("slow", answering(dawdle))
        dying, honest = await square.holder("dying"), await square.holder("honest")

        def kill(progress: Any) -> None:
            share = progress.shares.get(dying.peer.text)
            if share is not None and share.pieces >= 10:
                square.watch = lambda progress: None
                square.world.kill(dying.peer)

        square.watch = kill
        puller = await square.puller()
        with trio.fail_after(30):
            pulled = await puller.pull(square.found.root, [dying, liar, slow, honest], square.tell)
        assert square.is_here()
        assert pulled.liars == (liar.peer.text,)
        assert pulled.shares.keys() == {dying.peer.text, honest.peer.text}
        assert pulled.shares[dying.peer.text].pieces >= 10


async def test_it_goes_on_where_it_stopped(open_square: OpenSquare) -> None:
    async with open_square() as square:
        alice = await square.holder("alice")
        puller = await square.puller()
        with trio.CancelScope() as scope:

            def stop(progress: Any) -> None:
                if progress.here > square.found.size // 2:
                    scope.cancel()

            square.watch = stop
            await puller.pull(square.found.root, [alice], square.tell)
        assert scope.cancelled_caught
        assert not square.is_here()
        (part,) = square.cache.all()
        assert not part.whole
        before = square.told[-1].here
        square.watch = lambda progress: None
        pulled = await puller.pull(square.found.root, [alice], square.tell)
        assert square.is_here()
        # what was being written when it was interrupted may be there, too
        assert square.found.size - before - 5000 <= pulled.fetched <= square.found.size - before


async def test_what_is_damaged_on_disk_is_fetched_again_and_nothing_else(open_square: OpenSquare) -> None:
    async with open_square() as square:
        alice = await square.holder("alice")
        puller = await square.puller()
        await puller.pull(square.found.root, [alice], square.tell)
        place = square.cache.whole(square.found.root).places["model.safetensors"]
        with place.open("r+b") as file:
            file.seek(5500)
            file.write(b"damage")
        assert square.cache.whole(square.found.root) is None
        pulled = await puller.pull(square.found.root, [alice], square.tell)
        assert pulled.fetched == 1000
        assert square.is_here()
        place = square.cache.whole(square.found.root).places["config.json"]
        place.unlink()
        assert square.cache.whole(square.found.root) is None
        assert (await puller.pull(square.found.root, [alice], square.tell)).fetched == 13
        os.utime(square.cache.whole(square.found.root).places["config.json"])  # touched, and the same
        assert square.is_here()


async def test_nobody_is_left(open_square: OpenSquare) -> None:
    async with open_square() as square:
        puller = await square.puller()
        with pytest.raises(RemoteError, match="nobody alive shares") as raised:
            await puller.pull(square.found.root, [], square.tell)
        assert "--share-weights" in raised.value.hint
        alice = await square.holder("alice")
        square.watch = lambda progress: progress.here > 50_000 and square.world.kill(alice.peer)
        with pytest.raises(RemoteError, match="nobody is left") as raised:
            await puller.pull(square.found.root, [alice], square.tell)
        assert "goes on where it stopped" in raised.value.hint
        assert "bytes are here" in raised.value.message


async def test_files_that_change_under_a_holder_are_given_out_no_longer(open_square: OpenSquare) -> None:
    async with open_square() as square:
        alice = await square.holder("alice")
        puller = await square.puller()
        place = square.found.places["model.safetensors"]
        data = place.read_bytes()
        place.write_bytes(data[:-1] + b"x")
        with pytest.raises(RemoteError, match="files have changed"):
            await puller.pull(square.found.root, [alice], square.tell)
        part = square.cache.all()[0]
        assert not part.whole


@pytest.mark.parametrize("length", [(64 << 20) + 1, 1 << 31])
async def test_a_giant_listing_is_not_waited_for(open_square: OpenSquare, length: int) -> None:
    async with open_square() as square:

        async def boast(stream: Stream, ask: Ask) -> None:
            await stream.send([answer_head(Status.HERE, length)])
            await trio.sleep_forever()

        liar = await square.holder("liar", answering(boast))
        puller = await square.puller()
        with trio.fail_after(20), pytest.raises(RemoteError, match="bytes where"):
            await puller.pull(square.found.root, [liar], square.tell)
        honest = await square.holder("honest")
        pulled = await puller.pull(square.found.root, [liar, honest], square.tell)
        assert pulled.liars == (liar.peer.text,)
        assert square.is_here()


async def test_another_listing_or_a_silent_holder_of_it(open_square: OpenSquare) -> None:
    async with open_square() as square:

        async def forge(stream: Stream, ask: Ask) -> None:
            data = square.found.listing.replace(b"config", b"konfig")
            await stream.send([answer_head(Status.HERE, len(data)), data])

        async def say_nothing(stream: Stream) -> None:
            await trio.sleep_forever()

        forger = await square.holder("forger", answering(forge))
        silent = await square.holder("silent", say_nothing)
        honest = await square.holder("honest")
        puller = await square.puller()
        with trio.fail_after(30):
            pulled = await puller.pull(square.found.root, [silent, forger, honest], square.tell)
        assert pulled.liars == (forger.peer.text,)
        assert square.is_here()


async def test_a_holder_that_is_busy_is_asked_again(open_square: OpenSquare) -> None:
    async with open_square() as square:
        refusals = 0

        async def handle(stream: Stream) -> None:
            nonlocal refusals
            refusals += 1
            if refusals in (2, 3):
                await stream.send([answer_head(Status.BUSY, 0)])
                return
            await square.servers["alice"].handle(stream)

        alice = await square.holder("alice", handle)
        puller = await square.puller()
        with trio.fail_after(30):
            await puller.pull(square.found.root, [alice], square.tell)
        assert square.is_here()
        assert refusals == 4


async def test_the_only_holder_is_waited_for_while_it_is_busy(
    open_square: OpenSquare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its listing, with its first piece, and halfway through."""
    monkeypatch.setattr(puller_module, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(patience, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(patience, "LONGEST_SECONDS", 0.02)
    async with open_square() as square:
        streams, notices = count(1), list[str]()

        async def handle(stream: Stream) -> None:
            number = next(streams)
            if number == 11:
                await square.servers["alice"].handle(stream)  # the listing
            elif number == 21:
                with trio.CancelScope() as scope:

                    def stop(progress: Progress) -> None:
                        if progress.here > square.found.size // 2:
                            scope.cancel()

                    square.watch = stop
                    await square.servers["alice"].handle(stream)
                await stream.reset()
            elif number < 31:
                await stream.send([answer_head(Status.BUSY, 0)])
            else:
                await square.servers["alice"].handle(stream)

        alice = await square.holder("alice", handle)
        gone = await square.holder("gone")
        square.world.kill(gone.peer)
        puller = await square.puller()
        with trio.fail_after(30):
            await puller.pull(square.found.root, [gone, alice], square.tell, notices.append)
        assert square.is_here()
        assert next(streams) == 32
        assert notices == 2 * ["the only peer that shares it is busy: waiting, and asking again"]


async def test_a_holder_that_stays_busy_is_given_up(
    open_square: OpenSquare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(patience, "BUSY_SECONDS", 0.1)
    async with open_square() as square:

        async def refuse(stream: Stream) -> None:
            await stream.send([answer_head(Status.BUSY, 0)])

        holders = [await square.holder(name, refuse) for name in ("alice", "bob")]
        puller, notices = await square.puller(), list[str]()
        with trio.fail_after(30), pytest.raises(RemoteError) as raised:
            await puller.pull(square.found.root, holders, square.tell, notices.append)
        assert (raised.value.code, raised.value.retryable) == (Code.BUSY, True)
        assert notices == ["the 2 peers that share it are busy: waiting, and asking again"]


async def test_a_connection_that_breaks_again_and_again_brings_all_of_it(
    open_square: OpenSquare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(puller_module, "RETRY_SECONDS", 0.01)
    async with open_square() as square:
        pieces, given = square.found.artifact.pieces, 0

        async def give_some(stream: Stream, ask: Ask) -> None:
            nonlocal given
            data = square.found.listing
            if ask.kind is Kind.PIECE:
                given += 1
                if given % 30 == 0:
                    await stream.reset()
                    return
                piece = pieces[ask.index]
                place = square.found.places[piece.path]
                data = place.read_bytes()[piece.offset : piece.offset + piece.size]
            await stream.send([answer_head(Status.HERE, len(data)), data])

        flaky = await square.holder("flaky", answering(give_some))
        puller = await square.puller()
        await puller.pull(square.found.root, [flaky], square.tell)
        assert square.is_here()
        assert given > 4 * 30  # more often than it is asked again where nothing comes


async def test_hashing_ends_when_nobody_waits_for_it(open_square: OpenSquare) -> None:
    async with open_square() as square:
        place = square.found.places["model.safetensors"].parent
        with trio.fail_after(30), trio.CancelScope() as scope:

            def again_and_again(told: Callable[[int], object]) -> None:
                while True:
                    artifact_of(place, chunk_bytes=1000, told=told)
                    trio.from_thread.run_sync(scope.cancel)

            await puller_module.hashed(again_and_again)
        assert scope.cancelled_caught


async def test_calls_come_first(open_square: OpenSquare) -> None:
    """A holder at work pauses after each piece; the idle one beside it brings most."""
    async with open_square() as square:
        busy, idle = await square.holder("busy", busy=True), await square.holder("idle")
        puller = await square.puller()
        await puller.pull(square.found.root, [busy, idle], square.tell)
        assert square.is_here()


async def test_two_pulls_of_the_same_at_once(open_square: OpenSquare) -> None:
    async with open_square() as square:
        alice = await square.holder("alice")
        puller = await square.puller()
        part = square.cache.part(square.found.artifact)
        with part, pytest.raises(LocalError, match="another command") as raised:
            await puller.pull(square.found.root, [alice], square.tell)
        assert raised.value.code is Code.IN_USE
        await puller.pull(square.found.root, [alice], square.tell)
        assert square.is_here()


async def test_strangers_who_ask_for_nonsense(open_square: OpenSquare) -> None:
    async with open_square() as square:
        alice = await square.holder("alice")
        stranger = await square.network("mallory", listen=False)
        await stranger.connect(alice.peer, alice.addrs)

        async def answer(data: bytes) -> bytes:
            async with await stranger.open_stream(alice.peer, "/weights") as stream:
                await stream.send([data])
                buffer = bytearray(300)
                count = await stream.receive_into(memoryview(buffer))
                return bytes(buffer[:count])

        assert (await answer(Ask(Kind.LISTING, bytes(32)).encode()))[0] == Status.NOT_FOUND
        assert (await answer(Ask(Kind.PIECE, square.found.root, 1 << 31).encode()))[0] == Status.NOT_FOUND
        for data in (b"\xff" * 40, b"GET / HTTP/1.1\r\n" + b" " * 40):
            with pytest.raises(RemoteError):
                await answer(data)
        with pytest.raises(RemoteError):
            await answer(b"\x01")  # and no more: it is not waited for
        assert square.servers["alice"].streams == 0
        async with await stranger.open_stream(alice.peer, "/weights") as stream:
            with trio.fail_after(60), pytest.raises(RemoteError):
                while True:  # it asks and asks, and never reads: its place is taken from it
                    await stream.send([Ask(Kind.PIECE, square.found.root, 5).encode() * 100])
        streams = [await stranger.open_stream(alice.peer, "/weights") for _ in range(5)]
        buffer = memoryview(bytearray(8))
        await streams[-1].receive_into(buffer)
        assert buffer[0] == Status.BUSY
        for one in streams:
            await one.reset()
