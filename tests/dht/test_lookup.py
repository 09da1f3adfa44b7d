"""The walk: whom it asks, when it waits, when it ends; and that it always does."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelnet_p2p.dht.keyspace import position
from modelnet_p2p.dht.walks.lookup import (
    FEW_PATIENCES,
    MAX_ADDRS,
    MAX_ASKED,
    MAX_CLOSER,
    Ask,
    Done,
    Lookup,
    Wait,
)
from modelnet_p2p.dht.walks.patience import Patience
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact

ME = PeerId(b"me")
TARGET = b"the key"


def world(size: int) -> list[Contact]:
    """Peers, nearest to the target first."""
    peers = [Contact(PeerId(b"peer%d" % i), (b"addr",)) for i in range(size)]
    return sorted(peers, key=lambda peer: position(peer.id) ^ position(TARGET))


def lookup(seeds: list[Contact], *, k: int = 3, alpha: int = 2, beta: int | None = None) -> Lookup:
    return Lookup(TARGET, seeds, me=ME, k=k, alpha=alpha, beta=beta, patience=1.0)


def test_it_asks_the_nearest_then_waits_then_goes_nearer_and_ends_with_k_answers() -> None:
    near = world(6)
    walk = lookup(near[3:])
    assert walk.poll(0.0) == Ask(near[3])
    assert walk.poll(0.0) == Ask(near[4])
    assert walk.poll(0.0) == Wait(0.5)  # alpha in flight, until the first is late
    assert walk.on_answer(near[3].id, [*near[:3], Contact(ME)], 0.1)
    assert walk.poll(0.1) == Ask(near[0])
    walk.on_answer(near[4].id, [], 0.2)
    assert walk.poll(0.2) == Ask(near[1])
    walk.on_answer(near[0].id, [], 0.3)
    assert walk.poll(0.3) == Ask(near[2])
    assert isinstance(walk.poll(0.3), Wait)
    walk.on_failure(near[1].id, 0.4)
    walk.on_answer(near[2].id, [], 0.4)
    assert walk.poll(0.4) == Done()
    assert walk.closest() == (near[0], near[2], near[3])
    assert (walk.hops, walk.asked) == (2, 5)


def test_nobody_known_is_done_at_once() -> None:
    assert lookup([]).poll(0.0) == Done()
    assert lookup([Contact(ME)]).poll(0.0) == Done()


def test_a_silent_peer_holds_up_nobody_after_its_patience_and_may_still_answer() -> None:
    near = world(5)
    walk = lookup(near, k=3, alpha=3)
    assert [walk.poll(0.0) for _ in range(3)] == [Ask(peer) for peer in near[:3]]
    walk.on_answer(near[1].id, [], 0.1)
    walk.on_answer(near[2].id, [], 0.1)
    assert walk.poll(0.1) == Wait(0.5)
    assert walk.poll(0.5) == Ask(near[3])  # the silent one is late: the next is asked beside it
    walk.on_answer(near[3].id, [], 0.6)
    assert walk.poll(0.6) == Wait(1.0)  # ... but it still holds up the end
    assert walk.on_answer(near[0].id, [], 0.9)
    assert walk.poll(0.9) == Done()
    assert walk.closest() == tuple(near[:3])


def test_after_its_patience_the_walk_ends_without_it() -> None:
    near = world(4)
    walk = lookup(near, k=3, alpha=4)
    for _ in range(3):
        walk.poll(0.0)
    for peer in near[1:3]:
        walk.on_answer(peer.id, [], 0.1)
    assert walk.poll(0.5) == Ask(near[3])
    walk.on_answer(near[3].id, [], 0.6)
    assert walk.poll(1.0) == Done()
    assert walk.closest() == tuple(near[1:])


def test_with_few_answers_it_prefers_to_wait_for_the_slow() -> None:
    near = world(2)
    walk = lookup(near, k=3)
    walk.poll(0.0), walk.poll(0.0)
    walk.on_answer(near[1].id, [], 0.1)
    assert walk.poll(1.0) == Wait(FEW_PATIENCES * 1.0)
    walk.on_answer(near[0].id, [], 2.0)
    assert walk.poll(2.0) == Done()
    assert walk.closest() == tuple(near)


def test_a_reader_without_any_answer_waits_until_all_have_failed() -> None:
    """A world of two, and the other one is held up: that is not "nobody has it"."""
    near = world(2)
    walk = lookup(near, k=20, beta=3)
    walk.poll(0.0), walk.poll(0.0)
    assert walk.poll(4.0) == Wait(math.inf)
    walk.on_failure(near[0].id, 5.0)
    assert walk.poll(5.0) == Wait(math.inf)
    walk.on_answer(near[1].id, [], 5.0)
    assert walk.poll(5.0) == Done()
    assert walk.closest() == (near[1],)


def test_a_reader_to_whom_nobody_gave_anything_waits_a_while_for_the_slow() -> None:
    """Newcomers answer that they hold nothing, and the holder is at something else."""
    near = world(6)
    walk = lookup(near, k=20, alpha=10, beta=3)
    while isinstance(step := walk.poll(0.0), Ask):
        if step.contact != near[0]:
            walk.on_answer(step.contact.id, [], 0.0, useful=False)
    assert walk.asked == len(near)
    assert walk.poll(1.0) == Wait(FEW_PATIENCES * 1.0)
    walk.on_answer(near[0].id, [], 2.0)
    assert walk.poll(2.0) == Done()


def test_a_reader_that_found_nothing_waits_for_a_request_that_it_holds_back_itself() -> None:
    """Its holder serves twenty a second, and two hundred of mine wait for it: that is not "nobody has it"."""
    near = world(6)
    walk = lookup(near, k=20, alpha=10, beta=3)
    while isinstance(step := walk.poll(0.0), Ask):
        if step.contact != near[0]:
            walk.on_answer(step.contact.id, [], 0.0, useful=False)
    walk.on_held(near[0].id)
    assert walk.poll(30.0) == Wait(math.inf)
    assert walk.on_busy(near[0].id, 30.0)
    assert walk.poll(30.0) == Ask(near[0])
    assert walk.poll(60.0) == Wait(math.inf)
    walk.on_answer(near[0].id, [], 61.0)
    assert walk.poll(61.0) == Done()


def test_a_reader_to_whom_somebody_gave_something_waits_for_no_held_request() -> None:
    near = world(6)
    walk = lookup(near, k=20, alpha=10, beta=3)
    while isinstance(step := walk.poll(0.0), Ask):
        if step.contact != near[0]:
            walk.on_answer(step.contact.id, [], 0.0, useful=step.contact == near[1])
    walk.on_held(near[0].id)
    assert walk.poll(0.9) == Wait(1.0)
    assert walk.poll(1.0) == Done()


def test_a_held_request_beyond_the_closest_holds_up_nobody() -> None:
    near = world(30)
    walk = lookup([near[29]], k=3, alpha=1, beta=3)
    assert walk.poll(0.0) == Ask(near[29])
    walk.on_held(near[29].id)
    walk._hear(near[0], 0, 0)
    for peer in near[:3]:
        assert walk.poll(2.0) == Ask(peer)
        walk.on_answer(peer.id, near[:3], 2.0, useful=False)
    assert walk.poll(5.0) == Done()


def test_a_reader_ends_after_beta_answers() -> None:
    near = world(30)
    walk = lookup(near, k=20, alpha=3, beta=3)
    for peer in near[:3]:
        assert walk.poll(0.0) == Ask(peer)
        walk.on_answer(peer.id, near, 0.0)
    assert walk.poll(0.0) == Done()


def test_an_address_that_was_not_tried_gives_a_failed_peer_one_more_chance() -> None:
    near = world(2)
    walk = lookup(near, alpha=1)
    assert walk.poll(0.0) == Ask(near[0])
    walk.on_failure(near[0].id, 0.1)
    assert walk.poll(0.1) == Ask(near[1])
    better = Contact(near[0].id, (b"right",))
    walk.on_answer(near[1].id, [better], 0.2)
    assert walk.poll(0.2) == Ask(Contact(near[0].id, (b"addr", b"right")))
    walk.on_failure(near[0].id, 0.3)
    assert walk.poll(0.3) == Done()


def test_what_was_not_asked_changes_nothing() -> None:
    near = world(3)
    walk = lookup(near[1:])
    assert not walk.on_answer(near[1].id, near, 0.0)
    assert not walk.on_failure(near[0].id, 0.0)
    assert walk.unexpected == 2
    assert walk.poll(0.0) == Ask(near[1])
    assert walk.on_answer(near[1].id, [], 0.0)
    assert not walk.on_answer(near[1].id, near[:1], 0.0)  # a second answer to one question


def test_a_liar_cannot_lead_it_on_for_ever() -> None:
    rng = Random(5)
    walk = lookup(world(1), k=20, alpha=10)
    asked = 0
    while isinstance(step := walk.poll(0.0), Ask):
        asked += 1
        strangers = [Contact(PeerId(rng.randbytes(8))) for _ in range(10 * MAX_CLOSER)]
        walk.on_answer(step.contact.id, strangers, 0.0)
    assert step == Done()
    assert asked <= MAX_ASKED


@given(seed=st.integers(0, 2**32), size=st.integers(0, 60), beta=st.sampled_from([None, 3]))
def test_it_terminates_bounded_and_sorted_whatever_happens(seed: int, size: int, beta: int | None) -> None:
    rng, peers = Random(seed), world(size)
    walk = lookup(rng.sample(peers, min(size, 5)), k=5, alpha=4, beta=beta)
    now, open_requests, asked, busy = 0.0, [], [], 0
    for _ in range(40 * size + 40):
        match walk.poll(now):
            case Ask(contact):
                open_requests.append(contact.id)
                asked.append(contact.id)
                if rng.random() < 0.2:
                    walk.on_held(contact.id)
            case Wait(until):
                assert until > now
                if open_requests and (until == math.inf or rng.random() < 0.8):
                    peer = open_requests.pop(rng.randrange(len(open_requests)))
                    if rng.random() < 0.3:
                        walk.on_failure(peer, now)
                    elif rng.random() < 0.2:
                        assert walk.on_busy(peer, now)
                        busy += 1
                    else:
                        named = rng.sample(peers, min(size, 8))
                        walk.on_answer(peer, named + named, now)
                else:
                    now = until
            case Done():
                break
    else:
        pytest.fail("the walk did not end")
    assert len(asked) == walk.asked
    assert len(asked) <= len(set(asked)) + busy
    distances = [position(peer.id) ^ walk.target for peer in walk.closest()]
    assert distances == sorted(set(distances))
    assert len(distances) <= 5


def test_patience_follows_the_round_trips_within_its_limits() -> None:
    patience = Patience(1.0, 5.0)
    assert patience.seconds == 1.0
    for _ in range(50):
        patience.on_round_trip(0.01)
    assert patience.seconds == 0.25
    for _ in range(50):
        patience.on_round_trip(0.8)
    assert 0.8 < patience.seconds < 1.5
    patience.on_round_trip(100.0)
    assert patience.seconds == 5.0


def test_who_tells_false_addresses_first_leaves_room_for_the_true_one() -> None:
    """As many as there is room for, of an honest peer: it can be dialled all the same."""
    honest = PeerId(b"honest")
    lies = tuple(b"lie %d" % number for number in range(MAX_ADDRS))
    lookup = Lookup(0, [Contact(honest, lies)], me=PeerId(b"me"), k=3, alpha=1, patience=1.0)
    lookup._hear(Contact(honest, (b"true", b"also true")), 1, 0)
    known = lookup.contact(honest)
    assert known is not None
    assert known.addrs[:4] == (lies[0], b"true", lies[1], b"also true")
    assert len(known.addrs) == MAX_ADDRS
