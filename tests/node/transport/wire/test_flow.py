"""A stream's memory: bytes come out as they went in, however they are cut, and nothing stays behind."""

from __future__ import annotations

import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from modelnet_p2p.node.transport.wire.flow import JOINED_BYTES, Flow
from twins import pattern

PIECES = st.lists(st.integers(1, 40_000), max_size=12)


def flow() -> Flow:
    return Flow(1, inbound=True, now=0.0)


@settings(deadline=None)
@given(arriving=PIECES, reads=st.lists(st.integers(1, 60_000), min_size=1, max_size=12), waits=st.booleans())
def test_what_arrives_is_read_in_order(arriving: list[int], reads: list[int], waits: bool) -> None:
    one, sent, got = flow(), 0, b""
    for turn, size in enumerate(arriving):
        want = reads[turn % len(reads)]
        room = memoryview(bytearray(want))
        waiting = waits and not one.held
        if waiting:
            one.target, one.filled = room, 0
        assert one.deliver(memoryview(pattern(1, sent, size))) == (min(want, size) if waiting else 0)
        sent += size
        if waiting:
            got += room[: one.filled]
            one.target = None
        elif turn % 2:
            got += room[: one.take(room)]
    rest = memoryview(bytearray(one.held + 1))
    got += rest[: one.take(rest)]
    assert got == b"".join(pattern(1, at, 1) for at in range(sent))
    assert (one.held, len(one.chunks)) == (0, 0)


@given(parts=PIECES, frames=st.lists(st.integers(100, 65_000), min_size=1))
@settings(deadline=None)
def test_what_is_queued_leaves_in_order_from_its_own_memory(parts: list[int], frames: list[int]) -> None:
    one, sent = flow(), 0
    for size in parts:
        one.put([pattern(1, sent, size), b""])
        sent += size
    one.send_window = sent
    out, turn, got = memoryview(bytearray(65_010)), 0, b""
    while one.queued:
        size = min(one.queued, frames[turn % len(frames)])
        turn += 1
        assert one.fill(out, 10, size) == 10 + size
        got += out[10 : 10 + size]
    assert got == b"".join(pattern(1, at, 1) for at in range(sent))
    assert (one.parts, one.send_window) == ([], 0)


def test_single_bytes_that_arrive_are_kept_together() -> None:
    one = flow()
    for _ in range(100_000):
        one.deliver(memoryview(b"x"))
    assert one.held == 100_000
    assert len(one.chunks) <= 100_000 // JOINED_BYTES + 1
    assert sum(map(sys.getsizeof, one.chunks)) < 1.25 * one.held


def test_a_dropped_queue_lets_go_of_the_senders_memory() -> None:
    one, buffer = flow(), bytearray(1000)
    one.put([memoryview(buffer)])
    one.drop_queue()
    buffer.append(1)  # a view that somebody still held would forbid it
    assert one.queued == 0
