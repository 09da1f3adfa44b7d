"""The slow link's pipe: packets come in order, late, at the rate, and beyond the queue not at all."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from benches.forwarder import Pipe

SECONDS_PER_BYTE, DELAY, QUEUE = 0.001, 0.04, 5000


def pipe() -> Pipe:
    return Pipe(SECONDS_PER_BYTE, DELAY, QUEUE)


def test_a_packet_takes_its_length_and_the_delay() -> None:
    line = pipe()
    line.put(b"x" * 100, now=1.0)
    assert line.next_at() == 1.0 + 0.1 + DELAY
    assert line.take(1.13) == []
    assert line.take(1.15) == [b"x" * 100]
    assert line.next_at() is None


def test_packets_leave_one_after_the_other() -> None:
    line = pipe()
    line.put(b"a" * 1000, now=0.0)
    line.put(b"b" * 1000, now=0.0)
    assert line.take(1.0 + DELAY) == [b"a" * 1000]
    assert line.take(2.0 + DELAY) == [b"b" * 1000]


def test_what_the_queue_does_not_hold_is_dropped() -> None:
    line = pipe()
    for _ in range(10):
        line.put(bytes(1000), now=0.0)
    assert line.dropped == 4  # the sixth still found five waiting, which are all that the queue holds
    assert len(line.take(100.0)) == 6
    line.put(bytes(1000), now=6.0)
    assert line.dropped == 4


packets = st.lists(st.tuples(st.floats(0, 0.5), st.integers(1, 1500)), max_size=50)


@given(packets)
def test_never_reordered_never_early_never_too_fast(arrivals: list[tuple[float, int]]) -> None:
    line, now, sent = pipe(), 0.0, []
    for number, (gap, size) in enumerate(arrivals):
        now += gap
        packet = bytes([number]) * size
        before = line.dropped
        line.put(packet, now)
        if line.dropped == before:
            sent.append((now, packet))
    received: list[tuple[float, bytes]] = []
    while (at := line.next_at()) is not None:
        received += [(at, packet) for packet in line.take(at)]
    assert [packet for _, packet in received] == [packet for _, packet in sent]
    free = 0.0  # the simple twin: a packet starts when it is there and the one before it has left
    for (came, packet), (left, _) in zip(sent, received, strict=True):
        free = max(free, came) + len(packet) * SECONDS_PER_BYTE
        assert abs(left - (free + DELAY)) < 1e-9
