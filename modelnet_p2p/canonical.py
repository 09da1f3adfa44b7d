"""Msgpack as it is signed: each value has exactly one encoding, and any other is refused.

Keys are strings in ascending order of their UTF-8 bytes, no key twice; integers take the fewest
bytes; no floats (so no NaN), no extension types; strings are valid UTF-8. The C decoder of
`msgpack` does the work, and the proof of canonicity is that encoding its result again gives the
received bytes; what it would let pass silently (order, floats) is checked on the values.

Source: https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import NoneType

import msgpack

from modelnet_p2p.refusals import BadRecord, MalformedRecord, Refusal

MAX_BYTES = 4096  # the longest record; also bounds what the decoder may allocate (about 70 bytes each)
MAX_DEPTH = 6  # a spec's shape is the deepest thing a record holds (4); two levels for later versions
MAX_ITEMS = 1024  # values in all, keys included: three times what the fullest offer has
MIN_INT = -(2**63)
MAX_INT = 2**64 - 1
_PLAIN = frozenset({str, bytes, int, bool, NoneType})  # what the decoder makes of values without parts


def pack(value: Mapping[str, object]) -> bytes:
    """The canonical encoding of a map; raises MalformedRecord for what has none,
    and BadRecord (oversized) past MAX_BYTES.

    Takes None, bool, int, str, bytes, lists or tuples, and maps with string keys.
    """
    data = _encode(_ordered(value, _Budget(), 1))
    if len(data) > MAX_BYTES:
        raise BadRecord(Refusal.OVERSIZED, f"{len(data)} bytes of msgpack, more than {MAX_BYTES}")
    return data


def unpack(data: bytes) -> dict[str, object]:
    """The map that `data` is the canonical encoding of; raises MalformedRecord for anything else,
    and BadRecord (oversized) past MAX_BYTES."""
    if len(data) > MAX_BYTES:
        raise BadRecord(Refusal.OVERSIZED, f"{len(data)} bytes of msgpack, more than {MAX_BYTES}")
    try:
        value: object = msgpack.unpackb(data, object_pairs_hook=_map_in_order, ext_hook=_no_extension)
    except MalformedRecord:
        raise
    # RecursionError: the pure Python decoder's answer to a deep nest, where the C one has StackError
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise MalformedRecord(f"not msgpack: {type(error).__name__}") from error
    if not isinstance(value, dict):
        raise MalformedRecord(f"a {type(value).__name__}, not a map")
    _check(value, _Budget(), 1)
    if _encode(value) != data:
        raise MalformedRecord("not the shortest encoding of its values")
    return value


class _Budget:
    """Counts the values of one message down."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = MAX_ITEMS

    def take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise MalformedRecord(f"more than {MAX_ITEMS} values")


def _encode(value: object) -> bytes:
    data: bytes = msgpack.packb(value, use_bin_type=True)
    return data


def _map_in_order(pairs: list[tuple[object, object]]) -> dict[str, object]:
    built: dict[str, object] = {}
    last = ""
    for key, value in pairs:
        # Python compares strings by code point, which is the order of their UTF-8 bytes
        if not isinstance(key, str) or (built and key <= last):
            raise MalformedRecord("a map's keys are not strings in ascending order, each once")
        built[key] = value
        last = key
    return built


def _no_extension(code: int, data: bytes) -> object:
    raise MalformedRecord(f"an extension type ({code})")


def _check(value: dict[str, object] | list[object], budget: _Budget, depth: int) -> None:
    """Refuses floats, nests too deep and too many values; everything else was checked before."""
    items: Iterable[object]
    items, count = (value.values(), 2 * len(value)) if isinstance(value, dict) else (value, len(value))
    _descend(budget, depth, count)
    for item in items:
        if type(item) in _PLAIN:  # as most are: a call for each would take twice as long as all the rest
            continue
        if not isinstance(item, dict | list):
            raise MalformedRecord(f"a {type(item).__name__}")
        _check(item, budget, depth + 1)


def _ordered(value: object, budget: _Budget, depth: int) -> object:
    """`value` with every map's keys in order; raises MalformedRecord for what cannot be encoded."""
    match value:
        case None | bool() | bytes():
            return value
        case str():
            if not value.isascii():
                _utf8(value)
            return value
        case int():
            if not MIN_INT <= value <= MAX_INT:
                raise MalformedRecord("an integer of more than 64 bits")
            return value
        case Mapping():
            _descend(budget, depth, 2 * len(value))
            if not all(isinstance(key, str) for key in value):
                raise MalformedRecord("a map's key is not a string")
            return {_utf8(key): _ordered(value[key], budget, depth + 1) for key in sorted(value)}
        case list() | tuple():
            _descend(budget, depth, len(value))
            return [_ordered(item, budget, depth + 1) for item in value]
    raise MalformedRecord(f"a {type(value).__name__}")


def _descend(budget: _Budget, depth: int, count: int) -> None:
    if depth > MAX_DEPTH:
        raise MalformedRecord(f"nested deeper than {MAX_DEPTH}")
    budget.take(count)


def _utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise MalformedRecord("a string that is not Unicode text") from error
    return text
