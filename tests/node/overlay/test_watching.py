"""Deaths are found by the dead one's watchers, and readers hear of them; on the network in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from modelnet_p2p.beats import Ask, Beat, Message, Obituary, Seals, Watch, frame
from modelnet_p2p.dht.liveness.obituaries import covers
from modelnet_p2p.dht.liveness.watcher import Phase
from modelnet_p2p.names import protocol
from modelnet_p2p.node.overlay.watching import MESSAGES_BURST
from modelnet_p2p.node.transport.contract import StreamReset
from modelnet_p2p.offers import State
from tests.node.conftest import TOWN

# Any: the fixture that opens a town, see conftest.py
OpenTown = Any
NAME = "modelnet/digits"
CROWD = ("bob", "carol", "dave", "erin", "frank", "grace")


async def settled(town: Any, crowd: tuple[str, ...] = CROWD) -> Any:
    """Alice serves, and some of the others watch over her; they came before."""
    for name in crowd:
        await town.peer(name)
    alice = await town.peer("alice")
    await alice.publish("builtin:digits")
    await trio.sleep(10)
    return alice


async def test_five_peers_watch_over_who_serves_and_nobody_over_others(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        alice = await settled(town)
        watchers = alice.parts.watching.beater.watchers
        assert len(watchers) == 5
        for name in CROWD:
            watching = town.peers[name].parts.watching
            phase = watching.watcher.phase(alice.peer_id)
            assert phase is (Phase.HEARD if town.peers[name].peer_id in watchers else None)
            assert watching.beater.watchers == ()
        assert alice.parts.watching.beater.silent(trio.current_time()) == set()
        await alice.unpublish(NAME)
        await trio.sleep(3)
        assert alice.parts.watching.beater.watchers == ()
        assert all(not town.peers[name].parts.watching.watcher.wards for name in CROWD)


async def test_a_frozen_provider_is_left_out_within_seconds_and_back_when_it_thaws(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        alice = await settled(town)
        reader = await town.peer("heidi", listen=False)
        assert [offer.state for offer in await reader.find(model=NAME)] == [State.ALIVE]
        town.freeze("alice")
        beat = alice.parts.tuning.beat
        await trio.sleep(6 * beat)
        started = trio.current_time()
        assert await reader.find(model=NAME) == []
        (gone,) = await reader.find(model=NAME, all=True)
        assert gone.state is State.DEAD
        assert trio.current_time() - started < 2 * alice.parts.tuning.ping_timeout
        assert reader.parts.watching.is_dead(alice.peer_id, 0)
        town.world.thaw(alice.peer_id)
        await trio.sleep(5 * beat)
        assert all(not town.peers[name].parts.watching.is_dead(alice.peer_id, 0) for name in CROWD)
        assert [offer.state for offer in await reader.find(model=NAME)] == [State.ALIVE]


async def test_the_killed_are_known_dead_by_every_holder(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        alice = await settled(town)
        town.kill("alice")
        await trio.sleep(5 * alice.parts.tuning.beat)
        known = [name for name in CROWD if town.peers[name].parts.watching.is_dead(alice.peer_id, 0)]
        assert known == list(CROWD)


async def test_a_record_that_is_newer_than_the_death_is_believed(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        alice = await settled(town)
        bob = town.peers["bob"]
        town.kill("alice")
        await trio.sleep(5)
        assert bob.parts.watching.is_dead(alice.peer_id, 0)
        assert not bob.parts.watching.is_dead(alice.peer_id, bob.parts.overlay.wall_us())


@pytest.mark.parametrize("first", [True, False])
async def test_who_is_killed_right_after_it_signed_an_offer_is_dead_for_those_who_read_it(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock, first: bool
) -> None:
    """Its watchers heard of the offer out of turn, or of being watchers at all; a beat has two seconds."""
    async with open_town() as town:
        slow = replace(TOWN, beat=2.0)
        for name in CROWD:
            await town.peer(name, tuning=slow)
        alice = await town.peer("alice", tuning=slow)
        if not first:
            await alice.publish("builtin:digits")
        await trio.sleep(10.4 * slow.beat)
        await alice.publish("builtin:echo")
        signed_us = alice.parts.publisher.signed_us()
        await trio.sleep(0.3)
        town.kill("alice")
        await trio.sleep(6 * slow.beat)
        for name in CROWD:
            assert town.peers[name].parts.watching.is_dead(alice.peer_id, signed_us)


async def test_many_offers_signed_at_once_are_told_together_and_none_costs_nothing(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_town() as town:
        alice = await settled(town)
        lines = alice.parts.watching._lines
        told, tell = list[Message](), lines.tell

        def counted(peer: Any, message: Message) -> bool:
            told.append(message)
            return bool(tell(peer, message))

        monkeypatch.setattr(lines, "tell", counted)
        await trio.sleep(10 * alice.parts.tuning.beat)
        assert {type(message) for message in told} == {Beat}
        told.clear()
        publisher = alice.parts.publisher
        (offer,) = publisher._offers.values()
        for _ in range(20):
            publisher._renew([offer.identity])
        await trio.sleep(alice.parts.tuning.beat / 2)
        watches = [message for message in told if isinstance(message, Watch)]
        assert len(watches) == 5
        assert watches[0].roster.seq >= publisher.signed_us()


@pytest.mark.parametrize("beat", [0.25, 0.5])
async def test_who_signs_without_end_is_never_read_late_by_its_watchers(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock, beat: float
) -> None:
    """What they are told of it takes half of what they read of one peer; the rest is for its beats."""
    async with open_town() as town:
        for name in CROWD:
            await town.peer(name, tuning=replace(TOWN, beat=beat))
        alice = await town.peer("alice", tuning=replace(TOWN, beat=beat))
        await alice.publish("builtin:digits")
        await trio.sleep(10)
        publisher = alice.parts.publisher
        (offer,) = publisher._offers.values()
        watchers = [town.peers[name].parts.watching for name in CROWD]
        watchers = [peer for peer in watchers if peer.watcher.phase(alice.peer_id) is Phase.HEARD]
        assert len(watchers) == 5
        for _ in range(60):
            publisher._renew([offer.identity])
            await trio.sleep(0.05)
            now, spare = trio.current_time(), MESSAGES_BURST - 10
            assert not any(peer._throttle.wait(alice.peer_id, now, spare) for peer in watchers)


@pytest.mark.parametrize("seconds", [240.0, -240.0])
async def test_a_provider_whose_clock_is_off_dies_like_any_other_and_is_believed_when_it_is_back(
    open_town: OpenTown,
    clock_is_off: Callable[[float], None],
    autojump_clock: trio.testing.MockClock,
    seconds: float,
) -> None:
    async with open_town() as town:
        for name in CROWD:
            await town.peer(name)
        readers = [town.peers["bob"], await town.peer("heidi", listen=False)]
        clock_is_off(seconds)
        alice = await town.peer("alice")
        await alice.publish("builtin:digits")
        await trio.sleep(10)
        town.freeze("alice")  # it stays connected, and a ping finds nothing out but silence
        await trio.sleep(6 * alice.parts.tuning.beat)
        for reader in readers:
            (gone,) = await reader.find(model=NAME, all=True)
            assert gone.state is State.DEAD
            assert reader.parts.watching.is_dead(alice.peer_id, gone.record.issued_us)
        parts = town.peers["bob"].parts
        obituary = parts.watching.obituaries.of(alice.peer_id, parts.overlay.wall_us())
        town.kill("alice")
        town.world.thaw(alice.peer_id)
        await trio.sleep(1)
        await (await town.peer("alice")).publish("builtin:digits")
        for reader in readers:
            (back,) = await reader.find(model=NAME)
            assert back.state is State.ALIVE
            assert covers(obituary, gone.record.issued_us)  # also where nobody has refuted it yet
            assert not covers(obituary, back.record.issued_us)


async def test_an_obituary_that_one_watcher_made_up_convinces_nobody(open_town: OpenTown) -> None:
    async with open_town() as town:
        bob, carol = await town.peer("bob"), await town.peer("carol")
        roster = Seals(town.key("alice"), "town", bob.parts.overlay.wall_us).roster(
            1, (bob.peer_id, carol.peer_id)
        )
        verdict = Seals(town.key("carol"), "town", bob.parts.overlay.wall_us).verdict(roster.subject, 1, True)
        stream = await carol.parts.network.open_stream(bob.peer_id, protocol("town", "beat"))
        await stream.send([frame(Obituary(roster, (verdict, verdict)))])
        with pytest.raises(StreamReset):
            await stream.receive_into(memoryview(bytearray(8)))
        assert not bob.parts.watching.is_dead(roster.subject, 0)


async def test_whoever_was_told_of_a_death_is_told_of_its_refutation(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        bob, carol, dave = [await town.peer(name) for name in ("bob", "carol", "dave")]
        wall_us = bob.parts.overlay.wall_us
        alice = Seals(town.key("alice"), "town", wall_us)
        roster = alice.roster(1, (bob.peer_id, carol.peer_id))
        verdicts = tuple(
            Seals(town.key(name), "town", wall_us).verdict(roster.subject, 1, True)
            for name in ("bob", "carol")
        )
        bob.parts.watching.telling.on_death(Obituary(roster, verdicts), [b"where alice's offers lie"])
        await trio.sleep(2)
        assert all(peer.parts.watching.is_dead(roster.subject, 0) for peer in (carol, dave))
        bob.parts.watching.telling.on_refuted(alice.beat(2, 1))
        await trio.sleep(2)
        assert not any(peer.parts.watching.is_dead(roster.subject, 0) for peer in (carol, dave))


async def test_a_question_is_answered_with_what_is_known(open_town: OpenTown) -> None:
    async with open_town() as town:
        bob, carol = await town.peer("bob"), await town.peer("carol")
        wall_us = bob.parts.overlay.wall_us
        alice = town.key("alice").id
        roster = Seals(town.key("alice"), "town", wall_us).roster(1, (bob.peer_id, carol.peer_id))
        verdicts = tuple(
            Seals(town.key(name), "town", wall_us).verdict(alice, 1, True) for name in ("bob", "carol")
        )
        assert bob.parts.watching.obituaries.add(Obituary(roster, verdicts), wall_us())
        await carol.parts.watching.learn(b"key", [bob.peer_id], [alice, bob.peer_id])
        assert carol.parts.watching.is_dead(alice, 0)
        assert not carol.parts.watching.is_dead(bob.peer_id, 0)
        stream = await carol.parts.network.open_stream(bob.peer_id, protocol("town", "beat"))
        async with stream:
            await stream.send([frame(Ask(()))])
            assert await stream.receive_into(memoryview(bytearray(8))) == 0


async def test_a_reader_who_asks_often_is_not_slowed_down_by_what_is_allowed_for_beats(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        alice = await settled(town)
        reader = await town.peer("heidi", listen=False)
        began = trio.current_time()
        for _ in range(200):
            assert [offer.provider for offer in await reader.find(model=NAME)] == [alice.id]
        assert trio.current_time() - began < 0.5
