"""The smallest models: what it costs to call them is what a call costs, and what a tensor costs."""

from __future__ import annotations

import numpy as np


def same(value: object) -> object:
    return value


def size(value: np.ndarray) -> int:
    """Takes a tensor in, and lets go of it."""
    return value.nbytes


def zeros(mebibytes: int) -> np.ndarray:
    """Gives a float32 tensor of that size out."""
    return np.zeros((mebibytes << 20) // 4, np.float32)
