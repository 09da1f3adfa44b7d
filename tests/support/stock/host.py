"""A stock py-libp2p host that nothing of ours touches; prints one line of JSON for each result.

    python host.py listen              print our address, serve until stdin closes
    python host.py dial ADDR MANY      the whole story with ADDR, MANY streams of it at once
    python host.py idle ADDR SECONDS   open a stream, be still for so long, use it again

`stranger.mjs` is the same in JavaScript. Both serve, and in the story both ask of the far side:

    /wire/echo       sends back what comes, until the end
    /wire/digest     reads to the end, then answers with the sha256 in hex
    /wire/source     reads eight bytes, a count; sends so many, ends; says how many came after that
    /wire/gives-up   reads 100,000 bytes and resets
    /wire/listens    sends a byte, reads to the end or the reset, and says which it was
    /wire/calls-back opens /wire/echo to whoever called, and answers with what came back
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import multiaddr
import trio
from libp2p import new_host
from libp2p.abc import IHost, INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.network.config import ConnectionConfig
from libp2p.network.stream.exceptions import StreamEOF, StreamError, StreamReset
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.peerinfo import PeerInfo, info_from_p2p_addr
from libp2p.security.noise.transport import Transport as Noise

ECHO, DIGEST, SOURCE, GIVES_UP, LISTENS, CALLS_BACK = (
    TProtocol(f"/wire/{name}") for name in ("echo", "digest", "source", "gives-up", "listens", "calls-back")
)
SIZE = 10_000_000  # bytes, each way
GIVE_UP_AT = 100_000
AT_ONCE = 65536


def say(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


def pattern(size: int) -> bytes:
    """Of a prime period: two frames in the wrong order would show."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]


async def pieces(stream: INetStream) -> tuple[bytes, str]:
    """All that comes, and how it ended."""
    found = bytearray()
    while True:
        try:
            found += await stream.read(AT_ONCE)
        except StreamEOF:
            return bytes(found), "end"
        except StreamReset:
            return bytes(found), "reset"


async def end(stream: INetStream) -> None:
    """Our side of it; its interface cannot, its one class can."""
    assert isinstance(stream, NetStream)
    await stream.close_write()


async def exactly(stream: INetStream, size: int) -> bytes:
    found = bytearray()
    while len(found) < size:
        found += await stream.read(min(AT_ONCE, size - len(found)))
    return bytes(found)


# --- what it serves ----------------------------------------------------------------------------------


async def echo(stream: INetStream) -> None:
    while True:
        try:
            data = await stream.read(AT_ONCE)
        except StreamEOF:
            return
        await stream.write(data)


async def digest(stream: INetStream) -> None:
    data, _ = await pieces(stream)
    await stream.write(hashlib.sha256(data).hexdigest().encode())


async def source(stream: INetStream) -> None:
    await stream.write(pattern(int.from_bytes(await exactly(stream, 8), "big")))
    await end(stream)
    data, how = await pieces(stream)
    say("after-the-end", bytes=len(data), how=how)


async def gives_up(stream: INetStream) -> None:
    await exactly(stream, GIVE_UP_AT)
    await stream.reset()


async def listens(stream: INetStream) -> None:
    await stream.write(b"!")
    data, how = await pieces(stream)
    say("fate", how=how, bytes=len(data))


def guarded(handler: Callable[[INetStream], Awaitable[None]]) -> Callable[[INetStream], Awaitable[None]]:
    """What leaves a handler would end the stock host."""

    async def run(stream: INetStream) -> None:
        try:
            await handler(stream)
            await stream.close()
        except StreamError as error:
            say("handler-failed", error=repr(error))
            await stream.reset()

    return run


# --- what it asks ------------------------------------------------------------------------------------


class Caller:
    """The story, with one far side."""

    def __init__(self, host: IHost, to: PeerInfo) -> None:
        self._host, self._to = host, to

    async def open(self, protocol: TProtocol) -> INetStream:
        return await self._host.new_stream(self._to.peer_id, [protocol])

    async def story(self, many: int) -> None:
        await self.upload()
        await self.download()
        await self.is_reset()
        await self.resets()
        await self.many(many)

    async def upload(self) -> None:
        stream, data = await self.open(DIGEST), pattern(SIZE)
        await stream.write(data)
        await end(stream)
        answer, how = await pieces(stream)
        say("upload", equal=answer.decode() == hashlib.sha256(data).hexdigest(), how=how)

    async def download(self) -> None:
        stream = await self.open(SOURCE)
        await stream.write(SIZE.to_bytes(8, "big"))
        data, how = await pieces(stream)
        await stream.write(b"thanks")
        await stream.close()
        say("download", equal=data == pattern(SIZE), how=how)

    async def is_reset(self) -> None:
        stream = await self.open(GIVES_UP)
        try:
            await stream.write(pattern(SIZE))
            how = "sent"
        except StreamError:
            how = "reset"
        say("is-reset", how=how)

    async def resets(self) -> None:
        stream = await self.open(LISTENS)
        await stream.write(pattern(GIVE_UP_AT))
        await exactly(stream, 1)
        await stream.reset()
        say("resets")

    async def many(self, count: int) -> None:
        streams: list[INetStream] = []
        for _ in range(count):
            streams.append(await self.open(ECHO))
        for i, stream in enumerate(streams):
            await stream.write(b"%06d" % i)
        good = 0
        for i, stream in enumerate(streams):
            good += await exactly(stream, 6) == b"%06d" % i
        for stream in streams:
            await stream.close()
        say("many", open=count, good=good)

    async def idle(self, seconds: float) -> None:
        stream = await self.open(ECHO)
        await stream.write(b"before")
        await exactly(stream, 6)
        await trio.sleep(seconds)
        await stream.write(b"after!")
        say("used", equal=await exactly(stream, 6) == b"after!")
        await stream.close()

    async def calls_back(self) -> bytes:
        stream = await self.open(ECHO)
        await stream.write(b"it is me")
        answer = await exactly(stream, 8)
        await stream.close()
        return answer


def make_host() -> IHost:
    key = create_new_key_pair()
    # no connections of its own: its AutoConnector dials every peer that it hears of
    calm = ConnectionConfig(min_connections=0, low_watermark=0, auto_connect_interval=3600.0)
    noise: Any = {"/noise": Noise(key, create_noise_key_pair().private_key)}
    return new_host(key_pair=key, sec_opt=noise, muxer_preference="YAMUX", connection_config=calm)


async def main(mode: str, *arguments: str) -> None:
    host = make_host()
    where = [multiaddr.Multiaddr("/ip4/127.0.0.1/tcp/0")] if mode == "listen" else []

    async def calls_back(stream: INetStream) -> None:
        caller = Caller(host, PeerInfo(stream.muxed_conn.peer_id, []))
        await stream.write(await caller.calls_back())

    handlers = {ECHO: echo, DIGEST: digest, SOURCE: source, GIVES_UP: gives_up, LISTENS: listens}
    async with host.run(listen_addrs=where):
        for protocol, handler in {**handlers, CALLS_BACK: calls_back}.items():
            host.set_stream_handler(protocol, guarded(handler))
        match mode, arguments:
            case "listen", ():
                say("listening", addr=str(host.get_addrs()[0]))
                await trio.to_thread.run_sync(sys.stdin.read)
            case "dial" | "idle", (address, amount):
                to = info_from_p2p_addr(multiaddr.Multiaddr(address))
                await host.connect(to)
                say("connected")
                caller = Caller(host, to)
                await (caller.story(int(amount)) if mode == "dial" else caller.idle(float(amount)))
                say("done")
                await trio.to_thread.run_sync(sys.stdin.read)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    trio.run(main, *sys.argv[1:])
