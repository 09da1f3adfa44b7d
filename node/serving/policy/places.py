"""Large tensors taken out of a value, and put back: what lies in shared memory is named by its place.

A value that shares memory travels as `[the value without them, places]`. A place is `[path, offset, header]`:
the keys and indexes that lead to the tensor's seat in the value, where its bytes begin in the one piece of
memory that the message names, and dtype and shape as any tensor on the wire has them. Paths, unlike numbers
of the tensors in the order of the tree, are followed without walking the value again.

The peer reads places like a stranger's bytes: they come out of the process in which a stranger's model runs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from modelnet_p2p.payload import ALIGNMENT, Value, aligned
from modelnet_p2p.tree import MAX_DEPTH, MAX_VALUES, BadPayload

if TYPE_CHECKING:
    from modelnet_p2p.tensor import Array

Path: TypeAlias = tuple[str | int, ...]

LEAST_BYTES = 1 << 16  # of a tensor; a smaller one is sent along in the frame that is sent anyway
MAX_PLACES = 1024  # of one value; the tensors beyond them are sent in the frame
SLICE_BYTES = 1 << 20  # copied at a time: an event loop is not held up for more than a millisecond

__all__ = ["LEAST_BYTES", "MAX_PLACES", "Lifted", "copied", "lift", "lower"]


@dataclass(frozen=True, slots=True)
class Lifted:
    """A value whose large tensors were taken out; None is in their seats."""

    value: Value
    arrays: tuple[Array, ...]
    paths: tuple[Path, ...]

    def layout(self) -> tuple[tuple[int, ...], int]:
        """Where each would lie, one behind the other on multiples of 64, and how many bytes that takes."""
        offsets: list[int] = []
        end = 0
        for array in self.arrays:
            offsets.append(aligned(end))
            end = offsets[-1] + int(array.nbytes)
        return tuple(offsets), end

    def message(self, offsets: Sequence[int]) -> Value:
        """What is sent in place of the value."""
        from modelnet_p2p.tensor import pack_header  # not at the top: numpy, see payload

        rows = zip(self.paths, offsets, self.arrays, strict=True)
        return [self.value, [[list(path), offset, pack_header(array)] for path, offset, array in rows]]


def lift(value: Value) -> Lifted | None:
    """`value` without its tensors of LEAST_BYTES and more; None if it has none. It is not changed itself.

    A value that no frame could carry (too deep, too many entries, in a circle) is left to the encoder, which
    says what is wrong with it.
    """
    if sys.modules.get("numpy") is None or isinstance(value, (str, bytes)):
        return None  # no tensor without it
    search = _Search()
    rest = search.without(value, ())
    if not search.arrays or search.spent > MAX_VALUES:
        return None
    return Lifted(rest, tuple(search.arrays), tuple(search.paths))


class _Search:
    def __init__(self) -> None:
        from numpy import ndarray

        self.arrays: list[Array] = []
        self.paths: list[Path] = []
        self.spent = 0  # entries looked at
        self._ndarray = ndarray

    def without(self, value: Value, path: Path) -> Value:
        """`value`, or a copy of it from which something was taken."""
        if isinstance(value, self._ndarray):
            if not _is_large(value) or len(self.arrays) >= MAX_PLACES:
                return value
            self.arrays.append(value)
            self.paths.append(path)
            return None
        if len(path) >= MAX_DEPTH or self.spent > MAX_VALUES:
            return value
        if isinstance(value, dict):
            return self._without_entries(value, path)
        if isinstance(value, (list, tuple)):
            self.spent += len(value)
            changed = list(value)
            before = len(self.arrays)
            for at, entry in enumerate(value):
                if not isinstance(entry, (str, int, float)):
                    changed[at] = self.without(entry, (*path, at))
            return changed if len(self.arrays) > before else value
        return value

    def _without_entries(self, value: dict[object, Value], path: Path) -> Value:
        self.spent += len(value)
        changed = dict(value)
        before = len(self.arrays)
        for key, entry in value.items():
            if isinstance(key, str) and not isinstance(entry, (str, int, float)):
                changed[key] = self.without(entry, (*path, key))
        return changed if len(self.arrays) > before else value


def _is_large(array: Array) -> bool:
    if array.nbytes < LEAST_BYTES:
        return False
    from modelnet_p2p.tensor import DTYPES, MAX_DIMS

    return array.dtype.name in DTYPES and array.ndim <= MAX_DIMS and not hasattr(array, "mask")


def copied(arrays: Sequence[Array], offsets: Sequence[int], memory: memoryview) -> Iterator[None]:
    """Copies the tensors to their places, a slice at a time: whoever drives this lets others in between."""
    from modelnet_p2p.tensor import tensor_bytes, write_tensor

    for array, offset in zip(arrays, offsets, strict=True):
        if not is_plain(array):
            write_tensor(array, memory[offset:])
            yield
            continue
        data = tensor_bytes(array)
        for start in range(0, len(data), SLICE_BYTES):
            part = data[start : start + SLICE_BYTES]
            memory[offset + start : offset + start + len(part)] = part
            yield


def is_plain(array: Array) -> bool:
    """Whether its memory holds the bytes of the wire: little-endian, in C order, without gaps."""
    from modelnet_p2p.tensor import DTYPES

    return bool(array.flags.c_contiguous) and array.dtype == DTYPES[array.dtype.name]


def lower(message: Value, memory: memoryview) -> Value:
    """The value of a message whose tensors lie in `memory`, as views on it; raises BadPayload.

    The tensors lie one behind the other: no two can overlap.
    """
    match message:
        case [value, [*places]] if 0 < len(places) <= MAX_PLACES:
            pass
        case _:
            raise BadPayload("not a value and its places")
    from modelnet_p2p.tensor import unpack_header, view_tensor

    end = 0
    holder = [value]
    for place in places:
        match place:
            case [[*path], int(offset), bytes(header)] if type(offset) is int:
                dtype, shape, size = unpack_header(header)
            case _:
                raise BadPayload("a place is path, offset and header")
        if offset < end or offset % ALIGNMENT:
            raise BadPayload("a tensor's place overlaps another one's, or is not on a multiple of 64")
        end = offset + size
        _seat(holder, path, view_tensor(dtype, shape, memory, offset))
    return holder[0]


def _seat(holder: list[Value], path: Sequence[object], array: Array) -> None:
    """Puts `array` where the path leads, which must be an empty seat."""
    *steps, last = (0, *path)
    container: object = holder
    for step in steps:
        container = _entry(container, step)
    if _entry(container, last) is not None:
        raise BadPayload("a tensor's seat is taken")
    match container, last:
        case list(), int():
            container[last] = array
        case dict(), str():
            container[last] = array


def _entry(container: object, key: object) -> object:
    match container, key:
        case dict(), str() if key in container:
            return container[key]
        case list(), int() if type(key) is int and 0 <= key < len(container):
            return container[key]
    raise BadPayload("a path that leads nowhere")
