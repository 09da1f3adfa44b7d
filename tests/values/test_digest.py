"""Digests: each piece can be checked alone, and nothing but a sound file or listing gets through."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save

from modelnet_p2p.digest import BadArtifact, Listing, listing_of, metadata_of, tensor_places

TENSORS: dict[str, NDArray[Any]] = {  # Any: of several dtypes
    "b.weight": np.arange(600, dtype=np.float32).reshape(20, 30),
    "a scale": np.array(2.5, np.float64),
    "c.empty": np.zeros((0, 4), np.int8),
}
FILE = save(TENSORS, metadata={"note": "of bob's"})
LISTING = listing_of(FILE, chunk_bytes=1000)


def test_a_listing_has_every_hash() -> None:
    assert LISTING.size == len(FILE)
    assert [tensor.name for tensor in LISTING.tensors] == ["a scale", "b.weight", "c.empty"]
    for name, array in TENSORS.items():
        dtype = {"float32": "F32", "float64": "F64", "int8": "I8"}[array.dtype.name]
        assert LISTING.check_tensor(name, dtype, array.shape, array.tobytes())
        assert not LISTING.check_tensor(name, dtype, (*array.shape, 1), array.tobytes())
        assert not LISTING.check_tensor(name, dtype, array.shape, array.tobytes() + b"x")
        assert not LISTING.check_tensor(name + "x", dtype, array.shape, array.tobytes())
    pieces = [FILE[at : at + 1000] for at in range(0, len(FILE), 1000)]
    assert len(pieces) == len(LISTING.chunks)
    assert all(LISTING.check_chunk(index, piece) for index, piece in enumerate(pieces))
    assert not LISTING.check_chunk(0, pieces[1])
    assert not LISTING.check_chunk(-1, pieces[-1])
    assert not LISTING.check_chunk(len(pieces), b"")
    assert metadata_of(FILE) == {"note": "of bob's"}


def test_the_digest_is_the_hash_of_the_listings_bytes() -> None:
    data = LISTING.encode()
    assert Listing.decode(data) == LISTING
    assert LISTING.root == hashlib.sha256(data).digest()
    assert data.decode().splitlines()[:3] == ["modelnet-digest 1", f"size {len(FILE)}", "chunk-bytes 1000"]
    assert listing_of(memoryview(FILE), 1000).root == LISTING.root
    assert listing_of(FILE).root != LISTING.root  # the chunk size is part of it


@given(st.integers(0, len(FILE) - 1), st.integers(1, 255))
def test_every_byte_counts(at: int, flip: int) -> None:
    changed = bytearray(FILE)
    changed[at] ^= flip
    try:
        assert listing_of(bytes(changed), 1000).root != LISTING.root
    except BadArtifact:
        pass


def header(fields: object, body: bytes = b"") -> bytes:
    text = json.dumps(fields).encode() if not isinstance(fields, bytes) else fields
    return len(text).to_bytes(8, "little") + text + body


def entry(shape: list[object], start: int, end: int, dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x07",
        b"\xff" * 8,
        (1 << 40).to_bytes(8, "little") + b"{}",
        header([]),
        header(b"{"),
        header(b"\xff\xfe"),
        header(b"[" * 100_000),
        header(b'{"a": 1, "a": 2}'),
        header({"a": 3}),
        header({"a": entry([2], 0, 1)}, b"x"),  # too short for its shape
        header({"a": entry([1], 0, 1), "b": entry([1], 2, 3)}, b"xyz"),  # a hole
        header({"a": entry([2], 0, 2), "b": entry([2], 1, 3)}, b"xyz"),  # an overlap
        header({"a": entry([1], 0, 1)}, b"xy"),  # bytes behind the last
        header({"a": entry([1], 0, 1)}),  # beyond the end
        header({"a": entry([0, 1 << 64], 0, 0)}),
        header({"a": entry([-1], 0, 0)}),
        header({"a": entry([1.0], 0, 1)}, b"x"),
        header({"a": entry([1], 0, 1, "PICKLE")}, b"x"),
        header({"a": entry([1] * 17, 0, 1)}, b"x"),
        header({"a\nb": entry([1], 0, 1)}, b"x"),
        header({"": entry([1], 0, 1)}, b"x"),
    ],
)
def test_unsound_files_are_refused(data: bytes) -> None:
    with pytest.raises(BadArtifact):
        listing_of(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-1],
        lambda text: text + b"\n",
        lambda text: text.replace(b"size ", b"size 0"),
        lambda text: text.replace(b"chunk-bytes 1000", b"chunk-bytes 0"),
        lambda text: text.replace(b"chunk-bytes 1000", b"chunk-bytes 10"),
        lambda text: text.replace(b"digest 1", b"digest 2"),
        lambda text: text.replace(b"tensor F64", b"tensor F65"),
        lambda text: text.replace(b" 20,30 ", b" 20,030 "),
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text.replace(b"a scale", b"z scale"),
        lambda text: b"",
    ],
)
def test_listings_have_one_writing(change: Callable[[bytes], bytes]) -> None:
    with pytest.raises(BadArtifact):
        Listing.decode(change(LISTING.encode()))


@given(st.binary(max_size=300))
def test_noise_is_refused_by_name(data: bytes) -> None:
    for decode in (Listing.decode, tensor_places, metadata_of):
        try:
            decode(data)
        except BadArtifact:
            pass


@given(st.data())
def test_damaged_listings_are_refused_by_name(data: st.DataObject) -> None:
    text = bytearray(LISTING.encode())
    at = data.draw(st.integers(0, len(text) - 1))
    text[at : at + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=8))
    try:
        assert Listing.decode(bytes(text)).encode() == text
    except BadArtifact:
        pass
