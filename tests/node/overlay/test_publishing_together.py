"""Models that are published at once: one walk and one signature for a key they share, each its own end."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from functools import partial
from typing import Any

import trio
import trio.testing

from modelnet_p2p.dht.holding.store import Full
from modelnet_p2p.dht.keyspace import position
from modelnet_p2p.errors import LocalError, RemoteError
from modelnet_p2p.kad import Kind, Message
from modelnet_p2p.names import Keys, provider_key
from modelnet_p2p.node.overlay.publisher import TELLERS
from modelnet_p2p.node.peer import Peer
from modelnet_p2p.pb.envelope_pb2 import Envelope
from modelnet_p2p.records import MAX_SEQ, Card, OfferRecord, Sealed
from modelnet_p2p.tuning import LAN, TEST
from samples import own_offer

# Any: the fixture that opens a town, see conftest.py
OpenTown = Any
TASK = "x-acme/many"
TASK_KEY = provider_key(Keys("town").task(TASK))


def draft_of(town: Any, name: str, model: str, **changes: Any) -> OfferRecord:
    """An offer of a model of its own, and none behind it."""
    draft = own_offer(town.key(name), f"acme/{model}", TASK, network="town")
    return replace(draft, **{"seq": 1, **changes})


def cards_at(peer: Peer) -> list[Sealed]:
    """What a peer holds for the network under the key of the task."""
    held = peer.parts.overlay.server.store.page(TASK_KEY, b"", 1 << 20).sealeds
    assert all(isinstance(sealed.record, Card) for sealed in held)
    return list(held)


def signatures(cards: list[Sealed]) -> Counter[bytes]:
    return Counter(Envelope.FromString(card.envelope).signature for card in cards)


async def publish_all(
    peer: Peer, drafts: list[OfferRecord], ends: dict[str, object], patience: dict[str, float] | None = None
) -> None:
    """All at the same moment, each in a task of its own; how each of them ended."""

    async def publish(draft: OfferRecord) -> None:
        ends[draft.name] = "given up"
        with trio.move_on_after((patience or {}).get(draft.name, 600.0)):
            try:
                ends[draft.name] = await peer.parts.publisher.publish(draft)
            except (LocalError, RemoteError) as error:
                ends[draft.name] = error.message

    async with trio.open_nursery() as nursery:
        for draft in drafts:
            nursery.start_soon(publish, draft)


def walks_of(peer: Peer) -> defaultdict[bytes, list[int]]:
    """Of how many records each walk to a key is from now on."""
    found = defaultdict[bytes, list[int]](list)
    store = peer.parts.publisher._store

    async def counted(key: bytes, sealeds: Any) -> Any:
        found[key].append(len(sealeds))
        return await store(key, sealeds)

    peer.parts.publisher._store = counted  # type: ignore[method-assign]
    return found


async def test_ten_models_that_are_published_at_once_are_told_together(open_town: OpenTown) -> None:
    async with open_town() as town:
        bob, alice = await town.peer("bob"), await town.peer("alice")
        heard = Counter[bytes]()
        handle = bob.parts.overlay.server.handle

        def counted(request: Message, *rest: Any) -> Any:
            heard[request.key] += request.kind is Kind.ADD_PROVIDER
            return handle(request, *rest)

        bob.parts.overlay.server.handle = counted
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(partial(alice.publish, "builtin:echo", model=f"acme/{number}", task=TASK))
        assert heard[TASK_KEY] <= 3, "ten walks would be ten"
        cards = cards_at(bob)
        assert len(cards) == 10
        assert max(signatures(cards).values()) >= 5
        assert len(await bob.find(task=TASK, limit=20)) == 10


async def test_who_gives_up_takes_nobody_with_him_and_is_published_all_the_same(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        bob, alice = await town.peer("bob"), await town.peer("alice")
        drafts = [draft_of(town, "alice", model) for model in ("first", "second", "third")]
        ends: dict[str, object] = {}
        town.freeze("bob")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish_all, alice, drafts, ends, {"acme/first": 0.05})
            await trio.sleep(0.1)
            town.world.thaw(bob.peer_id)
        assert ends.pop("acme/first") == "given up"
        assert [type(end).__name__ for end in ends.values()] == ["Published", "Published"]
        assert {card.identity.name for card in cards_at(bob)} == {draft.name for draft in drafts}


async def test_who_gives_up_while_all_tellers_wait_can_take_it_back(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    """As many batches as there may be are on their way to a silent holder: this one is not even signed."""
    async with open_town() as town:
        bob, alice = await town.peer("bob"), await town.peer("alice")
        ends: dict[str, object] = {}
        town.freeze("bob")
        async with trio.open_nursery() as nursery:
            for number in range(TELLERS):
                draft = draft_of(town, "alice", f"{number}")
                nursery.start_soon(publish_all, alice, [draft], ends)
                await trio.sleep(0.01)
            last = draft_of(town, "alice", "last")
            await publish_all(alice, [last], ends, {"acme/last": 0.1})
            tombstone = alice.parts.publisher.entomb(last.identity)
            town.world.thaw(bob.peer_id)
            await alice.parts.publisher.bury(tombstone)
        await trio.sleep(700)  # until all was told again
        held = bob.parts.overlay.server.store.page(TASK_KEY, b"", 1 << 20).sealeds
        assert {one.identity.name for one in held if one.is_tombstone} == {"acme/last"}
        assert len(held) == TELLERS + 1


async def test_what_is_abandoned_while_it_is_told_is_neither_kept_nor_renewed(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    """As when its owner's key was revoked meanwhile; half of its life later the peer is still there."""
    async with open_town() as town:
        life = replace(TEST, record_lifetime=1000.0)
        bob, alice = await town.peer("bob", tuning=life), await town.peer("alice", tuning=life)
        draft, ends = draft_of(town, "alice", "one"), dict[str, object]()
        town.freeze("bob")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish_all, alice, [draft], ends)
            await trio.sleep(0.1)
            assert alice.parts.publisher.abandon(draft.identity)
            town.world.thaw(bob.peer_id)
        await trio.sleep(700)
        assert alice.parts.publisher.offers() == []
        assert alice.parts.publisher.under(TASK_KEY) == []
        assert (await alice.status())["peer"] == alice.id
        assert {card.seq for card in cards_at(bob)} <= {draft.seq}


async def test_one_whose_holders_are_silent_keeps_no_other_waiting(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        await town.peer("bob")
        alice = await town.peer("alice")
        drafts = [draft_of(town, "alice", model) for model in ("slow", "good", "late")]
        slow = provider_key(Keys("town").model("acme/slow"))
        store = alice.parts.publisher._store

        async def stalls(key: bytes, sealeds: Any) -> Any:
            report = await store(key, sealeds)
            if key == slow:
                await trio.sleep(10)
                report = replace(report, promised=False, stored=0)
            return report

        alice.parts.publisher._store = stalls
        ends: dict[str, object] = {}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish_all, alice, drafts[:2], ends)
            await trio.sleep(0.1)
            nursery.start_soon(publish_all, alice, drafts[2:], ends)
            await trio.sleep(0.9)
            assert ends.pop("acme/slow") == "given up", "it is told still"
            assert [type(end).__name__ for end in ends.values()] == ["Published", "Published"]
        assert "only 0 of" in str(ends["acme/slow"])


async def test_what_cannot_be_signed_spoils_no_other(open_town: OpenTown) -> None:
    async with open_town() as town:
        bob, alice = await town.peer("bob"), await town.peer("alice")
        drafts = [draft_of(town, "alice", model) for model in ("a", "b", "c")]
        drafts[1] = replace(drafts[1], seq=MAX_SEQ + 1)
        ends: dict[str, object] = {}
        walks = walks_of(alice)
        await publish_all(alice, drafts, ends)
        assert "is past the last one" in str(ends.pop("acme/b"))
        assert [type(end).__name__ for end in ends.values()] == ["Published", "Published"]
        assert {card.identity.name for card in cards_at(bob)} == {"acme/a", "acme/c"}
        assert {offer.identity.name for offer in alice.parts.publisher.offers()} == {"acme/a", "acme/c"}
        assert walks[TASK_KEY] == [2]


async def test_whose_record_is_refused_hears_of_it_alone(open_town: OpenTown) -> None:
    """The holder has no room for one of those that lie under a key: the others are kept, and said to be."""
    async with open_town() as town:
        bob, alice = await town.peer("bob"), await town.peer("alice")
        add = bob.parts.overlay.server.store.add

        def no_room_for_b(key: bytes, sealed: Sealed, *rest: Any) -> Any:
            return Full.PROVIDER if sealed.identity.name == "acme/b" else add(key, sealed, *rest)

        bob.parts.overlay.server.store.add = no_room_for_b
        ends: dict[str, object] = {}
        walks = walks_of(alice)
        await publish_all(alice, [draft_of(town, "alice", model) for model in ("a", "b", "c")], ends)
        assert "full_provider" in str(ends.pop("acme/b"))
        assert [type(end).__name__ for end in ends.values()] == ["Published", "Published"]
        assert {card.identity.name for card in cards_at(bob)} == {"acme/a", "acme/c"}
        assert walks[TASK_KEY][:4] == [3, 1, 1, 1], "together, then each by itself"


async def test_where_everybody_is_silent_the_next_try_is_together_too(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        await town.peer("bob")
        alice = await town.peer("alice")
        town.freeze("bob")
        ends: dict[str, object] = {}
        walks = walks_of(alice)
        await publish_all(alice, [draft_of(town, "alice", model) for model in "abcdef"], ends)
        assert all("nobody else was told" in str(end) for end in ends.values())
        assert walks[TASK_KEY][:3] == [6, 6, 6]


async def test_models_published_one_after_another_come_to_share_a_signature(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        life = replace(TEST, record_lifetime=1000.0)
        bob, alice = await town.peer("bob", tuning=life), await town.peer("alice", tuning=life)
        for model in ("a", "b", "c", "d"):
            await alice.publish("builtin:echo", model=f"acme/{model}", task=TASK)
            await trio.sleep(5)
        assert set(signatures(cards_at(bob)).values()) == {1}
        await trio.sleep(600)
        assert list(signatures(cards_at(bob)).values()) == [4]


async def test_a_model_is_taken_back_while_another_is_told(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        bob, alice = await town.peer("bob"), await town.peer("alice")
        await alice.publish("builtin:echo", model="acme/old", task=TASK)
        town.freeze("bob")
        async with trio.open_nursery() as nursery:
            publish = partial(alice.publish, "builtin:echo", model="acme/new", task=TASK)
            nursery.start_soon(publish)
            await trio.sleep(0.1)
            nursery.start_soon(alice.unpublish, "acme/old")
            await trio.sleep(0.1)
            models: Any = (await alice.status())["models"]
            assert [line["model"] for line in models] == ["acme/new"], "it waits for no other model"
            town.world.thaw(bob.peer_id)
        found = await bob.find(task=TASK, all=True)
        assert [offer.model for offer in found] == ["acme/new"]


async def test_changes_of_one_model_wait_for_each_other(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        bob, alice = await town.peer("bob"), await town.peer("alice")
        publish = partial(alice.publish, "builtin:echo", model="acme/one", task=TASK)
        await publish()
        tell, order = alice.parts.publisher.publish, list[str]()

        async def slowly(draft: OfferRecord) -> Any:
            await trio.sleep(5)
            order.append("told")
            return await tell(draft)

        alice.parts.publisher.publish = slowly

        async def unpublish() -> None:
            await alice.unpublish("acme/one")
            order.append("withdrawn")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            await trio.sleep(1)
            nursery.start_soon(unpublish)
        assert order == ["told", "withdrawn"]
        assert await bob.find(task=TASK, all=True) == []


async def test_who_gives_up_before_a_model_is_told_of_has_not_published_it(open_town: OpenTown) -> None:
    """Neither served nor listed: nobody could take it back."""
    async with open_town() as town:
        await town.peer("bob")
        alice = await town.peer("alice")
        publish = partial(alice.publish, "builtin:echo", model="acme/one", task=TASK)

        async def hold(task_status: Any) -> None:
            async with alice.parts.hosting._change("acme/one"):
                task_status.started()
                await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            await nursery.start(hold)
            with trio.move_on_after(0.5):
                await publish()
            assert (await alice.status())["models"] == []
            nursery.cancel_scope.cancel()
        assert (await publish())["model"] == "acme/one"


async def test_among_many_peers_who_publishes_waits_for_eleven_of_twenty_and_all_are_told(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    """Nine of the nearest are slow, though not so slow as to be late: nobody waits for them."""
    async with open_town() as town:
        for number in range(LAN.k + 4):
            await town.peer(f"p{number}", tuning=LAN)
        alice = await town.peer("alice", tuning=LAN)
        await trio.sleep(30)
        overlay, publisher = alice.parts.overlay, alice.parts.publisher
        key = provider_key(Keys("town").model("acme/one"))
        others = [peer for name, peer in town.peers.items() if name != "alice"]
        nearest = sorted(others, key=lambda peer: position(peer.peer_id) ^ position(key))[: LAN.k]
        slow, send = {peer.peer_id for peer in nearest[1:19:2]}, overlay.asking.send
        pause = overlay.patience.seconds / 4

        async def later(*sent: Any) -> None:
            await trio.sleep(pause)
            send(*sent)

        def slowed(contact: Any, message: Message, tell: Any) -> None:
            if contact.id in slow:
                overlay._nursery.start_soon(later, contact, message, tell)
            else:
                send(contact, message, tell)

        first, second = (draft_of(town, "alice", "one", seq=seq) for seq in (1, 2))
        [one] = publisher._signing.together([first])
        await publisher._store(key, [one.sealed])  # and now it is known who is of ours
        overlay.asking.send = slowed
        [one] = publisher._signing.together([second])
        began = trio.current_time()
        report = await publisher._store(key, [one.sealed])
        assert trio.current_time() - began < pause
        assert (report.asked, report.stored, report.promised) == (LAN.k, 11, True)
        await trio.sleep(5)
        stores = [peer.parts.overlay.server.store for peer in nearest]
        assert [store.page(key, b"", 4096).sealeds[0].seq for store in stores] == [2] * LAN.k
