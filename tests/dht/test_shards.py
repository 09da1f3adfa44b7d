"""A key with more publishers than a holder keeps: where the late ones go, and how a reader finds them."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import TYPE_CHECKING

from modelnet_p2p.dht.holding.server import KadServer
from modelnet_p2p.dht.holding.store import Bounds, Full, OfferStore
from modelnet_p2p.dht.table.routing import RoutingTable
from modelnet_p2p.dht.walks.collecting import Collect
from modelnet_p2p.dht.walks.finding import Send
from modelnet_p2p.dht.walks.shards import DIGITS, MAX_READS, ShardReads, Spill
from modelnet_p2p.dht.walks.storing import Stored
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact, Kind, Message
from modelnet_p2p.names import MAX_SHARD_DEPTH, shard_key, shard_prefix
from modelnet_p2p.records import Refusal
from modelnet_p2p.tuning import TEST

if TYPE_CHECKING:
    from tests.dht.conftest import Person

SEED = 20_26
KEPT = Stored(b"", 3, 3, True, Counter())
SPLIT = Stored(b"", 3, 0, False, Counter({Full.KEY.value: 3}), split=3)
ONE_LIES = Stored(b"", 3, 1, False, Counter({Full.KEY.value: 1}), split=1)
SILENT = Stored(b"", 3, 0, False, Counter())


def in_order(prefixes: list[str]) -> None:
    """The shuffle of a reader who draws the lowest first."""


def test_a_publisher_goes_on_to_its_shard_and_knocks_again_before_it_is_forgotten(
    alice: Person, task_key: bytes
) -> None:
    spill = Spill(task_key, alice.id, record_lifetime=7200.0)
    first, second = (shard_key(task_key, shard_prefix(alice.id, depth)) for depth in (1, 2))
    assert spill.start(0.0) == task_key
    assert spill.after(SPLIT) == first
    assert spill.after(SPLIT) == second
    assert spill.after(KEPT) is None
    assert spill.at == second
    assert spill.start(600.0) == second  # told again where it lies
    assert spill.after(KEPT) is None
    assert spill.start(3300.0) == task_key  # within half of its record's life: perhaps there is room
    assert spill.after(KEPT) is None
    assert spill.at == task_key


def test_what_is_taken_back_is_told_under_the_key_and_under_every_shard_down_to_where_it_lay(
    alice: Person, task_key: bytes
) -> None:
    spill = Spill(task_key, alice.id, record_lifetime=7200.0)
    assert spill.start(0.0) == task_key
    went = [spill.after(KEPT, 2) for _ in range(3)]
    assert went == [*(shard_key(task_key, shard_prefix(alice.id, depth)) for depth in (1, 2)), None]


def test_silence_is_no_split_and_the_last_shard_the_last(alice: Person, task_key: bytes) -> None:
    spill = Spill(task_key, alice.id, record_lifetime=7200.0)
    spill.start(0.0)
    assert spill.after(SILENT) is None
    assert spill.after(ONE_LIES) is None
    went = [spill.after(SPLIT) for _ in range(MAX_SHARD_DEPTH + 1)]
    assert went[-1] is None
    assert len(set(went)) == MAX_SHARD_DEPTH + 1


def test_one_who_wants_all_walks_all_shards_and_theirs(task_key: bytes) -> None:
    reads = ShardReads(task_key, None, in_order)
    seen = []
    while (at := reads.next(10**6)) is not None:
        seen.append(at)
        reads.on_read(split=at == shard_key(task_key, "3"))
    expected = [*DIGITS, *("3" + digit for digit in DIGITS)]
    assert seen == [shard_key(task_key, prefix) for prefix in expected]


def test_one_who_wants_a_few_draws_one_shard_at_least_and_no_liar_leads_him_on(task_key: bytes) -> None:
    rng = Random(SEED)
    drawn = Counter(ShardReads(task_key, 20, rng.shuffle).next(4096) for _ in range(800))
    assert len(drawn) == len(DIGITS)
    assert max(drawn.values()) < 2 * min(drawn.values())
    few = ShardReads(task_key, 20, in_order)
    assert few.next(4096) is not None
    assert few.next(4096) is None
    led_on = ShardReads(task_key, None, in_order)
    count = 0
    while led_on.next(0) is not None:
        led_on.on_read(split=True)
        count += 1
    assert count == MAX_READS


def test_a_full_key_says_so_to_publishers_and_to_readers_until_it_is_forgotten(
    alice: Person, bob: Person, carol: Person, task_key: bytes, now_us: int
) -> None:
    server = KadServer(bob.id, "public", RoutingTable(bob.id, 20), OfferStore(Bounds(per_key=1)))

    def add(key: bytes, person: Person, seq: int = 1) -> str:
        message = Message(
            Kind.ADD_PROVIDER, key, providers=(person.contact,), records=(person.card(seq=seq).envelope,)
        )
        reply = server.handle(message, person.id, None, 0.0, now_us)
        assert reply is not None
        return reply.refused

    def read(key: bytes, at_us: int) -> Message:
        reply = server.handle(Message(Kind.GET_PROVIDERS, key), carol.id, None, 0.0, at_us)
        assert reply is not None
        return reply

    assert add(task_key, alice) == ""
    assert read(task_key, now_us).refused == ""
    assert add(task_key, carol) == "split"
    assert add(task_key, alice, seq=2) == ""  # what lies there can be renewed
    assert (read(task_key, now_us).refused, len(read(task_key, now_us).records or ())) == ("split", 1)
    mine = shard_key(task_key, shard_prefix(carol.id, 1))
    assert add(mine, carol) == ""
    assert len(read(mine, now_us).records or ()) == 1
    others = shard_key(task_key, "0" if shard_prefix(carol.id, 1) != "0" else "1")
    assert add(others, carol) == Refusal.FOREIGN_KEY
    assert add(shard_key(b"\x12\x20" + bytes(32), shard_prefix(carol.id, 1)), carol) == Refusal.FOREIGN_KEY
    late = now_us + 3 * 3600 * 1_000_000
    assert read(task_key, late).refused == ""


def test_a_full_key_makes_room_for_the_first_record_of_another_network(
    alice: Person, carol: Person, task_key: bytes, now_us: int
) -> None:
    store = OfferStore(Bounds(per_key=3))
    for number in range(3):
        assert store.add(task_key, alice.card(f"alice/m{number}"), alice.contact, "10.0.0") is None
    assert store.add(task_key, alice.card("alice/m3"), alice.contact, "10.0.0") is Full.KEY
    assert store.add(task_key, carol.card(), carol.contact, "10.0.1") is None
    kept = [sealed.identity.name for sealed in store.page(task_key, b"", 60_000).sealeds]
    assert sorted(kept) == ["acme/sentiment", "alice/m0", "alice/m1"]  # the last one goes to a shard
    assert store.is_split(task_key, now_us)
    assert store.add(task_key, alice.card("alice/m2"), alice.contact, "10.0.0") is Full.KEY
    assert len(store) == 3


def test_one_holder_of_several_that_lies_about_a_split_is_not_believed(
    alice: Person, carol: Person, task_key: bytes, now_us: int
) -> None:
    peers = [Contact(PeerId.of_key(bytes([n]) * 32), (b"addr",)) for n in range(3)]

    def collect() -> Collect:
        return Collect(task_key, peers, me=carol.id, network="public", tuning=TEST, now=0.0, now_us=now_us)

    for liars, believed in ((1, False), (2, True)):
        walk = collect()
        while isinstance(walk.poll(0.0), Send):
            pass
        for number, peer in enumerate(peers):
            told = "split" if number < liars else ""
            reply = Message(Kind.GET_PROVIDERS, records=(alice.card().envelope,), refused=told)
            walk.on_reply(peer.id, reply, 0.0)
        assert walk.split is believed
    nobody = collect()
    assert not nobody.split
