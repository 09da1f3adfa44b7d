"""The surroundings of a key: how many peers there are, who is asked, what a crowd around it achieves."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import pytest

from modelnet_p2p.dht.holding.server import KadServer
from modelnet_p2p.dht.holding.store import OfferStore
from modelnet_p2p.dht.keyspace import BITS, position
from modelnet_p2p.dht.table.density import Density
from modelnet_p2p.dht.table.routing import RoutingTable
from modelnet_p2p.dht.walks.lookup import DONE, Ask, Lookup
from modelnet_p2p.dht.walks.region import CROWD_OF_SLOT, DENSE, READ_OF_SLOT, STORED_OF_SLOT, Region
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact, Kind, Message

SEED = 20_26
K = 20
KEY = b"a key"
ME = PeerId.of_key(bytes(32))


@dataclass(frozen=True)
class At:
    distance: int
    counts: bool = True


def strangers(rng: Random, count: int) -> list[Contact]:
    return [Contact(PeerId.of_key(rng.randbytes(32)), (b"addr",)) for _ in range(count)]


def nearest(peers: list[Contact], key: bytes, count: int) -> list[Contact]:
    return sorted(peers, key=lambda peer: position(peer.id) ^ position(key))[:count]


def crowd(rng: Random, key: bytes, count: int, among: int) -> list[Contact]:
    """The nearest of so many strangers that they are nearer than anybody of a small world."""
    return nearest(strangers(rng, among), key, count)


@pytest.mark.parametrize("size", [60, 1000, 4000])
def test_the_size_is_told_from_a_few_walks_to_unforeseen_places(size: int) -> None:
    rng = Random(SEED)
    peers = strangers(rng, size)
    density = Density(ME, K)
    assert (density.peers, density.region) == (None, None)
    for bucket in range(8):
        target = position(ME) ^ (1 << (BITS - 1 - bucket)) ^ rng.getrandbits(BITS - 1 - bucket)
        found = sorted(peers, key=lambda peer: position(peer.id) ^ target)[:K]
        density.on_walked(target, [peer.id for peer in found])
    print(f"\n{size} peers, told {density.peers:.0f}, seed {SEED}")
    assert density.peers is not None
    assert size / 1.5 < density.peers < size * 1.5
    assert density.region is not None
    share = sum(position(p.id) ^ position(KEY) < density.region.radius for p in peers)
    assert K / 2 <= share <= 2 * K


def test_a_gang_around_one_place_moves_the_estimate_little() -> None:
    rng = Random(SEED)
    peers, density = strangers(rng, 1000), Density(ME, K)
    for bucket in range(5):
        target = position(ME) ^ (1 << (BITS - 1 - bucket)) ^ rng.getrandbits(BITS - 1 - bucket)
        density.on_walked(target, [p.id for p in sorted(peers, key=lambda p: position(p.id) ^ target)[:K]])
    before = density.peers
    gang = [PeerId(b"gang%d" % number) for number in range(200_00)]
    for _ in range(20):  # again and again: a place counts once
        density.on_walked(bytes(ME), sorted(gang, key=lambda peer: position(peer) ^ position(ME))[:K])
    assert before is not None
    assert density.peers is not None
    assert density.peers <= 1.5 * before


def test_whoever_knows_fewer_than_a_bucket_has_counted_them_and_needs_no_region() -> None:
    density = Density(ME, K)
    density.on_walked(bytes(ME), [peer.id for peer in strangers(Random(SEED), 7)])
    assert (density.peers, density.region) == (7, None)


def test_the_nearest_few_of_each_slot_come_first_and_the_failed_take_no_room() -> None:
    region = Region(radius=100, slots=10)
    placed = [At(1), At(2, counts=False), At(3), At(4), At(15), At(99), At(100), At(500)]
    line, crowded = region.line(placed, READ_OF_SLOT)
    assert line == [At(1), At(2, counts=False), At(3), At(15), At(99), At(100), At(500)]
    assert not crowded
    assert region.line([At(number) for number in range(CROWD_OF_SLOT)], STORED_OF_SLOT) == (
        [At(number) for number in range(STORED_OF_SLOT)],
        True,
    )


def test_the_k_nearest_are_dense_where_they_fill_two_thirds_of_their_region_or_less() -> None:
    region = Region(radius=300, slots=10)
    far, near = [At(20 * number) for number in range(1, 11)], [At(19 * number) for number in range(1, 11)]
    assert not region.is_dense(far)
    assert region.is_dense(near)
    assert not region.is_dense(near[:9])
    assert not region.is_dense([*near[:9], At(199, counts=False), At(200)])


def test_chance_alone_is_hardly_ever_a_crowd() -> None:
    rng, region = Random(SEED), Region.expecting(K, 1000)
    crowds = 0
    for _ in range(200):
        places = sorted(rng.getrandbits(BITS) for _ in range(1000))
        crowds += region.line([At(place) for place in places[: 3 * K]], READ_OF_SLOT)[1]
    assert crowds <= 2


def answered(walk: Lookup, world: dict[PeerId, list[Contact]], limit: int = 400) -> list[PeerId]:
    """Everybody who is asked names whom `world` says; who was asked, in order."""
    asked: list[PeerId] = []
    while isinstance(step := walk.poll(0.0), Ask):
        asked.append(step.contact.id)
        walk.on_answer(step.contact.id, world[step.contact.id], 0.0)
        assert len(asked) < limit
    assert step is DONE
    return asked


def test_a_publisher_reaches_the_honest_ones_behind_a_crowd_and_a_reader_asks_few_of_it() -> None:
    rng = Random(SEED)
    honest = strangers(rng, 500)
    gang = crowd(rng, KEY, 100, 40_000)
    region = Region.expecting(K, 500)
    around = nearest(honest, KEY, K)
    world = {peer.id: gang[:30] for peer in gang}  # they know nobody but themselves
    for peer in honest:
        world[peer.id] = [*rng.sample(gang, 20), *rng.sample(around, 10)]
    seeds = rng.sample(honest, K)

    store = Lookup(KEY, seeds, me=ME, k=K, alpha=10, patience=1.0, region=region)
    answered(store, world)
    counted, rest = store.spread()
    assert len([peer for peer in counted if peer in gang]) <= 3 * READ_OF_SLOT  # it reaches into three slots
    assert set(rest) & set(gang)
    reached = {peer.id for peer in counted + rest} & {peer.id for peer in around}
    assert len(reached) >= 0.75 * K  # the rest lie a little outside of where they are expected

    read = Lookup(KEY, seeds, me=ME, k=K, alpha=3, beta=3, patience=1.0, region=region)
    asked = answered(read, world)
    assert (
        len({peer.id for peer in gang} & set(asked)) <= 3 * READ_OF_SLOT
    )  # a few before they were seen as one
    assert len(set(asked) & {peer.id for peer in around}) >= 3

    blind = Lookup(KEY, seeds, me=ME, k=K, alpha=10, patience=1.0)
    answered(blind, world)
    assert {peer.id for peer in blind.closest()} <= {peer.id for peer in gang}  # as it is without a region


@pytest.mark.parametrize("told", [500, 1000])
def test_whoever_hides_among_the_k_nearest_of_a_publisher_is_the_lesser_part_of_them(told: int) -> None:
    """Identities spread so that they are no crowd, and so few that the k nearest are not dense: the most that
    an attacker gets without being answered with the whole region. Also where all take the network for twice
    as large as it is, with half as many of them among the holders."""
    rng, region, honest = Random(SEED), Region.expecting(K, told), strangers(Random(SEED), 500)
    shares = list[float]()
    for _ in range(100):
        key = rng.randbytes(34)
        places = [position(peer.id) ^ position(key) for peer in honest]
        gang = list[int]()
        while True:
            more = [*gang, rng.randrange(int(DENSE * region.radius))]
            line = sorted(map(At, places + more), key=lambda one: one.distance)
            if region.is_dense(line) or region.line(line, STORED_OF_SLOT)[1]:
                break
            gang = more
        told_of = sorted(places + gang)[:K]
        shares.append(sum(place in places for place in told_of) / K)
    mean, least = sum(shares) / len(shares), min(shares)
    print(f"\n{told} told of 500, seed {SEED}: honest {mean:.2f} of the holders, at least {least:.2f}")
    assert mean >= DENSE * 500 / told - 0.05
    assert least >= 0.1


@pytest.mark.parametrize("ground", [0, 12])
def test_a_publisher_goes_on_to_all_of_the_region_only_where_the_nearest_are_dense(ground: int) -> None:
    rng = Random(SEED)
    honest = strangers(rng, 500)
    everybody = honest + crowd(rng, KEY, ground, 20_000)
    around = nearest(everybody, KEY, 3 * K)
    world = {peer.id: rng.sample(around, 30) for peer in everybody}
    region = Region.expecting(K, 400)  # too wide by a quarter
    distances = {peer.id: position(peer.id) ^ position(KEY) for peer in honest}
    inside = {peer for peer, distance in distances.items() if distance < region.radius}
    assert len(inside) > K
    walk = Lookup(KEY, nearest(honest, KEY, K), me=ME, k=K, alpha=10, patience=1.0, region=region)
    asked = set(answered(walk, world))
    if ground:
        assert {peer for peer in inside if region.slot(distances[peer])} <= asked  # in the first is the crowd
        assert walk.reach == region.radius
    else:
        assert len(asked) == K
        assert walk.reach == 0


def test_one_who_names_a_hundred_friends_fills_one_path_of_three() -> None:
    rng = Random(SEED)
    honest, friends = strangers(rng, 300), strangers(rng, 3000)
    region = Region.expecting(K, 300_000)  # so small that all of this lies outside of it
    liars = nearest(friends, KEY, 100)
    seeds = [Contact(PeerId(b"a liar"), (b"addr",)), *rng.sample(honest, 5)]
    world = {peer.id: liars[:30] for peer in [*friends, seeds[0]]}
    for peer in honest:
        world[peer.id] = nearest(honest, KEY, 10)
    walk = Lookup(KEY, seeds, me=ME, k=K, alpha=3, beta=3, patience=1.0, region=region)
    asked = answered(walk, world)
    # three on a path where they name each other, and both seeds of one that hears of nobody new
    assert len({peer.id for peer in honest} & set(asked)) >= 5


def test_an_honest_peer_names_a_crowd_beside_others_and_not_alone() -> None:
    rng = Random(SEED)
    table = RoutingTable(ME, K)
    honest = strangers(rng, 2000)
    for peer in honest[:60]:  # so few that no bucket is full
        table.add(peer, 0.0)
    gang = crowd(rng, KEY, 40, 40_000)
    server = KadServer(ME, "public", table, OfferStore())
    server.density.on_walked(bytes(ME), [peer.id for peer in nearest(honest, bytes(ME), K)])
    calm = server.handle(Message(Kind.FIND_NODE, KEY), ME, None, 0.0, 0)
    for peer in gang:
        table.add(peer, 1.0)
    named = server.handle(Message(Kind.FIND_NODE, KEY), ME, None, 0.0, 0)
    assert calm is not None
    assert named is not None
    assert list(calm.closer) == table_closest_without(table, gang, 30)
    crowded = [contact for contact in named.closer if contact in gang]
    assert len(named.closer) == 30
    assert 0 < len(crowded) <= 2 * STORED_OF_SLOT


def table_closest_without(table: RoutingTable, gang: list[Contact], count: int) -> list[Contact]:
    return [contact for contact in table.closest(KEY, 200) if contact not in gang][:count]
