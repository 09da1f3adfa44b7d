"""Ours: two peers and a worker, called through `Peer.invoke` as anybody would.

The small call is answered by the built-in echo in the peer's own process, or by a callable in its worker;
tensors go to a callable in the worker.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import trio

from benches.rigs import stage
from benches.rigs.in_trio import order, together
from benches.rigs.stage import MIB, SMALL_BYTES, Line
from modelnet_p2p import Peer
from modelnet_p2p.events import Call
from modelnet_p2p.identity import PeerId

MODULE = "benches.rigs.with_modelnet"
MODELS = Path(__file__).resolve().parent.parent  # where echo.py lies
NETWORK = "MODELNET_NETWORK"  # in the environment: the caller names it, its servers read it
PEER_ECHO, WORKER_ECHO, SINK = "modelnet/echo", "bench/echo", "bench/sink"
TIMEOUT = 120.0  # seconds; longer than any tensor takes on the slow link


async def serve(host: str, strangers: int) -> None:
    os.chdir(MODELS)
    network = os.environ[NETWORK]
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="mn-bench-"))
        told: list[Line] = []
        for number in range(max(1, strangers)):
            # a runtime directory each: peers that share one meet, and would tell the caller of each other
            os.environ["XDG_RUNTIME_DIR"] = f"{folder}/{number}"
            os.mkdir(os.environ["XDG_RUNTIME_DIR"], mode=0o700)
            opened = Peer.open(listen=[f"/ip4/{host}/tcp/0"], network=network)
            peer = await stack.enter_async_context(opened)
            published = await peer.publish("builtin:echo")
            told.append({"peer": peer.id, "addrs": peer.addrs, "uri": published["uri"]})
            if not strangers:
                await peer.publish("echo:same", model=WORKER_ECHO)
                await peer.publish("echo:size", model=SINK)
        stage.tell({"servers": told})
        await trio.to_thread.run_sync(sys.stdin.read)


class ModelnetRig:
    """The caller's end: a peer that only asks."""

    def __init__(self, peer: Peer, wanted: stage.Options) -> None:
        self.calls: Mapping[str, stage.Action] = {
            "peer": functools.partial(self._echo, PEER_ECHO),
            "worker": functools.partial(self._echo, WORKER_ECHO),
        }
        self.ways: Sequence[str] = (stage.ONLY_WAY,)
        self._peer, self._wanted = peer, wanted
        self._small = os.urandom(SMALL_BYTES)
        self._tensors: dict[int, np.ndarray] = {}

    async def _echo(self, model: str) -> None:
        assert await self._peer.invoke(model, self._small) == self._small

    def prepare(self, mebibytes: int) -> None:
        if mebibytes not in self._tensors:
            self._tensors[mebibytes] = np.random.default_rng(0).random(mebibytes * MIB // 4, np.float32)

    async def up(self, mebibytes: int, way: str) -> None:
        self.prepare(mebibytes)
        tensor = self._tensors[mebibytes]
        assert await self._peer.invoke(SINK, tensor, timeout=TIMEOUT) == tensor.nbytes

    @asynccontextmanager
    async def strangers(self, count: int) -> AsyncIterator[Sequence[stage.Action]]:
        """Peers that each are alone, greeted by one whose addresses alone are known: without a search.

        That is what a dialler of the other systems has, and needs the call client, which is below `Peer`.
        """
        server, told = stage.start_server(MODULE, self._wanted, count)
        try:
            async with Peer.open(listen=[], network=os.environ[NETWORK], bootstrap=[]) as caller:
                yield [functools.partial(self._greet, caller, line) for line in told["servers"]]
        finally:
            stage.end_server(server)

    async def _greet(self, caller: Peer, server: Line) -> None:
        addrs = [addr.split("/p2p/")[0] for addr in server["addrs"]]
        call = Call(target=server["uri"], value=self._small, key=os.urandom(16).hex())
        result = await caller.parts.call_client.unary(PeerId.parse(server["peer"]), addrs, call, TIMEOUT)
        assert result.value == self._small


async def call(wanted: stage.Options) -> None:
    os.environ[NETWORK] = f"bench-{os.getpid()}"
    server, told = stage.start_server(MODULE, wanted)
    known = [told["servers"][0]["addrs"][0]]
    async with Peer.open(listen=[], network=os.environ[NETWORK], bootstrap=known) as peer:
        await stage.obey(ModelnetRig(peer, wanted), server.pid, order, together)
    stage.end_server(server)


def main() -> None:
    wanted = stage.options()
    if wanted.serve:
        trio.run(serve, wanted.host, wanted.strangers)
    else:
        trio.run(call, wanted)


if __name__ == "__main__":
    main()
