"""Tensors as files in a request's or an answer's body: .npy and safetensors, never anything that is executed.

numpy's own reader makes an array as large as a header claims before it looks whether there are so many
bytes. Here the claim is held against the body first, and the array is a view on it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from tokenize import TokenError

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.gateway.errors import BadRequest
from modelnet_p2p.payload import Value
from modelnet_p2p.tensor import MAX_DIMS, Array, dtype_name

NPY = "application/x-npy"
SAFETENSORS = "application/x-safetensors"
MAX_TENSORS = 4096  # in one file
# What numpy raises for a header that is none: it is read as a Python literal, token by token where need be.
BAD_HEADER = (ValueError, EOFError, OSError, SyntaxError, TokenError, RecursionError, MemoryError, TypeError)


def from_npy(data: bytes) -> Array:
    """The one tensor in a .npy file; raises BadRequest."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read:
            raise ValueError(f"version {version}")
        shape, fortran, dtype = read[version](file)
        name = dtype_name(dtype)
    except BAD_HEADER as error:
        raise BadRequest(f"the body is not a .npy tensor: {str(error)[:200]}") from error
    start, count = file.tell(), math.prod(shape)
    if len(shape) > MAX_DIMS or any(type(length) is not int or length < 0 for length in shape):
        raise BadRequest("the .npy tensor has a shape that is none")
    if count * dtype.itemsize != len(data) - start:
        raise BadRequest(f"the .npy tensor of {count} {name} does not fit its {len(data) - start} bytes")
    array: Array = np.frombuffer(data, dtype, count, start)
    if dtype.kind == "b" and count and array.view(np.uint8).max() > 1:
        raise BadRequest("the .npy tensor has a bool that is neither 0 nor 1")
    return array.reshape(shape, order="F" if fortran else "C")


def from_safetensors(data: bytes) -> dict[str, Array]:
    """The tensors in a safetensors file, by name; raises BadRequest."""
    try:
        tensors: dict[str, Array] = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, MemoryError, OverflowError) as error:
        raise BadRequest(f"the body is not a safetensors file: {str(error)[:200]}") from error
    if len(tensors) > MAX_TENSORS:
        raise BadRequest(f"more than {MAX_TENSORS} tensors in one file")
    return tensors


def to_npy(output: Value) -> bytes:
    """A .npy file with the one tensor in an answer; raises LocalError (bad-input) where it holds another
    number."""
    found = list(_tensors("output", output))
    if len(found) != 1:
        hint = f"ask for application/json, or for {SAFETENSORS}"
        raise LocalError(Code.BAD_INPUT, f"the answer holds {len(found)} tensors, not one", hint=hint)
    file = io.BytesIO()
    array = found[0][1]
    plain = array.astype(np.float32) if dtype_name(array.dtype) == "bfloat16" else array
    np.save(file, plain, allow_pickle=False)
    return file.getvalue()


def to_safetensors(output: Value) -> bytes:
    """A safetensors file with the tensors in an answer, by the path on which they lie in it (`scores`,
    `0.x`)."""
    found = dict(_tensors("", output))
    if not found:
        raise LocalError(Code.BAD_INPUT, "the answer holds no tensor", hint="ask for application/json")
    return save({name or "output": np.ascontiguousarray(array) for name, array in found.items()})


def _tensors(name: str, value: Value) -> Iterator[tuple[str, Array]]:
    if isinstance(value, np.ndarray):
        yield name, value
        return
    inside: Mapping[object, Value] = {}
    if isinstance(value, dict):
        inside = value
    elif isinstance(value, list):
        inside = dict(enumerate(value))
    for key, item in inside.items():
        yield from _tensors(f"{name}.{key}" if name else str(key), item)
