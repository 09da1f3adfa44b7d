"""One feed-forward expert, 1024-4096-1024 in float32: the `ffn` of hivemind's expert server."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

WIDTH = 1024
SEED = 1024


class Expert(torch.nn.Module):  # type: ignore[misc, unused-ignore]  # where torch is not installed
    """Published as safetensors with `--module expert:Expert`."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.ffn = torch.nn.Linear(width, 4 * width)
        self.ffn_output = torch.nn.Linear(4 * width, width)
        self.layer_norm = torch.nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.gelu(self.ffn(x), approximate="tanh")  # what its `gelu_fast` computes
        z: torch.Tensor = self.layer_norm(x + self.ffn_output(y))
        return z


def make_expert() -> Expert:
    torch.manual_seed(SEED)
    expert: Expert = Expert().eval()
    return expert


def write_expert(path: Path) -> None:
    save_file(make_expert().state_dict(), str(path))


class Alone:
    """The same as a Python callable, one input a step."""

    def __init__(self) -> None:
        self._net = make_expert()

    def __call__(self, x: np.ndarray, nap: float = 0.0) -> np.ndarray | int:
        if nap:
            time.sleep(nap)
        if not x.size:  # asked who it is
            return os.getpid()
        with torch.inference_mode():
            answer: np.ndarray = self._net(torch.from_numpy(x)).numpy()
            return answer


class Together:
    """And 32 rows of them a step, whoever they are of."""

    batches = 32

    def __init__(self) -> None:
        self._net = make_expert()

    def __call__(self, x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            answer: np.ndarray = self._net(torch.from_numpy(x)).numpy()
            return answer
