"""The lightest model there is, for what happens to a worker rather than in it."""

from __future__ import annotations

import os
import time

import numpy as np


class Napping:
    def __call__(self, x: np.ndarray, nap: float = 0.0) -> np.ndarray | int:
        if nap:
            time.sleep(nap)
        return x if x.size else os.getpid()  # without rows it is asked who it is
