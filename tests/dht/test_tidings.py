"""Bob has found alice dead, and tells those who hold what lies at her keys."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from modelnet_p2p.beats import Beat, Obituary, Roster
from modelnet_p2p.dht.keyspace import position
from modelnet_p2p.dht.liveness.tidings import MAX_TOLD, MAX_WAITING_WALKS, MAX_WALKS, Errand, Tidings
from modelnet_p2p.dht.walks.region import Region
from modelnet_p2p.identity import PeerId

K = 20
KEY = b"where alice's offers lie"


def peer_id(number: int) -> PeerId:
    return PeerId.of_key(number.to_bytes(32))


TOWN = sorted((peer_id(number) for number in range(4 * K)), key=lambda peer: position(peer) ^ position(KEY))
REGION = Region.expecting(K, len(TOWN))
HOLDERS = [peer for peer in TOWN if position(peer) ^ position(KEY) < REGION.radius]
OTHERS = TOWN[len(HOLDERS) :]
ALICE = peer_id(1000)


def obituary(subject: PeerId = ALICE, seq: int = 1) -> Obituary:
    return Obituary(Roster(subject, seq, ()), ())


class Bob:
    """Bob's tidings, and what he said to whom; `deaf` are those whom no line reaches."""

    def __init__(self) -> None:
        self.tidings = Tidings(self.tell)
        self.said: list[tuple[PeerId, Obituary | Beat]] = []
        self.deaf: set[PeerId] = set()

    def tell(self, peer: PeerId, message: Obituary | Beat) -> bool:
        if peer in self.deaf:
            return False
        self.said.append((peer, message))
        return True

    def told(self, message: Obituary | Beat) -> list[PeerId]:
        return [peer for peer, said in self.said if said == message]

    def set_out(self, region: Region | None = REGION) -> Errand:
        """On the walk that there must be room for."""
        errand = self.tidings.poll(region)
        assert errand is not None
        return errand


def test_holders_that_are_connected_are_told_at_once_the_others_as_they_answer_and_each_once() -> None:
    bob = Bob()
    bob.tidings.on_death(obituary(), {KEY: [HOLDERS[0], HOLDERS[3], OTHERS[0]]}, REGION)
    assert bob.told(obituary()) == [HOLDERS[0], HOLDERS[3]]
    errand = bob.set_out()
    assert errand.key == KEY
    for peer in (HOLDERS[0], OTHERS[0], HOLDERS[1]):
        bob.tidings.on_answer(errand, peer)
    assert bob.told(obituary()) == [HOLDERS[0], HOLDERS[3], HOLDERS[1]]
    bob.tidings.on_end(errand, [*HOLDERS[:3], OTHERS[0]])  # they are the closest, wherever they live
    assert bob.told(obituary()) == [HOLDERS[0], HOLDERS[3], HOLDERS[1], HOLDERS[2], OTHERS[0]]
    assert bob.tidings.poll(REGION) is None


def test_where_nobody_knows_how_many_peers_there_are_the_closest_are_told_in_the_end() -> None:
    bob = Bob()
    bob.tidings.on_death(obituary(), {KEY: HOLDERS}, None)
    errand = bob.set_out(None)
    for peer in HOLDERS:
        bob.tidings.on_answer(errand, peer)
    assert not bob.said
    assert not errand.only_waits
    bob.tidings.on_end(errand, HOLDERS)
    assert bob.told(obituary()) == HOLDERS


def test_there_is_room_for_the_next_walk_once_a_quarter_of_the_holders_are_told() -> None:
    """Some of the others may be dead too, and the walk waits for them."""
    bob = Bob()
    bob.tidings.on_death(obituary(), {KEY + bytes([number]): () for number in range(MAX_WALKS)}, REGION)
    bob.tidings.on_death(obituary(peer_id(1001)), {KEY: ()}, REGION)
    first, *_ = [bob.set_out() for _ in range(MAX_WALKS)]
    holders = [peer for peer in TOWN if position(peer) ^ position(first.key) < REGION.radius]
    for peer in holders[: K // 4]:
        assert bob.tidings.poll(REGION) is None
        bob.tidings.on_answer(first, peer)
    assert bob.set_out().key == KEY


def test_walks_that_only_wait_are_bounded_too() -> None:
    bob = Bob()
    bob.tidings.on_death(obituary(), {KEY: ()}, REGION)
    waiting = []
    for number in range(MAX_WAITING_WALKS):
        bob.tidings.on_death(obituary(peer_id(2000 + number)), {KEY: ()}, REGION)
        waiting.append(bob.set_out())
        for peer in HOLDERS[: K // 4]:
            bob.tidings.on_answer(waiting[-1], peer)
    assert bob.tidings.poll(REGION) is None
    bob.tidings.on_end(waiting[0], HOLDERS)
    bob.set_out()
    assert bob.tidings.poll(REGION) is None


def test_who_could_not_be_told_is_told_when_the_walk_is_over() -> None:
    """Also of a death that so many others followed that it is not remembered any more."""
    bob = Bob()
    bob.deaf = set(HOLDERS)  # there is no room for another line
    bob.tidings.on_death(obituary(), {KEY: HOLDERS[:2]}, REGION)
    errand = bob.set_out()
    bob.tidings.on_answer(errand, HOLDERS[2])
    for number in range(MAX_TOLD):
        bob.tidings.on_death(obituary(peer_id(2000 + number)), {KEY: ()}, REGION)
    bob.deaf.clear()
    bob.tidings.on_end(errand, HOLDERS[:4])
    assert bob.told(obituary()) == HOLDERS[:4]
    bob.tidings.on_refuted(Beat(ALICE, 2, 1))
    assert bob.told(Beat(ALICE, 2, 1)) == []  # this is what it costs


def test_a_refutation_goes_to_all_who_were_told_and_nobody_is_told_of_the_death_any_more() -> None:
    bob, beat = Bob(), Beat(ALICE, 2, 1)
    bob.tidings.on_death(obituary(), {KEY: HOLDERS[:2]}, REGION)
    errand = bob.set_out()
    bob.tidings.on_refuted(beat)
    bob.tidings.on_answer(errand, HOLDERS[2])
    bob.tidings.on_end(errand, HOLDERS)
    assert bob.told(obituary()) == bob.told(beat) == HOLDERS[:2]
    bob.tidings.on_refuted(beat)
    assert len(bob.said) == 4


def test_of_two_deaths_of_one_peer_the_last_is_told() -> None:
    bob = Bob()
    bob.tidings.on_death(obituary(), {KEY: ()}, REGION)
    errand = bob.set_out()
    bob.tidings.on_death(obituary(seq=2), {KEY: HOLDERS[:1]}, REGION)
    bob.tidings.on_end(errand, HOLDERS)
    assert [(peer, said) for peer, said in bob.said] == [(HOLDERS[0], obituary(seq=2))]


def test_nothing_is_told_where_others_tell_it() -> None:
    bob = Bob()
    bob.tidings.on_death(obituary(), {}, REGION)
    assert bob.tidings.poll(REGION) is None


@given(st.integers(0, 2**32), st.integers(1, 60))
def test_whatever_comes_walks_are_bounded_and_all_end_and_nobody_is_told_twice(seed: int, steps: int) -> None:
    rng, bob = Random(seed), Bob()
    subjects, errands, seq = [peer_id(number) for number in range(2000, 2004)], list[Errand](), 0
    for _ in range(steps):
        match rng.randrange(4):
            case 0:
                seq += 1
                near = {bytes([rng.randrange(8)]): rng.sample(TOWN, 3) for _ in range(rng.randrange(1, 9))}
                bob.tidings.on_death(obituary(rng.choice(subjects), seq), near, REGION)
            case 1:
                bob.tidings.on_refuted(Beat(rng.choice(subjects), seq, 1))
            case 2 if errands:
                bob.tidings.on_answer(rng.choice(errands), rng.choice(TOWN))
            case 3 if errands:
                bob.tidings.on_end(errands.pop(rng.randrange(len(errands))), rng.sample(TOWN, K))
        while (errand := bob.tidings.poll(REGION)) is not None:
            errands.append(errand)
        assert len(errands) <= MAX_WAITING_WALKS
        assert sum(not errand.only_waits for errand in errands) <= MAX_WALKS
    while errands:
        bob.tidings.on_end(errands.pop(), ())
        while (errand := bob.tidings.poll(REGION)) is not None:
            errands.append(errand)
    told = [(peer, said) for peer, said in bob.said if isinstance(said, Obituary)]
    assert len(told) == len(set(told))


def test_who_dies_and_returns_all_the_time_keeps_no_walk_of_others_waiting() -> None:
    bob, flapping, keys = Bob(), peer_id(2000), [bytes([number]) for number in range(64)]
    for seq in range(1, 50):
        bob.tidings.on_death(obituary(flapping, seq), {key: () for key in keys}, REGION)
        bob.tidings.on_refuted(Beat(flapping, seq + 1, 1))
    bob.tidings.on_death(obituary(), {KEY: ()}, REGION)
    assert bob.set_out().key == KEY
    assert bob.tidings.poll(REGION) is None


def test_one_death_too_many_lets_the_oldest_go() -> None:
    bob = Bob()
    for number in range(MAX_TOLD + 1):
        bob.tidings.on_death(obituary(peer_id(3000 + number)), {bytes([0, number % 256]): ()}, REGION)
    first = bob.set_out()
    bob.tidings.on_answer(first, HOLDERS[0])
    bob.tidings.on_end(first, HOLDERS[:1])
    assert bob.told(obituary(peer_id(3000))) == []
    assert bob.told(obituary(peer_id(3001))) == HOLDERS[:1]
