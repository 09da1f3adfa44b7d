"""Several peers in one process, for a swarm that does not pay an interpreter for each; run by the bench.

Prints a ready line like `modelnet-peer join`, for the first of them, and lives until SIGTERM. With
`--publish`, the first peer also serves an echo, for those who look for its task.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import trio

from modelnet_p2p import Peer

ECHO, ECHO_TASK = "bench/echo", "x-bench/echo"


async def serve(count: int, bootstrap: list[str], publish: bool) -> None:
    """Until SIGTERM."""
    home, network = Path(os.environ["MODELNET_HOME"]), os.environ["MODELNET_NETWORK"]
    async with AsyncExitStack() as stack:
        stop = stack.enter_context(trio.open_signal_receiver(signal.SIGTERM))
        peers: list[Peer] = []
        for number in range(count):
            known = bootstrap or [address for peer in peers[:1] for address in peer.addrs]
            peer = Peer.open(bootstrap=known, home=home / str(number), network=network)
            peers.append(await stack.enter_async_context(peer))
        if publish:
            await peers[0].publish("echo:same", model=ECHO, task=ECHO_TASK)
        print(json.dumps({"event": "ready", "peer": peers[0].id, "addrs": peers[0].addrs}), flush=True)
        async for _ in stop:
            break


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peers", type=int, required=True)
    parser.add_argument("--bootstrap", action="append", default=[])
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()
    trio.run(serve, options.peers, options.bootstrap, options.publish)


if __name__ == "__main__":
    main()
