"""Who was dialled first by a gang still learns who its neighbours are."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from random import Random

from modelnet_p2p.dht.keyspace import BITS, common_prefix, position
from modelnet_p2p.dht.table.density import FAR, LEAST_FAR_WALKS, Density
from modelnet_p2p.dht.table.routing import WIDE, WIDEST, RoutingTable
from modelnet_p2p.dht.table.survey import (
    FRESH_SECONDS,
    HIDDEN_SHARE,
    MAX_ROOTS,
    SHOWN,
    VAIN_FACTOR,
    Look,
    Survey,
)
from modelnet_p2p.dht.walks.finding import Send
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact
from modelnet_p2p.tuning import WAN

ME = PeerId(b"me")
K = 20
RNG = Random(5)


def in_bucket(index: int, name: bytes) -> list[Contact]:
    """A hundred peers that share `index` leading bits with me."""
    peers = (Contact(PeerId(name + number.to_bytes(4)), (b"addr",)) for number in count())
    here = (peer for peer in peers if common_prefix(position(peer.id), position(ME)) == index)
    return list(islice(here, 100))


def walked(table: RoutingTable, peers: int) -> None:
    """Walks to random keys of the far buckets, in a world of so many."""
    for index in range(FAR):
        walk(table, table.refresh_key(index, RNG.randbytes(32)), 0.0, peers)


def walk(table: RoutingTable, key: bytes, now: float, peers: int) -> None:
    world = [Contact(PeerId(b"world" + number.to_bytes(4))) for number in range(peers)]
    closest = sorted(world, key=lambda one: position(one.id) ^ position(key))[:K]
    table.on_walked(key, now, [one.id for one in closest])


def far() -> int:
    """A place that nobody could foresee, in a far bucket of mine."""
    while common_prefix(place := RNG.getrandbits(BITS), position(ME)) >= FAR:
        pass
    return place


def test_far_walks_tell_a_hundred_from_ten_thousand_and_needs_a_few_walks() -> None:
    for size in (100, 1000, 10_000):
        peers = [PeerId(b"peer" + number.to_bytes(4)) for number in range(size)]
        density = Density(ME, K)
        for walks in range(8):
            assert (density.least is None) == (walks < LEAST_FAR_WALKS)
            place = far()
            density.on_walked(place, sorted(peers, key=lambda peer: position(peer) ^ place)[:K])
        assert density.least is not None
        assert size / 2.5 < density.least < size * 1.1  # the least of eight


def test_one_walk_that_ended_among_a_gang_neither_raises_the_least_nor_goes_unnoticed() -> None:
    peers = [PeerId(b"peer" + number.to_bytes(4)) for number in range(1000)]
    density = Density(ME, K)
    for _ in range(4):
        place = far()
        density.on_walked(place, sorted(peers, key=lambda peer: position(peer) ^ place)[:K])
    honest = density.least
    assert honest is not None
    near = [PeerId(number.to_bytes(4)) for number in range(1 << 14)]  # ground around the key: 16,000 hashes
    density.on_walked(place, sorted(near, key=lambda peer: position(peer) ^ place)[:K])
    assert density.least == honest
    assert density.torn


def test_a_gang_that_dialled_first_does_not_keep_my_true_neighbours_out() -> None:
    table = RoutingTable(ME, K)
    gang, honest = in_bucket(5, b"gang"), in_bucket(5, b"honest")[:16]
    for one in [*gang, *honest]:
        table.add(one, 0.0)
    assert not any(one.id in table for one in honest)  # nothing is known yet of how many there are
    walked(table, 1000)
    for one in [*honest, *gang]:
        table.add(one, 1.0)
    assert all(one.id in table for one in honest)
    assert len(table) <= WIDE * K
    assert table.crowd() == WIDEST * K


def test_far_buckets_stay_small_and_a_calm_neighbourhood_is_no_crowd() -> None:
    table = RoutingTable(ME, K)
    walked(table, 1000)
    for index, there in ((0, 100), (1, 100), (5, 16), (6, 8), (7, 4)):
        for one in in_bucket(index, b"honest")[:there]:
            table.add(one, 0.0)
    assert len(table) == 2 * K + 16 + 8 + 4
    assert table.crowd() == 0


def test_a_bucket_shrinks_when_the_world_has_grown() -> None:
    table = RoutingTable(ME, K)
    walked(table, 100)
    for one in in_bucket(1, b"honest"):
        table.add(one, 0.0)
    assert len(table) == 100
    walked(table, 5000)
    walked(table, 5000)  # the walks of the small world are forgotten
    assert len(table) == K


def test_the_first_survey_begins_at_each_bootstrap_in_turns_and_the_next_at_all_that_are_known() -> None:
    table = RoutingTable(ME, K)
    for one in [*in_bucket(5, b"honest")[: K + 1], in_bucket(6, b"honest")[0]]:
        table.add(one, 0.0)
    survey, roots = Survey(table), [Contact(PeerId(b"root" + bytes([n]))) for n in range(MAX_ROOTS + 2)]
    for root in roots:
        survey.on_bootstrap(root)

    def turn(now: float) -> list[tuple[Contact, ...]]:
        looks = []
        for look in survey.looks(lambda: now, 300.0, lambda: RNG.randbytes(32)):
            looks.append(look.seeds)
            walk(table, look.target, now, 1000)
        return looks

    # as many far ones as say how many peers there are, and my own neighbourhood; then one at a time
    assert turn(400.0) == [(root,) for root in roots[: LEAST_FAR_WALKS + 1]]
    assert [turn(400.0 + 30.0 * number) for number in (1, 2)] == [[(roots[n],)] for n in (0, 1)]
    assert turn(490.0) == []  # the last far one is full
    assert [turn(700.0 + 30.0 * number) for number in range(5)] == [[()] * 2, *[[()]] * 4]


def test_where_a_crowd_is_every_bootstrap_is_asked_apart_and_not_again_before_its_time() -> None:
    table = RoutingTable(ME, K)
    walked(table, 600)
    for one in [*in_bucket(6, b"gang"), *in_bucket(7, b"gang")]:
        table.add(one, 0.0)
    survey, roots = Survey(table), [Contact(PeerId(b"root" + bytes([n]))) for n in range(3)]
    for root in roots:
        survey.on_bootstrap(root)

    def looks(now: float) -> Iterator[Look]:
        """All of one turn; the far ones end in a world that is as it was."""
        for look in survey.looks(lambda: now, 300.0, lambda: RNG.randbytes(32)):
            if not look.n and look.target != ME:
                walk(table, look.target, now, 600)
            yield look

    def wide(now: float) -> list[tuple[Contact, ...]]:
        return [look.seeds for look in looks(now) if look.n > K]

    apart = [(root,) for root in roots]
    made = list(looks(10.0))
    assert [look.seeds for look in made if look.n > K] == apart
    shown = made[-SHOWN:]  # and then it shows itself far away, where each of k answers
    assert all(look.n == K and look.target != ME and not look.seeds for look in shown)
    assert wide(40.0) == []
    assert wide(310.0) == []  # nobody was hidden
    found = []
    for look in looks(10.0 + VAIN_FACTOR * 300.0):
        if look.n > K:
            found.append(look.seeds)
            for one in in_bucket(8, b"hidden")[: K // HIDDEN_SHARE]:
                table.add(one, 0.0)
    assert found == apart
    assert wide(10.0 + (VAIN_FACTOR + 1) * 300.0) == apart


def test_in_a_network_that_grew_the_neighbours_are_no_crowd_and_that_costs_a_few_far_walks() -> None:
    table = RoutingTable(ME, K)
    walked(table, 100)
    for one in [*in_bucket(1, b"neighbour"), *in_bucket(2, b"neighbour")]:
        table.add(one, 0.0)
    assert table.crowd()  # as far as is known from before
    survey = Survey(table)
    for far in table.far():
        table.on_walked(table.refresh_key(far, b""), FRESH_SECONDS)  # none of them is due
    table.on_walked(bytes(ME), FRESH_SECONDS)
    made = []
    for look in survey.looks(lambda: FRESH_SECONDS + 1.0, 300.0, lambda: RNG.randbytes(32)):
        made.append(look)
        walk(table, look.target, FRESH_SECONDS + 1.0, 1000)
    assert len(made) == LEAST_FAR_WALKS
    assert not any(look.n for look in made)
    assert table.crowd() == 0


def test_a_walk_that_was_cut_short_does_not_say_that_the_world_is_small() -> None:
    density, place = Density(ME, K), far()
    peers = sorted((PeerId(n.to_bytes(4)) for n in range(1000)), key=lambda one: position(one) ^ place)
    density.on_walked(place, peers[:3], known=2 * K)
    assert density.peers is None
    density.on_walked(place, peers[: K - 2], known=2 * K)
    assert density.peers is not None
    assert density.peers > 500
    small = Density(ME, K)
    small.on_walked(place, peers[:3], known=4)
    assert small.peers == 3


def test_a_newcomer_whose_far_buckets_are_full_learns_how_many_there_are_all_the_same() -> None:
    table = RoutingTable(ME, K)
    for index in range(4):
        for one in in_bucket(index, b"passer-by")[:K]:
            table.add(one, 0.0)
    table.add(in_bucket(4, b"neighbour")[0], 0.0)  # the one bucket beyond my nearest that is not full
    for one in in_bucket(5, b"neighbour")[:K]:
        table.add(one, 0.0)
    for look in Survey(table).looks(lambda: 5.0, 300.0, lambda: RNG.randbytes(32)):
        walk(table, look.target, 5.0, 1000)
    assert table.density.least is not None


def test_a_look_that_nobody_waits_for_asks_nobody_beside_the_slow() -> None:
    seeds = in_bucket(0, b"slow")
    for n in (0, K):
        asked = {True: 0, False: 0}  # while all are silent, almost until they are given up
        for hurried in asked:
            walk = Look(bytes(ME), n=n).walk(seeds, ME, WAN, WAN.patience if hurried else None)
            for now in (0.0, 0.9 * WAN.request_timeout):
                while isinstance(walk.poll(now), Send):
                    asked[hurried] += 1
        assert asked[False] == (WAN.alpha if n else WAN.alpha_read)
        assert asked[True] > asked[False]
