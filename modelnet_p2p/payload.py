"""Values as the body of a frame: a msgpack tree, and behind it the tensors, each on a multiple of 64.

A value is None, a bool, int, float, str, bytes, list, dict with string keys, or a numpy array, nested.
In the tree a tensor is only its header; its elements follow in the tree's order. So a tensor of any size
goes out from its own memory and is a view on the received body, and a value without one costs one pack.
Where the caller asked for that, large tensors stand in it as `CompactTensor`s (see compact).

numpy is imported only when a tensor comes by: thin commands talk to the peer without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from msgpack import ExtType

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.tree import COMPACT_EXT, TENSOR_EXT, BadPayload, Buffer, pack_tree, unpack_tree

if TYPE_CHECKING:
    from modelnet_p2p.tensor import Array

Value: TypeAlias = object
"""None, bool, int (64 bit), float, str, bytes, list, dict[str, Value] or numpy array. Not spelled out
as a type: lists and dicts are invariant, so the exact one would refuse `dict[str, int]`."""

ALIGNMENT = 64  # = tensor.ALIGNMENT, which this module must not import
MAX_TREE_BYTES = 1 << 26  # text and bytes of 64 MiB; what is longer is a tensor of uint8

WIRES = ("float16", "int8")
"""The compact forms, by the name that a caller gives; "" is none."""

__all__ = [
    "WIRES",
    "BadPayload",
    "CompactTensor",
    "Payload",
    "Value",
    "check_wire",
    "decode_value",
    "encode_value",
]


def check_wire(wire: str) -> str:
    """`wire` if it is one of WIRES or empty; raises LocalError (bad-input)."""
    if wire not in ("", *WIRES):
        hint = f"one of {', '.join(WIRES)}, or none: then tensors travel as they are"
        raise LocalError(
            Code.BAD_INPUT, f"no compact form of tensors is called {str(wire)[:40]!r}", hint=hint
        )
    return wire


@dataclass(frozen=True, slots=True, eq=False)
class CompactTensor:
    """A tensor as it travels in one of WIRES: stands in a value for the array that it will be again."""

    wire: str
    dtype: str  # of the array
    shape: tuple[int, ...]
    data: Buffer
    nbytes: int  # of the array


@dataclass(frozen=True, slots=True)
class Payload:
    """A body of `size` bytes, not yet joined. `tree` is the length of its msgpack part where tensors follow
    that, and None where it is all there is.

    The buffers may be the caller's own arrays: they must stay unchanged until they are sent.
    """

    buffers: tuple[Buffer, ...]
    tree: int | None
    size: int


def aligned(offset: int) -> int:
    """The next multiple of 64."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def encode_value(value: Value, wire: str = "") -> Payload:
    """`wire` is the form of the compact tensors in `value`, if there are any.

    Raises LocalError: bad-input for what is no value, too-large for a tree beyond its bounds.
    """
    arrays: list[Array | CompactTensor] = []

    def other(thing: object) -> object:
        """What msgpack does not know: a tensor, or one number of numpy's."""
        import numpy as np

        import modelnet_p2p.tensor as tensors

        if isinstance(thing, np.ndarray) and not hasattr(thing, "mask"):  # a masked one would lose it
            header = tensors.pack_header(thing)
            arrays.append(thing)
            return ExtType(TENSOR_EXT, header)
        if isinstance(thing, np.generic) and not isinstance(number := thing.item(), np.generic):
            return number
        if isinstance(thing, CompactTensor) and thing.wire == wire:
            arrays.append(thing)
            return ExtType(COMPACT_EXT, tensors.header_of(thing.dtype, thing.shape))
        kind = type(thing)
        raise BadPayload(f"{kind.__module__}.{kind.__qualname__} is no value, or too large an integer")

    try:
        tree = pack_tree(value, other)
    except BadPayload as error:
        hint = "a value is None, bool, int, float, str, bytes, list, dict with string keys, or numpy array"
        raise LocalError(Code.BAD_INPUT, str(error), hint=hint) from None
    if len(tree) > MAX_TREE_BYTES:
        hint = "send it as a tensor of uint8"
        raise LocalError(Code.TOO_LARGE, f"text and bytes beyond {MAX_TREE_BYTES} bytes", hint=hint)
    if not arrays:
        return Payload((tree,), None, len(tree))
    return _with_tensors(tree, arrays)


def _with_tensors(tree: bytes, arrays: list[Array | CompactTensor]) -> Payload:
    import modelnet_p2p.tensor as tensors

    buffers: list[Buffer] = [tree]
    end = len(tree)
    for array in arrays:
        start = aligned(end)
        if start > end:
            buffers.append(bytes(start - end))
        data = array.data if isinstance(array, CompactTensor) else tensors.tensor_bytes(array)
        end = start + len(data)
        buffers.append(data)
    return Payload(tuple(buffers), len(tree), end)


def decode_value(body: Buffer, tree: int | None = None, wire: str = "") -> Value:
    """The value of a whole body whose first `tree` bytes are the tree (None: all of them).

    Arrays in it are views on `body`, writable if that is; so are its compact tensors, which there are none
    of without a `wire`. Raises BadPayload.
    """
    length = len(body) if tree is None else tree
    if not 0 < length <= min(len(body), MAX_TREE_BYTES):
        raise BadPayload(f"a tree of {length} bytes in a body of {len(body)}")
    if tree is None:
        return unpack_tree(body)
    end = tree

    def tensor(code: int, header: bytes) -> Array | CompactTensor:
        """`code` is TENSOR_EXT or COMPACT_EXT: the tree was checked."""
        import modelnet_p2p.tensor as tensors

        nonlocal end
        if code == COMPACT_EXT:
            compact = _view_compact(wire, header, body, aligned(end))
            end = aligned(end) + len(compact.data)
            return compact
        dtype, shape, size = tensors.unpack_header(header)
        start = aligned(end)
        end = start + size
        return tensors.view_tensor(dtype, shape, body, start)

    value = unpack_tree(memoryview(body)[:tree], tensor)
    if end != len(body):
        raise BadPayload(f"a body of {len(body)} bytes where its tensors end at {end}")
    return value


def _view_compact(wire: str, header: bytes, body: Buffer, start: int) -> CompactTensor:
    if not wire:
        raise BadPayload("a compact tensor in a frame whose head names no form for it")
    from modelnet_p2p.compact import view_compact

    return view_compact(wire, header, body, start)
