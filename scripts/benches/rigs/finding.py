"""One peer of ours in a process of its own, that publishes and finds when it is told to.

Times are `time.monotonic`'s, which on Linux all processes of a machine share: what one publishes and another
finds can be held against each other.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence

import trio

from benches.rigs import stage
from benches.rigs.in_trio import order
from benches.rigs.stage import Line
from modelnet_p2p import Peer

SOURCE = "builtin:echo"  # served without a worker process
PAUSE = 0.02  # seconds between two looks at whether it is there, or gone
PATIENCE = 60.0  # seconds; three times what the slower of both may take


async def perform(wish: Line, peer: Peer) -> Line:
    match wish:
        case {"do": "publish", "model": str(model), "task": str(task)}:
            await peer.publish(SOURCE, model=model, task=task)
            return {"at": time.monotonic()}
        case {"do": "find", "task": str(task)}:
            started = time.monotonic()
            found = await peer.find(task=task)
            seconds = time.monotonic() - started
            kept = peer.parts.overlay.server.store.records()
            held = [sealed for _, sealed in kept if sealed.record.task == task]
            return {"seconds": seconds, "found": len(found), "local": bool(held)}
        case {"do": "await", "task": str(task), "there": bool(there)}:
            with trio.fail_after(PATIENCE):
                while bool(await peer.find(task=task)) is not there:
                    await trio.sleep(PAUSE)
            return {"at": time.monotonic()}
    raise SystemExit(f"a peer was asked for {wish}")


async def serve(network: str, known: Sequence[str], client: bool) -> None:
    """Until stdin ends."""
    async with Peer.open(bootstrap=known, network=network, listen=() if client else None) as peer:
        stage.tell({"addrs": list(peer.addrs), "peer": peer.id})
        while line := await order():
            stage.tell(await perform(json.loads(line), peer))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", required=True)
    parser.add_argument("--known", action="append", default=[])
    parser.add_argument("--client", action="store_true", help="ask only: hold nothing for others")
    wanted = parser.parse_args()
    trio.run(serve, wanted.network, wanted.known, wanted.client)


if __name__ == "__main__":
    main()
