"""The session's table: what each frame does, what is a violation, who goes first, what is given back."""

from __future__ import annotations

import pytest

from modelnet_p2p.node.transport.wire.flow import Flow
from modelnet_p2p.node.transport.wire.sealing import MAX_PLAIN
from modelnet_p2p.node.transport.wire.windows import FIRST_WINDOW, MODEST_BYTES, WindowPool
from modelnet_p2p.node.transport.wire.yamux import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    MAX_BODY,
    MAX_CONTROL,
    MAX_LENGTH,
    PING,
    RST,
    SYN,
    WINDOW_UPDATE,
    Ending,
    Session,
    TooManyStreams,
    Violation,
)
from twins import Twins, drain, frame, pattern, read, session, split, step


def feed(session: Session, *frames: bytes) -> None:
    session.receive(memoryview(b"".join(frames)), 0.0)


def opened(session: Session, id: int = 1) -> Flow:
    feed(session, frame(WINDOW_UPDATE, SYN, id, 0))
    drain(session)
    return session.opened.pop()


# --- streams ---------------------------------------------------------------------------------------


def test_bytes_go_both_ways_and_each_side_ends_on_its_own() -> None:
    twins = Twins()
    mine, theirs = twins.open()
    sent = pattern(1, 0, 200_000)
    twins.alice.send(mine, [sent[:3], memoryview(sent)[3:]])
    twins.alice.finish(mine)
    twins.pump()
    assert (mine.queued, theirs.held, theirs.ended, theirs.over) == (0, 200_000, True, False)
    assert read(twins.bob, theirs) == sent
    twins.bob.send(theirs, [b"answer"])
    twins.bob.finish(theirs)
    twins.pump()
    assert (mine.held, mine.ended, mine.over, theirs.over) == (6, True, True, True)
    assert read(twins.alice, mine) == b"answer"
    assert not twins.alice.flows
    assert not twins.bob.flows


def test_what_arrived_before_a_reset_can_still_be_read() -> None:
    twins = Twins()
    mine, theirs = twins.open()
    twins.alice.send(mine, [b"so far"])
    twins.alice.reset(mine)
    twins.pump()
    assert (theirs.broken, theirs.ended) == (True, False)
    assert read(twins.bob, theirs) == b"so far"
    assert (twins.bob.inbound, twins.alice.outbound, twins.bob.held) == (0, 0, 0)


def test_a_reset_gives_the_senders_memory_back_at_once() -> None:
    twins = Twins()
    mine, theirs = twins.open()
    twins.bob.finish(theirs)
    twins.pump()
    buffer = bytearray(2 * FIRST_WINDOW)
    twins.alice.send(mine, [memoryview(buffer)])
    twins.alice.finish(mine)
    twins.pump()
    assert mine.queued == FIRST_WINDOW
    twins.alice.reset(mine, abruptly=True)  # both have ended, but the owner of the buffer leaves
    assert not mine.parts
    twins.pump()
    assert theirs.broken
    assert not twins.alice.flows
    assert not twins.bob.flows
    read(twins.bob, theirs)
    assert twins.bob.held == 0


def test_both_ends_may_be_said_with_all_still_unsent() -> None:
    twins = Twins()
    mine, theirs = twins.open()
    twins.bob.finish(theirs)
    twins.pump()
    sent = pattern(1, 0, 3 * FIRST_WINDOW)
    twins.alice.send(mine, [sent])
    twins.alice.finish(mine)
    twins.alice.reset(mine)  # its owner is done with it; what it sent is not
    got = b""
    while not theirs.ended:
        twins.pump()
        got += read(twins.bob, theirs)
    assert got == sent
    assert not twins.alice.flows


def test_late_data_for_a_stream_that_was_given_up_is_thrown_away_but_counted() -> None:
    bob = session()
    flow = opened(bob)
    bob.reset(flow)
    feed(bob, frame(DATA, 0, 1, FIRST_WINDOW, bytes(FIRST_WINDOW)))  # it was on its way
    assert bob.held == 0
    with pytest.raises(Violation, match="than was ever allowed"):
        feed(bob, frame(DATA, 0, 1, 1, b"x"))


def test_a_body_goes_on_into_nothing_when_its_stream_is_given_up() -> None:
    bob = session()
    flow = opened(bob)
    feed(bob, frame(DATA, 0, 1, 1000, bytes(400)))
    bob.reset(flow)
    feed(bob, bytes(600), frame(PING, SYN, 0, 5))
    assert (bob.held, flow.held) == (0, 0)
    assert split(drain(bob)) == [(WINDOW_UPDATE, RST, 1, 0), (PING, ACK, 0, 5)]


def test_who_resets_may_not_send_on() -> None:
    bob = session()
    flow = opened(bob)
    feed(bob, frame(WINDOW_UPDATE, RST, 1, 0))
    bob.reset(flow)  # its owner lets go as well
    with pytest.raises(Violation):
        feed(bob, frame(DATA, 0, 1, 1, b"x"))


def test_streams_beyond_the_cap_are_refused_and_places_come_back() -> None:
    bob = session(inbound=2)
    feed(bob, *(frame(WINDOW_UPDATE, SYN, id, 0) for id in (1, 3, 5)))
    answers = [(WINDOW_UPDATE, ACK, 1, 0), (WINDOW_UPDATE, ACK, 3, 0), (WINDOW_UPDATE, RST, 5, 0)]
    assert split(drain(bob)) == answers
    feed(bob, frame(DATA, 0, 5, 100, bytes(100)))  # sent before the refusal was seen
    feed(bob, frame(WINDOW_UPDATE, RST, 3, 0), frame(DATA, SYN, 7, 2, b"hi"))
    assert split(drain(bob)) == [(WINDOW_UPDATE, ACK, 7, 0)]
    assert [flow.id for flow in bob.opened] == [1, 3, 7]


def test_our_own_streams_have_a_cap_too() -> None:
    alice = session(initiator=True, outbound=2)
    first = alice.open(0.0)
    alice.open(0.0)
    with pytest.raises(TooManyStreams, match="2 streams"):
        alice.open(0.0)
    alice.reset(first)
    assert alice.open(0.0).id == 5


def test_a_going_session_refuses_new_streams_and_says_so_once() -> None:
    bob = session()
    bob.go_away(Ending.PROTOCOL_ERROR)
    bob.go_away(Ending.NORMAL)
    feed(bob, frame(WINDOW_UPDATE, SYN, 1, 0))
    assert split(drain(bob)) == [(GO_AWAY, 0, 0, 1), (WINDOW_UPDATE, RST, 1, 0)]
    feed(bob, frame(GO_AWAY, 0, 0, 2))
    assert bob.gone_away == 2


# --- violations ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frames",
    [
        b"\x01" + bytes(11),  # another version
        frame(4, 0, 0, 0),  # an unknown type
        frame(DATA, 16, 1, 0),  # an unknown flag
        frame(DATA, 0, 0, 5),  # on no stream
        frame(WINDOW_UPDATE, 0, 0, 5),
        frame(WINDOW_UPDATE, SYN, 0, 0),
        frame(WINDOW_UPDATE, SYN, 2, 0),  # ours to open
        frame(WINDOW_UPDATE, 0, 2, 5),  # ours, and never opened
        frame(DATA, 0, 1, 1),  # data without a stream
        frame(WINDOW_UPDATE, SYN, 1, 0) * 2,  # opened twice
        frame(DATA, SYN, 1, FIRST_WINDOW + 1),  # beyond its window
        frame(DATA, SYN, 1, MAX_LENGTH),
        frame(DATA, SYN, 1, FIRST_WINDOW, bytes(FIRST_WINDOW)) + frame(DATA, 0, 1, 1),
        frame(DATA, SYN | FIN, 1, 0) + frame(DATA, 0, 1, 1),  # behind its end
        frame(WINDOW_UPDATE, SYN, 1, MAX_LENGTH),  # a window beyond 32 bits
        frame(DATA, SYN | RST, 1, 0) + frame(DATA, 0, 1, 1),  # behind its reset
    ],
)
def test_a_broken_rule_is_a_violation_however_it_is_cut(frames: bytes) -> None:
    for size in (len(frames), 1, 5):
        bob = session()
        with pytest.raises(Violation):
            for at in range(0, len(frames), size):
                feed(bob, frames[at : at + size])
        assert bob.held <= FIRST_WINDOW
    assert Violation.ending is Ending.PROTOCOL_ERROR


@pytest.mark.parametrize(
    "frames",
    [
        frame(DATA, 0, 7, 0),  # an empty frame for a stream that is no more
        frame(WINDOW_UPDATE, 0, 7, 5),
        frame(WINDOW_UPDATE, RST, 7, 0),
        frame(WINDOW_UPDATE, SYN | FIN, 1, 0) + frame(WINDOW_UPDATE, FIN, 1, 0),
        frame(WINDOW_UPDATE, SYN | RST, 1, 0) * 2,
        frame(PING, ACK, 0, 99),  # an answer to nothing
        frame(PING, 0, 0, 0),
        frame(GO_AWAY, 0, 0, 77),
        frame(WINDOW_UPDATE, SYN, 1, MAX_LENGTH - FIRST_WINDOW),  # the widest window
    ],
)
def test_what_others_are_known_to_send_is_borne(frames: bytes) -> None:
    bob = session()
    feed(bob, frames)
    assert bob.held == 0
    assert not bob.inside


# --- windows ---------------------------------------------------------------------------------------


def test_a_sender_stops_at_the_window_and_goes_on_when_it_is_widened() -> None:
    twins = Twins()
    mine, theirs = twins.open()
    sent = pattern(1, 0, FIRST_WINDOW + 100_000)
    twins.alice.send(mine, [sent])
    twins.pump()
    assert (mine.queued, mine.send_window, theirs.held) == (100_000, 0, FIRST_WINDOW)
    assert not twins.alice.waiting
    got = read(twins.bob, theirs)
    twins.pump()
    assert mine.queued == 0
    assert got + read(twins.bob, theirs) == sent


def test_small_reads_are_told_in_large_steps() -> None:
    twins = Twins()
    mine, theirs = twins.open()
    twins.alice.send(mine, [bytes(FIRST_WINDOW)])
    twins.pump()
    buffer = memoryview(bytearray(1000))
    told = []
    while twins.bob.take(theirs, buffer, 0.0):
        told += split(drain(twins.bob))
    assert [length for kind, _, _, length in told if kind == WINDOW_UPDATE] == [132_000]


def test_credit_is_never_more_than_the_window_even_inside_a_large_frame() -> None:
    bob = session()
    flow = opened(bob)
    target = memoryview(bytearray(FIRST_WINDOW))
    flow.target = target
    feed(bob, frame(DATA, 0, 1, 200_000, bytes(150_000)))
    assert flow.filled == 150_000
    still_coming = 50_000
    assert flow.credit + flow.held + still_coming <= flow.window
    feed(bob, bytes(50_000))
    assert flow.credit + flow.held <= flow.window


def test_a_waiting_reader_gets_bytes_without_a_stop_and_the_rest_is_kept() -> None:
    twins = Twins()
    mine, theirs = twins.open()
    target = bytearray(10)
    theirs.target, theirs.filled = memoryview(target), 0
    twins.alice.send(mine, [b"0123456"])
    twins.pump()
    twins.alice.send(mine, [b"789abc"])
    twins.pump()
    assert (bytes(target), theirs.filled, theirs.held, twins.bob.held) == (b"0123456789", 10, 3, 3)
    theirs.target = None
    assert read(twins.bob, theirs) == b"abc"


# --- turns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 7, 50])
def test_a_small_message_leaves_after_one_frame_of_each_bulk_stream(k: int) -> None:
    twins = Twins()
    bulk = [twins.open()[0] for _ in range(k)]
    small, _ = twins.open()
    for flow in bulk:
        twins.alice.send(flow, [bytes(FIRST_WINDOW)])
    twins.alice.send(small, [b"hurry"])
    before = 0
    while (frames := split(step(twins.alice))) and small.id not in {id for _, _, id, _ in frames}:
        assert len(frames) == 1  # a bulk frame fills a sealed message
        before += 1
    assert before <= k
    assert (DATA, 0, small.id, 5) in frames


def test_small_messages_share_a_sealed_message_and_none_exceeds_it() -> None:
    twins = Twins()
    flows = [twins.open()[0] for _ in range(50)]
    for flow in flows:
        twins.alice.send(flow, [bytes(100)])
    assert len(split(step(twins.alice))) == 50
    flow, _ = twins.open()
    twins.alice.send(flow, [bytes(MAX_BODY), b"x"])
    assert len(step(twins.alice)) == MAX_PLAIN
    assert split(step(twins.alice)) == [(DATA, 0, flow.id, 1)]


def test_answers_to_pings_never_starve_data() -> None:
    bob = session()
    flow = opened(bob)
    bob.send(flow, [bytes(MAX_BODY)])
    sent = []
    for _ in range(3):
        feed(bob, frame(PING, SYN, 0, 1) * 100)
        sent += split(step(bob))
    feed(bob, frame(PING, SYN, 0, 1) * MAX_CONTROL * 2)
    assert bob.flooded
    while (DATA, 0, 1, MAX_BODY) not in sent:
        sent += split(step(bob))
    assert not bob.flooded


# --- round trips, the pool, the end ----------------------------------------------------------------


def test_a_ping_measures_the_round_trip_and_only_its_own_answer_counts() -> None:
    alice = session(initiator=True)
    alice.ping(1.0)
    [(_, _, _, value)] = split(drain(alice))
    alice.receive(memoryview(frame(PING, ACK, 0, value + 1)), 1.01)
    assert alice.round_trips.least is None
    alice.receive(memoryview(frame(PING, ACK, 0, value)), 1.05)
    alice.receive(memoryview(frame(PING, ACK, 0, value)), 9.0)
    assert alice.round_trips.least == pytest.approx(0.05)


def test_in_a_crowded_process_the_stream_that_holds_most_is_cut_off() -> None:
    pool = WindowPool(total=MODEST_BYTES)
    bob = session(pool=pool)
    feed(bob, *(frame(WINDOW_UPDATE, SYN, id, 0) for id in (1, 3, 5)))
    first, second, third = bob.opened
    feed(bob, frame(DATA, 0, 1, 200_000, bytes(200_000)), frame(DATA, 0, 3, 250_000, bytes(250_000)))
    assert [first.broken, second.broken] == [False, False]
    feed(bob, frame(DATA, 0, 5, 100_000, bytes(100_000)))
    assert (first.broken, second.broken, third.broken) == (False, True, False)
    assert (second.held, bob.held, pool.held) == (0, 300_000, 300_000)
    assert (WINDOW_UPDATE, RST, 3, 0) in split(drain(bob))


def test_a_modest_connection_keeps_what_it_holds_in_the_greatest_crowd() -> None:
    pool = WindowPool(total=1 << 20)
    greedy, modest = session(pool=pool, inbound=1000), session(pool=pool)
    flow = opened(modest)
    feed(modest, frame(DATA, 0, 1, 200_000, bytes(200_000)))
    for id in range(1, 41, 2):
        feed(greedy, frame(DATA, SYN, id, FIRST_WINDOW, bytes(FIRST_WINDOW)))
        feed(modest, frame(DATA, 0, 1, 1, b"x"))
    assert not flow.broken
    assert flow.held == 200_020
    assert greedy.held <= (1 << 20) + FIRST_WINDOW


def test_a_lost_connection_gives_back_all_it_had_of_what_is_shared() -> None:
    pool = WindowPool()
    bob = session(pool=pool)
    flow = opened(bob)
    feed(bob, frame(DATA, 0, 1, 1000, bytes(1000)))
    feed(bob, frame(DATA, SYN, 3, 1000, bytes(1000)))  # nobody has looked at this one yet
    assert (pool.held, pool.inbound) == (2000, 2)
    told = []
    flow.on_news = lambda: told.append("news")
    flow.on_room = lambda: told.append("room")
    bob.lose()
    assert told == ["news", "room"]
    assert (pool.inbound, pool.grown, bob.inbound, bob.outbound) == (0, 0, 0, 0)
    assert read(bob, flow) == bytes(1000)
    bob.reset(flow)
    assert pool.held == 0


def test_copies_that_wait_are_counted_until_they_are_out_or_dropped() -> None:
    twins = Twins()
    (one, _), (two, far) = twins.open(), twins.open()
    twins.alice.send(one, [bytes(10)], 266)
    twins.alice.send(two, [bytes(10)], 266)
    assert twins.alice.copied == 532
    twins.alice.reset(one, abruptly=True)
    assert twins.alice.copied == 266
    twins.pump()
    assert twins.alice.copied == 0
    twins.alice.send(two, [bytes(10)], 266)
    twins.bob.reset(far)
    feed(twins.alice, drain(twins.bob))
    assert twins.alice.copied == 0
