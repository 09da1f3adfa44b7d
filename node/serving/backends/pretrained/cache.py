"""The keys and values of several sequences that end at one column: a batch that rows join and leave.

Each row's tokens lie right-aligned in shared buffers, so that the next token of all of them is written in one
column, and what lies left of a shorter row is masked. Nothing is copied in a step; a row that joins or leaves
costs a copy of one row. To the library it is a batch padded on the left, which every model of its knows.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

FIRST_COLUMNS = 64  # of new buffers, which double when they are full


class Columns:
    """Where the rows lie, in all layers alike: rows 0 to `rows`, columns `start` to `end`."""

    def __init__(self) -> None:
        self.rows = 0
        self.start = 0
        self.end = 0
        self.capacity = FIRST_COLUMNS

    @property
    def width(self) -> int:
        return self.end - self.start


class RowLayer(DynamicLayer):  # type: ignore[misc] # transformers has no types here
    """One layer's buffers, [rows, heads, columns, size of a head]; `columns` is shared by all layers."""

    def __init__(self, columns: Columns) -> None:
        super().__init__()
        self._columns = columns

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self._heads = (key_states.shape[1], key_states.shape[3], value_states.shape[1], value_states.shape[3])
        self.is_initialized = True
        self.allot(self._columns.rows, self._columns.capacity, 0)

    def allot(self, rows: int, width: int, at: int) -> None:
        """New buffers of that size, the old columns beginning at column `at`. They are zeroed: what is masked
        is multiplied with zero, and must be a number for that."""
        old = self._columns
        key_heads, key_size, value_heads, value_size = self._heads
        for name, heads, size in (("keys", key_heads, key_size), ("values", value_heads, value_size)):
            fresh = torch.zeros(rows, heads, width, size, dtype=self.dtype, device=self.device)
            buffer = getattr(self, name)
            if buffer is not None:
                kept = min(rows, buffer.shape[0])
                fresh[:kept, :, at : at + old.width] = buffer[:kept, :, old.start : old.end]
            setattr(self, name, fresh)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        at = self._columns
        end = at.end + key_states.shape[2]
        self.keys[: at.rows, :, at.end : end] = key_states
        self.values[: at.rows, :, at.end : end] = value_states
        return self.keys[: at.rows, :, at.start : end], self.values[: at.rows, :, at.start : end]

    def get_seq_length(self) -> int:
        return self._columns.width

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._columns.width + query_length, 0


class RowCache(Cache):  # type: ignore[misc] # transformers has no types here
    """A cache of the transformers library. Its owner calls `reserve` before and `advance` after each pass of
    the model, and knows how long each row is."""

    def __init__(self, rows: int = 0) -> None:
        self.layers: list[Any]  # Any: of RowLayer, but to the library of any layer
        self.columns = Columns()
        self.columns.rows = rows
        super().__init__(layer_class_to_replicate=lambda: RowLayer(self.columns))

    @property
    def cell_bytes(self) -> int:
        """What one token of one row takes; 0 before the first pass."""
        return sum(
            buffer.shape[1] * buffer.shape[3] * buffer.element_size()
            for layer in self.layers
            for buffer in (layer.keys, layer.values)
        )

    def reserve(self, tokens: int) -> None:
        """The model is about to read so many tokens of every row."""
        at = self.columns
        if at.end + tokens <= at.capacity:
            return
        capacity = at.capacity
        while at.width + tokens > capacity // 2:  # else it is enough to begin at the left again
            capacity *= 2
        self._allot(self.layers[0].keys.shape[0] if self.layers else at.rows, capacity, 0)
        at.start, at.end = 0, at.width

    def _allot(self, rows: int, capacity: int, at: int) -> None:
        for layer in self.layers:
            layer.allot(rows, capacity, at)
        self.columns.capacity = capacity

    def advance(self, tokens: int) -> None:
        """The model has read so many tokens of every row."""
        self.columns.end += tokens

    def join(self, other: RowCache, row: int) -> None:
        """Row 0 of `other`, which has that one alone, becomes row `row`: the first that is free."""
        mine, theirs = self.columns, other.columns
        if row == 0 and mine.rows == 0:
            self.layers, self.columns = other.layers, theirs
            return
        end, rows = mine.end, self.layers[0].keys.shape[0]
        if theirs.width > end or row >= rows:  # no place left of it, or no row
            end = max(mine.width, theirs.width)
            self._allot(max(rows, 2 * row), max(mine.capacity, 2 * end), end - mine.width)
        for layer, source in zip(self.layers, other.layers, strict=True):
            for buffer, arriving in ((layer.keys, source.keys), (layer.values, source.values)):
                buffer[row, :, : end - theirs.width] = 0  # of the row that was there before
                buffer[row, :, end - theirs.width : end] = arriving[0, :, theirs.start : theirs.end]
        mine.start, mine.end, mine.rows = end - max(mine.width, theirs.width), end, row + 1

    def leave(self, row: int, longest: int) -> None:
        """Row `row` is done; the last one takes its place. `longest` is the longest of those that stay."""
        at = self.columns
        last = at.rows - 1
        if row != last:
            for layer in self.layers:
                for buffer in (layer.keys, layer.values):
                    buffer[row, :, : at.end] = buffer[last, :, : at.end]
        at.rows = last
        at.start = at.end - longest
        if last == 0:
            self.layers, self.columns = [], Columns()

    def mask(self, lengths: list[int]) -> torch.Tensor:
        """[rows, width + 1] of 0 and 1: what of the columns is each row's own, with the token to come."""
        width = self.columns.width + 1
        first = width - 1 - torch.tensor(lengths).unsqueeze(1)
        return (torch.arange(width).unsqueeze(0) >= first).long()
