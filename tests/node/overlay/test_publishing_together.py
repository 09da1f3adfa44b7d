"""Models that are published at once: one walk and one signature for a key they share, each its own end."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import trio
import trio.testing

from modelnet_p2p.dht.holding.store import Full
from modelnet_p2p.errors import LocalError, RemoteError
from modelnet_p2p.kad import Kind, Message
from modelnet_p2p.names import Keys, provider_key
from modelnet_p2p.node.peer import Peer
from modelnet_p2p.pb.envelope_pb2 import Envelope
from modelnet_p2p.records import MAX_SEQ, Card, Manifest, OfferRecord, Sealed, seal_manifest
from modelnet_p2p.tuning import TEST

# Any: the fixture that opens a town, see conftest.py
OpenTown = Any
TASK = "x-acme/many"
TASK_KEY = provider_key(Keys("town").task(TASK))


def draft_of(town: Any, name: str, model: str, **changes: Any) -> OfferRecord:
    """An offer of alice's own without a model behind it."""
    key = town.key(name)
    manifest = Manifest(key.id, f"acme/{model}", TASK, 1)
    draft = OfferRecord(
        provider=key.id,
        network="town",
        manifest=manifest,
        manifest_envelope=seal_manifest(manifest, key),
        seq=1,
        issued_us=0,
        expires_us=0,
    )
    return replace(draft, **changes)


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
    """Each in a task of its own; how each of them ended."""

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
            await trio.testing.wait_all_tasks_blocked()


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


async def test_who_gives_up_takes_nobody_with_him(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    """The first of them tells for all, and is cancelled; one more is while he waits for his turn."""
    async with open_town() as town:
        bob, alice = await town.peer("bob"), await town.peer("alice")
        drafts = [draft_of(town, "alice", model) for model in ("first", "second", "third", "fourth")]
        ends: dict[str, object] = {}
        town.freeze("bob")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish_all, alice, drafts, ends, {"acme/first": 0.5, "acme/third": 0.3})
            await trio.sleep(1)
            town.world.thaw(bob.peer_id)
        assert ends.pop("acme/first") == ends.pop("acme/third") == "given up"
        assert [type(end).__name__ for end in ends.values()] == ["Published", "Published"]
        await trio.sleep(30)
        assert {card.identity.name for card in cards_at(bob)} == {draft.name for draft in drafts}


async def test_what_cannot_be_signed_spoils_no_other(open_town: OpenTown) -> None:
    async with open_town() as town:
        bob, alice = await town.peer("bob"), await town.peer("alice")
        drafts = [draft_of(town, "alice", model) for model in ("a", "b", "c")]
        drafts[1] = replace(drafts[1], seq=MAX_SEQ + 1)
        ends: dict[str, object] = {}
        await publish_all(alice, drafts, ends)
        assert "is past the last one" in str(ends.pop("acme/b"))
        assert [type(end).__name__ for end in ends.values()] == ["Published", "Published"]
        assert {card.identity.name for card in cards_at(bob)} == {"acme/a", "acme/c"}
        assert {offer.identity.name for offer in alice.parts.publisher.offers()} == {"acme/a", "acme/c"}


async def test_whose_record_is_refused_hears_of_it_alone(open_town: OpenTown) -> None:
    """The holder has no room for one of those that lie under a key: the others are kept, and said to be."""
    async with open_town() as town:
        bob, alice = await town.peer("bob"), await town.peer("alice")
        add = bob.parts.overlay.server.store.add

        def no_room_for_b(key: bytes, sealed: Sealed, *rest: Any) -> Any:
            return Full.PROVIDER if sealed.identity.name == "acme/b" else add(key, sealed, *rest)

        bob.parts.overlay.server.store.add = no_room_for_b
        ends: dict[str, object] = {}
        await publish_all(alice, [draft_of(town, "alice", model) for model in ("a", "b", "c")], ends)
        assert "full_provider" in str(ends.pop("acme/b"))
        assert [type(end).__name__ for end in ends.values()] == ["Published", "Published"]
        assert {card.identity.name for card in cards_at(bob)} == {"acme/a", "acme/c"}


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
