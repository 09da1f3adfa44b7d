"""Ask the network who can do a task, print what is known of each, and call the best.

    .venv/bin/python scripts/examples/query_dht.py [TASK] [BOOTSTRAP]

Without BOOTSTRAP it asks the peers of this machine. One to ask:

    .venv/bin/modelnet-peer join --publish builtin:digits
"""

import sys
from typing import Any

import numpy as np

from modelnet_p2p import NotFound, RemoteError, Swarm


def main(task: str = "image-classification", *bootstrap: str) -> int:
    with Swarm.open(bootstrap=bootstrap, listen=[]) as swarm:  # listens nowhere: it only asks
        for offer in swarm.search(task=task):
            rtt = "?" if offer.rtt_ms is None else f"{offer.rtt_ms:.1f}"
            print(f"{offer.model}  by {offer.provider}  {offer.state}  {rtt} ms  {offer.framework}")
        if task != "image-classification":
            return 0
        try:
            outcome = swarm.call(f"task:{task}", np.zeros((1, 8, 8), np.float32))
        except (NotFound, RemoteError) as error:
            print(f"{error}; {error.hint}", file=sys.stderr)
            return 3
        answer: Any = outcome.output  # whatever that model gives: this one a map
        print(f"{answer['label']} says {outcome.provider} after {outcome.total_ms:.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
