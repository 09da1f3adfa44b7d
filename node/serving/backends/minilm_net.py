"""The encoder all-MiniLM-L6-v2 as a function of its weights: six BERT layers, mean pooling, unit length.

It is written out here because torch and a hundred lines are all that it takes: the general library of such
models weighs more than this whole project and takes seconds to import. Names of weights are the file's.

Source: Devlin et al., BERT, 2019; Wang et al., MiniLM, 2020; Reimers and Gurevych, Sentence-BERT, 2019.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from modelnet_p2p.node.serving.backends.torch_packing import apply_packed, packed_weight

LAYERS = 6
HEADS = 12
WIDTH = 384
EPSILON = 1e-12  # of the layer norms
MATRICES = ("query.weight", "key.weight", "value.weight", "dense.weight")  # what their names end with
UNUSED = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")  # of the file's tensors


class MiniLmNet:
    """Weights are torch tensors, float32, [outputs, inputs]; all on one device, on the CPU packed. They are
    taken out of `weights` one after the other, so that none is held twice."""

    def __init__(self, weights: dict[str, torch.Tensor], device: str) -> None:
        self._device = device
        self._weights: dict[str, torch.Tensor] = {}
        self._packed: dict[str, torch.Tensor] = {}  # matrices of layers, by the same names
        self.parameters = 0
        for name in [name for name in weights if name not in UNUSED]:
            tensor = weights.pop(name).to(device)
            self.parameters += tensor.numel()
            packed = packed_weight(tensor, None) if name.endswith(MATRICES) else None
            if packed is None:
                self._weights[name] = tensor
            else:
                self._packed[name] = packed

    @torch.inference_mode()
    def encode(self, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """Unit vectors [n, 384] of n lists of token ids, each with its [CLS] and [SEP], of at most 512."""
        longest = max(map(len, ids))
        tokens = torch.zeros(len(ids), longest, dtype=torch.int64)
        real = torch.zeros(len(ids), longest, dtype=torch.bool)  # False: padding, which nobody looks at
        for row, line in enumerate(ids):
            tokens[row, : len(line)] = torch.tensor(line)
            real[row, : len(line)] = True
        real = real.to(self._device)
        hidden = self._embed(tokens.to(self._device))
        for layer in range(LAYERS):
            hidden = self._layer(f"encoder.layer.{layer}", hidden, real[:, None, None, :])
        mean = (hidden * real[:, :, None]).sum(1) / real.sum(1, keepdim=True)
        vectors: NDArray[np.float32] = F.normalize(mean).cpu().numpy()
        return vectors

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        words = self._weights["embeddings.word_embeddings.weight"][tokens]
        places = self._weights["embeddings.position_embeddings.weight"][: tokens.shape[1]]
        first_of_two = self._weights["embeddings.token_type_embeddings.weight"][0]
        return self._norm("embeddings", words + places + first_of_two)

    def _layer(self, name: str, hidden: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        seen = self._linear(f"{name}.attention.output.dense", self._attend(name, hidden, real))
        hidden = self._norm(f"{name}.attention.output", hidden + seen)
        inner = F.gelu(self._linear(f"{name}.intermediate.dense", hidden))
        return self._norm(f"{name}.output", hidden + self._linear(f"{name}.output.dense", inner))

    def _attend(self, name: str, hidden: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        heads = (*hidden.shape[:2], HEADS, WIDTH // HEADS)
        query, key, value = (
            self._linear(f"{name}.attention.self.{part}", hidden).view(heads).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        return F.scaled_dot_product_attention(query, key, value, attn_mask=real).transpose(1, 2).flatten(2)

    def _linear(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        packed, bias = self._packed.get(f"{name}.weight"), self._weights[f"{name}.bias"]
        if packed is None:
            return F.linear(rows, self._weights[f"{name}.weight"], bias)
        return apply_packed(rows, packed, bias)

    def _norm(self, name: str, rows: torch.Tensor) -> torch.Tensor:
        weight = self._weights[f"{name}.LayerNorm.weight"]
        return F.layer_norm(rows, (WIDTH,), weight, self._weights[f"{name}.LayerNorm.bias"], EPSILON)
