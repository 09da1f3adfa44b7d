"""Stories of peers that find and call each other, over the network in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from modelnet_p2p.errors import Code, LocalError, NotFound, RemoteError
from modelnet_p2p.kad import Contact, Framer, Kind, Message, frame
from modelnet_p2p.names import Keys, protocol, provider_key
from modelnet_p2p.node.peer import Peer
from modelnet_p2p.offers import State
from modelnet_p2p.pb.envelope_pb2 import Envelope
from modelnet_p2p.records import seal_offer

TASK = "image-classification"
DIGIT = np.zeros((1, 8, 8), np.float32)
# Any: the fixture that opens a town, see conftest.py
OpenTown = Any


async def test_a_stranger_finds_a_model_by_task_and_calls_it(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        published = await alice.publish("builtin:digits")
        assert published["holders"] == {"asked": 1, "stored": 1}

        carol = await town.peer("carol", listen=False)
        offers = await carol.find(task=TASK)
        assert [(offer.model, offer.provider, offer.state) for offer in offers] == [
            ("modelnet/digits@1", alice.id, State.ALIVE)
        ]
        assert offers[0].load == 0.0
        assert offers[0].uri == published["uri"]

        outcome = await carol.call(f"task:{TASK}", DIGIT)
        assert outcome.provider == alice.id
        assert outcome.attempts == 1
        assert outcome.output["scores"].shape == (1, 10)
        assert outcome.digest == published["digest"] == outcome.trace[0]["digest"]
        assert outcome.trace[0]["bytes_in"] > DIGIT.nbytes
        assert outcome.trace[0]["bytes_out"] > outcome.output["scores"].nbytes
        assert bob.id not in {offer.provider for offer in offers}


async def test_when_a_provider_dies_the_next_one_answers(open_town: OpenTown) -> None:
    async with open_town() as town:
        await town.peer("bob")
        for name in ("alice", "dave"):
            await (await town.peer(name)).publish("builtin:digits")
        carol = await town.peer("carol", listen=False)
        first = (await carol.call("modelnet/digits", DIGIT)).provider
        dead = next(name for name, peer in town.peers.items() if peer.id == first)
        town.kill(dead)
        outcome = await carol.call("modelnet/digits", DIGIT)
        assert outcome.provider != first
        assert outcome.attempts <= 2
        with trio.fail_after(10):
            while first in {offer.provider for offer in await carol.find(task=TASK)}:
                await trio.sleep(0.05)
        everybody = {offer.provider: offer.state for offer in await carol.find(task=TASK, all=True)}
        assert everybody[first] is State.DEAD


async def test_what_was_found_a_moment_ago_serves_the_next_calls_until_it_disappoints(
    open_town: OpenTown,
) -> None:
    async with open_town() as town:
        await town.peer("bob")
        alice, dave = await town.peer("alice"), await town.peer("dave")
        await alice.publish("builtin:digits")
        carol = await town.peer("carol", listen=False)
        assert (await carol.call("modelnet/digits", DIGIT)).provider == alice.id
        await dave.publish("builtin:digits")
        assert (await carol.call("modelnet/digits", DIGIT)).provider == alice.id  # carol did not look again
        await alice.unpublish("modelnet/digits")
        outcome = await carol.call("modelnet/digits", DIGIT)
        assert (outcome.provider, outcome.attempts) == (dave.id, 2)
        await dave.unpublish("modelnet/digits")
        with pytest.raises(NotFound):
            await carol.call("modelnet/digits", DIGIT)


async def test_a_call_that_names_its_provider_never_moves(open_town: OpenTown) -> None:
    async with open_town() as town:
        await town.peer("bob")
        alice, dave = await town.peer("alice"), await town.peer("dave")
        await alice.publish("builtin:digits")
        await dave.publish("builtin:digits")
        carol = await town.peer("carol", listen=False)
        assert (await carol.call("modelnet/digits", DIGIT, provider=dave.id)).provider == dave.id
        town.kill("dave")
        with pytest.raises((RemoteError, NotFound)):
            await carol.call("modelnet/digits", DIGIT, provider=dave.id)


async def test_a_frozen_provider_is_left_for_another(open_town: OpenTown) -> None:
    async with open_town() as town:
        await town.peer("bob")
        await (await town.peer("alice")).publish("builtin:digits")
        await (await town.peer("dave")).publish("builtin:digits")
        carol = await town.peer("carol", listen=False)
        assert len(await carol.find(task=TASK)) == 2
        town.freeze("alice")
        await trio.sleep(2.1)  # the last sign of life is no longer believed
        with trio.fail_after(10):
            outcome = await carol.call(f"task:{TASK}", DIGIT, timeout=5)
        assert outcome.provider == town.peers["dave"].id


async def test_what_was_withdrawn_is_found_no_more(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        seq = (await alice.publish("builtin:digits", tags=["demo"]))["seq"]
        assert await bob.find(tag="demo")
        withdrawn = await alice.unpublish("modelnet/digits")
        assert withdrawn["withdrawn"]
        assert withdrawn["seq"] > seq
        assert withdrawn["holders"] == {"asked": 1, "stored": 1}
        assert await bob.find(tag="demo") == await bob.find(task=TASK, all=True) == []
        with pytest.raises(NotFound):
            await bob.invoke("modelnet/digits", DIGIT)
        with pytest.raises(NotFound):
            await alice.unpublish("modelnet/digits")


async def test_who_publishes_is_told_what_had_that_name_before(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice = await town.peer("alice")
        first = await alice.publish("builtin:digits", model="acme/it")
        assert (first["replaces"], first["notes"]) == (None, [])
        again = await alice.publish("builtin:digits", model="acme/it@2")  # a new version
        assert (again["replaces"], again["notes"]) == ("builtin:digits", [])
        for dry_run in (True, False):
            other = await alice.publish("builtin:echo", model="acme/it", dry_run=dry_run)
            hint = "--model NAME keeps both: this one as NAME, builtin:digits as acme/it"
            assert (other["replaces"], other["notes"]) == ("builtin:digits", [hint])
        await alice.unpublish("acme/it")
        assert (await alice.publish("builtin:digits", model="acme/it"))["replaces"] is None


async def test_alone_in_the_world_and_told_to_the_first_neighbour(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice = await town.peer("alice")
        published = await alice.publish("builtin:digits")
        assert published["holders"] == {"asked": 0, "stored": 0}
        assert (await alice.invoke("modelnet/digits", DIGIT))["label"]  # a call to myself needs nobody
        bob = await town.peer("bob")
        with trio.fail_after(5):
            while (await bob.status())["records"] == 0:
                await trio.sleep(0.01)
        assert (await bob.find(task=TASK))[0].provider == alice.id


async def test_readers_find_what_was_published_before_most_peers_joined(open_town: OpenTown) -> None:
    async with open_town() as town:
        for name in ("ann", "ben", "cat"):
            await town.peer(name)
        tags = [f"tag{i}" for i in range(8)]
        await town.peers["ben"].publish("builtin:digits", tags=tags)
        for number in range(12):  # each of the keys gets newcomers that are closer than its holders
            await town.peer(f"newcomer{number}")
        for reader in ("newcomer0", "newcomer11", "ann"):
            for tag in tags:
                assert await town.peers[reader].find(tag=tag), f"{reader} finds nothing under {tag}"


async def test_two_owners_of_one_name_are_told_apart(open_town: OpenTown, shop: Path) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        carol = await town.peer("carol", listen=False)
        for peer in (alice, bob):
            await peer.publish("townshop:shout", model="shout", task="x-town/shout", cwd=str(shop))
        with pytest.raises(NotFound) as caught:
            await carol.invoke("shout", "hello")
        assert caught.value.code is Code.AMBIGUOUS
        assert alice.id in str(caught.value)
        assert bob.id in str(caught.value)
        assert await carol.invoke(f"modelnet:shout?owner={bob.id}", "hello") == "HELLO"
        assert await carol.invoke("task:x-town/shout", "hello") == "HELLO"  # a task asks for any model


async def test_a_contested_name_does_not_go_to_whoever_is_left_up(open_town: OpenTown, shop: Path) -> None:
    async with open_town() as town:
        await town.peer("bob")  # who keeps records, and claims nothing
        alice, mallory = await town.peer("alice"), await town.peer("mallory")
        carol, dave = [await town.peer(name, listen=False) for name in ("carol", "dave")]
        for peer, model in ((alice, "say@1"), (mallory, "say@2"), (alice, "lone")):
            await peer.publish("townshop:shout", model=model, cwd=str(shop))
        dave.owners.trust("say", mallory.peer_id, 0.0)
        town.kill("alice")
        while alice.id in {offer.provider for offer in await carol.find(model="say")}:
            await trio.sleep(0.05)
        with pytest.raises(NotFound, match=rf"{alice.id} \(whom nobody serves just now\)") as caught:
            await carol.invoke("say", "hello")
        assert caught.value.code is Code.AMBIGUOUS
        assert f"owner trust say {mallory.id}" in caught.value.hint  # of those, the one who can be asked
        assert await carol.invoke("say@2", "hello") == "HELLO"  # as named, and that decides nothing
        assert carol.owners.all() == []
        with pytest.raises(NotFound, match="nobody alive offers 'lone'"):  # claimed by one, who is gone
            await carol.invoke("lone", "hello")
        assert await dave.invoke("say", "hello") == "HELLO"  # he has chosen
        carol.owners.trust("say", alice.peer_id, 0.0)
        with pytest.raises(NotFound, match="of the owner whose model it was before"):
            await carol.invoke("say", "hello")


async def test_who_has_withdrawn_a_name_claims_it_no_more(open_town: OpenTown, shop: Path) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        carol = await town.peer("carol", listen=False)
        for peer in (alice, bob):
            await peer.publish("townshop:shout", model="say", cwd=str(shop))
        await alice.unpublish("say")
        town.kill("alice")
        assert await carol.invoke("say", "hello") == "HELLO"
        assert [known.owner for known in carol.owners.all()] == [bob.peer_id]


async def test_items_come_as_they_are_made_and_leaving_cancels_the_far_side(
    open_town: OpenTown, shop: Path
) -> None:
    async with open_town() as town:
        alice = await town.peer("alice")
        carol = await town.peer("carol", listen=False)
        await alice.publish("townshop:count", cwd=str(shop))
        assert [item async for item in carol.stream("count", 3)] == [0, 1, 2]
        assert await carol.invoke("count", 3) == [0, 1, 2]
        items = carol.stream("count", 10**9)
        async for item in items:
            if item == 5:
                break
        assert items.outcome is None
        del items
        with trio.fail_after(5):
            while (await alice.status())["models"][0]["in_flight"]:
                await trio.sleep(0.01)


async def test_what_goes_wrong_there_is_a_typed_error_here(open_town: OpenTown, shop: Path) -> None:
    async with open_town() as town:
        alice = await town.peer("alice")
        carol = await town.peer("carol", listen=False)
        await alice.publish("townshop:picky", cwd=str(shop))
        await alice.publish("builtin:digits")
        with pytest.raises(RemoteError, match="no such word") as caught:
            await carol.invoke("picky", "raise")
        assert caught.value.code is Code.MODEL_ERROR
        assert caught.value.peer == alice.id
        with pytest.raises(RemoteError) as caught:
            await carol.invoke("picky", "x", params={"nonsense": 1})
        assert caught.value.code is Code.BAD_INPUT
        with pytest.raises(RemoteError) as caught:
            await carol.invoke("picky", "hang", timeout=0.5)
        assert caught.value.code is Code.DEADLINE
        with pytest.raises(RemoteError) as caught:
            await carol.invoke("picky", "die")
        assert caught.value.code is Code.MODEL_ERROR
        with pytest.raises(RemoteError) as caught:
            await carol.invoke("modelnet/digits", np.zeros((2, 7, 7), np.float32))
        assert caught.value.code is Code.BAD_INPUT
        assert await carol.invoke("picky", "fine") == "fine"  # and the peer goes on


async def test_errors_of_the_caller_are_his_own(open_town: OpenTown) -> None:
    async with open_town() as town:
        await town.peer("alice")
        carol = await town.peer("carol", listen=False)
        with pytest.raises(NotFound) as missing:
            await carol.invoke("no/such-model", 1)
        assert missing.value.code is Code.NOT_FOUND
        with pytest.raises(LocalError, match="not a model name"):
            await carol.invoke("NO SUCH NAME", 1)
        with pytest.raises(LocalError, match="listens nowhere"):
            await carol.publish("builtin:digits")
        with pytest.raises(LocalError, match="nothing to look for"):
            await carol.find()
        for asked in ({"task": 3}, {"where": ["a"]}, {"model": 2.5}, {"tag": b"x"}):
            with pytest.raises(LocalError, match="must be a string, not"):
                await carol.find(**asked)
        for limit in (0, -1, 2.5, "many", True):
            for search in (carol.find, carol.explain):
                with pytest.raises(LocalError, match="a whole number of offers") as caught:
                    await search(task=TASK, limit=limit)
                assert caught.value.code is Code.BAD_INPUT
            with pytest.raises(LocalError, match="a whole number of offers"):
                carol.search(task=TASK, limit=limit)
        wrong: Any = 3
        for act in (carol.invoke(wrong, 1), carol.show(wrong), carol.invoke(TASK, 1, provider=wrong)):
            with pytest.raises(LocalError, match="string, not int"):
                await act
        with pytest.raises(LocalError, match="does not end in /p2p/ID"):
            await carol.bootstrap(["/ip4/127.0.0.1/tcp/1"])


async def test_a_mistyped_task_is_not_published(open_town: OpenTown, shop: Path) -> None:
    async with open_town() as town:
        alice = await town.peer("alice")
        for task, hint in (
            ("text-generatoin", "did you mean text-generation? A task of your own is named x-ORG/TASK"),
            ("shouting", "such as x-acme/shouting"),
        ):
            with pytest.raises(LocalError, match=f"'{task}' is no task that others search for") as caught:
                await alice.publish("townshop:shout", task=task, cwd=str(shop))
            assert (caught.value.code, hint in caught.value.hint) == (Code.BAD_INPUT, True)
        for task in ("text-generation", "x-town/shout"):
            assert (await alice.publish("townshop:shout", task=task, cwd=str(shop)))["notes"] == []


async def test_bad_records_are_refused_counted_and_cost_their_neighbours_nothing(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, mallory = await town.peer("alice"), await town.peer("mallory")
        await mallory.publish("builtin:digits")
        (line,) = await mallory.show("modelnet/digits")
        assert line["verified"] is True
        assert line["provider"] == mallory.id
        offer = (await mallory.find(model="modelnet/digits"))[0]
        forged = offer.envelope[:-1] + bytes([offer.envelope[-1] ^ 1])
        model_key = provider_key(Keys("town").model("modelnet/digits"))
        other_key = provider_key(Keys("town").model("acme/another"))
        unsigned = Envelope.FromString(offer.envelope)
        unsigned.ClearField("signature")
        key, record = town.key("mallory"), offer.record
        hour_us = 3_600_000_000
        old = replace(record, issued_us=record.issued_us - 5 * hour_us, expires_us=record.issued_us - hour_us)
        borrowed = seal_offer(replace(record, provider=town.key("eve").id), town.key("eve"))
        cases = {
            "forged": (model_key, forged),
            "unsigned": (model_key, unsigned.SerializeToString()),
            "expired": (model_key, seal_offer(old, key).envelope),
            "wrong_owner": (model_key, borrowed.envelope),  # sound, but eve's, and mallory sends it
            "stale": (model_key, seal_offer(replace(record, seq=record.seq - 1), key).envelope),
            "foreign_key": (other_key, offer.envelope),
            "oversized": (model_key, bytes(5000)),
            "malformed": (model_key, b"\xff" * 40),
        }
        for reason, (at, envelope) in cases.items():
            reply = await kad_request(mallory, alice, add_provider(mallory, at, envelope))
            assert reply.refused == reason
        refused = (await alice.status())["refused"]
        assert {reason: refused[reason] for reason in cases} == dict.fromkeys(cases, 1)
        assert len(await alice.find(model="modelnet/digits")) == 1


async def test_nonsense_on_any_protocol_ends_that_stream_and_nothing_else(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, mallory = await town.peer("alice"), await town.peer("mallory")
        await alice.publish("builtin:digits")
        network = mallory.parts.network
        for part in ("kad", "call"):
            stream = await network.open_stream(alice.peer_id, protocol("town", part))
            await stream.send([b"\xff" * 4096])
            with pytest.raises(RemoteError), trio.fail_after(5):
                while await stream.receive_into(memoryview(bytearray(4096))):
                    pass
                raise RemoteError(Code.UNREACHABLE, "it ended cleanly after a fault was told")
        assert (await mallory.invoke("modelnet/digits", DIGIT))["label"]


def add_provider(sender: Peer, key: bytes, envelope: bytes) -> Message:
    me = Contact(sender.peer_id, ())
    return Message(Kind.ADD_PROVIDER, key, providers=(me,), records=(envelope,))


async def kad_request(sender: Peer, to: Peer, message: Message) -> Message:
    stream = await sender.parts.network.open_stream(to.peer_id, protocol("town", "kad"))
    framer, buffer = Framer(), memoryview(bytearray(65536))
    await stream.send([frame(message)])
    with trio.fail_after(5):
        while True:
            count = await stream.receive_into(buffer)
            assert count, "the stream ended without a reply"
            for reply in framer.feed(bytes(buffer[:count])):
                await stream.finish()
                return reply


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A directory with models that anybody might write."""
    (tmp_path / "townshop.py").write_text(
        """
import os, time

def shout(text: str) -> str:
    return text.upper()

def count(until: int):
    yield from range(until)

def picky(text: str) -> str:
    if text == "raise":
        raise KeyError("no such word")
    while text == "hang":
        time.sleep(0.01)
    if text == "die":
        os._exit(1)
    return text
"""
    )
    return tmp_path
