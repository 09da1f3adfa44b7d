"""A bare trio stream over TCP, plain or inside TLS 1.3: length-prefixed msgpack heads, raw bodies.

What the network would cost without a protocol. Calls share one connection and are told apart by a number.
"""

from __future__ import annotations

import os
import ssl
import struct
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import msgpack
import numpy as np
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from benches.rigs import stage
from benches.rigs.in_trio import order, together
from benches.rigs.stage import MIB, SMALL_BYTES, Line

PIECE = 1 << 20  # bytes that TLS is given at a time: it copies what it is given
LENGTH = struct.Struct("<I")
GONE = (trio.BrokenResourceError, trio.ClosedResourceError, EOFError)


class Reader:
    """Exact reads of a stream; a long one goes straight to the caller's memory where there is no TLS."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._held = memoryview(b"")

    async def head(self) -> Line:
        length = LENGTH.unpack(await self._exactly(LENGTH.size))[0]
        line: Line = msgpack.unpackb(await self._exactly(length))
        return line

    async def _exactly(self, size: int) -> bytes:
        while len(self._held) < size:
            came = await self._stream.receive_some(1 << 16)
            if not came:
                raise EOFError
            self._held = memoryview(bytes(self._held) + bytes(came))
        taken, self._held = bytes(self._held[:size]), self._held[size:]
        return taken

    async def into(self, buffer: memoryview) -> None:
        filled = min(len(self._held), len(buffer))
        buffer[:filled], self._held = self._held[:filled], self._held[filled:]
        while filled < len(buffer):
            if isinstance(self._stream, trio.SocketStream):
                count = await self._stream.socket.recv_into(buffer[filled:])
            else:
                came = await self._stream.receive_some(PIECE)
                count = len(came)
                buffer[filled : filled + count] = came
            if not count:
                raise EOFError
            filled += count


def packed(head: Line) -> bytes:
    packed_head: bytes = msgpack.packb(head)
    return LENGTH.pack(len(packed_head)) + packed_head


async def answer(stream: trio.abc.Stream) -> None:
    """A connection's server: echoes heads, takes tensors in and says how many elements they have."""
    reader = Reader(stream)
    try:
        while True:
            head = await reader.head()
            if "bytes" in head:
                room = np.empty(head["bytes"], np.uint8)
                await reader.into(room.data)
                head = {"id": head["id"], "size": room.view(head["dtype"]).reshape(head["shape"]).size}
                del room
            await stream.send_all(packed(head))
    except GONE:
        return


class TrioRig:
    """The caller's end: one sender at a time, one task that hands out the answers."""

    def __init__(self, open_stream: Callable[[], Awaitable[trio.abc.Stream]], nursery: trio.Nursery) -> None:
        self.calls: Mapping[str, stage.Action] = {"peer": self.echo}
        self.ways: Sequence[str] = (stage.ONLY_WAY,)
        self._open_stream = open_stream
        self._nursery = nursery
        self._small = os.urandom(SMALL_BYTES)
        self._tensors: dict[int, np.ndarray] = {}
        self._next = 0
        self._lock = trio.Lock()

    async def connect(self) -> None:
        self._stream = await self._open_stream()
        self._waiting: dict[int, tuple[trio.Event, Line]] = {}
        self._nursery.start_soon(self._hand_out, Reader(self._stream), self._waiting)

    async def _hand_out(self, reader: Reader, waiting: dict[int, tuple[trio.Event, Line]]) -> None:
        try:
            while True:
                head = await reader.head()
                event, told = waiting.pop(head["id"])
                told.update(head)
                event.set()
        except GONE:
            return

    async def _ask(self, head: Line, body: memoryview | None = None) -> Line:
        self._next += 1
        head["id"] = self._next
        event, told = self._waiting[self._next] = trio.Event(), {}
        async with self._lock:
            await self._stream.send_all(packed(head))
            if body is not None and isinstance(self._stream, trio.SocketStream):
                await self._stream.send_all(body)
            elif body is not None:
                for at in range(0, len(body), PIECE):
                    await self._stream.send_all(body[at : at + PIECE])
        await event.wait()
        return told

    async def echo(self) -> None:
        assert (await self._ask({"echo": self._small}))["echo"] == self._small

    def prepare(self, mebibytes: int) -> None:
        if mebibytes not in self._tensors:
            self._tensors[mebibytes] = np.random.default_rng(0).random(mebibytes * MIB // 4, np.float32)

    async def up(self, mebibytes: int, way: str) -> None:
        self.prepare(mebibytes)
        tensor = self._tensors[mebibytes]
        head = {"bytes": tensor.nbytes, "dtype": "<f4", "shape": tensor.shape}
        assert (await self._ask(head, tensor.data.cast("B")))["size"] == tensor.size

    @asynccontextmanager
    async def strangers(self, count: int) -> AsyncIterator[Sequence[stage.Action]]:
        """Nobody has a name here: a stranger is a new connection to the same server."""
        async with AsyncExitStack() as stack:

            async def greet() -> None:
                other = TrioRig(self._open_stream, self._nursery)
                await other.connect()
                stack.push_async_callback(other.drop)
                await other.echo()

            yield [greet] * count

    async def drop(self) -> None:
        await trio.aclose_forcefully(self._stream)


def make_certificate(host: str, folder: Path) -> tuple[Path, Path]:
    """A certificate for that address, signed by itself, and its key; both in one file each."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(host))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, none = serialization.Encoding.PEM, serialization.NoEncryption()
    chain, secret = folder / "certificate.pem", folder / "key.pem"
    chain.write_bytes(certificate.public_bytes(pem))
    secret.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, none))
    return chain, secret


async def serve(host: str, tls: bool) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    told: Line = {}
    with tempfile.TemporaryDirectory(prefix="mn-bench-") as folder:
        if tls:
            chain, secret = make_certificate(host, Path(folder))
            context.load_cert_chain(chain, secret)
            told["certificate"] = chain.read_text()

    async def handle(stream: trio.SocketStream) -> None:
        await answer(trio.SSLStream(stream, context, server_side=True) if tls else stream)

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host=host)
        nursery.start_soon(trio.serve_listeners, handle, [listener])
        stage.tell(told | {"port": listener.socket.getsockname()[1]})
        await trio.to_thread.run_sync(sys.stdin.read)
        nursery.cancel_scope.cancel()


async def call(wanted: stage.Options, tls: bool, module: str) -> None:
    server, told = stage.start_server(module, wanted)

    async def open_stream() -> trio.abc.Stream:
        stream = await trio.open_tcp_stream(wanted.host, told["port"])
        if not tls:
            return stream
        context = ssl.create_default_context(cadata=told["certificate"])
        return trio.SSLStream(stream, context, server_hostname=wanted.host)

    async with trio.open_nursery() as nursery:
        rig = TrioRig(open_stream, nursery)
        await rig.connect()
        await stage.obey(rig, server.pid, order, together)
        nursery.cancel_scope.cancel()
    stage.end_server(server)


def main(tls: bool = False, module: str = "benches.rigs.with_trio") -> None:
    wanted = stage.options()
    if wanted.serve:
        trio.run(serve, wanted.host, tls)
    else:
        trio.run(call, wanted, tls, module)


if __name__ == "__main__":
    main()
