"""Values as bodies and as JSON: there and back, uncopied, and bounded against those who would overload us."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Callable

import ml_dtypes
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.jsonvalue import from_json, to_json
from modelnet_p2p.payload import BadPayload, Payload, decode_value, encode_value
from modelnet_p2p.tensor import DTYPES, Array
from modelnet_p2p.tree import MAX_DEPTH, MAX_VALUES, check_tree, pack_tree, unpack_tree

int64 = st.integers(-(1 << 63), (1 << 64) - 1)


def tensors(name: str) -> st.SearchStrategy[Array]:
    shapes = st.lists(st.integers(0, 4), max_size=3)
    return shapes.map(lambda shape: (np.arange(math.prod(shape)) % 2).astype(DTYPES[name]).reshape(shape))


plain = st.none() | st.booleans() | int64 | st.floats() | st.text(max_size=8) | st.binary(max_size=8)
values: st.SearchStrategy[object] = st.recursive(
    plain | st.sampled_from(sorted(DTYPES)).flatmap(tensors),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def same(a: object, b: object) -> bool:
    """Equal with types, NaNs and dtypes."""
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and (a == b or (a != a and b != b))


def joined(payload: Payload) -> bytearray:
    body = bytearray().join(payload.buffers)
    assert len(body) == payload.size
    return body


@given(values)
def test_values_come_back_as_they_were(value: object) -> None:
    payload = encode_value(value)
    assert same(decode_value(joined(payload), payload.tree), value)


@given(values)
def test_values_come_back_from_json(value: object) -> None:
    text = json.dumps(to_json(value), allow_nan=False)
    again = from_json(json.loads(text))
    if not any(word in text for word in ('"base64"', '"dtype"', '"float"')):
        assert same(again, value)
    assert json.dumps(to_json(again), allow_nan=False) == text


def test_the_json_form_of_tensors_and_bytes_is_the_contracts() -> None:
    value = {"label": [3], "scores": np.array([[0.5, 2.0]], np.float32), "raw": b"\0\1"}
    form = {
        "label": [3],
        "scores": {"dtype": "float32", "shape": [1, 2], "data": [0.5, 2.0]},
        "raw": {"base64": "AAE="},
    }
    assert to_json(value) == form
    assert same(from_json(form), value)


@pytest.mark.parametrize("name", ["float16", "float32", "float64", "bfloat16"])
def test_numbers_that_json_lacks_survive_it(name: str) -> None:
    array = np.array([math.inf, -math.inf, 0.5]).astype(DTYPES[name])
    assert same(from_json(json.loads(json.dumps(to_json(array), allow_nan=False))), array)
    assert to_json(np.array(math.nan, np.float16)) == {"dtype": "float16", "shape": [], "data": ["NaN"]}
    assert to_json([-math.inf]) == [{"float": "-Infinity"}]


@pytest.mark.parametrize(
    "form",
    [
        {"base64": "???"},
        {"base64": "é"},
        {"dtype": "complex64", "shape": [], "data": [1]},
        {"dtype": ["float32"], "shape": [], "data": [1]},
        {"dtype": "float32", "shape": [2], "data": [1]},
        {"dtype": "float32", "shape": [-1], "data": [1]},
        {"dtype": "float32", "shape": [True], "data": [1]},
        {"dtype": "float32", "shape": 1, "data": [1]},
        {"dtype": "float32", "shape": [1] * 17, "data": [1]},
        {"dtype": "float32", "shape": [1], "data": ["x"]},
        {"dtype": "float32", "shape": [1], "data": [None]},
        {"dtype": "float32", "shape": [1], "data": [10**400]},
        {"dtype": "float32", "shape": [0, 1 << 70], "data": []},
        {"dtype": "uint8", "shape": [1], "data": [256]},
        {"dtype": "uint8", "shape": [1], "data": [1.0]},
        {"dtype": "bool", "shape": [1], "data": [1]},
        {"dtype": "float32", "shape": [1], "data": "1"},
    ],
)
def test_json_that_is_no_value_is_the_callers_mistake(form: object) -> None:
    with pytest.raises(LocalError) as caught:
        from_json(form)
    assert caught.value.code is Code.BAD_INPUT


def nested(depth: int) -> object:
    value: object = 0
    for _ in range(depth):
        value = [value]
    return value


def cycle() -> object:
    loop: list[object] = []
    loop.append(loop)
    return loop


@pytest.mark.parametrize(
    "make",
    [
        lambda: nested(MAX_DEPTH + 1),
        lambda: nested(10_000),
        cycle,
        lambda: {1: 2},
        lambda: {b"a": 2},
        lambda: 1 << 64,
        lambda: "\ud800",
        object,
        lambda: {1, 2},
        lambda: 1j,
        lambda: np.zeros(2, np.complex64),
        lambda: np.ma.masked_array([1, 2], [True, False]),
        lambda: [0] * (MAX_VALUES + 1),
        lambda: [[]] * 20_000,
    ],
)
def test_what_is_no_value_is_refused_before_it_is_sent(make: Callable[[], object]) -> None:
    with pytest.raises(LocalError) as caught:
        encode_value(make())
    assert caught.value.code is Code.BAD_INPUT


def test_the_json_form_refuses_the_same_depth() -> None:
    assert to_json(nested(MAX_DEPTH)) == from_json(nested(MAX_DEPTH)) == nested(MAX_DEPTH)
    for convert in (to_json, from_json):
        with pytest.raises(LocalError):
            convert(nested(MAX_DEPTH + 1))
    with pytest.raises(LocalError):
        to_json({1: 2})
    with pytest.raises(LocalError):
        to_json(object())


def test_tuples_become_lists_and_single_numbers_of_numpy_become_numbers() -> None:
    value = (1, np.float32(0.5), np.int64(3), np.bool_(True), ml_dtypes.bfloat16(2))
    payload = encode_value(value)
    assert decode_value(joined(payload)) == [1, 0.5, 3, True, 2.0]
    assert to_json(value) == [1, 0.5, 3, True, 2.0]


def test_tensors_lie_behind_the_tree_on_multiples_of_64_and_are_not_copied() -> None:
    first, second = np.arange(5, dtype=np.float32), np.arange(100, dtype=np.int8)
    payload = encode_value({"a": first, "b": [second, np.zeros(0)]})
    assert sum(np.shares_memory(np.frombuffer(part, np.uint8), first) for part in payload.buffers) == 1
    body = joined(payload)
    value = decode_value(body, payload.tree)
    assert isinstance(value, dict)
    assert payload.tree is not None
    start = -(-payload.tree // 64) * 64
    assert body[start : start + 20] == first.tobytes()
    assert body[start + 64 : start + 164] == second.tobytes()
    assert np.shares_memory(value["a"], np.frombuffer(body, np.uint8))
    value["a"][0] = 9
    assert body[start : start + 4] == np.float32(9).tobytes()


def test_a_body_that_does_not_end_with_its_last_tensor_is_refused() -> None:
    payload = encode_value(np.arange(3))
    body = joined(payload)
    assert payload.tree is not None
    for wrong, tree in ((body + b"\0", payload.tree), (body[:-1], payload.tree), (body, payload.tree - 1)):
        with pytest.raises(BadPayload):
            decode_value(wrong, tree)
    for tree in (0, len(body) + 1):
        with pytest.raises(BadPayload):
            decode_value(body, tree)
    with pytest.raises(BadPayload):
        decode_value(body[: payload.tree])  # tensors, but no place for them


BOMBS = {
    "a long array announced": b"\xdd\xff\xff\xff\xff",
    "long arrays in long arrays": b"\xdd\x00\x0f\xff\xff" * 1000,
    "a long map announced": b"\xdf\xff\xff\xff\xff",
    "a mebibyte of empty arrays": b"\xdd\x00\x10\x00\x00" + b"\x90" * (1 << 20),
    "many empty arrays": b"\xdd\x00\x03\x00\x00" + b"\x90" * (3 << 16),
    "many small maps": b"\xdd\x00\x00\xff\xff" + b"\x81\xa1a\x01" * 0xFFFF,
    "deep": b"\x91" * 100_000 + b"\xc0",
    "deep maps": b"\x81\xa1a" * 1000 + b"\xc0",
    "many short strings": b"\xdd\x00\x02\x00\x00" + b"\xa2ab" * 0x20000,
    "a long string announced": b"\xdb\xff\xff\xff\xff",
    "timestamp": b"\xd6\xff\0\0\0\0",
    "unknown extension": b"\xd4\x02\0",
    "a tensor where none may be": b"\xd5\x01\x02\x00",
    "never used": b"\xc1",
    "nothing": b"",
    "two values": b"\xc0\xc0",
    "integer keys": b"\x81\x01\x01",
    "not UTF-8": b"\xa1\xff",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_within_their_own_size(name: str) -> None:
    bomb = BOMBS[name]
    tracemalloc.start()
    with pytest.raises(BadPayload):
        unpack_tree(bomb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def strings(text: str, count: int) -> bytes:
    return msgpack.packb([f"{text}{i % 10}" for i in range(count)])  # type: ignore[no-any-return]  # untyped


@pytest.mark.parametrize(
    "tree",
    [
        pack_tree([[] for _ in range(7_000)]),
        pack_tree([{"a": i % 99} for i in range(4_200)]),
        pack_tree([i + 999 for i in range(60_000)]),
        pack_tree([i + 0.5 for i in range(200_000)]),
        strings("a", 25_000),
        strings("é", 30_000),
        strings("\U0001f600", 20_000),
    ],
    ids=["lists", "maps", "ints", "floats", "ascii", "latin", "emoji"],
)
def test_what_is_let_through_takes_eight_times_its_size_and_a_mebibyte(tree: bytes) -> None:
    """Each tree is near its bound; short text that is not ASCII is allowed what `tree` says of it."""
    check_tree(tree)
    short_text = 24 * 30_000 if "é".encode() in tree else 0
    tracemalloc.start()
    value = unpack_tree(tree)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert value
    assert peak <= 8 * len(tree) + (1 << 20) + short_text


@settings(max_examples=300)
@given(
    st.binary(max_size=200) | st.builds(lambda b: b"\xde\x00\x04" + b, st.binary(max_size=60)),
    st.integers(0, 300),
)
def test_no_bytes_do_worse_than_bad_payload(body: bytes, tree: int) -> None:
    try:
        value = decode_value(body, tree or None)
    except BadPayload:
        return
    again = encode_value(value)
    assert same(decode_value(joined(again), again.tree), value)


@given(values, st.data())
def test_a_flipped_byte_does_no_worse_than_bad_payload(value: object, data: st.DataObject) -> None:
    payload = encode_value(value)
    body = joined(payload)
    body[data.draw(st.integers(0, len(body) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        decode_value(body, payload.tree)
    except BadPayload:
        pass


@given(plain | st.lists(plain, max_size=20) | st.dictionaries(st.text(max_size=40), plain, max_size=20))
def test_the_walk_agrees_with_msgpack_on_where_a_value_ends(value: object) -> None:
    tree = msgpack.packb(value)
    check_tree(tree)
    for cut in range(len(tree)):
        with pytest.raises(BadPayload):
            check_tree(tree[:cut])
    with pytest.raises(BadPayload):
        check_tree(tree + b"\xc0")
