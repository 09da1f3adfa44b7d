"""gRPC for Python as its users have it: the asyncio API, one channel without TLS, messages of raw bytes.

A tensor goes as a stream of pieces, small or large, or as one message: which is quicker depends on its size.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import numpy as np

from benches.rigs import stage
from benches.rigs.in_asyncio import order, together
from benches.rigs.stage import MIB, SMALL_BYTES

OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # a closed channel's connection is not handed to the next one
]
WAYS = {"1 MiB pieces": 1 << 20, "64 KiB pieces": 1 << 16, "one message": 0}  # bytes a piece


async def echo(request: bytes, context: object) -> bytes:
    return request


async def up_whole(request: bytes, context: object) -> bytes:
    return str(np.frombuffer(request, np.float32).size).encode()


async def up_pieces(requests: AsyncIterator[bytes], context: object) -> bytes:
    pieces = [piece async for piece in requests]
    return await up_whole(b"".join(pieces), context)


async def serve(host: str) -> None:
    server = grpc.aio.server(options=OPTIONS)
    methods = {
        "echo": grpc.unary_unary_rpc_method_handler(echo),
        "whole": grpc.unary_unary_rpc_method_handler(up_whole),
        "pieces": grpc.stream_unary_rpc_method_handler(up_pieces),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench", methods),))
    port = server.add_insecure_port(f"{host}:0")
    await server.start()
    stage.tell({"port": port})
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(None)


class GrpcRig:
    """The caller's end: one channel."""

    def __init__(self, address: str) -> None:
        self.calls: Mapping[str, stage.Action] = {"peer": self.echo}
        self.ways: Sequence[str] = tuple(WAYS)
        self._address = address
        self._small = os.urandom(SMALL_BYTES)
        self._tensors: dict[int, np.ndarray] = {}
        self._channel = grpc.aio.insecure_channel(self._address, options=OPTIONS)
        self._echo = self._channel.unary_unary("/bench/echo")
        self._whole = self._channel.unary_unary("/bench/whole")
        self._pieces = self._channel.stream_unary("/bench/pieces")

    async def echo(self) -> None:
        assert await self._echo(self._small) == self._small

    def prepare(self, mebibytes: int) -> None:
        if mebibytes not in self._tensors:
            self._tensors[mebibytes] = np.random.default_rng(0).random(mebibytes * MIB // 4, np.float32)

    async def up(self, mebibytes: int, way: str) -> None:
        self.prepare(mebibytes)
        tensor = self._tensors[mebibytes]
        if piece := WAYS[way]:
            told = await self._pieces(pieces_of(tensor, piece))
        else:
            told = await self._whole(tensor.tobytes())
        assert int(told) == tensor.size

    @asynccontextmanager
    async def strangers(self, count: int) -> AsyncIterator[Sequence[stage.Action]]:
        """Nobody has a name here: a stranger is a new channel to the same server."""
        async with AsyncExitStack() as stack:

            async def greet() -> None:
                other = GrpcRig(self._address)
                stack.push_async_callback(other.drop)
                await other.echo()

            yield [greet] * count

    async def drop(self) -> None:
        await self._channel.close()


async def pieces_of(tensor: np.ndarray, piece: int) -> AsyncIterator[bytes]:
    whole = tensor.data.cast("B")
    for at in range(0, len(whole), piece):
        yield bytes(whole[at : at + piece])


async def call(wanted: stage.Options) -> None:
    server, told = stage.start_server("benches.rigs.with_grpc", wanted)
    rig = GrpcRig(f"{wanted.host}:{told['port']}")
    await stage.obey(rig, server.pid, order, together)
    await rig.drop()
    stage.end_server(server)


def main() -> None:
    wanted = stage.options()
    asyncio.run(serve(wanted.host) if wanted.serve else call(wanted))


if __name__ == "__main__":
    main()
