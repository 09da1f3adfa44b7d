"""Compact tensors: how far they are from what was sent, what does not fit them, and strangers' lies."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelnet_p2p.compact import (
    BLOCK,
    FORMS,
    MAX_SCALES,
    MIN_ELEMENTS,
    PIECE,
    CompactTensor,
    compact_tensor,
    expand_tensor,
    packed_size,
    replaced,
    tensors_in,
    view_compact,
    worth,
)
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.payload import WIRES, check_wire, decode_value, encode_value
from modelnet_p2p.tensor import DTYPES, Array, header_of
from modelnet_p2p.tree import MAX_DEPTH, BadPayload

Draw = Callable[[int], Array]
PAIRS = [(wire, name) for wire in WIRES for name in sorted(FORMS[wire])]


def whole(compact: CompactTensor) -> Array:
    return expand_tensor(compact, memoryview(bytearray(compact.nbytes)))


def there_and_back(array: Array, wire: str) -> Array:
    """Through a frame's body, as the other side sees it."""
    payload = encode_value({"x": compact_tensor(array, wire)}, wire)
    body = bytearray().join(payload.buffers)
    assert len(body) == payload.size
    value = decode_value(body, payload.tree, wire)
    assert isinstance(value, dict)
    return whole(value["x"])


def normal(count: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal(count)


def heavy(count: int, seed: int = 1) -> Array:
    """Student's t with two degrees of freedom: one element in a block outweighs the others."""
    return np.random.default_rng(seed).standard_t(2, count)


# --- how exact ---


@pytest.mark.parametrize("name", sorted(FORMS["float16"]))
@pytest.mark.parametrize("draw", [normal, heavy])
def test_float16_is_exact_to_half_a_unit_of_its_last_place(name: str, draw: Draw) -> None:
    x = draw(500_000).astype(DTYPES[name])
    y = there_and_back(x, "float16")
    assert y.dtype == x.dtype
    error = np.abs(y.astype(np.float64) - x)
    large = np.abs(x) >= 2**-14
    assert (error[large] / np.abs(x[large])).max() <= 2**-11
    assert error[~large].max() <= 2**-25
    assert 1.5e-4 < rms(error) / rms(x) < 2.5e-4


@pytest.mark.parametrize("name", ["float32", "float64"])
@pytest.mark.parametrize(
    ("draw", "typical", "median"), [(normal, (0.0055, 0.0065), 0.007), (heavy, (0.012, 0.016), 0.022)]
)
def test_int8_is_exact_to_a_part_in_254_of_the_largest_of_its_block(
    name: str, draw: Draw, typical: tuple[float, float], median: float
) -> None:
    x = draw(499_968 + 7).astype(DTYPES[name])
    error = np.abs(there_and_back(x, "int8").astype(np.float64) - x)
    peaks = np.repeat(np.maximum.reduceat(np.abs(x), np.arange(0, x.size, BLOCK)), BLOCK)[: x.size]
    assert (error / peaks).max() <= 1 / 254 * (1 + 1e-4)
    assert typical[0] < rms(error) / rms(x) < typical[1]
    assert 0.9 * median < np.median(error / np.abs(x)) < 1.05 * median


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_int8_of_short_floats_adds_no_more_than_their_own_rounding(name: str) -> None:
    x = normal(100_000).astype(DTYPES[name])
    y = there_and_back(x, "int8")
    assert y.dtype == x.dtype
    error = np.abs(y.astype(np.float64) - x.astype(np.float64))
    unit = {"float16": 2**-11, "bfloat16": 2**-8}[name]
    peaks = np.repeat(np.maximum.reduceat(np.abs(x.astype(np.float64)), np.arange(0, x.size, BLOCK)), BLOCK)
    assert (error <= peaks[: x.size] * (1 / 254 + unit) * 1.001).all()


def rms(x: Array) -> float:
    return float(np.sqrt(np.mean(np.square(x.astype(np.float64)))))


@pytest.mark.parametrize(("wire", "name"), PAIRS)
@pytest.mark.parametrize("count", [MIN_ELEMENTS, MIN_ELEMENTS + 1, PIECE - 1, PIECE, PIECE + 65, 2 * PIECE])
def test_every_size_fills_its_blocks_and_pieces(wire: str, name: str, count: int) -> None:
    x = (np.arange(count) % 255 - 127).astype(DTYPES[name])  # whole numbers that all forms hold
    x[::BLOCK] = 127  # so that each block's scale is 1
    compact = compact_tensor(x, wire)
    assert len(compact.data) == packed_size(wire, count)
    assert compact.nbytes == x.nbytes <= 8 * len(compact.data)
    assert np.array_equal(there_and_back(x, wire), x)


def test_shapes_and_layouts_are_kept() -> None:
    x = normal(24_000).astype(">f4").reshape(40, 30, 20).transpose(2, 0, 1)[:, ::-1]
    y = there_and_back(x, "float16")
    assert y.shape == x.shape
    assert y.dtype == np.dtype("<f4")
    assert np.abs(y - x).max() < 0.002


def test_zeros_and_the_smallest_numbers() -> None:
    x = np.zeros(MIN_ELEMENTS, np.float32)
    assert not there_and_back(x, "int8").any()
    x[:] = 1e-45
    x[64:] = 1e-20
    y = there_and_back(x, "int8")
    assert not y[:64].any()  # a block below 1.5e-36 is zeros
    assert np.allclose(y[64:], 1e-20, rtol=1e-6)


@pytest.mark.parametrize("wire", WIRES)
def test_beside_the_result_nothing_of_a_tensors_size_is_allocated(wire: str) -> None:
    x = normal(1 << 21)
    tracemalloc.start()
    compact = compact_tensor(x, wire)
    _, writing = tracemalloc.get_traced_memory()
    out = memoryview(bytearray(compact.nbytes))
    tracemalloc.reset_peak()
    expand_tensor(compact, out)
    _, reading = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert writing < len(compact.data) + (2 << 20)
    assert reading < len(compact.data) + len(out) + (2 << 20)


# --- what does not fit ---


@pytest.mark.parametrize("at", [0, PIECE + 3])
@pytest.mark.parametrize(
    ("wire", "name", "bad", "says"),
    [
        ("float16", "float32", 65520.0, "6.552e+04 is beyond"),
        ("float16", "float64", -1e300, "-1e+300 is beyond"),
        ("int8", "float32", np.nan, "nan is not a finite"),
        ("int8", "float16", np.inf, "inf is not a finite"),
        ("int8", "bfloat16", -np.inf, "-inf is not a finite"),
        ("int8", "float64", 1e39, "1e+39 is beyond"),
        ("int8", "float64", 1e300, "1e+300 is beyond"),
        ("int8", "float32", np.finfo(np.float32).max, "3.403e+38 is beyond"),
    ],
)
def test_what_a_form_cannot_hold_is_named_and_never_written(
    wire: str, name: str, bad: float, says: str, at: int
) -> None:
    x = np.ones(2 * PIECE, DTYPES[name])
    x[at] = bad
    with pytest.raises(LocalError) as caught:
        compact_tensor(x, wire)
    assert caught.value.code is Code.BAD_INPUT
    assert says in caught.value.message
    assert "none" in caught.value.hint


def test_float16_keeps_infinities_and_nan_and_its_largest_number() -> None:
    x = np.ones(MIN_ELEMENTS, np.float32)
    x[:5] = np.inf, -np.inf, np.nan, 65504, -65519  # the last is nearer to -65504 than to anything else
    y = there_and_back(x, "float16")
    assert y[:2].tolist() == [np.inf, -np.inf]
    assert np.isnan(y[2])
    assert y[3:5].tolist() == [65504, -65504]


def test_the_largest_that_int8_holds_comes_out_finite() -> None:
    for name, scale in MAX_SCALES.items():
        x = np.full(MIN_ELEMENTS, 126.9 * scale).astype(DTYPES[name])
        y = there_and_back(x, "int8").astype(np.float64)
        assert np.allclose(y, x.astype(np.float64), rtol=1 / 100)


def test_small_tensors_and_other_kinds_are_not_worth_it() -> None:
    assert worth(np.zeros(MIN_ELEMENTS, np.float32), "int8")
    assert not worth(np.zeros(MIN_ELEMENTS - 1, np.float32), "int8")
    assert not worth(np.zeros(MIN_ELEMENTS, np.int64), "int8")
    assert not worth(np.zeros(MIN_ELEMENTS, ml_dtypes.bfloat16), "float16")  # no smaller, and less wide
    assert not worth(np.ma.masked_array(np.zeros(MIN_ELEMENTS), np.ones(MIN_ELEMENTS, bool)), "int8")
    assert check_wire("int8") == "int8"
    assert check_wire("") == ""
    with pytest.raises(LocalError):
        check_wire("int4")


# --- inside of values ---


def test_tensors_are_found_and_replaced_wherever_they_stand() -> None:
    a, b = np.zeros(3), np.ones(2)
    value = {"a": [a, (b, "text")], "n": None, "again": a}
    assert [id(tensor) for tensor in tensors_in(value)] == [id(a), id(b), id(a)]
    swapped = replaced(value, {id(a): "A"})
    assert swapped == {"a": ["A", [b, "text"]], "n": None, "again": "A"}
    assert value["a"] == [a, (b, "text")]


def test_values_that_hold_themselves_or_are_too_deep_are_left_to_the_encoder() -> None:
    a = np.zeros(MIN_ELEMENTS)
    loop: list[object] = [a]
    loop += [loop, loop]
    deep: object = a
    for _ in range(10_000):
        deep = [deep]
    assert len(tensors_in(loop)) == 1
    assert tensors_in(deep) == []
    for value in (loop, deep):
        with pytest.raises(LocalError):
            encode_value(replaced(value, {id(a): 1}))
    within: object = a
    for _ in range(MAX_DEPTH):
        within = [within]
    assert len(tensors_in(within)) == 1


# --- strangers ---

FLAT = np.ones(MIN_ELEMENTS, np.float32)


def body_of(compact: CompactTensor) -> tuple[bytearray, int]:
    payload = encode_value(compact, compact.wire)
    assert payload.tree is not None
    return bytearray().join(payload.buffers), payload.tree


@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, -1.0, 3e38])
def test_scales_that_no_sender_writes_are_refused(scale: float) -> None:
    body, tree = body_of(compact_tensor(FLAT, "int8"))
    struct.pack_into("<f", body, 64 + 4 * 7, scale)
    with pytest.raises(BadPayload, match="scale"):
        decode_value(body, tree, "int8")


def test_a_scale_is_judged_by_the_dtype_that_it_is_for() -> None:
    compact = replace(compact_tensor(FLAT, "int8"), dtype="float16")
    body, tree = body_of(compact)
    struct.pack_into("<f", body, 64, MAX_SCALES["float16"])
    body[64 + 4 * MIN_ELEMENTS // BLOCK] = 0x80  # -128, which no sender writes
    tensor = decode_value(body, tree, "int8")
    assert isinstance(tensor, CompactTensor)
    assert whole(tensor)[0] == -65504  # and no infinity
    struct.pack_into("<f", body, 64, MAX_SCALES["float16"] * 1.001)
    with pytest.raises(BadPayload, match="scale"):
        decode_value(body, tree, "int8")


@pytest.mark.parametrize(
    ("wire", "dtype", "shape"),
    [
        ("int8", "float32", (MIN_ELEMENTS - 1,)),
        ("int8", "float32", ()),
        ("int8", "float32", (0, 1 << 40)),
        ("int8", "int8", (MIN_ELEMENTS,)),
        ("float16", "float16", (MIN_ELEMENTS,)),
        ("float16", "bfloat16", (MIN_ELEMENTS,)),
        ("int8", "float32", (1 << 59,)),
        ("float16", "float64", (1 << 30, 1 << 30)),
        ("int8", "float64", (MIN_ELEMENTS + 1,)),
    ],
)
def test_headers_that_lie_are_refused_before_memory_is_taken(
    wire: str, dtype: str, shape: tuple[int, ...]
) -> None:
    data = bytes(packed_size("int8", MIN_ELEMENTS))
    tracemalloc.start()
    with pytest.raises(BadPayload):
        view_compact(wire, header_of(dtype, shape), data, 0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 16


def test_compact_tensors_where_the_head_names_no_form_or_another_are_refused() -> None:
    body, tree = body_of(compact_tensor(FLAT, "int8"))
    for wire in ("", "float16"):
        with pytest.raises(BadPayload):
            decode_value(body, tree, wire)
    with pytest.raises(LocalError):
        encode_value(compact_tensor(FLAT, "int8"), "float16")
    with pytest.raises(LocalError):
        encode_value(compact_tensor(FLAT, "int8"))


bodies = {wire: body_of(compact_tensor(normal(MIN_ELEMENTS).astype(np.float32), wire)) for wire in WIRES}


@given(st.sampled_from(WIRES), st.data())
@settings(max_examples=300)
def test_damaged_bodies_do_no_worse_than_bad_payload(wire: str, data: st.DataObject) -> None:
    body, tree = bytearray(bodies[wire][0]), bodies[wire][1]
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, 300))] = data.draw(st.integers(0, 255))
    del body[data.draw(st.sampled_from([len(body), len(body) - 1, 100, 30])) :]
    try:
        value = decode_value(body, tree + data.draw(st.sampled_from([0, 0, 0, 1, -1])), wire)
    except BadPayload:
        return
    for tensor in tensors_in(value):
        assert isinstance(tensor, CompactTensor)
        assert tensor.nbytes <= 8 * len(body)
        array = whole(tensor)
        assert array.nbytes == tensor.nbytes
        assert wire == "float16" or np.isfinite(array).all()


@given(st.sampled_from(WIRES), st.binary(max_size=40), st.binary(max_size=200), st.integers(0, 100))
def test_no_header_does_worse_than_bad_payload(wire: str, header: bytes, data: bytes, offset: int) -> None:
    with pytest.raises(BadPayload):  # 200 bytes hold none
        view_compact(wire, header, data, offset)


def test_the_bytes_of_the_protocol_page() -> None:
    """One block of scale 0.5 and 31 of zeros; whoever writes another implementation can begin here."""
    x = np.zeros((2, 1024), np.float32)
    x[0, :4] = 63.5, -63.5, 0.5, 0.7
    body, tree = body_of(compact_tensor(x, "int8"))
    assert (
        body[:21].hex()
        == "c71202" + "0202" + (2).to_bytes(8, "little").hex() + (1024).to_bytes(8, "little").hex()
    )
    assert (tree, len(body)) == (21, 64 + 32 * 4 + 2048)
    assert body[64:68].hex() == "0000003f"
    assert body[68:192] == bytes(124)
    assert body[192:197].hex() == "7f81010100"
    half, _ = body_of(compact_tensor(x, "float16"))
    assert half[64:72].hex() == "f053f0d30038" + "9a39"
