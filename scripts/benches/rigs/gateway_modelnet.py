"""Two processes of peers: some that serve models which talk, and one with a gateway that asks them.

Beside the gateway, in the same process and by the same server, a plain application calls `Peer.invoke`: what
the gateway costs is what it takes more.
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import hypercorn.trio
import trio
from hypercorn.config import Config
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from benches.rigs import stage
from modelnet_p2p import Peer

MODULE = "benches.rigs.gateway_modelnet"
MODELS = Path(__file__).resolve().parent.parent  # where talk.py lies
NETWORK = "MODELNET_NETWORK"  # in the environment: the caller names it, its server reads it
WORDS, SAME = "bench/words", "bench/same"
CROWD_TASK = "x-bench/crowd"  # several providers have it, and a model's name would be each one's own


async def serve(providers: int) -> None:
    os.chdir(MODELS)
    async with AsyncExitStack() as stack:
        os.environ["XDG_RUNTIME_DIR"] = stack.enter_context(tempfile.TemporaryDirectory(prefix="mn-bench-"))
        addrs: list[str] = []
        for _ in range(providers):
            peer = await stack.enter_async_context(Peer.open(network=os.environ[NETWORK], bootstrap=addrs))
            if not addrs:
                addrs = list(peer.addrs[:1])
                await peer.publish("talk:words", model=WORDS, task="text-generation")
                await peer.publish("talk:same", model=SAME)
            await peer.publish("talk:crowd", task=CROWD_TASK)
        stage.tell({"addrs": addrs})
        await trio.to_thread.run_sync(sys.stdin.read)


def plain_app(peer: Peer) -> Starlette:
    """What somebody writes who has no gateway: one route, one call."""

    async def call(request: Request) -> JSONResponse:
        asked = await request.json()
        return JSONResponse({"output": await peer.invoke(SAME, asked["input"])})

    return Starlette(routes=[Route("/call", call, methods=["POST"])])


async def ask(wanted: stage.Options) -> None:
    os.environ[NETWORK] = f"bench-{os.getpid()}"
    server, told = stage.start_server(MODULE, wanted, wanted.strangers)
    opened = Peer.open(listen=[], network=os.environ[NETWORK], bootstrap=told["addrs"], gateway="127.0.0.1:0")
    config = Config()
    config.bind = ["127.0.0.1:0"]
    config.accesslog = config.errorlog = None
    async with opened as peer, trio.open_nursery() as nursery:
        [plain] = await nursery.start(hypercorn.trio.serve, plain_app(peer), config)
        urls = {"gateway": peer.gateway, "plain": plain}
        stage.tell({"ready": True, "server": server.pid, "ways": [stage.ONLY_WAY], **urls})
        while await trio.to_thread.run_sync(stage.next_order):
            pass
        nursery.cancel_scope.cancel()
    stage.end_server(server)


def main() -> None:
    wanted = stage.options()
    if wanted.serve:
        trio.run(serve, wanted.strangers)
    else:
        trio.run(ask, wanted)


if __name__ == "__main__":
    main()
