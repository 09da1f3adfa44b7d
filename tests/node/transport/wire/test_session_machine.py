"""Two sessions joined by bytes that are cut anywhere, against a simple model of what was sent and read.

Nothing is lost, repeated or put out of order; no window is exceeded; an end comes behind all that was sent
before it; and when everything is over, every count is back at zero. And the session alone against frames
that nobody would send.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from modelnet_p2p.node.transport.wire.flow import Flow
from modelnet_p2p.node.transport.wire.windows import FIRST_WINDOW, MAX_WINDOW, WindowPool
from modelnet_p2p.node.transport.wire.yamux import (
    DATA,
    MAX_BODY,
    MAX_CONTROL,
    SYN,
    WINDOW_UPDATE,
    Session,
    TooManyStreams,
    Violation,
)
from twins import frame, pattern, session, step

CAP = 6
READS = st.one_of(st.integers(1, 300), st.integers(1, 500_000))
SIZES = st.one_of(st.integers(1, 200), st.sampled_from([MAX_BODY, 65536, FIRST_WINDOW, 700_000]))


@dataclass(eq=False)
class End:
    """One side's hold on one stream, as its owner sees it."""

    side: Side
    flow: Flow
    sent: int = 0  # bytes
    got: int = 0
    finished: bool = False
    gone: bool = False
    told: bool = False
    other: End | None = None

    def read(self, data: bytes | memoryview) -> None:
        assert bytes(data) == pattern(self.flow.id * 2 + self.flow.inbound, self.got, len(data))
        self.got += len(data)


@dataclass(eq=False)
class Side:
    session: Session
    pool: WindowPool
    ends: list[End] = field(default_factory=list)
    wire: bytearray = field(default_factory=bytearray)  # sent, and not yet at the other side

    def adopt(self, flow: Flow) -> End:
        end = End(self, flow)

        def on_news() -> None:
            end.told = True

        flow.on_news = on_news
        self.ends.append(end)
        return end


class Joined(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.sides: list[Side] = []
        for initiator in (True, False):
            pool = WindowPool()
            one = session(initiator=initiator, pool=pool, inbound=CAP + 2, outbound=CAP)
            one.ping(0.0)
            self.sides.append(Side(one, pool))

    def pick(self, of: int, which: int) -> End | None:
        ends = [end for end in self.sides[of].ends if not end.gone]
        return ends[which % len(ends)] if ends else None

    @rule(of=st.integers(0, 1))
    def open(self, of: int) -> None:
        side = self.sides[of]
        if side.session.outbound >= CAP:
            with pytest.raises(TooManyStreams):
                side.session.open(self.now)
        else:
            side.adopt(side.session.open(self.now))

    @rule(of=st.integers(0, 1), which=st.integers(0, 9), size=SIZES, parts=st.integers(1, 3))
    def send(self, of: int, which: int, size: int, parts: int) -> None:
        end = self.pick(of, which)
        if end is None or end.finished or end.flow.broken or end.flow.queued > 1_000_000:
            return
        data = memoryview(pattern(end.flow.id * 2 + (not end.flow.inbound), end.sent, size))
        cut = max(1, size // parts)
        end.side.session.send(end.flow, [data[at : at + cut] for at in range(0, size, cut)])
        end.sent += size

    @rule(of=st.integers(0, 1), which=st.integers(0, 9))
    def finish(self, of: int, which: int) -> None:
        if end := self.pick(of, which):
            end.finished = True
            end.side.session.finish(end.flow)

    @rule(of=st.integers(0, 1), which=st.integers(0, 9), abruptly=st.booleans())
    def give_up(self, of: int, which: int, abruptly: bool) -> None:
        if end := self.pick(of, which):
            end.gone = True
            end.side.session.reset(end.flow, abruptly=abruptly)
            if abruptly:
                assert not end.flow.parts

    @rule(of=st.integers(0, 1), messages=st.integers(1, 5))
    def leave(self, of: int, messages: int) -> None:
        side = self.sides[of]
        for _ in range(messages):
            side.wire += step(side.session)
        side.session.tell()

    @rule(of=st.integers(0, 1), size=st.one_of(st.integers(1, 40), st.integers(1, 400_000)))
    def arrive(self, of: int, size: int) -> None:
        sender, receiver = self.sides[of], self.sides[1 - of]
        data = bytes(sender.wire[:size])
        del sender.wire[:size]
        self.now += 0.001
        receiver.session.receive(memoryview(data), self.now)
        while receiver.session.opened:
            flow = receiver.session.opened.popleft()
            end = receiver.adopt(flow)
            end.told = True
            [other] = [e for e in sender.ends if e.flow.id == flow.id and not e.flow.inbound]
            end.other, other.other = other, end
        for end in receiver.ends:
            end.told = end.told and not end.flow.held
        receiver.session.tell()
        for end in receiver.ends:
            self.collect(end)

    def collect(self, end: End) -> None:
        """A reader that waited has been woken."""
        flow = end.flow
        if flow.target is not None and flow.filled:
            assert end.told or end.gone
            if not end.gone:
                end.read(flow.target[: flow.filled])
            flow.target = None

    @rule(of=st.integers(0, 1), which=st.integers(0, 9), size=READS)
    def read(self, of: int, which: int, size: int) -> None:
        end = self.pick(of, which)
        if end is None or end.flow.target is not None:
            return
        buffer = memoryview(bytearray(size))
        held = end.flow.held
        n = end.side.session.take(end.flow, buffer, self.now)
        assert n == min(held, size)
        end.read(buffer[:n])

    @rule(of=st.integers(0, 1), which=st.integers(0, 9), size=READS)
    def wait(self, of: int, which: int, size: int) -> None:
        end = self.pick(of, which)
        if end is None or end.flow.held or end.flow.target is not None or end.flow.ended:
            return
        end.flow.target, end.flow.filled, end.told = memoryview(bytearray(size)), 0, False

    @invariant()
    def counts_agree(self) -> None:
        for side in self.sides:
            flows = [end.flow for end in side.ends]
            session = side.session
            assert session.held == side.pool.held == sum(flow.held for flow in flows)
            assert side.pool.grown == sum(f.window - FIRST_WINDOW for f in session.flows.values())
            assert session.inbound == side.pool.inbound <= CAP + 2
            assert session.outbound <= CAP
            assert len(session.flows) == session.inbound + session.outbound
            for flow in flows:
                assert 0 <= flow.held <= flow.window <= MAX_WINDOW
                assert flow.credit >= 0
                assert flow.send_window >= 0

    @invariant()
    def nobody_reads_what_was_not_sent(self) -> None:
        for side in self.sides:
            for end in side.ends:
                assert end.other is None or end.got + end.flow.held <= end.other.sent

    def settle(self) -> None:
        """Let everything arrive, with every reader reading."""
        moving = True
        while moving:
            moving = False
            for of in (0, 1):
                self.leave(of, 1)
                if self.sides[of].wire:
                    self.arrive(of, len(self.sides[of].wire))
                    moving = True
                for i, end in enumerate(self.sides[of].ends):
                    if not end.gone and end.flow.target is None and end.flow.held:
                        data = memoryview(bytearray(end.flow.held))
                        end.read(data[: end.side.session.take(end.flow, data, self.now)])
                        moving = True
                    assert i < 10_000

    def teardown(self) -> None:
        if not hasattr(self, "sides"):
            return
        self.settle()
        for end in (end for side in self.sides for end in side.ends):
            other = end.other
            if other is None:  # refused, or over before anybody saw it
                continue
            if not (end.gone or other.gone):
                assert end.got == other.sent
                assert end.flow.ended == other.finished
            if other.gone and not end.gone:
                assert end.flow.broken or end.flow.ended
            assert not end.flow.queued
        for side in self.sides:
            for end in side.ends:
                side.session.reset(end.flow)
        self.settle()
        self.counts_agree()
        for side in self.sides:
            assert not side.session.flows
            assert not side.session.waiting
            counts = side.session.held, side.session.copied, side.session.inbound, side.session.outbound
            assert counts == (0, 0, 0, 0)


Joined.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestJoined = Joined.TestCase


# --- frames that nobody would send -----------------------------------------------------------------

HEADS = st.builds(
    frame,
    kind=st.sampled_from([DATA, DATA, WINDOW_UPDATE, 2, 3, 4]),
    flags=st.sampled_from([0, 0, SYN, 2, 4, 8, 5, 9, 15, 16]),
    id=st.one_of(st.integers(0, 9), st.just(2**32 - 1)),
    length=st.one_of(st.integers(0, 300), st.sampled_from([FIRST_WINDOW, 2**31, 2**32 - 1])),
    body=st.binary(max_size=300),
)


def owner(one: Session, flow: Flow, choice: int) -> None:
    """Somebody who does as he likes with what a stranger opened."""
    acts: list[Callable[[], object]] = [
        lambda: one.take(flow, memoryview(bytearray(100)), 0.0),
        lambda: None if flow.finished or flow.given_up else one.send(flow, [bytes(1000)]),
        lambda: one.finish(flow),
        lambda: one.reset(flow),
        lambda: one.reset(flow, abruptly=True),
        lambda: None,
    ]
    acts[choice % len(acts)]()


@given(
    frames=st.lists(st.one_of(HEADS, st.binary(max_size=40)), max_size=30),
    cut=st.integers(1, 500),
    choices=st.lists(st.integers(0, 5), min_size=1, max_size=10),
)
@settings(max_examples=1500, deadline=None)
def test_of_any_bytes_only_a_violation_comes(frames: list[bytes], cut: int, choices: list[int]) -> None:
    pool = WindowPool(total=1 << 20)
    one = session(pool=pool, inbound=3, outbound=3)
    flows = [one.open(0.0)]
    data = b"".join(frames)
    turn = 0
    try:
        for at in range(0, len(data), cut):
            one.receive(memoryview(data)[at : at + cut], at / 1000)
            flows.extend(one.opened)
            one.opened.clear()
            for flow in flows:
                owner(one, flow, choices[turn % len(choices)])
                turn += 1
            one.tell()
            assert one.held == pool.held == sum(flow.held for flow in flows)
            assert one.inbound <= 3
            if len(one._control) > MAX_CONTROL or turn % 3 == 0:
                step(one)
    except Violation:
        pass
    assert one.held <= len(data)
    one.lose()
    for flow in flows:
        one.reset(flow)
    assert (one.held, pool.held, pool.grown, pool.inbound) == (0, 0, 0, 0)
