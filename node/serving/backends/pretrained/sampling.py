"""Which token comes next: the best one, or one drawn as the caller asked for it.

Draws are made on the CPU with a generator of the call's own, so a seed gives the same tokens again, on
whatever device the model runs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

from modelnet_p2p.node.serving.backends.generation.requests import Sampling

NEAR = 1e-4  # two best logits that lie so close may change places with the shape of a batch
SEED_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token, and where asked for its logprob and the best ones with theirs."""

    token: int
    is_near: bool = False  # it was the best one by less than NEAR
    logprob: float = 0.0
    best: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Draws the tokens of one call."""

    def __init__(self, sampling: Sampling, logprobs: int | None) -> None:
        self._sampling = sampling
        self._logprobs = logprobs
        self._counts: Counter[int] = Counter()  # of what was drawn, for penalties
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed & SEED_MASK)

    @property
    def is_plain(self) -> bool:
        """Whether it takes the best token and asks for nothing else, so that many can be done at once."""
        plain = Sampling(seed=self._sampling.seed, top_p=self._sampling.top_p, top_k=self._sampling.top_k)
        return self._sampling == plain and self._logprobs is None

    def draw(self, logits: torch.Tensor) -> Drawn:
        """From float32 logits [vocabulary] on the CPU."""
        logits = self._weighed(logits)
        if self._sampling.temperature == 0:
            pair = torch.topk(logits, min(2, len(logits)))
            token = int(pair.indices[0])
            near = len(pair.values) > 1 and float(pair.values[0] - pair.values[1]) < NEAR
        else:
            token, near = self._random(logits), False
        if self._penalises:
            self._counts[token] += 1
        if self._logprobs is None:
            return Drawn(token, near)
        chances = torch.log_softmax(logits, 0)
        best = torch.topk(chances, min(self._logprobs, len(chances)))
        others = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
        return Drawn(token, near, float(chances[token]), others)

    @property
    def _penalises(self) -> bool:
        return bool(self._sampling.frequency_penalty or self._sampling.presence_penalty)

    def _weighed(self, logits: torch.Tensor) -> torch.Tensor:
        """With OpenAI's penalties and biases; https://platform.openai.com/docs/api-reference/chat/create"""
        wanted = self._sampling
        if not (wanted.logit_bias or self._counts):
            return logits
        logits = logits.clone()
        for token, count in self._counts.items():
            logits[token] -= count * wanted.frequency_penalty + wanted.presence_penalty
        for token, bias in wanted.logit_bias.items():
            if token < len(logits):
                logits[token] += bias
        return logits

    def _random(self, logits: torch.Tensor) -> int:
        wanted = self._sampling
        logits = logits / wanted.temperature
        count = min(wanted.top_k or len(logits), len(logits))
        if count == len(logits) and wanted.top_p >= 1:
            return int(torch.multinomial(torch.softmax(logits, 0), 1, generator=self._generator))
        best = torch.topk(logits, count)  # sorted, the best first
        chances = torch.softmax(best.values, 0)
        before = torch.cumsum(chances, 0) - chances  # what lies above each: the first one is always kept
        chances[before >= wanted.top_p] = 0
        return int(best.indices[torch.multinomial(chances, 1, generator=self._generator)])


def best_of(logits: torch.Tensor) -> list[Drawn]:
    """The best token of each row of [rows, vocabulary], on any device."""
    pairs = torch.topk(logits, min(2, logits.shape[1]), dim=1)
    values, tokens = pairs.values.float().tolist(), pairs.indices.tolist()
    return [
        Drawn(row[0], len(value) > 1 and value[0] - value[1] < NEAR)
        for row, value in zip(tokens, values, strict=True)
    ]
