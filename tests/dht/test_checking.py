"""Asking the silent: each once, a few at a time, and the dead leave the table also where nobody waits."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from modelnet_p2p.dht.table.checking import Check
from modelnet_p2p.dht.table.routing import (
    COLD_CHECKS,
    COLD_FACTOR,
    LOST_CHECKS,
    MAX_CHECKS,
    MAX_FAILURES,
    MAX_LOST,
    Place,
    RoutingTable,
)
from modelnet_p2p.dht.walks.finding import Send
from modelnet_p2p.dht.walks.lookup import Done, Wait
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact, Kind, Message

ME = PeerId(b"me")
LONGEST = 300.0
LOOK = 30.0


def contact(number: int) -> Contact:
    return Contact(PeerId(b"peer" + number.to_bytes(4)), (b"addr",))


@given(st.integers(0, 30), st.integers(1, 5), st.randoms(use_true_random=False))
def test_each_is_asked_once_and_few_at_a_time(size: int, alpha: int, rng: Random) -> None:
    peers = [contact(number) for number in range(size)]
    check, asked, open_ = Check(peers, alpha), list[PeerId](), list[PeerId]()
    while True:
        match check.poll(0.0):
            case Send(who, message):
                assert message.kind is Kind.PING
                asked.append(who.id)
                open_.append(who.id)
                assert len(open_) <= alpha
            case Wait():
                ended = open_.pop(rng.randrange(len(open_)))
                if rng.random() < 0.5:
                    check.on_failure(ended, 1.0)
                else:
                    check.on_reply(ended, Message(Kind.PING), 1.0)
                check.on_reply(ended, Message(Kind.PING), 1.0)  # twice, and from nobody: no matter
                check.on_failure(ME, 1.0)
            case Done():
                break
    assert asked == [peer.id for peer in peers]
    assert not open_


def test_who_failed_is_asked_first_then_who_was_silent_longest_and_nobody_else() -> None:
    table = RoutingTable(ME, 20)
    for number in range(12):
        table.add(contact(number), float(number))
    table.failed(contact(11).id, 12.0)
    for number in (3, 4):
        table.answered(contact(number).id, 300.0)
    doubtful = [peer.id for peer in table.doubtful(308.0, LONGEST)]
    assert doubtful == [contact(n).id for n in (11, 0, 1, 2, 5, 6, 7, 8, 9, 10)]


def test_to_whom_there_is_no_connection_is_asked_later_and_few_at_a_time_unless_it_failed() -> None:
    table = RoutingTable(ME, 20)
    for number in range(20):
        table.add(contact(number), 0.0)
    warm, failed = {contact(number).id for number in range(10)}, contact(15).id
    table.failed(failed, 1.0)

    def asked(now: float) -> list[PeerId]:
        return [peer.id for peer in table.doubtful(now, LONGEST, warm.__contains__)]

    silence = table.churn.silence(1.0, LONGEST)
    assert asked(1.0) == [failed]
    assert set(asked(silence * 1.1)) == warm | {failed}
    late, turns = COLD_FACTOR * LONGEST, list[list[PeerId]]()
    while cold := [peer for peer in asked(late) if peer not in warm and peer != failed]:
        turns.append(cold)
        for peer in cold:
            table.answered(peer, late)
    assert [len(turn) for turn in turns] == [COLD_CHECKS, COLD_CHECKS, 9 - 2 * COLD_CHECKS]
    assert {peer for turn in turns for peer in turn} == {contact(n).id for n in range(10, 20)} - {failed}


def test_one_look_asks_a_bounded_number() -> None:
    table = RoutingTable(ME, 20)
    for number in range(400):
        table.add(contact(number), 0.0)
    assert len(table) > MAX_CHECKS
    assert len(table.doubtful(1e6, LONGEST)) == MAX_CHECKS


def test_where_peers_die_fast_they_are_asked_sooner() -> None:
    table = RoutingTable(ME, 20)
    for number in range(6):
        table.add(contact(number), 0.0)
    for number in range(6):
        for now in range(10, 250, 10):  # they are seen to live ...
            table.answered(contact(number).id, float(now))
    calm = next(now for now in range(240, 1000) if table.doubtful(now, LONGEST))
    for number in range(5):
        for _ in range(MAX_FAILURES):  # ... and five of six to die
            table.failed(contact(number).id, 250.0)
    table.answered(contact(5).id, 250.0)
    wild = next(now for now in range(250, 1000) if contact(5) in table.doubtful(now, LONGEST))
    assert 0 < wild - 250 < (calm - 240) / 2


def test_after_a_mass_death_the_dead_leave_though_nobody_waits_and_no_walk_goes_near_them() -> None:
    """The state of the network half of which has just died; only looks happen, each half minute."""
    table = RoutingTable(ME, 64)  # so that nobody waits
    for number in range(48):
        table.add(contact(number), 0.0)
    known = {peer.id for peer in table}
    assert len(known) == 48
    dead = {peer for number, peer in enumerate(sorted(known)) if number % 2}
    now, looks = 0.0, 0
    while dead & {peer.id for peer in table}:
        now += LOOK
        looks += 1
        for peer in table.doubtful(now, LONGEST):
            if peer.id in dead:
                table.failed(peer.id, now)
            else:
                table.answered(peer.id, now)
        assert now < LONGEST + 10 * LOOK
    assert {peer.id for peer in table} == known - dead
    assert looks >= MAX_FAILURES  # one lost answer was no death


def test_whoever_was_given_up_is_asked_now_and_then_and_is_back_when_it_answers() -> None:
    table = RoutingTable(ME, 20)
    for number in range(10):
        table.add(contact(number), 0.0)
    lost = [contact(number) for number in range(5)]
    for peer in lost:
        for _ in range(MAX_FAILURES):
            table.failed(peer.id, 10.0)
    for peer in set(table):
        table.answered(peer.id, 11.0)
    asked = [table.doubtful(11.0, LONGEST) for _ in range(5)]
    assert all(len(one) == LOST_CHECKS for one in asked)
    assert {peer.id for one in asked for peer in one} == {peer.id for peer in lost}  # in turn
    table.failed(lost[0].id, 12.0)  # still silent
    assert table.add(lost[1], 12.0) is Place.TABLE
    asked = [table.doubtful(12.0, LONGEST) for _ in range(5)]
    assert {peer.id for one in asked for peer in one} == {lost[n].id for n in (0, 2, 3, 4)}


def test_of_those_given_up_a_bounded_number_is_remembered() -> None:
    table = RoutingTable(ME, 256)
    for number in range(3 * MAX_LOST):
        table.add(contact(number), 0.0)
        for _ in range(MAX_FAILURES):
            table.failed(contact(number).id, 1.0)
    asked = {peer.id for _ in range(3 * MAX_LOST) for peer in table.doubtful(2.0, LONGEST)}
    assert asked == {contact(number).id for number in range(2 * MAX_LOST, 3 * MAX_LOST)}
