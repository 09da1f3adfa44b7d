"""A js-libp2p peer from npm and one of ours: noise, yamux, identify, ping and streams, both ways."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from modelnet_p2p.errors import Code, RemoteError
from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.node.transport.addresses import split_p2p
from modelnet_p2p.node.transport.contract import Network, Stream, StreamReset
from modelnet_p2p.node.transport.ping import PING
from modelnet_p2p.node.transport.securing import establish, new_static_key
from modelnet_p2p.tuning import LAN

pytestmark = [pytest.mark.js, pytest.mark.live]
HERE = Path(__file__).parent
ECHO = "/modelnet/echo/1.0.0"


@asynccontextmanager
async def open_ours() -> AsyncIterator[Network]:
    from modelnet_p2p.node.transport.libp2p_network import open_libp2p

    where = ["/ip4/127.0.0.1/tcp/0"]
    async with open_libp2p(KeyPair(b"o" * 32), listen=where, tuning=LAN, network="public") as network:
        yield network


async def read_to_end(stream: Stream) -> bytes:
    buffer, found = memoryview(bytearray(65536)), bytearray()
    while n := await stream.receive_into(buffer):
        found += buffer[:n]
    return bytes(found)


@asynccontextmanager
async def js_listens(node: str) -> AsyncIterator[tuple[PeerId, str]]:
    """A js peer in a process of its own that listens: its id and its address. It ends with its stdin."""
    async with trio.open_nursery() as nursery:
        process = await nursery.start(
            lambda task_status: trio.run_process(
                [node, "peer.mjs", "listen"],
                cwd=HERE,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                task_status=task_status,
            )
        )
        with trio.fail_after(60):
            line = b""
            while not line.endswith(b"\n"):
                line += await process.stdout.receive_some(4096)
            peer, addr = split_p2p(json.loads(line)["addr"])
            assert peer is not None
            yield peer, addr
            await process.stdin.aclose()


async def test_js_dials_us(node: str) -> None:
    heard: list[str] = []

    async def echo(stream: Stream) -> None:
        await stream.send([await read_to_end(stream)])

    async def gives_up(stream: Stream) -> None:
        await stream.receive_into(memoryview(bytearray(1)))
        await stream.reset()

    async def listens(stream: Stream) -> None:
        buffer = memoryview(bytearray(100))
        try:
            while n := await stream.receive_into(buffer):
                heard.append(bytes(buffer[:n]).decode())
            heard.append("end")
        except StreamReset:
            heard.append("reset")

    async with open_ours() as ours:
        ours.handle(ECHO, echo)
        ours.handle("/modelnet/gives-up/1.0.0", gives_up)
        ours.handle("/modelnet/listens/1.0.0", listens)
        command = [node, "peer.mjs", "dial", ours.addrs[0]]
        with trio.fail_after(60):
            done = await trio.run_process(
                command, cwd=HERE, capture_stdout=True, capture_stderr=True, check=False
            )
        assert done.returncode == 0, done.stderr.decode()[-2000:]
        with trio.fail_after(5):
            while ours.connected():
                await trio.sleep(0.01)

    lines = [json.loads(line) for line in done.stdout.splitlines()]
    said: dict[str, dict[str, Any]] = {line.pop("event"): line for line in lines}
    assert said["connected"] == {"encryption": "/noise", "muxer": "/yamux/1.0.0"}
    assert said["identified"]["agent"].startswith("modelnet/")
    assert {ECHO, PING} <= set(said["identified"]["protocols"])
    assert said["identified"]["addrs"] == [split_p2p(ours.addrs[0])[1]]
    assert said["ping"]["ms"] >= 0
    assert said["echo"] == {"equal": True}
    assert said["unknown"] == {"refused": True}
    assert said["reset"] == {"seen": True}
    assert heard == ["so far", "reset"]


async def test_we_dial_js(node: str) -> None:
    async with open_ours() as ours, js_listens(node) as (peer, addr):
        await ours.connect(peer, [addr])
        assert {ECHO, PING} <= await ours.protocols(peer)
        assert addr in ours.peer_addrs(peer)

        async with await ours.open_stream(peer, PING) as stream:
            for payload in (b"a" * 32, b"b" * 32):
                await stream.send([payload])
                buffer = bytearray(32)
                got = 0
                while got < 32:
                    got += await stream.receive_into(memoryview(buffer)[got:])
                assert bytes(buffer) == payload

        sent = bytes(range(256)) * 3000
        async with await ours.open_stream(peer, ECHO) as stream:
            await stream.send([sent])
            await stream.finish()
            assert await read_to_end(stream) == sent

        with pytest.raises(RemoteError) as caught:
            await ours.open_stream(peer, "/nobody/speaks/this")
        assert caught.value.code is Code.UNKNOWN_METHOD


class Raw:
    """A socket as the handshake sees it, and all that went through it."""

    def __init__(self, socket: trio.SocketStream) -> None:
        self.socket = socket
        self.sent: list[bytes] = []

    async def read(self) -> bytes:
        data = bytes(await self.socket.receive_some(65536))
        assert data, "js closed the connection"
        return data

    async def write(self, data: bytes) -> None:
        self.sent.append(data)
        await self.socket.send_all(data)


async def test_js_agrees_on_the_muxer_inside_our_handshake(node: str) -> None:
    """Its first message rides behind our proposal of it, and nothing is asked after it."""
    async with js_listens(node) as (peer, addr):
        raw = Raw(await trio.open_tcp_stream("127.0.0.1", int(addr.split("/")[4])))
        async with raw.socket:
            established = await establish(raw, KeyPair(b"o" * 32), new_static_key(), peer)
        assert established.peer == peer
        assert len(raw.sent) == 2  # proposal and first message; the third


async def test_js_sends_frames_right_behind_its_handshake(node: str) -> None:
    key, heard = KeyPair(b"o" * 32), bytearray()

    async def listen(socket: trio.SocketStream) -> None:
        async with socket:
            raw = Raw(socket)
            established = await establish(raw, key, new_static_key(), None)
            heard.extend(established.early)
            while len(heard) < 12:
                data = await raw.read()
                room = memoryview(bytearray(len(data) + 131072))
                start = established.opener.begin(room)
                room[start : start + len(data)] = data
                scratch = memoryview(bytearray(65535))
                for plain in established.opener.open(room, start + len(data), scratch):
                    heard.extend(plain)
        nursery.cancel_scope.cancel()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = listener.socket.getsockname()[1]
            nursery.start_soon(trio.serve_listeners, listen, [listener])
            command = [node, "peer.mjs", "dial", f"/ip4/127.0.0.1/tcp/{port}/p2p/{key.id}"]
            await trio.run_process(command, cwd=HERE, capture_stdout=True, capture_stderr=True, check=False)
    assert heard[0] == 0  # yamux's version; a negotiation would begin with the length of its first text
