"""hivemind's P2P as its own experts use it: Go daemons on both sides, unary and streamed protobuf calls.

A tensor goes the way that hivemind sends it between averagers and experts: `serialize_torch_tensor`, pieces
by `split_for_streaming`, `deserialize_tensor_stream` at the other end; in small pieces or large ones.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import torch
from hivemind.compression import deserialize_tensor_stream, serialize_torch_tensor
from hivemind.p2p import P2P, P2PContext, PeerID
from hivemind.proto.runtime_pb2 import Tensor
from hivemind.utils.asyncio import iter_as_aiter, switch_to_uvloop
from hivemind.utils.multiaddr import Multiaddr
from hivemind.utils.streaming import split_for_streaming

from benches.rigs import stage
from benches.rigs.in_asyncio import order, together
from benches.rigs.stage import MIB, SMALL_BYTES

MODULE = "benches.rigs.with_hivemind"
WAYS = {"64 KiB pieces": 1 << 16, "1 MiB pieces": 1 << 20}  # bytes a piece; its own default first


async def echo(request: Tensor, context: P2PContext) -> Tensor:
    return request


async def up(requests: AsyncIterator[Tensor], context: P2PContext) -> Tensor:
    async def parts() -> AsyncIterator[list[Tensor]]:
        async for request in requests:
            yield [request]

    [tensor] = await deserialize_tensor_stream(parts())
    return Tensor(chunks=tensor.numel())


async def serve(host: str, strangers: int) -> None:
    torch.set_num_threads(1)
    served, told = [], []
    for _ in range(max(1, strangers)):
        p2p = await P2P.create(host_maddrs=[f"/ip4/{host}/tcp/0"])
        served.append(p2p)
        await p2p.add_protobuf_handler("echo", echo, Tensor)
        await p2p.add_protobuf_handler("up", up, Tensor, stream_input=True)
        addrs = [str(addr).split("/p2p/")[0] for addr in await p2p.get_visible_maddrs()]
        told.append({"peer": p2p.peer_id.to_base58(), "addrs": addrs})
    stage.tell({"servers": told})
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for p2p in served:
        await p2p.shutdown()


class HivemindRig:
    """The caller's end: its own daemon, connected to the server's."""

    def __init__(self, p2p: P2P, server: stage.Line, wanted: stage.Options) -> None:
        self.calls: Mapping[str, stage.Action] = {"peer": self.echo}
        self.ways: Sequence[str] = tuple(WAYS)
        self._p2p, self._wanted = p2p, wanted
        self._peer = PeerID.from_base58(server["peer"])
        self._addrs = [Multiaddr(addr) for addr in server["addrs"]]
        self._small = os.urandom(SMALL_BYTES)
        self._tensors: dict[int, torch.Tensor] = {}

    async def connect(self) -> None:
        await self._p2p._client.connect(self._peer, self._addrs)

    async def echo(self) -> None:
        told = await self._p2p.call_protobuf_handler(self._peer, "echo", Tensor(buffer=self._small), Tensor)
        assert told.buffer == self._small

    def prepare(self, mebibytes: int) -> None:
        if mebibytes not in self._tensors:
            self._tensors[mebibytes] = torch.randn(mebibytes * MIB // 4)

    async def up(self, mebibytes: int, way: str) -> None:
        self.prepare(mebibytes)
        tensor = self._tensors[mebibytes]
        pieces = iter_as_aiter(split_for_streaming(serialize_torch_tensor(tensor), WAYS[way]))
        told = await self._p2p.iterate_protobuf_handler(self._peer, "up", pieces, Tensor)
        assert [part.chunks async for part in told] == [tensor.numel()]

    @asynccontextmanager
    async def strangers(self, count: int) -> AsyncIterator[Sequence[stage.Action]]:
        """Each with a daemon of its own."""
        server, told = stage.start_server(MODULE, self._wanted, count)

        def greeting(line: stage.Line) -> stage.Action:
            async def greet() -> None:
                other = HivemindRig(self._p2p, line, self._wanted)
                await other.connect()
                await other.echo()

            return greet

        try:
            yield [greeting(line) for line in told["servers"]]
        finally:
            stage.end_server(server)


async def call(wanted: stage.Options) -> None:
    torch.set_num_threads(1)
    server, told = stage.start_server(MODULE, wanted)
    p2p = await P2P.create()
    rig = HivemindRig(p2p, told["servers"][0], wanted)
    await rig.connect()
    await stage.obey(rig, server.pid, order, together)
    await p2p.shutdown()
    stage.end_server(server)


def main() -> None:
    wanted = stage.options()
    loop = switch_to_uvloop()  # as hivemind's own processes do
    loop.run_until_complete(serve(wanted.host, wanted.strangers) if wanted.serve else call(wanted))


if __name__ == "__main__":
    main()
