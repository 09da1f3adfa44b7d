#!/usr/bin/env python3
"""Searches the lines of a file by what they mean, with an encoder that some peer of the network serves.

    modelnet-peer join --publish builtin:minilm       # in another terminal, here or on another machine
    python scripts/examples/semantic_search.py notes.txt "what did we decide about the roof?"

Nothing of the model is needed here: lines and question travel to the provider, vectors come back. So whoever
serves the encoder reads them; for private notes serve it yourself. Settings such as MODELNET_BOOTSTRAP
hold as they do for the command line.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import trio

from modelnet_p2p import LocalError, NotFound, Peer, RemoteError

ENCODER = "modelnet/minilm"
AT_ONCE = 256  # lines in one call: some seconds of work for a laptop
PATIENCE = 120.0  # seconds for one call


async def search(lines: list[str], question: str, best: int) -> None:
    addresses = [address for address in os.environ.get("MODELNET_BOOTSTRAP", "").split(",") if address]
    network = os.environ.get("MODELNET_NETWORK") or "public"
    async with Peer.open(bootstrap=addresses, listen=(), network=network) as peer:
        asked = await peer.call(ENCODER, question, timeout=PATIENCE)
        vectors = [
            np.asarray(await peer.invoke(ENCODER, lines[at : at + AT_ONCE], timeout=PATIENCE), np.float32)
            for at in range(0, len(lines), AT_ONCE)
        ]
    scores = np.concatenate(vectors) @ np.asarray(asked.output)[0]  # of unit vectors: their cosines
    for row in np.argsort(-scores, kind="stable")[:best]:
        print(f"{scores[row]:.2f}  {lines[row]}")
    print(f"encoded by {asked.provider}", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="a text file; every line that is not empty can be found")
    parser.add_argument("question")
    parser.add_argument("--best", type=int, default=3, metavar="N", help="lines to show (3)")
    options = parser.parse_args()
    try:
        lines = [line.strip() for line in options.file.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        print(f"cannot read {options.file}: {error}", file=sys.stderr)
        return 6
    if not lines:
        print(f"{options.file} has no lines to search", file=sys.stderr)
        return 6
    try:
        trio.run(search, lines, options.question, options.best)
    except NotFound:
        print(
            f"nobody serves {ENCODER} here; type: modelnet-peer join --publish builtin:minilm",
            file=sys.stderr,
        )
        return 3
    except (LocalError, RemoteError) as error:
        print(f"{error.message}; {error.hint}", file=sys.stderr)
        return 5
    return 0


if __name__ == "__main__":
    sys.exit(main())
