"""Sealed messages: whole ones come out whole wherever the bytes are cut, and changed ones not at all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelnet_p2p.node.transport.wire.sealing import (
    MAX_PLAIN,
    MAX_WIRE,
    TAG_BYTES,
    BrokenSeal,
    Opener,
    Sealer,
)

KEY, OTHER = bytes(range(32)), bytes(32)
ROOM = memoryview(bytearray(4 * MAX_WIRE))
SCRATCH = memoryview(bytearray(MAX_PLAIN))


def sealed(messages: list[bytes], sealer: Sealer | None = None) -> bytes:
    sealer = sealer or Sealer(KEY)
    out, end = memoryview(bytearray(sum(map(len, messages)) + 18 * len(messages))), 0
    for message in messages:
        end = sealer.seal_into(memoryview(message), out, end)
    assert end == len(out)
    return bytes(out)


def opened(opener: Opener, data: bytes) -> list[bytes]:
    start = opener.begin(ROOM)
    ROOM[start : start + len(data)] = data
    return [bytes(plain) for plain in opener.open(ROOM, start + len(data), SCRATCH)]


MESSAGES = [b"", b"a", b"bc" * 40, bytes(range(100))]


def test_a_cut_at_every_place_changes_nothing() -> None:
    wire = sealed(MESSAGES)
    for at in range(len(wire) + 1):
        opener = Opener(KEY)
        assert opened(opener, wire[:at]) + opened(opener, wire[at:]) == MESSAGES
        assert not opener.inside


def test_byte_by_byte_and_behind_a_handshake_too() -> None:
    wire = sealed(MESSAGES)
    opener = Opener(KEY, wire[:7])
    found = [plain for at in range(7, len(wire)) for plain in opened(opener, wire[at : at + 1])]
    assert found == MESSAGES


@given(
    sizes=st.lists(st.integers(0, MAX_PLAIN), min_size=1, max_size=4), cuts=st.lists(st.integers(1, 70_000))
)
@settings(deadline=None)
def test_messages_of_every_size_in_pieces_of_every_size(sizes: list[int], cuts: list[int]) -> None:
    messages = [bytes([size % 256]) * size for size in sizes]
    wire, opener, found, at = sealed(messages), Opener(KEY), list[bytes](), 0
    for cut in (*cuts, len(wire)):
        piece = wire[at : at + min(cut, 3 * MAX_WIRE)]
        at += len(piece)
        found += opened(opener, piece)
        assert opener.inside == (sum(len(m) + 18 for m in found) < at)
    while at < len(wire):
        found += opened(opener, wire[at : at + MAX_WIRE])
        at += MAX_WIRE
    assert found == messages


def test_every_flipped_bit_is_seen() -> None:
    wire = sealed(MESSAGES)
    for at in range(len(wire)):
        for bit in range(8):
            bad = bytearray(wire)
            bad[at] ^= 1 << bit
            opener, found = Opener(KEY), list[bytes]()
            try:
                found = opened(opener, bytes(bad))
            except BrokenSeal:
                continue
            # a longer length waits for bytes that never come; nothing false was opened before
            assert opener.inside
            assert found == MESSAGES[: len(found)]


def test_a_message_left_out_repeated_or_exchanged_is_seen() -> None:
    sealer = Sealer(KEY)
    one, two, three = (sealed([bytes([i]) * 50], sealer) for i in range(3))
    for wire in (two, one + one, one + three, two + one, sealed([b"x"], Sealer(OTHER))):
        with pytest.raises(BrokenSeal):
            opened(Opener(KEY), wire)
    assert len(opened(Opener(KEY), one + two + three)) == 3


@pytest.mark.parametrize("size", range(TAG_BYTES))
def test_a_message_without_room_for_its_tag_is_broken(size: int) -> None:
    with pytest.raises(BrokenSeal, match=f"of {size} bytes"):
        opened(Opener(KEY), size.to_bytes(2, "big") + bytes(size))


@given(st.binary(max_size=2000), st.integers(0, 300))
def test_of_any_bytes_only_a_broken_seal_comes(noise: bytes, at: int) -> None:
    opener = Opener(KEY)
    wire = sealed([b"fine" * 20])
    try:
        found = opened(opener, wire[:at] + noise) + opened(opener, noise)
    except BrokenSeal:
        return
    assert found in ([], [b"fine" * 20])
    assert len(opener._piece) <= MAX_WIRE


def test_the_nonces_of_both_sides_count_alike() -> None:
    sealer, opener = Sealer(KEY), Opener(KEY)
    for i in range(1000):
        assert opened(opener, sealed([b"%d" % i], sealer)) == [b"%d" % i]
