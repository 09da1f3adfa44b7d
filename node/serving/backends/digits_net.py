"""The digits family: one residual network with three exits, in plain numpy.

A stem and two residual blocks share one hidden width; an exit after each gives an answer, so the
three sizes are one model: who stopped at exit 1 hands its hidden state to who goes on to exit 2.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

EXITS = 3
CLASSES = 10
PIXELS = 64  # 8 x 8, row by row
WHITE = 16.0  # the darkest pixel's value in the data set


class DigitsNet:
    """Weights are [inputs, outputs], float32; every method takes and gives rows of examples."""

    def __init__(self, weights: Mapping[str, Floats]) -> None:
        self._weights = weights

    @property
    def parameters(self) -> int:
        return sum(array.size for array in self._weights.values())

    def scores(self, images: Floats, exit: int) -> Floats:
        """Class probabilities [n, 10] of images [n, 8, 8] with values 0 to 16, at exit 1 to 3."""
        hidden = self.stem(images)
        for depth in range(1, exit):
            hidden = self.block(hidden, depth)
        return softmax(self.answer(hidden, exit))

    def stem(self, images: Floats) -> Floats:
        """The hidden state [n, width] at exit 1."""
        pixels = images.reshape(len(images), PIXELS) / np.float32(WHITE)
        return relu(self._linear("stem", pixels))

    def block(self, hidden: Floats, depth: int) -> Floats:
        """The hidden state at exit `depth + 1` from the one at exit `depth`."""
        return hidden + self._linear(f"block{depth}.down", relu(self._linear(f"block{depth}.up", hidden)))

    def answer(self, hidden: Floats, exit: int) -> Floats:
        """Logits [n, 10] from the hidden state at that exit."""
        return self._linear(f"exit{exit}", hidden)

    def _linear(self, name: str, rows: Floats) -> Floats:
        return rows @ self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]


def relu(rows: Floats) -> Floats:
    return np.maximum(rows, np.float32(0))


def softmax(logits: Floats) -> Floats:
    shifted: Floats = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    total: Floats = shifted.sum(axis=1, keepdims=True)
    return shifted / total
