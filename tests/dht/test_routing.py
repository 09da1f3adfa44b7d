"""The routing table: who gets in, who stays, who is named to others."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from modelnet_p2p.dht.keyspace import MAX_GROUND_BITS, common_prefix, position
from modelnet_p2p.dht.table.routing import MAX_FAILURES, SETTLED_FACTOR, SETTLED_SHARE, Place, RoutingTable
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact

ME = PeerId(b"me")
K = 4


def contact(number: int) -> Contact:
    return Contact(PeerId(b"peer" + number.to_bytes(4)), (b"addr",))


def in_bucket(index: int) -> Iterator[Contact]:
    """Peers that share `index` leading bits with me."""
    number = 0
    while True:
        if common_prefix(position(contact(number).id), position(ME)) == index:
            yield contact(number)
        number += 1


def test_the_old_stay_while_they_answer_and_a_newcomer_waits_for_the_first_that_fails() -> None:
    table, peers = RoutingTable(ME, K), in_bucket(0)
    old = [next(peers) for _ in range(K)]
    assert [table.add(peer, 0.0) for peer in old] == [Place.TABLE] * K
    assert table.add(Contact(ME), 0.0) is Place.NOWHERE
    late, later = next(peers), next(peers)
    assert table.add(late, 1.0) is table.add(later, 2.0) is Place.WAITING
    assert late.id not in table
    table.failed(old[0].id, 3.0)
    assert old[0].id not in table
    assert later.id in table  # the one seen last is the likeliest to be alive
    assert len(table) == K


def test_with_nobody_waiting_a_peer_fails_three_times_before_it_goes_and_is_named_last_meanwhile() -> None:
    table = RoutingTable(ME, K)
    peers = [contact(i) for i in range(3)]
    for peer in peers:
        table.add(peer, 0.0)
    nearest = table.closest(b"key", 3)
    table.failed(nearest[0].id, 1.0)
    assert nearest[0] not in table.closest(b"key", 2)
    assert table.closest(b"key", 3) == nearest
    table.add(nearest[0], 2.0)  # it answered: forgiven
    assert table.closest(b"key", 2) == nearest[:2]
    for _ in range(MAX_FAILURES):
        table.failed(nearest[0].id, 3.0)
    assert nearest[0].id not in table
    table.failed(nearest[0].id, 3.0)
    table.remove(PeerId(b"nobody"))


def test_an_answer_forgives_what_went_wrong_before() -> None:
    table, peer = RoutingTable(ME, K), contact(0)
    table.add(peer, 0.0)
    for now in range(1, 20):
        table.failed(peer.id, now)
        if now % 2 == 0:
            table.answered(peer.id, now)
    assert peer.id in table
    table.answered(contact(1).id, 20.0)  # who is not known is not put in by it
    assert len(table) == 1


def test_one_network_cannot_hold_a_contested_bucket_and_loses_nothing_in_an_uncontested_one() -> None:
    table, peers = RoutingTable(ME, K), in_bucket(1)
    crowd = [next(peers) for _ in range(K)]
    assert [table.add(peer, 0.0, "198.51.100.0/24") for peer in crowd] == [Place.TABLE] * K
    assert table.add(next(peers), 0.0, "198.51.100.0/24") is Place.WAITING
    assert table.add(next(peers), 0.0, "203.0.113.0/24") is Place.TABLE
    assert crowd[-1].id not in table
    assert crowd[0].id in table
    assert len(table) == K


def test_a_flood_of_waiting_peers_of_one_network_does_not_inherit_the_bucket() -> None:
    table, peers, flood = RoutingTable(ME, K), in_bucket(0), "198.51.100.0/24"
    honest = [next(peers) for _ in range(K)]
    for number, peer in enumerate(honest):
        table.add(peer, 0.0, f"203.0.{number}.0/24")
    late = next(peers)
    table.add(late, 1.0, "192.0.2.0/24")
    for _ in range(10 * K):
        assert table.add(next(peers), 2.0, flood) is Place.WAITING
    table.failed(honest[0].id, 3.0)  # one place is that network's share of four
    assert late.id not in table
    table.failed(honest[1].id, 3.0)
    assert late.id in table  # though all the others were seen after it, and were more than may wait
    assert not {honest[0].id, honest[1].id} & {peer.id for peer in table}
    for peer in honest[2:]:
        table.failed(peer.id, 4.0)
    assert {peer.id for peer in honest[2:]} <= {peer.id for peer in table}
    for _ in range(MAX_FAILURES):
        table.failed(honest[2].id, 5.0)
    assert honest[2].id not in table  # the dead go all the same ...
    newcomer = next(peers)
    assert table.add(newcomer, 6.0, "192.0.3.0/24") is Place.TABLE  # ... and who comes displaces the crowd
    assert len(table) == K


def test_a_bucket_is_stale_until_a_walk_goes_through_it() -> None:
    table = RoutingTable(ME, K)
    buckets = [in_bucket(index) for index in range(4)]
    for index, peers in enumerate(buckets):
        for _ in range(K if index > 1 else K // SETTLED_SHARE - (index == 0)):
            table.add(next(peers), 0.0)
    assert table.stale(0.0, 60.0) == [0, MAX_GROUND_BITS]  # those in which some live can wait
    table.add(next(buckets[0]), 0.0)
    for index in (0, 2):
        key = table.refresh_key(index, b"seed")
        assert common_prefix(position(key), position(ME)) == index
        table.on_walked(key, 10.0)
    assert table.stale(20.0, 60.0) == [MAX_GROUND_BITS]
    assert table.refresh_key(MAX_GROUND_BITS, b"") == ME
    table.on_walked(bytes(ME), 20.0)
    assert table.stale(20.0, 60.0) == []
    assert table.stale(80.0, 60.0) == [MAX_GROUND_BITS]  # in the others all answer
    table.failed(next(contact.id for contact in table.closest(table.refresh_key(2, b""), 1)), 80.0)
    assert table.stale(80.0, 60.0) == [2, MAX_GROUND_BITS]
    assert table.stale(SETTLED_FACTOR * 60.0, 60.0) == [1, 2, MAX_GROUND_BITS]
    assert table.stale(10.0 + SETTLED_FACTOR * 60.0, 60.0) == [0, 1, 2, MAX_GROUND_BITS]


def test_one_walk_towards_me_stands_for_all_buckets_of_my_nearest() -> None:
    table = RoutingTable(ME, K)
    assert table.stale(0.0, 60.0) == [MAX_GROUND_BITS]
    for index in range(6):
        table.add(next(in_bucket(index)), 0.0)
    # the four nearest lie in the buckets 2 to 5: such a walk ends when it has asked them all
    assert table.stale(SETTLED_FACTOR * 60.0, 60.0) == [0, 1, MAX_GROUND_BITS]


def test_addresses_and_groups_survive_a_sign_of_life_that_brings_none() -> None:
    table = RoutingTable(ME, K)
    table.add(contact(1), 0.0)
    table.add(Contact(contact(1).id), 1.0)
    assert list(table) == [contact(1)]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "answer", "fail", "remove"]),
            st.integers(0, 60),
            st.sampled_from([None, "a", "b"]),
        ),
        max_size=200,
    ),
    st.binary(min_size=1, max_size=8),
)
def test_it_stays_bounded_and_names_the_nearest_in_order(
    steps: list[tuple[str, int, str | None]], target: bytes
) -> None:
    table, failing = RoutingTable(ME, K), set[PeerId]()
    for now, (what, number, group) in enumerate(steps):
        peer = contact(number).id
        failing.discard(peer)
        match what:
            case "add":
                table.add(contact(number), now, group)
            case "answer":
                table.answered(peer, now)
            case "fail":
                table.failed(peer, now)
                failing.add(peer)
            case _:
                table.remove(peer)
        nearest = sorted(table, key=lambda one: position(one.id) ^ position(target))
        healthy = [one for one in nearest if one.id not in failing]
        assert table.closest(target, K) == (healthy if len(healthy) >= K else nearest)[:K]
    members = [peer.id for peer in table]
    assert len(members) == len(set(members)) == len(table)
    assert all(peer in table for peer in members)
    indexes = [common_prefix(position(peer), position(ME)) for peer in members]
    assert all(indexes.count(index) <= K for index in indexes)
    named = [position(peer.id) ^ position(target) for peer in table.closest(target, 5)]
    assert named == sorted(named)
    assert len(named) == min(5, len(table))
    everybody = table.closest(target, len(table))
    assert sorted(peer.id for peer in everybody) == sorted(members)
