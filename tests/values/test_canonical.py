"""Msgpack as signed: one encoding for each value, and nothing else is read."""

from __future__ import annotations

import math
import tracemalloc

import msgpack
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from modelnet_p2p.canonical import MAX_BYTES, MAX_DEPTH, MAX_ITEMS, pack, unpack
from modelnet_p2p.refusals import BadRecord, MalformedRecord, Refusal

_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text(max_size=40)
    | st.binary(max_size=40)
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=5),
    max_leaves=20,
)
_MAPS = st.dictionaries(st.text(max_size=8), _VALUES, max_size=8)


@settings(max_examples=300, deadline=None)
@given(_MAPS)
def test_what_is_packed_is_read_again_and_packs_to_the_same_bytes(value: dict[str, object]) -> None:
    try:
        data = pack(value)
    except BadRecord:
        assume(False)  # too deep, too many or too long: other tests' matter
    assert unpack(data) == value
    assert pack(unpack(data)) == data


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
@example(b"")
@example(b"\xc1")
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\x91" * 4000)
@example(b"\x81\xa1a" * 1300)
@example(b"\x81\xa1a\xd6\xff\x00\x00\x00\x00")
def test_any_bytes_are_read_in_one_way_or_refused_as_malformed(data: bytes) -> None:
    try:
        value = unpack(data)
    except MalformedRecord:
        return
    assert pack(value) == data


def test_keys_are_ordered_by_their_utf8_bytes_and_not_by_utf16() -> None:
    """JavaScript's own sort would put the surrogate pair first."""
    data = pack({"\U0001f600": 1, "\uffee": 2, "b": 3, "a": 4})
    assert list(unpack(data)) == ["a", "b", "\uffee", "\U0001f600"]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x82\xa1b\x01\xa1a\x01", "keys out of order"),
        (b"\x82\xa1a\x01\xa1a\x01", "a key twice"),
        (b"\x82\xa1a\x01\xa1a\x02", "a key twice, with another value"),
        (b"\x81\x01\x01", "a key that is a number"),
        (b"\x81\xc4\x01a\x01", "a key that is bytes"),
        (b"\x81\xa1a\xcc\x01", "1 as uint8"),
        (b"\x81\xa1a\xcd\x00\xff", "255 as uint16"),
        (b"\x81\xa1a\xcf\x00\x00\x00\x00\xff\xff\xff\xff", "2^32-1 as uint64"),
        (b"\x81\xa1a\xd0\x05", "5 as int8"),
        (b"\x81\xa1a\xd3\xff\xff\xff\xff\xff\xff\xff\xff", "-1 as int64"),
        (b"\x81\xd9\x01a\x01", "a short string as str8"),
        (b"\x81\xa1a\xda\x00\x01a", "a short string as str16"),
        (b"\x81\xa1a\xc5\x00\x01a", "short bytes as bin16"),
        (b"\x81\xa1a\xdc\x00\x00", "an empty list as array16"),
        (b"\xde\x00\x01\xa1a\x01", "a small map as map16"),
        (b"\x81\xa1a\xa1\xff", "a string that is not UTF-8"),
        (b"\x81\xa1a\xa3\xed\xa0\x80", "a surrogate in UTF-8"),
        (b"\x81\xa1a\xa2\xc0\x80", "overlong UTF-8"),
        (b"\x81\xa1a\xca\x3f\x80\x00\x00", "a float32"),
        (b"\x81\xa1a" + msgpack.packb(1.5), "a float64"),
        (b"\x81\xa1a" + msgpack.packb(math.nan), "NaN"),
        (b"\x81\xa1a\x91" + msgpack.packb(math.inf), "infinity in a list"),
        (b"\x81\xa1a\xd4\x01\x00", "an extension"),
        (b"\x81\xa1a\xc7\x0c\xff" + bytes(12), "a timestamp"),
        (b"\x81\xa1a\x01\x00", "a byte behind the end"),
        (b"\x81\xa1a", "cut short"),
        (b"\x93\x01\x02\x03", "not a map"),
        (b"\xc0", "nil"),
        (b"\xc1", "the byte that is never used"),
    ],
)
def test_what_is_not_canonical_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(MalformedRecord):
        unpack(data)


def test_the_bounds_hold_on_both_sides() -> None:
    deep: object = 1
    for _ in range(MAX_DEPTH):
        deep = {"a": deep}
    wide = {"a": [None] * (MAX_ITEMS - 2)}
    assert isinstance(deep, dict)
    for value in (deep, wide):
        assert unpack(pack(value)) == value
    past = {
        Refusal.MALFORMED: ({"a": deep}, {"a": [None] * (MAX_ITEMS - 1)}),
        Refusal.OVERSIZED: ({"a": bytes(MAX_BYTES)},),
    }
    for refusal, values in past.items():
        for value in values:
            with pytest.raises(BadRecord) as at_home:
                pack(value)
            with pytest.raises(BadRecord) as abroad:
                unpack(msgpack.packb(value))
            assert at_home.value.refusal is abroad.value.refusal is refusal


@pytest.mark.parametrize(
    "value",
    [{"a": 1.0}, {"a": math.nan}, {1: 2}, {"a": {1, 2}}, {"a": 2**64}, {"a": -(2**63) - 1}, {"\ud800": 1}],
)
def test_what_has_no_canonical_form_is_not_packed(value: dict[str, object]) -> None:
    with pytest.raises(MalformedRecord):
        pack(value)


def test_hostile_bytes_cost_little_memory() -> None:
    tracemalloc.start()
    try:
        for data in (
            b"\x9f" + b"\x90" * 4095,
            b"\x80" * 4096,
            b"\xdc\x0f\xfd" + b"\x80" * 4093,
            b"\x91" * 4096,
        ):
            with pytest.raises(MalformedRecord):
                unpack(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 4096 + (1 << 20)
