"""Several inputs as one, and one output as several: it is all the same to a model whose rows it works on.

An input of rows is a tensor whose first dimension counts them, a list, or a map of tensors that all have the
same number of them. Inputs share a step of their model when all else is equal: the other dimensions, the
dtypes, what stands in the map beside the tensors, and the parameters of the call.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.payload import Value
from modelnet_p2p.tree import BadPayload, pack_tree

if TYPE_CHECKING:
    from modelnet_p2p.tensor import Array


@dataclass(frozen=True, slots=True)
class Rows:
    """What a call brings to a step: so many rows, beside those of calls whose `kind` is equal."""

    kind: Hashable
    count: int


def rows_of(value: Value, params: Mapping[str, Value]) -> Rows | None:
    """The rows of a call, None for one that shares its step with no other."""
    found = _rows(value)
    if found is None or not found.count:
        return None
    if not params:
        return found
    try:
        return Rows((found.kind, pack_tree(dict(params))), found.count)
    except BadPayload:
        return None


def _rows(value: Value) -> Rows | None:
    if isinstance(value, list):
        return Rows("list", len(value))
    if _is_tensor(value):
        array = cast("Array", value)
        return Rows(_row_of(array), array.shape[0]) if array.ndim else None
    if not isinstance(value, dict):
        return None
    tensors = {name: cast("Array", part) for name, part in value.items() if _is_tensor(part)}
    others = {name: part for name, part in value.items() if name not in tensors}
    counts = {array.shape[0] if array.ndim else None for array in tensors.values()}
    if len(counts) != 1 or None in counts:
        return None
    try:
        beside = pack_tree(others) if others else b""
    except BadPayload:  # something that no map beside tensors can be compared by
        return None
    parts = tuple((name, _row_of(tensors[name])) for name in sorted(tensors))
    return Rows((parts, beside), cast(int, counts.pop()))


def _is_tensor(value: Value) -> bool:
    numpy = sys.modules.get("numpy")  # no tensor without it
    return numpy is not None and isinstance(value, numpy.ndarray)


def _row_of(array: Array) -> Hashable:
    return array.dtype.str, array.shape[1:]


def size_of(values: Sequence[Value]) -> int:
    """Bytes that are copied when they are joined."""
    parts = [part for value in values for part in (value.values() if isinstance(value, dict) else [value])]
    return sum(cast("Array", part).nbytes for part in parts if _is_tensor(part))


def joined(values: Sequence[Value]) -> Value:
    """Inputs of one kind, one behind the other. Tensors are copied once, into one that is new."""
    first = values[0]
    if isinstance(first, list):
        return [row for value in values for row in cast("list[Value]", value)]
    import numpy as np

    if not isinstance(first, dict):
        return np.concatenate(cast("Sequence[Array]", values))
    maps = cast("Sequence[dict[str, Value]]", values)
    return {
        name: np.concatenate([cast("Array", each[name]) for each in maps]) if _is_tensor(part) else part
        for name, part in first.items()
    }


def parted(output: Value, counts: Sequence[int]) -> list[Value]:
    """Of an output for all rows, what belongs to each of the inputs that brought so many of them.

    Tensors with a first dimension of all rows, and lists of that length, are cut, in maps and tuples too;
    everything else is told to all. A list of tensors that each have all rows is several outputs, as a tuple
    is. Tensors are views. Raises LocalError (model-error) for a tensor or list of another length.
    """
    return _Parting(counts).of(output)


class _Parting:
    def __init__(self, counts: Sequence[int]) -> None:
        self._total = sum(counts)
        self._ends: list[tuple[int, int]] = []
        at = 0
        for count in counts:
            self._ends.append((at, at + count))
            at += count

    def of(self, output: Value) -> list[Value]:
        if _is_tensor(output):
            array = cast("Array", output)
            self._check(array.shape[0] if array.ndim else 0)
            return [array[start:end] for start, end in self._ends]
        if isinstance(output, dict):
            parts = {name: self.of(part) for name, part in output.items()}
            return [{name: part[at] for name, part in parts.items()} for at in range(len(self._ends))]
        if isinstance(output, tuple) or (isinstance(output, list) and self._is_several(output)):
            columns = [self.of(part) for part in output]
            return [[column[at] for column in columns] for at in range(len(self._ends))]
        if isinstance(output, list):
            self._check(len(output))
            return [output[start:end] for start, end in self._ends]
        return [output] * len(self._ends)

    def _is_several(self, output: list[Any]) -> bool:  # Any: whatever a stranger's model returns
        return bool(output) and all(
            _is_tensor(part) and part.ndim > 0 and part.shape[0] == self._total for part in output
        )

    def _check(self, rows: int) -> None:
        if rows != self._total:
            raise LocalError(
                Code.MODEL_ERROR,
                f"the model gave {rows} rows for {self._total}: it does not take batches",
                hint="leave out `batches`, or give one row for each row of the input",
            )
