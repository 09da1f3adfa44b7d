"""Who is read more slowly, and for how long: callers who cancel are not, a flood of resets is."""

from __future__ import annotations

from modelnet_p2p.node.transport.wire.rapid_resets import BURST, MAX_DELAY, RATE, RapidResets
from modelnet_p2p.node.transport.wire.windows import WindowPool
from modelnet_p2p.node.transport.wire.yamux import HEADER, RST, SYN, WINDOW_UPDATE, Session


def test_a_caller_who_gives_up_all_his_calls_at_once_is_not_held_back() -> None:
    assert RapidResets(0.0).delay(int(BURST), 0.0) == 0


def test_cancelling_at_the_rate_goes_on_for_ever() -> None:
    bucket = RapidResets(0.0)
    assert not any(bucket.delay(int(BURST + second * RATE), second) for second in range(100))


def test_a_flood_is_read_at_the_rate_and_no_faster() -> None:
    bucket, now, resets = RapidResets(0.0), 0.0, 0
    while now < 60:
        resets += 64  # what one read brings
        now += bucket.delay(resets, now)
    assert resets <= BURST + 60 * RATE + 64


def test_however_deep_in_debt_it_is_heard_once_a_second() -> None:
    bucket = RapidResets(0.0)
    assert bucket.delay(100_000, 0.0) == MAX_DELAY


def test_when_the_flood_is_over_the_debt_is_paid_by_waiting() -> None:
    bucket = RapidResets(0.0)
    assert bucket.delay(int(BURST) + 100, 0.0) == 100 / RATE
    assert bucket.delay(int(BURST) + 100, 100 / RATE) == 0


def test_a_stream_that_was_answered_may_be_reset_as_often_as_it_likes() -> None:
    """Who has what it wanted need not wait for our end, and many do not."""
    session = Session(initiator=False, pool=WindowPool(), now=0.0, max_inbound=8, max_outbound=8)

    def frame(flags: int, id: int) -> None:
        session.receive(memoryview(HEADER.pack(0, WINDOW_UPDATE, flags, id, 0)), 0.0)

    frame(SYN, 1)
    frame(RST, 1)
    assert session.resets == 1
    frame(SYN, 3)
    session.send(session.flows[3], (b"the answer",))
    frame(RST, 3)
    assert session.resets == 1
