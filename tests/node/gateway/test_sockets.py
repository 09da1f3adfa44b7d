"""The gateway's sockets against clients that misbehave: the others are answered, and nothing is left."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.gateway import http, serving
from modelnet_p2p.node.gateway.serving import open_gateway

pytestmark = pytest.mark.live
# Any: the fixture that opens a town, see conftest.py
OpenTown = Any
GET = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n"


@asynccontextmanager
async def gateway(open_town: OpenTown) -> AsyncIterator[tuple[str, int]]:
    async with open_town() as town, open_gateway(await town.peer("alice"), "127.0.0.1:0") as url:
        host, _, port = url.removeprefix("http://").partition(":")
        yield host, int(port)


async def said(place: tuple[str, int], *parts: bytes, end: bool = False) -> bytes:
    """What comes back for these bytes until the gateway closes, or has answered once."""
    stream = await trio.open_tcp_stream(*place)
    answer = b""
    with trio.fail_after(60):
        async with stream:
            for part in parts:
                try:
                    await stream.send_all(part)
                except trio.BrokenResourceError:
                    break
            try:
                while data := await stream.receive_some():
                    answer += data
                    if not end and answer.endswith((b"}", b"0\r\n\r\n")):
                        break
            except trio.BrokenResourceError:
                pass
    return answer


async def check_alive(place: tuple[str, int]) -> None:
    assert (await said(place, GET)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("sent", "begins"),
    [
        (b"\0" * 100, b"HTTP/1.1 400"),
        (b"hello\r\n\r\n", b"HTTP/1.1 400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 400"),  # no Host
        (b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 100_000, b"HTTP/1.1 431"),
        (b"GET /" + b"a" * 100_000, b"HTTP/1.1 431"),
        (b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n", b"HTTP/1.1 400"),
        (
            b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\nabc",
            b"HTTP/1.1",
        ),
        (b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\n\r\n", b"HTTP/1.1 4"),
        (
            b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            b"HTTP/1.1 403",
        ),
    ],
)
async def test_bytes_that_are_no_request(open_town: OpenTown, sent: bytes, begins: bytes) -> None:
    async with gateway(open_town) as place:
        assert (await said(place, sent, end=True)).startswith(begins)
        await check_alive(place)


async def test_requests_one_behind_the_other(open_town: OpenTown) -> None:
    async with gateway(open_town) as place:
        last = GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
        answer = await said(place, GET + GET + last, end=True)
        assert answer.count(b"HTTP/1.1 200") == 3
        head = await said(place, last.replace(b"GET", b"HEAD"), end=True)
        assert head.startswith(b"HTTP/1.1 200")
        assert head.endswith(b"\r\n\r\n")


async def test_a_body_that_nobody_wants(open_town: OpenTown, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is answered before its end, and the connection ends: hypercorn alone would wait for good."""
    monkeypatch.setattr("modelnet_p2p.node.gateway.gate.LINGER_SECONDS", 0.2)
    async with gateway(open_town) as place:
        head = b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\n"
        large = await said(
            place, head + b"content-length: 99999999\r\n\r\n", *[b"x" * (1 << 20)] * 20, end=True
        )
        assert large.startswith(b"HTTP/1.1 413")
        foreign = head.replace(b"localhost", b"evil.example") + b"transfer-encoding: chunked\r\n\r\n"
        chunk = b"100000\r\n" + b"x" * (1 << 20) + b"\r\n"
        assert (await said(place, foreign, *[chunk] * 20, end=True)).startswith(b"HTTP/1.1 421")
        await check_alive(place)


async def test_who_is_refused_before_his_body_has_come_may_ask_on(open_town: OpenTown) -> None:
    """As httpx does, which sends a head and its body apart, and then asks again on the same connection."""
    async with gateway(open_town) as place:
        stream = await trio.open_tcp_stream(*place)
        with trio.fail_after(60):
            async with stream:
                for path in (b"/nothing", b"/v1/models", b"/healthz"):  # 404, 405, 405
                    await stream.send_all(
                        b"POST " + path + b" HTTP/1.1\r\nhost: localhost\r\ncontent-length: 4\r\n\r\n"
                    )
                    answer = b""
                    while not answer.endswith(b"}"):
                        answer += await stream.receive_some()
                    assert answer.startswith(b"HTTP/1.1 40")
                    await stream.send_all(b"body")
                await stream.send_all(GET)
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")


async def test_a_body_that_does_not_come(open_town: OpenTown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_SECONDS", 0.1)
    monkeypatch.setattr("modelnet_p2p.node.gateway.gate.LINGER_SECONDS", 0.1)
    async with gateway(open_town) as place:
        head = b"POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\nabc"
        assert (await said(place, head, end=True)).startswith(b"HTTP/1.1 504")


async def test_a_head_that_does_not_end(open_town: OpenTown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "HEAD_SECONDS", 0.2)
    async with gateway(open_town) as place:
        assert await said(place, b"GET / HTTP/1.1\r\nhost: ", end=True) == b""
        await check_alive(place)


async def test_a_crowd_that_comes_and_goes(open_town: OpenTown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "MAX_CONNECTIONS", 20)
    monkeypatch.setattr(serving, "HEAD_SECONDS", 3600)  # who is gone has no place until then
    async with gateway(open_town) as place:
        for linger in (b"", GET):
            crowd = [socket.create_connection(place) for _ in range(40)]
            for one in crowd:
                one.sendall(linger)
            await trio.sleep(0.05)
            for one in crowd:  # gone without a goodbye
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.close()
        with trio.fail_after(30):
            while True:
                if (await said(place, GET)).startswith(b"HTTP/1.1 200"):
                    break
                await trio.sleep(0.05)


async def test_http_1_is_all_that_is_spoken(open_town: OpenTown) -> None:
    async with gateway(open_town) as place:
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
        assert (await said(place, preface, end=True)).startswith(b"HTTP/1.1 4")
        upgrade = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n\r\n"
        answer = await said(place, GET.removesuffix(b"\r\n") + upgrade)
        assert answer.startswith(b"HTTP/1.1 200")


async def test_an_answer_leaves_in_one_piece(open_town: OpenTown) -> None:
    async with gateway(open_town) as place:
        stream = await trio.open_tcp_stream(*place)
        async with stream:
            for _ in range(3):
                await stream.send_all(GET)
                answer = bytes(await stream.receive_some())
                assert answer.startswith(b"HTTP/1.1 200")
                assert answer.endswith(b'{"status":"ok"}')


async def test_what_is_held_leaves_with_what_follows_or_with_the_end() -> None:
    theirs, ours = trio.socket.socketpair()
    async with trio.SocketStream(theirs) as client, trio.SocketStream(ours) as inner:
        stream = serving._Stream(inner)
        for more in (b"body", b""):
            stream.hold()
            assert await stream.send_now(b"head ") == b""
            await trio.testing.wait_all_tasks_blocked()
            assert not client.socket.is_readable()
            assert await stream.send_now(more) == b""
            assert bytes(await client.receive_some()) == b"head " + more
        stream.hold()
        await stream.send_now(b"head")
        await stream.send_all(b" and more")  # as where another write is under way
        assert bytes(await client.receive_some()) == b"head and more"
        stream.hold()
        await stream.send_now(b"last")
        await stream.send_eof()
        assert b"".join([bytes(data) async for data in client]) == b"last"


async def test_who_hangs_up_is_told_of_once_asked_for_and_at_once_if_gone() -> None:
    theirs, ours = trio.socket.socketpair()
    async with trio.SocketStream(theirs) as client, trio.SocketStream(ours) as inner:
        stream = serving._Stream(inner)
        told: list[str] = []
        stream.on_gone(lambda: told.append("before"))
        await client.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_now(b"x")
        stream.on_gone(None)
        stream.hung_up()
        stream.on_gone(lambda: told.append("after"))
        assert told == ["before", "after"]


async def test_tokens_that_are_all_there_leave_others_their_turns() -> None:
    theirs, ours = trio.socket.socketpair()
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.SocketStream(theirs), trio.SocketStream(ours) as inner, trio.open_nursery() as nursery:
        stream = serving._Stream(inner)
        nursery.start_soon(others)
        for _ in range(10 * serving.WRITES_AT_ONCE):
            assert await stream.send_now(b"x") == b""
        assert turns >= 8  # the first of ten only begins the task, and the last may not have come to it
        nursery.cancel_scope.cancel()


async def test_who_waits_between_two_requests_holds_nobody_up(
    open_town: OpenTown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "GRACE_SECONDS", 3600)
    with trio.fail_after(60):
        async with gateway(open_town) as place:
            asked, silent = await trio.open_tcp_stream(*place), await trio.open_tcp_stream(*place)
            await asked.send_all(GET)
            assert await asked.receive_some()
        for stream in (asked, silent):
            assert await stream.receive_some() == b""
            await stream.aclose()


async def test_a_port_that_is_taken(open_town: OpenTown) -> None:
    async with gateway(open_town) as (host, port), open_town() as town:
        with pytest.raises(LocalError, match=f"cannot listen on {host}:{port}") as caught:
            async with open_gateway(await town.peer("bob"), f"{host}:{port}"):
                pass
        assert caught.value.code is Code.IN_USE


async def test_a_bug_met_while_the_gateway_is_closed_ends_nothing_else(
    open_town: OpenTown, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        """A connection that fails as it is cancelled."""

        def __init__(self, *_: object) -> None:
            pass

        def __await__(self) -> Any:
            return self._run().__await__()

        async def _run(self) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                try:
                    await trio.sleep_forever()
                finally:
                    raise ValueError("a bug")

    monkeypatch.setattr(serving, "_Http1", Broken)
    async with open_town() as town:
        alice = await town.peer("alice")
        with trio.CancelScope() as scope:
            async with open_gateway(alice, "127.0.0.1:0") as url:
                host, _, port = url.removeprefix("http://").partition(":")
                stream = await trio.open_tcp_stream(host, int(port))
                await trio.sleep(0.1)
                scope.cancel()
                await trio.sleep_forever()
        await stream.aclose()
    assert scope.cancelled_caught
    assert "a bug" in caplog.text
