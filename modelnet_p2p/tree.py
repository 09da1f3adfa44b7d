"""Msgpack trees from strangers: looked over before a single object is made of them.

The C decoder of msgpack turns one MiB of empty containers into 72 MiB of objects and believes every
announced length. So a tree is first walked as bytes: it must be whole, shallow, keyed by strings, and
may not come to more memory than a small multiple of its size. The same walk checks what we send, so
that nothing leaves that an honest receiver would refuse.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import msgpack

Buffer: TypeAlias = bytes | bytearray | memoryview

MAX_DEPTH = 32  # containers inside containers; deeper values are a mistake or an attack on recursion
MAX_VALUES = 1 << 18  # in one tree: walking them takes about 30 ms; more numbers than that are a tensor
MEMORY_FACTOR = 8  # decoded objects may take this many bytes per byte of the tree ...
MEMORY_SPARE = 1 << 20  # ... and this many more, for small trees are always dense
SMALL_BYTES = 1024  # of a tree that may be decoded first and judged then: it makes 200 KiB at most
SMALL_ENTRIES = 64  # of its lists and maps
TENSOR_EXT = 1  # a tensor's header, its data lies behind the tree
COMPACT_EXT = 2  # the same, its data in the compact form that the frame's head names; there are no others


class BadPayload(ValueError):
    """Bytes that are not a value as this protocol writes them; the message says why, in one line."""


# What CPython needs for one value, its slot in the container included; entries of a map beyond five on top.
# Short text that is not ASCII takes up to 24 bytes more than is counted here.
_ATOM, _NUMBER, _STRING, _ARRAY, _MAP, _ENTRY, _TENSOR = 8, 40, 64, 80, 208, 48, 256
_STR_TOKENS = frozenset(range(0xA0, 0xC0)) | {0xD9, 0xDA, 0xDB}


def _tables() -> tuple[bytes, list[int]]:
    """By first byte: the whole length of a value of fixed length (0: see `_WIDTHS`), and its cost."""
    sizes, costs = bytearray(256), [_ATOM] * 256
    for token in (*range(0x80), *range(0xE0, 0x100), 0xC0, 0xC2, 0xC3):
        sizes[token] = 1
    for token in range(0xE0, 0x100):
        costs[token] = _NUMBER
    for token in range(0xA0, 0xC0):
        sizes[token], costs[token] = 1 + (token & 0x1F), _STRING
    for token, width in zip((*range(0xCA, 0xD4),), (4, 8, 1, 2, 4, 8, 1, 2, 4, 8), strict=True):
        sizes[token], costs[token] = 1 + width, _NUMBER
    return bytes(sizes), costs


_SIZES, _COSTS = _tables()
# Values whose length is written behind the first byte: how many bytes that length has.
_STRING_WIDTHS = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_CONTAINER_WIDTHS = {0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
_EXT_WIDTHS = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_EXTENSIONS = (bytes([TENSOR_EXT]), bytes([COMPACT_EXT]))
_FIXED_EXTS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


def _past_extension(tree: Buffer, at: int, token: int, tensors: bool) -> int:
    """Behind the extension at `at`; raises BadPayload unless it is one of ours."""
    width = _EXT_WIDTHS.get(token, 0)
    length = int.from_bytes(tree[at + 1 : at + 1 + width], "big") if width else _FIXED_EXTS.get(token, 0)
    code = at + 1 + width
    if not length or not tensors or bytes(tree[code : code + 1]) not in _EXTENSIONS:
        raise BadPayload(f"the tree holds something unknown (0x{token:02x}) at byte {at}")
    return code + 1 + length


def check_tree(tree: Buffer, *, tensors: bool = False) -> None:
    """Raises BadPayload unless `tree` is one whole value within the bounds named above.

    Tensors (extensions 1 and 2) are let through only where `tensors` is true. Makes no objects, takes time in
    proportion to the number of values, of which it lets no more than `MAX_VALUES` be announced.
    """
    sizes, costs, end = _SIZES, _COSTS, len(tree)
    budget, values = MEMORY_FACTOR * end + MEMORY_SPARE, 0
    stack: list[tuple[int, bool]] = []
    at, left, keyed = 0, 1, False  # `left` values to come in this container; in a map, keys and values
    while left:
        if at >= end:
            raise BadPayload("the tree is cut off")
        left -= 1
        token = tree[at]
        if keyed and left & 1 and token not in _STR_TOKENS:
            raise BadPayload("a map's key is not a string")
        size = sizes[token]
        if size:
            at += size
            budget -= costs[token]
        elif width := _STRING_WIDTHS.get(token):
            at += 1 + width + int.from_bytes(tree[at + 1 : at + 1 + width], "big")
            budget -= _STRING
        elif token < 0xA0 or token in _CONTAINER_WIDTHS:
            if token < 0xA0:
                at, count, is_map = at + 1, token & 0x0F, token < 0x90
            else:
                width = _CONTAINER_WIDTHS[token]
                count, is_map = int.from_bytes(tree[at + 1 : at + 1 + width], "big"), token >= 0xDE
                at += 1 + width
            budget -= _MAP + _ENTRY * max(0, count - 5) if is_map and count else _ARRAY
            values += count << is_map
            if values > MAX_VALUES or len(stack) >= MAX_DEPTH or budget < 0:
                raise BadPayload(
                    f"the tree is too deep or too dense (depth {MAX_DEPTH}, {MAX_VALUES} values)"
                )
            stack.append((left, keyed))
            left, keyed = count << is_map, is_map
        else:
            at = _past_extension(tree, at, token, tensors)
            budget -= _TENSOR
        while not left and stack:
            left, keyed = stack.pop()
    if at != end:
        raise BadPayload("the tree is cut off" if at > end else "bytes follow the tree")
    if budget < 0:
        raise BadPayload("the tree is too dense: short values by the ten thousand belong into a tensor")


def _no_extension(code: int, data: bytes) -> object:
    raise BadPayload(f"extension {code} where none may be")


def unpack_tree(tree: Buffer, tensor: Callable[[int, bytes], object] | None = None) -> object:
    """The value of `tree`; `tensor(code, header)` makes what stands for a tensor. Raises BadPayload."""
    check_tree(tree, tensors=tensor is not None)
    try:
        return msgpack.unpackb(tree, ext_hook=tensor or _no_extension, strict_map_key=False)
    except BadPayload:
        raise
    except ValueError as error:  # text that is not UTF-8; all else was checked
        raise BadPayload(f"the tree is not msgpack: {str(error)[:100]}") from None


def unpack_small(tree: Buffer) -> object:
    """The value of a tree of at most SMALL_BYTES that was not looked over; raises BadPayload, for some that
    are sound, too. Its reader must refuse whatever he does not know by name, or let `check_tree` look.

    Half of a small frame's cost is its head. The C decoder alone bounds one: each byte makes at most one
    value, and nothing that announces more than SMALL_ENTRIES gets room for them.
    """
    try:
        return msgpack.unpackb(
            tree, ext_hook=_no_extension, max_array_len=SMALL_ENTRIES, max_map_len=SMALL_ENTRIES
        )
    except ValueError as error:
        raise BadPayload(f"the tree is not msgpack: {str(error)[:100]}") from None


def pack_tree(value: object, other: Callable[[object], object] | None = None) -> bytes:
    """`value` as msgpack; `other(x)` replaces what msgpack does not know.

    Raises BadPayload for what cannot be written or what a receiver would refuse.
    """
    tree = pack_shallow(value, other)
    if type(value) not in _PLAIN:
        check_tree(tree, tensors=other is not None)
    return tree


def is_text(tree: bytes) -> bool:
    """Whether a tree begins as text alone does: nothing in it but its length is to be looked over."""
    return tree[0] in _STR_TOKENS


def unpack_text(tree: bytes) -> object:
    """The value of a tree that is text alone; raises BadPayload."""
    try:
        return msgpack.unpackb(tree)
    except ValueError as error:
        raise BadPayload(f"the tree is not msgpack: {str(error)[:100]}") from None


def pack_text(text: str) -> bytes:
    """`pack_tree` of short text; raises BadPayload."""
    try:
        return bytes(_TEXTS.pack(text))
    except ValueError as error:  # a lone surrogate, or more than there can be
        raise BadPayload(f"a value cannot be written: {str(error)[:200]}") from None


_TEXTS = msgpack.Packer(buf_size=1024)  # for text alone: it keeps as much memory as the longest took
_PLAIN = frozenset({type(None), bool, int, float, str, bytes})  # one value: nothing in it to be refused


def pack_shallow(value: object, other: Callable[[object], object] | None = None) -> bytes:
    """The same of what is known to be shallow and short, and keyed by strings: that is not checked here."""
    try:
        return bytes(msgpack.Packer(default=other, buf_size=1024).pack(value))
    except BadPayload:
        raise
    except (TypeError, ValueError, OverflowError) as error:  # unknown type, cycle, 2**64, lone surrogate
        raise BadPayload(f"a value cannot be written: {str(error)[:200]}") from None
