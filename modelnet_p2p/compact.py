"""Compact tensors: float tensors with fewer bits on the wire, where the caller of a model asked for that.

`float16` writes each element as one; what float16 keeps of it is exact for its own infinities and NaN, and
within half a unit of its last place otherwise. `int8` cuts the elements, in C order, into blocks of 64: per
block one float32 scale, and each element as its multiple from -127 to 127; so the error is at most 1/254
of the largest magnitude in the block. Either way the tensor comes out in its own dtype and shape.

A tensor that a form cannot hold within that error is never written in it: `compact_tensor` says why not.
Work goes in pieces that stay in the cache; beside its result nothing of a tensor's size is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.payload import CompactTensor, Value
from modelnet_p2p.tensor import DTYPES, Array, allocate, tensor_bytes, unpack_header
from modelnet_p2p.tree import MAX_DEPTH, BadPayload, Buffer

BLOCK = 64  # elements of one scale: a smaller error than larger ones, for a sixteenth of the bytes
LARGEST = 127  # of an element of int8, either side of 0; -128 is not written
MIN_ELEMENTS = (
    2048  # below 8 KiB of float32 nothing is gained, and a receiver's objects would outweigh the data
)
PIECE = 1 << 16  # elements at a time, a multiple of BLOCK: 256 KiB of float32 stay in the cache of one core

# What each form takes. The others, and smaller tensors, travel as they are beside it.
FORMS: Mapping[str, frozenset[str]] = {
    "float16": frozenset({"float32", "float64"}),
    "int8": frozenset({"float16", "bfloat16", "float32", "float64"}),
}
# The largest scale of each dtype: 128 times that is the dtype's largest number (float64: float32's, for
# scales are float32), so that nothing that anybody writes comes out as an infinity.
MAX_SCALES: Mapping[str, float] = {
    "float16": float(np.finfo(np.float16).max) / 128,
    "bfloat16": 255 * 2.0**120 / 128,
    "float32": float(np.finfo(np.float32).max) / 128,
    "float64": float(np.finfo(np.float32).max) / 128,
}
# Smaller scales lose their own last bits: such a block, of numbers below 1.5e-36, is written as zeros.
MIN_SCALE = float(np.finfo(np.float32).tiny)
_INFINITE = 0x7C00  # the bits of float16's infinity

__all__ = [
    "CompactTensor",
    "compact_tensor",
    "expand_tensor",
    "packed_size",
    "replaced",
    "tensors_in",
    "view_compact",
    "worth",
]


def worth(array: Array, wire: str) -> bool:
    """Whether `array` is of a dtype and size that `wire` makes smaller (a masked one is no tensor)."""
    return array.size >= MIN_ELEMENTS and array.dtype.name in FORMS[wire] and not hasattr(array, "mask")


def packed_size(wire: str, elements: int) -> int:
    """Bytes of so many elements in this form."""
    return 2 * elements if wire == "float16" else elements + 4 * -(-elements // BLOCK)


# --- writing ---


def compact_tensor(array: Array, wire: str) -> CompactTensor:
    """`array` in this form, in memory of its own; it must be `worth` it.

    Raises LocalError (bad-input) for elements that the form cannot hold, naming them.
    """
    dtype = DTYPES[array.dtype.name]
    flat = np.frombuffer(tensor_bytes(array), np.uint8).view(dtype)
    data = allocate(packed_size(wire, flat.size))
    if wire == "float16":
        _to_float16(flat, np.frombuffer(data, DTYPES["float16"]))
    else:
        scales, elements = _int8_parts(data, flat.size)
        _to_int8(flat, scales, elements, LARGEST * MAX_SCALES[dtype.name])
    return CompactTensor(wire, dtype.name, array.shape, data, array.nbytes)


def _to_float16(flat: Array, out: Array) -> None:
    for start in range(0, flat.size, PIECE):
        piece, half = flat[start : start + PIECE], out[start : start + PIECE]
        with np.errstate(over="ignore", under="ignore"):
            np.copyto(half, piece, casting="unsafe")
        infinite = (half.view(np.uint16) & 0x7FFF) == _INFINITE
        if infinite.any() and np.isfinite(beyond := piece[infinite]).any():
            worst = float(beyond[np.isfinite(beyond)][0])
            raise _unfit("float16", f"{worst:.4g} is beyond its largest number, 65504")


def _to_int8(flat: Array, scales: Array, elements: Array, most: float) -> None:
    work = np.empty((min(PIECE, -(-flat.size // BLOCK) * BLOCK) // BLOCK, BLOCK), np.float32)
    sizes = np.empty_like(work)
    for start in range(0, flat.size, PIECE):
        piece = flat[start : start + PIECE]
        blocks = -(-piece.size // BLOCK)
        block, size = work[:blocks], sizes[:blocks]
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            np.copyto(block.reshape(-1)[: piece.size], piece, casting="unsafe")
            block.reshape(-1)[piece.size :] = 0
            peaks = np.abs(block, out=size).max(axis=1)
            if not float(peaks.max()) <= most:  # NaN is not, either
                raise _unfit("int8", _why_not(piece, most))
            scale = peaks / np.float32(LARGEST)
            scale[scale < MIN_SCALE] = 0
            np.divide(block, np.where(scale == 0, np.float32(1), scale)[:, None], out=block)
        np.rint(block, out=block)
        scales[start // BLOCK :][:blocks] = scale
        np.copyto(elements[start:][: piece.size], block.reshape(-1)[: piece.size], casting="unsafe")


def _why_not(piece: Array, most: float) -> str:
    finite = np.isfinite(piece)
    if not finite.all():
        return f"{float(piece[~finite][0])} is not a finite number"
    return f"a magnitude of {float(np.abs(piece).max()):.4g} is beyond {most:.4g}"


def _unfit(wire: str, what: str) -> LocalError:
    other = (
        "wire float16, which holds infinities and NaN, or none" if wire == "int8" else "wire int8, or none"
    )
    return LocalError(Code.BAD_INPUT, f"a tensor cannot travel as {wire}: {what}", hint=f"ask for {other}")


# --- reading ---


def view_compact(wire: str, header: bytes, body: Buffer, offset: int) -> CompactTensor:
    """The compact tensor whose data lies in `body` at `offset`, checked and uncopied; raises BadPayload."""
    dtype, shape, nbytes = unpack_header(header)
    elements = math.prod(shape)
    if dtype.name not in FORMS[wire] or elements < MIN_ELEMENTS:
        raise BadPayload(f"no tensor of {elements} elements of {dtype.name} is written as {wire}")
    size = packed_size(wire, elements)
    if offset + size > len(body):
        raise BadPayload(f"a compact tensor of {size} bytes in {max(0, len(body) - offset)} bytes")
    data = memoryview(body)[offset : offset + size]
    if wire == "int8":
        scales, _ = _int8_parts(data, elements)
        # a NaN is neither
        if not (float(scales.min()) >= 0 and float(scales.max()) <= MAX_SCALES[dtype.name]):
            raise BadPayload(
                f"a scale of a compact tensor is no finite number that {dtype.name} has room for"
            )
    return CompactTensor(wire, dtype.name, shape, data, nbytes)


def expand_tensor(compact: CompactTensor, out: memoryview) -> Array:
    """The tensor in its own dtype and shape, written to the start of `out`, which has room for it."""
    dtype = DTYPES[compact.dtype]
    array: Array = np.ndarray(compact.shape, dtype, buffer=out)
    flat = array.reshape(-1)
    if compact.wire == "float16":
        np.copyto(flat, np.frombuffer(compact.data, DTYPES["float16"]))
        return array
    scales, elements = _int8_parts(compact.data, flat.size)
    work = np.empty((min(PIECE // BLOCK, scales.size), BLOCK), np.float32)
    line = work.reshape(-1)
    for start in range(0, flat.size, PIECE):
        piece = flat[start : start + PIECE]
        blocks = -(-piece.size // BLOCK)
        np.copyto(line[: piece.size], elements[start:][: piece.size])
        line[piece.size : blocks * BLOCK] = 0
        with np.errstate(under="ignore"):
            work[:blocks] *= scales[start // BLOCK :][:blocks, None]
            np.copyto(piece, line[: piece.size], casting="unsafe")
    return array


def _int8_parts(data: Buffer, elements: int) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """First all scales, then all elements."""
    blocks = -(-elements // BLOCK)
    return np.frombuffer(data, "<f4", blocks), np.frombuffer(data, np.int8, elements, 4 * blocks)


# --- tensors inside of values ---


def tensors_in(value: Value) -> list[Array | CompactTensor]:
    """The tensors of a value, in its order; each container once, and none deeper than a frame goes."""
    found: list[Array | CompactTensor] = []
    seen: set[int] = set()

    def walk(part: object, depth: int) -> None:
        if isinstance(part, (np.ndarray, CompactTensor)):
            found.append(part)
        elif isinstance(part, (dict, list, tuple)) and depth <= MAX_DEPTH and id(part) not in seen:
            seen.add(id(part))
            for item in part.values() if isinstance(part, dict) else part:
                walk(item, depth + 1)

    walk(value, 0)
    return found


def replaced(value: Value, swap: Mapping[int, object]) -> Value:
    """`value` with each tensor whose `id` is in `swap` exchanged; the containers around them are new ones.

    What is too deep for a frame, or holds itself, is left as it is: it is refused where it is written.
    """
    made: dict[int, object] = {}  # by the id of the container; itself while it is being made

    def walk(part: object, depth: int) -> object:
        if isinstance(part, (np.ndarray, CompactTensor)):
            return swap.get(id(part), part)
        if not isinstance(part, (dict, list, tuple)) or depth > MAX_DEPTH:
            return part
        if id(part) not in made:
            made[id(part)] = part
            if isinstance(part, dict):
                made[id(part)] = {key: walk(item, depth + 1) for key, item in part.items()}
            else:
                made[id(part)] = [walk(item, depth + 1) for item in part]
        return made[id(part)]

    return walk(value, 0)
