"""Searches between peers, over the network in memory: conditions, streams, reasons and news."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from modelnet_p2p.changes import Event
from modelnet_p2p.envelope import seal
from modelnet_p2p.errors import Code, LocalError, RemoteError
from modelnet_p2p.node.overlay import batches
from modelnet_p2p.node.overlay.batches import FIRST_MODELS, OFFERS_A_WALK
from modelnet_p2p.node.peer import Peer
from modelnet_p2p.offers import State
from modelnet_p2p.records import (
    CARD_TYPE,
    Card,
    Manifest,
    OfferRecord,
    Sealed,
    admit,
    card_of,
    seal_manifest,
    seal_offer,
)

# Any: the fixture that opens a town, see conftest.py
OpenTown = Any
TASK = "text-generation"


async def offered(
    peer: Peer,
    key: Any,
    name: str,
    *,
    task: str = TASK,
    licence: str = "",
    owner: Any = None,
    summed_up: bool = True,
    **said: Any,
) -> list[Sealed]:
    """`peer` tells its network of a model that nobody runs: enough to be found. The offer, and its cards."""
    now_us = peer.parts.overlay.wall_us()
    owner = owner or key
    manifest = Manifest(owner=owner.id, name=name, task=task, licence=licence, issued_unix=1)
    envelope = seal_manifest(manifest, owner)
    offer = OfferRecord(
        provider=key.id,
        network="town",
        manifest=manifest,
        manifest_envelope=envelope,
        seq=now_us // 1000,
        issued_us=now_us,
        expires_us=now_us + 3600 * 1_000_000,
        **said,
    )
    sealed = seal_offer(offer, key)
    cards = [card_of(sealed, key, tag, summed_up=summed_up) for tag in ("", *offer.tags)]
    contact = peer.parts.overlay.contact()._replace(id=key.id)
    for record in (sealed, *cards):
        for place in record.keys:
            refused = peer.parts.overlay.server.store.add(place, record, contact)
            assert refused is None
    return [sealed, *cards]


def models(offers: Any) -> set[str]:
    return {offer.model for offer in offers}


async def test_conditions_that_no_key_is_for_are_met_by_the_reader(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        key = town.key("alice")
        await offered(alice, key, "acme/small", parameters=3 * 10**9, languages=("de",), licence="MIT")
        await offered(alice, key, "acme/large", parameters=70 * 10**9, languages=("de", "fr"))
        await offered(alice, key, "acme/viral", parameters=10**9, languages=("fr",), licence="GPL-3.0")
        await offered(alice, key, "acme/silent", tags=("chat",))
        where = f"task:{TASK} and (language:de or language:fr) and parameters<=7B and not licence:gpl*"
        assert models(await bob.find(where=where)) == {"acme/small"}
        assert models(await bob.find(TASK, where="not parameters<=7B")) == {"acme/large", "acme/silent"}
        assert models(await bob.find(where="model:acme/large or tag:chat")) == {"acme/large", "acme/silent"}
        assert models(await bob.find(where="acme/viral")) == {"acme/viral"}
        assert await bob.find(where=f"task:{TASK} and model:acme/l") == []
        with pytest.raises(LocalError) as caught:
            await bob.find(where="parameters<=7B")
        assert caught.value.code is Code.BAD_INPUT


async def test_the_one_that_is_meant_is_found_behind_a_crowd(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        for number in range(100):
            key = town.key("alice" if number % 2 else "bob")  # one provider may not have so many
            await offered(alice, key, f"crowd/m{number}", parameters=10**12)
        await offered(alice, town.key("alice"), "acme/needle", parameters=5)
        found = await bob.find(TASK, where="parameters<=7B", limit=1)
        assert models(found) == {"acme/needle"}


async def test_what_one_of_many_has_is_found_and_the_others_offers_are_not_read(
    open_town: OpenTown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "FIRST_SIFTED", 64)
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        for number in range(100):  # more than the first look takes
            key = town.key(f"one of {number % 5}")
            said: dict[str, Any] = {"languages": ("de",), "parameters": 10**9, "precision": "int8"}
            await offered(alice, key, f"crowd/m{number}", **said)
        await offered(alice, town.key("alice"), "acme/needle", languages=("gsw-CH",), licence="MIT")
        for where in ("language:gsw", "licence:mit", "parameters:..1M or language:gsw-ch"):
            explained = await bob.explain(TASK, where=where, limit=5)
            assert models(explained.offers) == {"acme/needle"}
            course = explained.to_map()
            assert course["cards"] == 101
            assert course["cards_ruled_out"] >= 98  # a few words are there by chance
            assert course["read"] <= 3
        # of who has a mark it is not sure that he has the word: they are read after those without it
        first = bob.search(TASK, where="not precision:int8")
        assert (await anext(first)).model == "acme/needle"
        everybody = await bob.find(TASK, where="not language:gsw", limit=30, all=True)
        assert len(everybody) == 30


async def test_an_offer_is_found_in_a_crowd_of_the_same_model(open_town: OpenTown) -> None:
    """Under the model's own key it would be one of too many to be read."""
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        for number in range(2 * OFFERS_A_WALK):
            await offered(alice, town.key(f"one of {number}"), "acme/common", tier="cloud")
        await offered(alice, town.key("rare"), "acme/common", tier="edge")
        explained = await bob.explain(TASK, where="tier:edge", all=True)
        assert [offer.provider for offer in explained.offers] == [str(town.key("rare").id)]
        assert explained.tally.read <= 3
        many = await bob.explain(TASK, where="tier:cloud", all=True, limit=20)
        assert len(many.offers) == 20
        assert many.tally.messages <= 6  # the task's key and the model's


async def test_whoever_does_not_sum_its_offer_up_is_still_read(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        await offered(alice, town.key("alice"), "acme/new", languages=("de",))
        await offered(alice, town.key("alice"), "acme/other", languages=("fr",))
        await offered(alice, town.key("alice"), "acme/old", languages=("de",), summed_up=False)
        await offered(alice, town.key("alice"), "acme/old-other", languages=("fr",), summed_up=False)
        explained = await bob.explain(TASK, where="language:de")
        assert models(explained.offers) == {"acme/new", "acme/old"}
        course = explained.to_map()
        assert (course["cards_ruled_out"], course["read"]) == (1, 3)


async def test_a_summary_that_lies_hides_the_liar_alone(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        await offered(alice, town.key("alice"), "acme/honest", languages=("de",))
        for name, marks in (("acme/boaster", tuple(range(0, 65_536, 1024))), ("acme/hider", (1,))):
            key = town.key(name)
            _, card = await offered(alice, key, name, languages=("fr",))
            assert isinstance(card.record, Card)
            lie = seal(CARD_TYPE, replace(card.record, marks=marks, seq=card.seq + 1).to_payload(), key)
            lied = admit(lie, network="town", now_us=alice.parts.overlay.wall_us())
            (place,) = lied.keys
            contact = alice.parts.overlay.contact()._replace(id=key.id)
            assert alice.parts.overlay.server.store.add(place, lied, contact) is None
        assert models(await bob.find(TASK, where="language:de", all=True)) == {"acme/honest"}
        assert models(await bob.find(TASK, where="language:fr", all=True)) <= {"acme/boaster"}


async def test_an_owner_is_found_by_its_id_alone(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, carol = await town.peer("alice"), await town.peer("carol")
        dora = town.key("dora")
        await offered(alice, dora, "dora/own")
        await offered(alice, town.key("bob"), "dora/lent", owner=dora)
        await offered(alice, town.key("bob"), "bob/own")
        explained = await carol.explain(where=f"owner:{dora.id}", all=True)
        assert models(explained.offers) == {"dora/own", "dora/lent"}
        assert explained.tally.keys == [f"/modelnet/town/peer/{dora.id}", f"/modelnet/town/owner/{dora.id}"]


async def test_a_stream_gives_the_first_offers_before_all_are_read(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        for number in range(3 * FIRST_MODELS):
            await offered(alice, town.key("alice"), f"acme/m{number}")
        walks = []
        read = bob.parts.finder.read

        async def counted(keys: Any, limit: int) -> Any:
            walks.append(len(keys))
            return await read(keys, limit)

        bob.parts.finder.read = counted  # only listens
        async for offer in bob.search(TASK, limit=1000):
            assert offer.state is State.ALIVE
            break
        assert walks == [1, FIRST_MODELS]
        everybody = [offer.model async for offer in bob.search(TASK, limit=1000)]
        assert len(everybody) == len(set(everybody)) == 3 * FIRST_MODELS
        assert len([offer async for offer in bob.search(TASK, limit=5)]) == 5
        with pytest.raises(LocalError):
            bob.search(where="task:")


async def test_a_search_that_takes_too_long_ends(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        await town.peer("alice")
        bob = await town.peer("bob", listen=False)
        town.freeze("alice")
        with pytest.raises(RemoteError) as caught:
            await anext(bob.search(TASK, timeout=0.1))
        assert caught.value.code is Code.DEADLINE


async def test_the_reasons_for_each_and_against_the_others(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        await offered(alice, town.key("alice"), "acme/small", parameters=3 * 10**9)
        await offered(alice, town.key("alice"), "acme/large", parameters=70 * 10**9)
        await offered(alice, town.key("alice"), "acme/other", parameters=1, framework="onnx")
        explained = await bob.explain(TASK, where="parameters<=7B and not framework:onnx")
        (offer,) = explained.offers
        task, size, framework, standing = explained.why(offer)
        assert (task, size) == (f"task:{TASK}", "parameters<=7B (3B)")
        assert framework == "not framework:onnx (not said)"
        assert standing.startswith("answered in ")
        course = explained.to_map()
        assert course.pop("messages") >= 2  # the task's key, and one model's
        assert course == {
            "keys": [f"/modelnet/town/task/{TASK}"],
            "cards": 3,
            "cards_ruled_out": 2,
            "read": 1,
            "ruled_out": {"parameters<=7B": 1, "not framework:onnx": 1},
            "untimely": 0,
            "silent": 0,
        }


async def test_news_of_a_search(open_town: OpenTown, autojump_clock: trio.testing.MockClock) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        carol = await town.peer("carol")
        await alice.publish("builtin:digits", tags=["demo"])
        watch = bob.watch(where="tag:demo", interval=1)
        first = await anext(watch)
        assert (first.event, first.offer.provider) == (Event.APPEARED, alice.id)
        await carol.publish("builtin:digits", tags=["demo"])
        second = await anext(watch)
        assert (second.event, second.offer.provider) == (Event.APPEARED, carol.id)
        town.kill("carol")
        with trio.fail_after(60):
            while (change := await anext(watch)).event is not Event.GONE:
                assert (change.event, change.offer.state) == (Event.CHANGED, State.SUSPECT)
        assert change.offer.provider == carol.id
        await alice.unpublish("modelnet/digits")
        with trio.fail_after(60):
            gone = await anext(watch)
        assert (gone.event, gone.offer.provider) == (Event.GONE, alice.id)


async def test_a_peer_that_sees_nobody_tells_of_nobody_going(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob", listen=False)
        await alice.publish("builtin:digits")
        watch = bob.watch(model="modelnet/digits", interval=1)
        assert (await anext(watch)).event is Event.APPEARED
        town.kill("alice")
        with trio.move_on_after(60) as scope:
            await anext(watch)
        assert scope.cancelled_caught


async def test_which_tags_a_peer_has_heard_of(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, bob, carol = [await town.peer(name) for name in ("alice", "bob", "carol")]
        key = town.key("carol")  # alice keeps these for her
        await offered(alice, key, "acme/one", tags=("english", "fast"))
        await offered(alice, key, "acme/two", tags=("fast",))
        await offered(alice, key, "acme/three", task="translation", tags=("german",))
        await alice.publish("builtin:digits", tags=["small"])
        tags = await alice.known_tags()
        assert (tags[0], sorted(tags)) == ("small", ["english", "fast", "german", "small"])  # her own first
        assert await bob.known_tags() == await carol.known_tags() == ["small"]  # published to both
        # whoever asks by a task or a model looks in the network
        assert await bob.known_tags(TASK) == ["fast", "english"]  # what most have first
        assert await bob.known_tags(None, "acme/three") == ["german"]
        assert await bob.known_tags("summarization") == []
        await alice.unpublish("modelnet/digits")
        assert "small" not in {*await bob.known_tags(), *await alice.known_tags()}
