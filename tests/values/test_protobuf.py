"""Messages of protobuf without a schema: what google's library writes is found, whatever else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelnet_p2p.pb.kad_pb2 import KadMessage, KadPeer
from modelnet_p2p.protobuf import BadProtobuf, Messages


def of(data: bytes, most_fields: int = 1000) -> Messages:
    return Messages(lambda start, end: data[start:end], most_fields)


@given(st.integers(0, 2**32 - 1), st.binary(max_size=300), st.lists(st.binary(max_size=200), max_size=5))
def test_what_the_library_writes_is_found(kind: int, key: bytes, ids: list[bytes]) -> None:
    message = KadMessage(
        type=kind, key=key, closer_peers=[KadPeer(id=each).SerializeToString() for each in ids]
    )
    data = message.SerializeToString()
    messages, numbers, places = of(data), dict[int, int](), list[tuple[int, int, int]]()
    for number, value in messages.fields(0, len(data)):
        if isinstance(value, int):
            numbers[number] = value
        else:
            places.append((number, *value))
    assert numbers.get(1, 0) == kind
    assert b"".join(data[start:end] for number, start, end in places if number == 2) == key
    found = []
    for number, start, end in places:
        if number == 8:
            inner = dict(messages.fields(start, end)).get(1)
            found.append(data[slice(*inner)] if isinstance(inner, tuple) else b"")
    assert found == ids


@given(st.binary(max_size=300))
def test_any_bytes_are_fields_or_refused(data: bytes) -> None:
    try:
        for _, value in of(data).fields(0, len(data)):
            assert isinstance(value, int) or 0 < value[0] <= value[1] <= len(data)
    except BadProtobuf:
        pass


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x0a\x05abc", "cut off"),  # of five bytes three
        (b"\x09abc", "cut off"),  # of eight bytes three
        (b"\x0b", "not protobuf"),  # a group: of another age
        (b"\x08" + b"\xff" * 11, "not protobuf"),  # a number without an end
        (b"\x08", "not protobuf"),
        (b"\x08\x01" * 1001, "too many parts"),
    ],
)
def test_what_is_refused_is_said(data: bytes, why: str) -> None:
    with pytest.raises(BadProtobuf, match=why):
        list(of(data).fields(0, len(data)))
