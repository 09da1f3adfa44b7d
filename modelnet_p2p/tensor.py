"""Tensors as bytes: a closed list of dtypes, a header, and views instead of copies.

On the wire a tensor is its header (dtype and shape) and its elements, little-endian, in C order. A
contiguous little-endian array goes out from its own memory and comes in as a view on the received
bytes. Nothing here is ever pickled, and no dtype is built from a string of a stranger's.
"""

from __future__ import annotations

import struct
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.tree import BadPayload, Buffer

Array: TypeAlias = NDArray[Any]  # any of DTYPES: a tensor's dtype is known when it runs, not before

MAX_DIMS = 16  # numpy 1 ends at 32; models use at most 8
MAX_ELEMENT_BYTES = 1 << 62  # of all dimensions but empty ones: strides stay inside int64
ALIGNMENT = 64  # a cache line, and what SIMD kernels ask for

DTYPES: dict[str, np.dtype[Any]] = {
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype("i1"),
    "int16": np.dtype("<i2"),
    "int32": np.dtype("<i4"),
    "int64": np.dtype("<i8"),
    "uint8": np.dtype("u1"),
    "uint16": np.dtype("<u2"),
    "uint32": np.dtype("<u4"),
    "uint64": np.dtype("<u8"),
    "bool": np.dtype("?"),
}
"""By name. A dtype's code on the wire is its place in this list, from 1: append, never reorder."""

_NAMES = ("", *DTYPES)
_CODES = {name: code for code, name in enumerate(_NAMES)}
# of either byte order: numpy makes a dtype's own `name` anew each time, in a microsecond and a half
_NAME_OF = {ordered: name for name, dtype in DTYPES.items() for ordered in (dtype, dtype.newbyteorder(">"))}


def dtype_of(name: object) -> np.dtype[Any]:
    """The dtype called `name`; raises LocalError (bad-input) for any other name."""
    dtype = DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        raise LocalError(
            Code.BAD_INPUT, f"no dtype {str(name)[:40]!r}", hint=f"the dtypes are {', '.join(DTYPES)}"
        )
    return dtype


def dtype_name(dtype: np.dtype[Any]) -> str:
    """The name of `dtype`, of either byte order; raises LocalError (bad-input) outside of the list."""
    name = _NAME_OF.get(dtype)
    if name is None:  # one more that numpy has for the same, as for C's long long; or none of the list
        dtype_of(dtype.name)
        return str(dtype.name)
    return name


def span(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    """Bytes of a tensor; raises BadPayload for too many dimensions or a size no memory has."""
    if len(shape) > MAX_DIMS:
        raise BadPayload(f"a tensor has at most {MAX_DIMS} dimensions, not {len(shape)}")
    widest, size = dtype.itemsize, dtype.itemsize
    for length in shape:
        widest *= length or 1  # numpy refuses [0, 2**63 - 1] too, but later and elsewhere
        size *= length
    if widest > MAX_ELEMENT_BYTES:
        raise BadPayload("a tensor's shape overflows")
    return size


def pack_header(array: Array) -> bytes:
    """dtype u8, dimensions u8, each length u64, little-endian. Raises LocalError (bad-input)."""
    return header_of(dtype_name(array.dtype), array.shape)


def header_of(name: str, shape: tuple[int, ...]) -> bytes:
    """The same of a tensor that is not there as an array; `name` is one of `DTYPES`."""
    if len(shape) > MAX_DIMS:
        raise LocalError(Code.BAD_INPUT, f"a tensor has at most {MAX_DIMS} dimensions, not {len(shape)}")
    return struct.pack(f"<BB{len(shape)}Q", _CODES[name], len(shape), *shape)


def unpack_header(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """dtype, shape and size in bytes; raises BadPayload."""
    if len(header) < 2 or len(header) != 2 + 8 * header[1] or not 0 < header[0] < len(_NAMES):
        raise BadPayload("a tensor's header has an unknown dtype or the wrong length")
    dtype = DTYPES[_NAMES[header[0]]]
    shape: tuple[int, ...] = struct.unpack_from(f"<{header[1]}Q", header, 2)
    return dtype, shape, span(dtype, shape)


def tensor_bytes(array: Array) -> memoryview:
    """The elements as bytes, read-only; the array's own memory where that has the wire's form already.

    Raises LocalError (bad-input) for a dtype outside of the list.
    """
    plain = np.asarray(array, dtype=DTYPES[dtype_name(array.dtype)], order="C")
    return plain.reshape(-1).view(np.uint8).data.toreadonly()


def write_tensor(array: Array, out: memoryview) -> int:
    """Writes the elements to the start of `out`, in one pass from any layout; returns how many bytes.

    Raises LocalError (bad-input) for a dtype outside of the list, (too-large) if `out` is too short.
    """
    dtype = DTYPES[dtype_name(array.dtype)]
    if array.nbytes > len(out):
        raise LocalError(Code.TOO_LARGE, f"a tensor of {array.nbytes} bytes into a buffer of {len(out)}")
    np.copyto(np.ndarray(array.shape, dtype, buffer=out), array)
    return array.nbytes


def view_tensor(dtype: np.dtype[Any], shape: tuple[int, ...], data: Buffer, offset: int = 0) -> Array:
    """The tensor that lies in `data` at `offset`, uncopied; raises BadPayload if it does not fit.

    A bool other than 0 and 1 is refused: numpy's results on it are undefined.
    """
    size = span(dtype, shape)
    if offset + size > len(data):
        raise BadPayload(f"a tensor of {size} bytes in {max(0, len(data) - offset)} bytes")
    array: Array = np.ndarray(shape, dtype, buffer=data, offset=offset)
    if dtype.kind == "b" and size and array.view(np.uint8).max() > 1:
        raise BadPayload("a bool that is neither 0 nor 1")
    return array


def allocate(size: int) -> memoryview:
    """`size` bytes that start at a multiple of 64, not cleared: pages that nobody fills cost nothing."""
    room = np.empty(size + ALIGNMENT - 1, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room.data[start : start + size]
