"""One connection of the gateway, with an application made for each test: what a client is told, and when."""

from __future__ import annotations

import select
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from modelnet_p2p.node.gateway import connection as connections
from modelnet_p2p.node.gateway import hangups as hanging_up
from modelnet_p2p.node.gateway.asgi import Receive, Scope, Send
from modelnet_p2p.node.gateway.connection import Connection
from modelnet_p2p.node.gateway.hangups import open_hangups

pytestmark = pytest.mark.live
App = Callable[[Any, Any, Any], Awaitable[None]]
GET = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: localhost\r\n"


class Client:
    """The far end of a connection."""

    def __init__(self, stream: trio.SocketStream, connection: Connection) -> None:
        self.stream = stream
        self.connection = connection

    async def say(self, *parts: bytes) -> None:
        for part in parts:
            await self.stream.send_all(part)
            await trio.testing.wait_all_tasks_blocked()

    async def hear(self) -> bytes:
        """What one read finds."""
        return bytes(await self.stream.receive_some())

    async def hear_all(self) -> bytes:
        return b"".join([bytes(data) async for data in self.stream])


@asynccontextmanager
async def connected(app: App) -> AsyncIterator[Client]:
    theirs, ours = trio.socket.socketpair()
    async with open_hangups() as hangups, trio.open_nursery() as nursery:
        connection = Connection(app, ours, ("127.0.0.1", 1), hangups)
        nursery.start_soon(connection.serve)
        with trio.fail_after(30):
            async with trio.SocketStream(theirs) as stream:
                yield Client(stream, connection)
        connection.cut()


async def body_of(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        assert message["type"] == "http.request"
        body += message["body"]
        more = message["more_body"]
    return body


async def start(send: Send, *, held: bool = True) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [], "held": held})


async def end(send: Send, body: bytes = b"") -> None:
    await send({"type": "http.response.body", "body": body})


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body = await body_of(receive)
    await start(send)
    await end(send, body)


async def test_an_answer_leaves_in_one_piece() -> None:
    async with connected(echo) as client:
        for _ in range(2):
            await client.say(POST + b"content-length: 3\r\n\r\nabc")
            answer = await client.hear()
            assert answer.startswith(b"HTTP/1.1 200 \r\n")
            assert b"\r\nTransfer-Encoding: chunked\r\n" in answer
            assert answer.endswith(b"\r\n3\r\nabc\r\n0\r\n\r\n")


async def test_a_head_that_is_not_held_leaves_before_its_body() -> None:
    async def late(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send, held=False)
        await body_of(receive)
        await end(send)

    async with connected(late) as client:
        await client.say(POST + b"content-length: 1\r\n\r\n")
        assert (await client.hear()).startswith(b"HTTP/1.1 200")
        await client.say(b"a")
        assert await client.hear() == b"0\r\n\r\n"


async def test_bodies_in_pieces_and_in_chunks() -> None:
    async with connected(echo) as client:
        await client.say(POST, b"content-length: 6\r\n\r\nabc", b"def")
        assert b"abcdef" in await client.hear()
        chunked = POST + b"transfer-encoding: chunked\r\n\r\n"
        await client.say(chunked, b"3\r\nabc\r\n", b"0\r\n\r\n")
        assert b"abc" in await client.hear()
        await client.say(chunked, b"3\r\nabc\r\n", b"no length\r\n")
        assert (await client.hear_all()).startswith(b"HTTP/1.1 400")


async def test_who_asks_before_sending_a_body_is_told_to_go_on() -> None:
    async with connected(echo) as client:
        await client.say(POST + b"content-length: 3\r\nexpect: 100-continue\r\n\r\n")
        assert await client.hear() == b"HTTP/1.1 100 \r\n\r\n"
        await client.say(b"abc")
        assert b"abc" in await client.hear()


async def test_a_client_of_http_1_0_is_answered_until_the_end_of_the_connection() -> None:
    async with connected(echo) as client:
        await client.say(b"POST / HTTP/1.0\r\ncontent-length: 3\r\n\r\nabc")
        assert (await client.hear_all()).endswith(b"\r\n\r\nabc")


async def test_nothing_but_a_head_answers_head() -> None:
    async with connected(echo) as client:
        await client.say(GET.replace(b"GET", b"HEAD") + GET)
        answer = await client.hear()
        while not answer.endswith(b"0\r\n\r\n"):
            answer += await client.hear()
        first, second, rest = answer.split(b"\r\n\r\n", 2)
        assert first.startswith(b"HTTP/1.1 200")
        assert second.startswith(b"HTTP/1.1 200")
        assert rest == b"0\r\n\r\n"


@pytest.mark.parametrize("breaks", [False, True])
async def test_an_application_that_fails(breaks: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        if breaks:
            raise ValueError("a bug")

    async with connected(broken) as client:
        await client.say(GET)
        answer = await client.hear_all()
        assert answer.startswith(b"HTTP/1.1 500")
        assert b"a fault inside of the gateway" in answer
    assert ("a bug" if breaks else "gave no answer") in caplog.text


@pytest.mark.parametrize(
    "header",
    [(b"x", b"a\r\ny: b"), (b"x", b"a\n"), (b"x\r\ny", b"a"), (b"x", b"\0"), (b"content-length", b"x")],
)
async def test_a_header_that_would_be_two_is_not_sent(header: tuple[bytes, bytes]) -> None:
    async def splitting(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [header], "held": True})
        await end(send)

    async with connected(splitting) as client:
        await client.say(GET)
        assert (await client.hear_all()).startswith(b"HTTP/1.1 500")


@pytest.mark.parametrize("told_by_the_kernel", [True, False])
@pytest.mark.parametrize("half", [True, False])
async def test_who_hangs_up_is_told_of(
    told_by_the_kernel: bool, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Be it to an application that waits for the message, or to one that asks to be called."""
    monkeypatch.setattr(hanging_up, "LOOK_SECONDS", 0.01)
    if not told_by_the_kernel:
        monkeypatch.delattr(select, "epoll")
    told: list[str] = []

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        with trio.CancelScope() as scope_of_call:
            scope["state"]["on_gone"](scope_of_call.cancel)
            await trio.sleep_forever()
        assert (await receive())["type"] == "http.request"
        told.append((await receive())["type"])
        await start(send)
        await end(send, b"late")

    async with connected(waits) as client:
        await client.say(GET)
        if half:
            await client.stream.send_eof()
            assert b"late" in await client.hear_all()
        else:
            await client.stream.aclose()
            while not told:
                await trio.sleep(0.01)
    assert told == ["http.disconnect"]


async def test_a_reader_that_takes_nothing_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "STALL_SECONDS", 0.05)
    ended = trio.Event()

    async def flood(scope: Scope, receive: Receive, send: Send) -> None:
        with trio.CancelScope() as scope_of_call:
            scope["state"]["on_gone"](scope_of_call.cancel)
            await start(send)
            while True:
                await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
                await trio.lowlevel.checkpoint()
        ended.set()

    async with connected(flood) as client:
        await client.say(GET)
        await ended.wait()


async def test_a_crowd_of_requests_in_one_piece_leaves_turns_to_others() -> None:
    """So does a flood of writes that all find room."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async def chatter(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        for _ in range(100):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await end(send)

    for app, requests, least in ((echo, 200, 200), (chatter, 1, 6)):
        async with connected(app) as client, trio.open_nursery() as nursery:
            nursery.start_soon(others)
            before, heard = turns, b""
            await client.stream.send_all(GET * requests)
            while heard.count(b"0\r\n\r\n") < requests:
                heard += await client.hear()
            assert turns - before >= least
            nursery.cancel_scope.cancel()


async def test_leaving_ends_who_waits_at_once_and_others_after_their_answer() -> None:
    may_answer = trio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await may_answer.wait()
        await echo(scope, receive, send)

    async with connected(slow) as idle, connected(slow) as busy:
        await busy.say(POST + b"content-length: 3\r\n\r\nabc")
        idle.connection.leave()
        busy.connection.leave()
        assert await idle.hear_all() == b""
        may_answer.set()
        assert b"abc" in await busy.hear_all()
