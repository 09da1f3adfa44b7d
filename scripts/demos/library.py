"""A library as a model: passages, found by what they mean. It has no encoder of its own.

When it is loaded it asks the network who turns texts into vectors, and has its passages encoded there. From
then on it answers a question, given as such a vector, with the passages nearest to it.

    modelnet-peer publish library:Library --model demo/library --task x-demo/retrieval
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import trio
from numpy.typing import NDArray

from modelnet_p2p import Peer

PASSAGES = Path(__file__).resolve().with_name("passages.txt")
ENCODER = "modelnet/minilm"
PATIENCE = 60.0  # seconds; an encoder that was published just now may still be warming up
MOST = 20  # passages in one answer

Vectors = NDArray[np.float32]


class Passage(NamedTuple):
    title: str
    text: str


def read(path: Path = PASSAGES) -> list[Passage]:
    """A title, a colon, a passage, one a line; lines that begin with # are for people."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [Passage(*line.split(": ", 1)) for line in lines]


async def encode(texts: list[str]) -> tuple[Vectors, str | None]:
    """Unit vectors [n, 384] of these texts, by whoever serves the encoder, and that model's digest.

    The peer that asks is one of this machine's, in the network of whoever publishes the library.
    """
    bootstrap = [address for address in os.environ.get("MODELNET_BOOTSTRAP", "").split(",") if address]
    network = os.environ.get("MODELNET_NETWORK") or "public"
    async with Peer.open(bootstrap=bootstrap, listen=(), network=network) as peer:
        done = await peer.call(ENCODER, texts, timeout=PATIENCE)
    return np.asarray(done.output, np.float32), done.digest


class Library:
    """`vectors` are of the passages, in their order; without them the network is asked for them."""

    idempotent = True

    def __init__(self, vectors: Vectors | None = None, encoder: str | None = None) -> None:
        self._passages = read()
        if vectors is None:
            vectors, encoder = trio.run(encode, [passage.text for passage in self._passages])
        self._vectors = vectors
        self._encoder = encoder

    def __call__(self, question: np.ndarray, k: int = 3) -> dict[str, object]:
        """The `k` passages nearest to a vector [384] or [1, 384], best first; a score is a cosine.

        {"found": [{"title", "text", "score"}], "encoder": the digest of the model that encoded them, which
        the question's encoder must have, too}
        """
        width = self._vectors.shape[1]
        vector = np.asarray(question, np.float32).reshape(-1)
        length = float(np.linalg.norm(vector)) if vector.size == width else 0.0
        if not 0 < length < np.inf:
            raise ValueError(f"expected one vector of {width} numbers, as {ENCODER} makes them")
        if type(k) is not int or not 1 <= k <= MOST:
            raise ValueError(f"expected k of 1 to {MOST}, got {str(k)[:20]}")
        scores = self._vectors @ (vector / length)
        best = np.argsort(-scores, kind="stable")[:k]
        found = [{**self._passages[row]._asdict(), "score": float(scores[row])} for row in best]
        return {"found": found, "encoder": self._encoder}
