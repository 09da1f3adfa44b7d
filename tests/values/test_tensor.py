"""Tensors: bytes there and back, headers that lie, memory that is not copied."""

from __future__ import annotations

import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.tensor import (
    DTYPES,
    MAX_DIMS,
    Array,
    allocate,
    dtype_name,
    dtype_of,
    pack_header,
    tensor_bytes,
    unpack_header,
    view_tensor,
    write_tensor,
)
from modelnet_p2p.tree import BadPayload

arrays = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda name: hnp.arrays(
        np.uint8 if name == "bool" else f"u{DTYPES[name].itemsize}",
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
        elements={"max_value": 1} if name == "bool" else None,
    ).map(lambda bits: bits.view(DTYPES[name]))
)


def through_the_wire(array: Array) -> Array:
    dtype, shape, size = unpack_header(pack_header(array))
    data = tensor_bytes(array)
    assert len(data) == size
    return view_tensor(dtype, shape, data)


def same(a: Array, b: Array) -> bool:
    """Equal to the bit, NaNs included."""
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


@given(arrays)
def test_every_dtype_and_shape_comes_back_bit_for_bit(array: Array) -> None:
    assert same(through_the_wire(array), array)


@given(arrays, st.data())
def test_any_layout_is_written_in_c_order(array: Array, data: st.DataObject) -> None:
    axes = data.draw(st.permutations(range(array.ndim)))
    turned = array.transpose(axes)[tuple([slice(None, None, -1)] * array.ndim)]
    out = bytearray(turned.nbytes + 3)
    assert write_tensor(turned, memoryview(out)) == turned.nbytes
    assert out == turned.tobytes() + bytes(3)
    assert tensor_bytes(turned) == turned.tobytes()


@pytest.mark.parametrize("name", [name for name in DTYPES if name != "bfloat16"])
def test_big_endian_arrays_go_out_little_endian(name: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(DTYPES[name].newbyteorder(">"))
    assert np.array_equal(through_the_wire(array), array)
    assert through_the_wire(array).dtype == DTYPES[name]
    out = bytearray(array.nbytes)
    write_tensor(array, memoryview(out))
    assert out == array.astype(DTYPES[name]).tobytes()


def test_scalars_and_empty_tensors_keep_their_shapes() -> None:
    assert through_the_wire(np.array(3.5, np.float32)).shape == ()
    assert through_the_wire(np.zeros((2, 0, 3), np.int8)).shape == (2, 0, 3)
    assert same(through_the_wire(np.array(1.5, ml_dtypes.bfloat16)), np.array(1.5, ml_dtypes.bfloat16))


def test_a_plain_array_is_not_copied_in_either_direction() -> None:
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    data = tensor_bytes(array)
    assert np.shares_memory(array, np.frombuffer(data, np.uint8))
    assert data.readonly
    body = bytearray(data)
    view = view_tensor(array.dtype, array.shape, body)
    view[0, 0] = 7
    assert struct.unpack_from("<f", body)[0] == 7


@pytest.mark.parametrize("dtype", ["complex64", "U3", "O", "M8[s]", [("a", "i4")], "V4", "S2"])
def test_other_dtypes_are_the_callers_mistake(dtype: object) -> None:
    array = np.zeros(2, np.dtype(dtype))  # type: ignore[call-overload]  # the point is that it is none of ours
    for refused in (lambda: pack_header(array), lambda: tensor_bytes(array), lambda: dtype_name(array.dtype)):
        with pytest.raises(LocalError) as caught:
            refused()
        assert caught.value.code is Code.BAD_INPUT
    with pytest.raises(LocalError):
        dtype_of(dtype)


def test_a_tensor_does_not_overrun_the_buffer_that_it_is_written_to() -> None:
    with pytest.raises(LocalError) as caught:
        write_tensor(np.zeros(4, np.int64), memoryview(bytearray(31)))
    assert caught.value.code is Code.TOO_LARGE


def test_seventeen_dimensions_are_refused_on_both_sides() -> None:
    with pytest.raises(LocalError):
        pack_header(np.zeros((1,) * (MAX_DIMS + 1)))
    with pytest.raises(BadPayload):
        unpack_header(struct.pack("<BB17Q", 1, 17, *[1] * 17))


def header(code: int, *shape: int) -> bytes:
    return struct.pack(f"<BB{len(shape)}Q", code, len(shape), *shape)


@pytest.mark.parametrize(
    "lie",
    [
        b"",
        b"\x01",
        header(0, 1),
        header(len(DTYPES) + 1, 1),
        header(255),
        header(2, 1) + b"\0",
        header(2, 1)[:-1],
        header(2, 1 << 32, 1 << 32, 1 << 32),
        header(2, 0, (1 << 63) - 1),
        header(2, 1 << 63, 0, 1 << 63),
        header(2, *[(1 << 64) - 1] * 16),
    ],
)
def test_headers_that_lie_are_refused(lie: bytes) -> None:
    with pytest.raises(BadPayload):
        unpack_header(lie)


@given(st.binary(max_size=40), st.binary(max_size=64), st.integers(0, 70))
def test_no_header_does_worse_than_bad_payload(head: bytes, data: bytes, offset: int) -> None:
    try:
        dtype, shape, size = unpack_header(head)
        array = view_tensor(dtype, shape, data, offset)
    except BadPayload:
        return
    assert array.nbytes == size <= len(data) - offset
    array.tolist()


def test_shape_and_bytes_must_agree() -> None:
    dtype = DTYPES["float32"]
    with pytest.raises(BadPayload):
        view_tensor(dtype, (3,), bytes(11))
    with pytest.raises(BadPayload):
        view_tensor(dtype, (3,), bytes(12), 1)
    with pytest.raises(BadPayload):
        view_tensor(dtype, (), b"", 0)
    with pytest.raises(BadPayload):
        view_tensor(DTYPES["bool"], (3,), b"\0\1\2")


def test_room_for_a_body_starts_on_a_cache_line() -> None:
    for size in (0, 1, 63, 64, 1 << 20):
        room = allocate(size)
        assert len(room) == size
        assert not room.readonly
        assert size == 0 or np.frombuffer(room, np.uint8).ctypes.data % 64 == 0
