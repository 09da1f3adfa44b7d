"""Steps of a model that generates: each call is a row, and rows join and leave between two steps.

A step reads a bounded part of the prompts that wait and then one token of every row that is on. So a long
prompt never holds up the others by more than its part, and a call that comes is not made to wait for one that
goes. Everything here runs in the model's thread.
"""

from __future__ import annotations

import inspect
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.generation.requests import Sampling
from modelnet_p2p.node.serving.backends.pretrained.cache import RowCache
from modelnet_p2p.node.serving.backends.pretrained.sampling import Drawn, Sampler, best_of
from modelnet_p2p.node.serving.guarding import guard

log = logging.getLogger(__name__)

PREFILL_TOKENS = 256  # of prompts, in one step: what others wait for beside their own token
HEADROOM = 256  # tokens that a row may grow by before the memory of all has to be looked at again
CHECK_TOLERANCE = 1e-3  # of logits, relative to the largest: two ways to compute the same differ by less
CHECK_STEPS = 2  # some caches are right for the first token and not for the next
CACHE_NAMES = ("cache", "past_key_values", "cache_params")  # of newer, of older, of recurrent models
CHECK_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, NotImplementedError)


def _unheard(error: LocalError) -> None:
    raise error


@dataclass(eq=False)
class Row:
    """One call as the engine sees it. `on_token` takes what is drawn and says whether that was the last;
    `on_fault` hears why nothing could be drawn, which is no other row's matter."""

    tokens: list[int]  # of the prompt, and what was drawn since
    sampler: Sampler
    on_token: Callable[[Drawn], bool]
    on_fault: Callable[[LocalError], object] = _unheard
    left: bool = False  # its caller has: out before the next step
    read: int = 0  # how many of them the model has read: all but the last, once it is on
    turn: int = 0  # when it came on: of two the later one gives way
    cache: Any = field(default=None, repr=False)  # Any: while it reads its prompt alone, or for good


class Engine:
    """A loaded model, and the rows that are on. `budget` bounds the memory of their keys and values."""

    def __init__(self, model: Any, slots: int, budget: int) -> None:
        # Any: what transformers makes has no types here
        self._model = model
        self._slots = slots
        self._budget = budget
        self._device = model.device
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._keeps = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._cache_name = next((name for name in CACHE_NAMES if name in accepted), "")
        self._waiting: deque[Row] = deque()
        self._reading: Row | None = None  # its prompt
        self._rows: list[Row] = []
        self._cache = RowCache()
        self._cell_bytes = 0
        self._turns = count(1)
        self.near = 0  # tokens that were the best by less than NEAR
        self.drawn = 0
        self.batches = False  # whether rows are computed together
        self._check()

    @property
    def is_idle(self) -> bool:
        return not (self._rows or self._waiting or self._reading)

    @property
    def most_tokens(self) -> int:
        """What one row may come to in the budget's memory."""
        return self._budget // self._cell_bytes if self._cell_bytes else 1 << 31

    def add(self, row: Row) -> None:
        """A call that has come; it begins when there is room."""
        self._waiting.append(row)

    def clear(self) -> None:
        """After a failure: nothing is on any more."""
        self._waiting.clear()
        self._reading, self._rows, self._cache = None, [], RowCache()

    @torch.inference_mode()
    def step(self) -> None:
        """One token of each row, and a part of the prompts that wait. Raises what the model raises."""
        self._drop()
        self._read_prompts()
        if self._rows and self.batches:
            self._give_way()
            self._together()
        elif self._rows:
            self._apart()

    def _drop(self) -> None:
        """Rows whose callers have left are out."""
        for row in [row for row in self._rows if row.left]:
            self._remove(row)
        self._waiting = deque(row for row in self._waiting if not row.left)
        if self._reading is not None and self._reading.left:
            self._reading = None

    def _remove(self, row: Row) -> None:
        at = self._rows.index(row)
        last = self._rows.pop()
        if last is not row:
            self._rows[at] = last
        if self.batches:
            self._cache.leave(at, max((other.read for other in self._rows), default=0))

    # --- prompts ---

    def _read_prompts(self) -> None:
        left = PREFILL_TOKENS if self.batches else 1 << 31  # other caches may want a prompt whole
        while left > 0:
            if self._reading is None:
                if not self._waiting or not self._has_room(self._waiting[0]):
                    return
                self._reading = self._waiting.popleft()
            row = self._reading
            part = row.tokens[row.read : row.read + left]
            logits = self._read(row, part)
            left -= len(part)
            if row.read == len(row.tokens):
                self._reading = None
                self._draw([row], logits, self._begin)

    def _has_room(self, row: Row) -> bool:
        """Whether a slot is free, and memory for all rows and for HEADROOM more tokens of each."""
        rows = len(self._rows) + 1
        longest = max(len(other.tokens) for other in (row, *self._rows)) + HEADROOM
        return rows == 1 or (rows <= self._slots and rows * longest <= self.most_tokens)

    @property
    def _longest(self) -> int:
        return max(len(row.tokens) for row in self._rows)

    def _give_way(self) -> None:
        """Where the rows have outgrown their memory, those that came last wait again, and then read
        once more what they had: how far a row will go is not known before."""
        while len(self._rows) > 1 and len(self._rows) * self._longest > self.most_tokens:
            row = max(self._rows, key=lambda row: row.turn)
            self._remove(row)
            row.read = 0
            self._waiting.appendleft(row)

    def _read(self, row: Row, part: Sequence[int]) -> torch.Tensor:
        """The logits after `part`, which row `row` reads alone: [1, vocabulary]."""
        if row.cache is None:
            row.cache = self._own_cache()
        tokens = torch.tensor([part])
        seen = row.read + len(part)
        positions = torch.arange(row.read, seen).unsqueeze(0)
        if isinstance(row.cache, RowCache):
            row.cache.reserve(len(part))
        logits = self._forward(tokens, positions, None, row.cache)
        if isinstance(row.cache, RowCache):
            row.cache.advance(len(part))
        row.read = seen
        return logits

    def _own_cache(self) -> Any:
        if self.batches:
            return RowCache(1)
        from transformers import DynamicCache

        return DynamicCache(config=self._model.config)

    def _begin(self, row: Row) -> None:
        """Its first token is drawn, and was not the last."""
        if self.batches:
            self._cache.join(row.cache, len(self._rows))
            row.cache = None
        row.turn = row.turn or next(self._turns)
        self._rows.append(row)

    # --- steps ---

    def _together(self) -> None:
        rows = list(self._rows)
        self._draw(rows, self._next(rows), _nothing)

    def _next(self, rows: list[Row]) -> torch.Tensor:
        """The logits after the last token of each row of the shared cache: [rows, vocabulary]."""
        tokens = torch.tensor([[row.tokens[-1]] for row in rows])
        positions = torch.tensor([[row.read] for row in rows])
        self._cache.reserve(1)
        mask = self._cache.mask([row.read for row in rows])
        logits = self._forward(tokens, positions, mask, self._cache)
        self._cache.advance(1)
        for row in rows:
            row.read += 1
        return logits

    def _apart(self) -> None:
        rows = list(self._rows)
        self._draw(rows, self._each(rows), _nothing)

    def _each(self, rows: list[Row]) -> torch.Tensor:
        """The same, each row with a cache of its own."""
        return torch.cat([self._read(row, row.tokens[-1:]) for row in rows])

    def _forward(
        self, tokens: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None, cache: Any
    ) -> torch.Tensor:
        """The logits after the last column, float32 [rows, vocabulary]."""
        where = {"position_ids": positions.to(self._device)} if self._takes_positions else {}
        output = self._model(
            input_ids=tokens.to(self._device),
            attention_mask=None if mask is None else mask.to(self._device),
            use_cache=True,
            return_dict=True,
            **{self._cache_name: cache},
            **where,
            **self._keeps,
        )
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    def _draw(self, rows: list[Row], logits: torch.Tensor, go_on: Callable[[Row], None]) -> None:
        """The next token of each row; those for which it was the last are out."""
        plain = best_of(logits) if any(row.sampler.is_plain for row in rows) else []
        host = logits.cpu() if not all(row.sampler.is_plain for row in rows) else logits
        for at, row in enumerate(rows):
            try:
                with guard(Code.MODEL_ERROR, "to draw a token raised "):
                    drawn = plain[at] if row.sampler.is_plain else row.sampler.draw(host[at])
                    row.tokens.append(drawn.token)
                    was_last = row.on_token(drawn)
                    self.near += drawn.is_near
            except LocalError as error:
                row.on_fault(error)
                was_last = True
            self.drawn += 1
            if not was_last:
                go_on(row)
            elif row in self._rows:
                self._remove(row)

    # --- whether rows can be computed together ---

    @torch.inference_mode()
    def _check(self) -> None:
        """Whether two rows of unequal length, computed together, are what they are apart. Where they are not,
        this model wants a cache of its own kind, and its rows are computed one after the other.

        Raises LocalError (bad-input) for a model that cannot be continued token by token at all.
        """
        prompts = ([1, 2, 3, 4, 5, 6, 7, 8], [4, 3, 2, 1])
        whole = torch.cat([self._whole(tokens) for tokens in prompts])
        near = CHECK_TOLERANCE * (1 if self._model.dtype is torch.float32 else 30) * float(whole.abs().max())
        for self.batches in (True, False):
            try:
                gap = float((self._continued(prompts) - whole).abs().max())
                words = f"their logits differ by {gap:g}"
            except CHECK_ERRORS as error:
                gap, words = torch.inf, repr(error)[:200]
            self._cache = RowCache()
            if gap <= near:
                return
            log.info("rows of this model cannot be continued %s: %s", _HOW[self.batches], words)
        raise LocalError(
            Code.BAD_INPUT,
            f"{type(self._model).__name__} cannot be continued token by token: {words}",
            hint="serve it by a function of your own: publish MODULE:NAME",
        )

    def _whole(self, tokens: Sequence[int]) -> torch.Tensor:
        """The logits after `tokens` without any cache, float32 [1, vocabulary]."""
        output = self._model(input_ids=torch.tensor([tokens], device=self._device), use_cache=False)
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    def _continued(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """The same for each prompt, its last tokens read as steps read them."""
        rows = [Row(list(tokens[:-CHECK_STEPS]), Sampler(_GREEDY, None), _always) for tokens in prompts]
        for at, row in enumerate(rows):
            self._read(row, row.tokens)
            if self.batches:
                self._cell_bytes = row.cache.cell_bytes
                self._cache.join(row.cache, at)
        logits = torch.empty(0)
        for step in range(-CHECK_STEPS, 0):
            for row, tokens in zip(rows, prompts, strict=True):
                row.tokens.append(tokens[step])
            logits = self._next(rows) if self.batches else self._each(rows)
        return logits


_GREEDY = Sampling()
_HOW = {True: "together", False: "one after the other"}


def _always(drawn: Drawn) -> bool:
    return True


def _nothing(row: Row) -> None:
    """It goes on."""
