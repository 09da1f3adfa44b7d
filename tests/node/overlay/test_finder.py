"""What lying holders can do to a search, and what they cannot."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import trio
import trio.testing

from modelnet_p2p.dht.walks.finding import Send
from modelnet_p2p.dht.walks.lookup import Wait
from modelnet_p2p.events import Result
from modelnet_p2p.exchange import Exchange, Role
from modelnet_p2p.kad import Contact, Message
from modelnet_p2p.names import Keys, protocol, provider_key
from modelnet_p2p.node.overlay.finder import MAX_LOADS, VITAL_SECONDS, _loads
from modelnet_p2p.node.overlay.reading import MAX_ADDRS, Reading
from modelnet_p2p.node.transport.addresses import to_binary
from modelnet_p2p.node.transport.contract import Stream
from modelnet_p2p.offers import Offer, State
from modelnet_p2p.query import Query
from modelnet_p2p.records import OfferRecord, Sealed, admit, seal_offer

# Any: the fixture that opens a town, see conftest.py
OpenTown = Any
NAME = "modelnet/digits"


def forgeries(town: Any, envelope: bytes, count: int) -> list[Sealed]:
    """Sound offers of as many liars, made after one that is known."""
    record = admit(envelope, network="town", now_us=time.time_ns() // 1000).record
    assert isinstance(record, OfferRecord)
    keys = [town.key(f"liar {number}") for number in range(count)]
    return [seal_offer(replace(record, provider=key.id), key) for key in keys]


async def test_a_holder_that_tells_hundreds_of_records_hides_no_other(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        await alice.publish("builtin:digits")
        honest = (await bob.find(model=NAME))[0]
        key = provider_key(Keys("town").model(NAME))
        reading = Reading(key, bob.parts.overlay, 80)
        liar, holder = town.key("liar").id, alice.peer_id
        reading.lookup._hear(Contact(liar, (to_binary("/ip4/10.9.9.9/tcp/1"),)), 0, 0)
        asked, now = [], trio.current_time()
        while isinstance(step := reading.poll(now), Send):
            asked.append(step.contact.id)
        assert isinstance(step, Wait)
        assert set(asked) == {liar, holder}
        junk = tuple(sealed.envelope for sealed in forgeries(town, honest.envelope, 100))
        bad = tuple(to_binary(f"/ip4/10.9.9.{number}/tcp/1") for number in range(16))
        lies = Message(reading.request.kind, key, (), (Contact(holder, bad),), records=junk)
        good = to_binary("/ip4/10.0.0.7/tcp/4001")
        truth = Message(
            reading.request.kind, key, (), (Contact(holder, (good,)),), records=(honest.envelope,)
        )
        reading.on_reply(liar, lies, now)  # the liar is the first to answer
        reading.on_reply(holder, truth, now)
        assert len(reading.records) == 101
        assert honest.envelope in [sealed.envelope for sealed in reading.in_turns[:2]]
        assert good in reading.addresses(holder)[:2]
        assert len(reading.addresses(holder)) == MAX_ADDRS


async def test_providers_without_an_address_do_not_hold_up_a_search(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        await alice.publish("builtin:digits")
        honest = (await bob.find(model=NAME))[0]
        key = provider_key(Keys("town").model(NAME))
        for sealed in forgeries(town, honest.envelope, 60):
            contact = Contact(sealed.identity.provider, ())
            assert bob.parts.overlay.server.store.add(key, sealed, contact) is None
        town.freeze("alice")  # each look-up takes all its time
        await trio.sleep(3)
        began = trio.current_time()
        await bob.find(model=NAME)
        assert trio.current_time() - began < 20


async def test_addresses_that_are_none_cost_their_provider_only(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        await alice.publish("builtin:digits")
        vital = await bob.parts.finder.ping(town.key("nobody").id, ["no address"])
        assert vital.state is State.DEAD


async def test_who_was_alive_when_a_look_began_is_so_when_it_ends(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        alice, bob, carol = [await town.peer(name) for name in ("alice", "bob", "carol")]
        finder = (await town.peer("dave", listen=False)).parts.finder
        for peer in (alice, bob, carol):
            await peer.publish("builtin:digits")
        offers = await finder.offers(Query(network="town", model=NAME), 10)

        async def look(offers: Sequence[Offer]) -> dict[str, State]:
            looked = await finder._with_signs_of_life(
                offers, trio.current_time() - VITAL_SECONDS, thorough=True
            )
            return {offer.provider: offer.state for offer in looked}

        known = [offer for offer in offers if offer.provider != carol.id]
        assert await look(known) == {alice.id: State.ALIVE, bob.id: State.ALIVE}
        town.freeze("carol")
        await trio.sleep(VITAL_SECONDS - 0.1)
        began = trio.current_time()
        found = await look(offers)
        assert trio.current_time() - began > 0.5  # carol was waited for
        assert found == {alice.id: State.ALIVE, bob.id: State.ALIVE, carol.id: State.SUSPECT}


def test_the_loads_that_a_peer_tells_are_bounded() -> None:
    told = {f"m{number}": 0.5 for number in range(100_000)}
    assert len(_loads({"models": told})) == MAX_LOADS
    assert _loads({"models": {"a": 7, "b": -1, "c": "x", "d": True, "e": float("nan")}}) == {"a": 1.0, "b": 0}
    assert _loads([1]) == {}


async def test_a_ping_answered_with_megabytes_is_not_believed(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice = await town.peer("alice")
        async with town.world.open(town.key("mallory")) as mallory:
            answer = Result({"models": {}, "more": bytes(1 << 20)})

            async def verbose(stream: Stream) -> None:
                exchange = Exchange(Role.ANSWERER)
                while exchange.next_event() is None:
                    exchange.received(await stream.receive_into(exchange.get_buffer()))
                await stream.send([memoryview(part) for part in exchange.send(answer)])

            mallory.handle(protocol("town", "call"), verbose)
            vital = await alice.parts.finder.ping(mallory.id, mallory.addrs)
            assert vital.state is State.SUSPECT
