"""Windows grow where they hold a transfer up and nowhere else, and only out of what the process has left."""

from __future__ import annotations

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelnet_p2p.node.transport.wire.flow import Flow
from modelnet_p2p.node.transport.wire.windows import (
    FIRST_WINDOW,
    FREE_SHARE,
    GROW_WITHIN,
    GROWTH_SHARE,
    MAX_INBOUND,
    MAX_WINDOW,
    MODEST_STREAMS,
    POOL_BYTES,
    RoundTrips,
    WindowPool,
    grown,
)
from twins import session, step


def test_the_table_of_growth() -> None:
    half = FIRST_WINDOW
    assert grown(half, 0.1, 0.08) == 2 * half  # half a window in little more than a round trip
    assert grown(half, GROW_WITHIN * 0.08, 0.08) == 2 * half
    assert grown(half, GROW_WITHIN * 0.08 + 0.001, 0.08) == half  # the window did not hold it up
    assert grown(half, 0.0, None) == half  # nothing is known of the link
    assert grown(MAX_WINDOW, 0.0, 0.08) == MAX_WINDOW
    assert grown(MAX_WINDOW * 2 // 3, 0.0, 0.08) == MAX_WINDOW


def test_the_least_of_the_last_round_trips_counts() -> None:
    trips = RoundTrips()
    assert trips.least is None
    assert trips.wanting(0.0)
    for i in range(RoundTrips.KEPT):
        trips.add(0.1 + i, float(i))
    assert trips.least == pytest.approx(0.1)
    last = RoundTrips.KEPT - 1.0
    assert not trips.wanting(last + 0.5)
    assert trips.wanting(last + RoundTrips.AGE + 0.1)
    trips.add(5.0, 9.0)
    assert trips.least == pytest.approx(1.1)  # the first one is forgotten: the link may have changed


# --- what all share --------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([256 << 10, 1 << 20, 8 << 20])), max_size=200))
def test_growth_is_bounded_and_leaves_something_for_the_next(asked: list[tuple[int, int]]) -> None:
    pool, mine = WindowPool(), [0] * 10
    for who, size in asked:
        if pool.grow(size, mine[who]):
            mine[who] += size
    assert pool.grown == sum(mine) <= POOL_BYTES * GROWTH_SHARE
    for had in mine:
        assert had <= FREE_SHARE * POOL_BYTES * GROWTH_SHARE + (8 << 20)
    greedy = WindowPool()
    had = 0
    while greedy.grow(FIRST_WINDOW, had):
        had += FIRST_WINDOW
    assert greedy.grow(MAX_WINDOW - FIRST_WINDOW, 0)  # a newcomer still gets the widest window


def test_in_a_crowd_nothing_grows() -> None:
    pool = WindowPool(total=1000)
    pool.held = 900
    assert pool.grow(100, 0)
    assert not pool.crowded
    pool.held = 901
    assert pool.crowded
    assert not pool.grow(1, 0)


def test_streams_are_shared_by_what_is_left() -> None:
    pool, alone = WindowPool(), 0
    while pool.admits(alone):
        alone += 1
        pool.inbound += 1
    assert alone == pytest.approx(MAX_INBOUND / 3, abs=2)
    assert pool.admits(alone // 2)  # somebody else still gets as many as it leaves
    crowd = [0] * 256
    pool = WindowPool()
    while any(pool.admits(mine) for mine in crowd):
        for i, mine in enumerate(crowd):
            if pool.admits(mine):
                crowd[i] += 1
                pool.inbound += 1
    assert min(crowd) >= MODEST_STREAMS - 1
    assert pool.inbound <= MAX_INBOUND + 256 * MODEST_STREAMS


# --- a link of the simulator's ----------------------------------------------------------------------


class Link:
    """One bulk stream over a link of so many bytes a second and so many seconds there and back."""

    def __init__(self, rate: float, round_trip: float, reader: float = float("inf")) -> None:
        self.now = 0.0
        self.rate, self.delay, self.reader = rate, round_trip / 2, reader
        self.alice, self.bob = session(initiator=True), session()
        self.events: list[tuple[float, int, bytes, bool]] = []  # when, order, what, whether to bob
        self.count = 0
        self.free = [0.0, 0.0]  # when each direction can take the next byte
        self.received = 0

    def carry(self) -> None:
        """Put on the wire what it can take now."""
        for to_bob, sender in ((True, self.alice), (False, self.bob)):
            while self.free[to_bob] <= self.now and (data := step(sender)):
                self.free[to_bob] = max(self.free[to_bob], self.now) + len(data) / self.rate
                self.count += 1
                heapq.heappush(self.events, (self.free[to_bob] + self.delay, self.count, data, to_bob))
            if sender.waiting and self.free[to_bob] > self.now:
                self.count += 1
                heapq.heappush(self.events, (self.free[to_bob], self.count, b"", to_bob))

    def transfer(self, size: int) -> Flow:
        """Send so many bytes; returns the receiving end when all have been read."""
        self.bob.ping(0.0)
        flow, theirs, readable = self.alice.open(0.0), None, 0.0
        data = memoryview(bytes(1 << 20))
        self.alice.send(flow, [data] * (size >> 20))
        buffer = memoryview(bytearray(1 << 20))
        self.carry()
        while self.received < size:
            self.now, _, arrived, to_bob = heapq.heappop(self.events)
            if arrived:
                (self.bob if to_bob else self.alice).receive(memoryview(arrived), self.now)
            if self.bob.opened:
                theirs = self.bob.opened.pop()
            if theirs is not None and theirs.held:
                if self.now < readable:
                    self.count += 1
                    heapq.heappush(self.events, (readable, self.count, b"", True))
                else:
                    n = (
                        self.bob.take(theirs, buffer[: max(1000, int(self.reader * 1e-3))], self.now)
                        if (self.reader < float("inf"))
                        else self.bob.take(theirs, buffer, self.now)
                    )
                    self.received += n
                    readable = self.now + n / self.reader
                    if theirs.held:
                        self.count += 1
                        heapq.heappush(self.events, (readable, self.count, b"", True))
            self.carry()
        assert theirs is not None
        return theirs


@pytest.mark.parametrize(
    ("rate", "round_trip"), [(5e6, 0.1), (12.5e6, 0.08), (62.5e6, 0.08), (62.5e6, 0.01), (1e6, 0.3)]
)
def test_a_window_grows_until_the_link_is_full_and_not_much_beyond(rate: float, round_trip: float) -> None:
    on_the_way = rate * round_trip
    link = Link(rate, round_trip)
    size = max(4 << 20, min(64 << 20, int(30 * on_the_way)) >> 20 << 20)
    theirs = link.transfer(size)
    assert theirs.window <= max(FIRST_WINDOW, 8 * on_the_way)
    assert theirs.window >= min(2 * on_the_way, MAX_WINDOW, FIRST_WINDOW)
    assert link.now <= (size / rate) / 0.8 + 3 * round_trip
    assert theirs.held == 0


def test_a_window_does_not_grow_where_the_reader_is_what_holds_it_up() -> None:
    link = Link(1e9, 0.0002, reader=50e6)
    assert link.transfer(16 << 20).window == FIRST_WINDOW


def test_growth_is_given_back_when_the_stream_is_over() -> None:
    link = Link(62.5e6, 0.08)
    theirs = link.transfer(64 << 20)
    pool = link.bob._pool
    assert pool.grown == theirs.window - FIRST_WINDOW > 0
    link.bob.reset(theirs)
    assert pool.grown == 0
