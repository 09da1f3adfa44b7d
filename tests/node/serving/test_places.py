"""Large tensors leave a value and come back to their seats; what lies about places is refused."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelnet_p2p.node.serving.policy.notes import (
    FROM_PEER,
    FROM_WORKER,
    NOTE,
    BadNote,
    Note,
    NoteKind,
    Notes,
)
from modelnet_p2p.node.serving.policy.places import LEAST_BYTES, MAX_PLACES, copied, lift, lower
from modelnet_p2p.payload import Value, decode_value, encode_value
from modelnet_p2p.tensor import allocate, pack_header
from modelnet_p2p.tree import BadPayload

LARGE = LEAST_BYTES // 4  # elements of float32


def large(seed: int = 0, dtype: Any = np.float32) -> Any:  # Any: dtype's type, and the array of it
    return np.random.default_rng(seed).normal(size=LARGE * 4).astype(dtype)


def through(value: Value) -> Value:
    """Out of the value into memory, over the wire, and back."""
    lifted = lift(value)
    assert lifted is not None
    offsets, size = lifted.layout()
    memory = allocate(size)
    for _ in copied(lifted.arrays, offsets, memory):
        pass
    payload = encode_value(lifted.message(offsets))
    assert payload.size < LEAST_BYTES
    message = decode_value(b"".join(payload.buffers), payload.tree)
    return lower(message, memory)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int8, np.uint64, np.bool_])
def test_a_tensor_alone(dtype: Any) -> None:
    array = large(dtype=dtype).reshape(4, -1)
    found: Any = through(array)
    assert found.dtype == array.dtype
    assert found.flags.writeable
    np.testing.assert_array_equal(found, array)


def test_tensors_among_other_things_and_the_value_is_not_changed() -> None:
    small = np.arange(3)
    value = {
        "a": [1, large(1), ("x", large(2))],
        "b": {"c": large(3)[::2], "d": small, "": large(4)},
        "n": None,
    }
    before = dict(value)
    found: Any = through(value)
    assert value == before
    assert isinstance(value["a"][1], np.ndarray)  # type: ignore[index] # its own list
    assert (found["n"], found["a"][0], found["a"][2][0]) == (None, 1, "x")
    for left, right in (
        (found["a"][1], large(1)),
        (found["a"][2][1], large(2)),
        (found["b"]["c"], large(3)[::2]),
        (found["b"]["d"], small),
        (found["b"][""], large(4)),
    ):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(
    "array",
    [
        large().astype(">f4"),
        np.asfortranarray(large().reshape(8, -1)),
        large()[::-1],
        np.broadcast_to(np.float32(3), (300, 300)),
    ],
)
def test_tensors_of_any_layout(array: Any) -> None:
    np.testing.assert_array_equal(through([array]), [array])


def test_what_is_left_where_it_is() -> None:
    ring: list[object] = []
    ring += [ring, ring, large()]
    deep: object = large()
    for _ in range(40):
        deep = [deep]
    for value in (
        None,
        "text" * LARGE,
        [1.5] * 1000,
        np.zeros(LARGE - 1, np.float32),
        np.array([None] * LARGE),
        np.zeros(LARGE, np.complex64),
        np.ma.masked_array(large(), mask=False),
        {7: large()},
        deep,
        ring,
    ):
        assert lift(value) is None


def test_no_more_places_than_a_receiver_takes() -> None:
    lifted = lift([large()] * (MAX_PLACES + 3))
    assert lifted is not None
    assert len(lifted.arrays) == MAX_PLACES
    assert isinstance(lifted.value, list)
    assert [type(entry) for entry in lifted.value[-4:]] == [type(None)] + [np.ndarray] * 3


HEADER = pack_header(np.zeros(16, np.float32))


@pytest.mark.parametrize(
    "message",
    [
        None,
        [],
        [None, []],
        [None, [[[], 0, HEADER]], 0],
        [None, [[[], 0]]],
        [None, [[[], "0", HEADER]]],
        [None, [[[], True, HEADER]]],
        [None, [[[], -64, HEADER]]],
        [None, [[[], 1, HEADER]]],
        [None, [[[], 1 << 63, HEADER]]],
        [None, [[[], 1024, HEADER]]],
        [None, [[[], 0, b"\1"]]],
        [None, [[[], 0, pack_header(np.zeros(0))[:2] + b"\xff" * 8]]],
        [None, [[[0], 0, HEADER]]],
        [[None], [[[1], 0, HEADER]]],
        [[None], [[[-1], 0, HEADER]]],
        [[None], [[[False], 0, HEADER]]],
        [[7], [[[0], 0, HEADER]]],
        [{"a": None}, [[["b"], 0, HEADER]]],
        [{"a": None}, [[["a", "b"], 0, HEADER]]],
        [{"a": None}, [[[None], 0, HEADER]]],
        [[None, None], [[[0], 64, HEADER], [[1], 64, HEADER]]],
        [[None, None], [[[0], 64, HEADER], [[1], 0, HEADER]]],
        [[None], [[[0], 0, HEADER], [[0], 64, HEADER]]],
        ["abc", [[[0], 0, HEADER]]],
        [[None] * (MAX_PLACES + 1), [[[n], 0, pack_header(np.zeros(0))] for n in range(MAX_PLACES + 1)]],
    ],
)
def test_places_that_lie(message: Value) -> None:
    with pytest.raises(BadPayload):
        lower(message, memoryview(bytearray(1024)))


def test_a_bool_that_is_none() -> None:
    with pytest.raises(BadPayload, match="neither 0 nor 1"):
        lower([None, [[[], 0, pack_header(np.zeros(16, np.bool_))]]], memoryview(bytearray(b"\2" * 16)))


trees = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text(max_size=3)
    | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=12,
)
places = st.tuples(
    st.lists(st.sampled_from(["a", "b", 0, 1, 2, -1, None]), max_size=3),
    st.sampled_from([0, 64, 128, 192, 1, -64, 2**40]),
    st.sampled_from([HEADER, pack_header(np.zeros((2, 3))), b"\1\1" + b"\xff" * 8, b"", b"\x0d\0"]),
).map(list)


@settings(max_examples=300, deadline=None)
@given(trees | st.tuples(trees, st.lists(places, max_size=4)).map(list), st.integers(0, 300))
def test_whatever_comes_is_a_value_or_refused(message: Value, size: int) -> None:
    try:
        lower(message, memoryview(bytearray(size)))
    except BadPayload:
        pass


@given(
    st.lists(
        st.builds(
            Note, st.sampled_from(sorted(FROM_PEER)), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
        )
    )
)
def test_notes_come_out_as_they_went_in_however_they_are_cut(notes: list[Note]) -> None:
    data = b"".join(note.pack() for note in notes)
    for step in (1, 7, 4096):
        reader = Notes(FROM_PEER)
        found = [note for at in range(0, len(data), step) for note in reader.receive(data[at : at + step])]
        assert found == notes


@given(st.binary(max_size=200))
def test_any_bytes_are_notes_or_refused(data: bytes) -> None:
    reader = Notes(FROM_WORKER)
    try:
        for note in reader.receive(data):
            assert note.kind in FROM_WORKER
    except BadNote:
        assert len(data) >= NOTE.size


def test_a_worker_cannot_say_what_a_peer_says() -> None:
    with pytest.raises(BadNote):
        list(Notes(FROM_WORKER).receive(Note(NoteKind.GRANT, 1, 1).pack()))
