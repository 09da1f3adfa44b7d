"""Publishing and withdrawing when the disk, the network or the publisher gives up halfway."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing

from modelnet_p2p.errors import Code, LocalError, NotFound, RemoteError
from modelnet_p2p.kad import Kind, Message
from modelnet_p2p.node.disk.state import State
from modelnet_p2p.node.peer import Peer
from modelnet_p2p.records import OfferRecord
from modelnet_p2p.tuning import LAN, TEST, WAN, Tuning
from samples import own_offer

# Any: the fixture that opens a town, see conftest.py
OpenTown = Any
DIGIT = np.zeros((1, 8, 8), np.float32)
NAME = "modelnet/digits"


class Disk:
    """Sequence numbers and models as `State` keeps them, on a disk that can be full."""

    def __init__(self) -> None:
        self.full = False
        self.stuck = False
        self.published: dict[str, Any] = {}
        self.withdrawn: dict[str, Any] = {}
        self._highest = 0

    def _write(self) -> None:
        if self.full:
            raise LocalError(Code.BAD_STATE, "no space left on device")

    def take_seq(self, now_unix: float) -> int:
        self._write()
        self._highest = max(self._highest + 1, int(now_unix * 1000))
        return self._highest

    def remember(self, model: str, source: Any, seq: int, described: Any = None) -> None:
        self._write()
        self.published[model] = source

    def forget(self, model: str, seq: int, tombstone: bytes, expires_unix: int) -> None:
        self._write()
        self.published.pop(model, None)

    def drop(self, model: str) -> None:
        if self.stuck:
            raise LocalError(Code.BAD_STATE, "read-only file system")
        self.published.pop(model, None)

    def settle(self, now_unix: float) -> None:
        self._write()


@asynccontextmanager
async def peer_on(town: Any, name: str, disk: Disk, **tuning: Any) -> AsyncIterator[Peer]:
    key, settings = town.key(name), replace(TEST, **tuning)
    state: Any = disk
    assert all(hasattr(State, part) for part in ("take_seq", "remember", "forget", "drop", "settle"))
    async with (
        town.world.open(key, tuning=settings) as transport,
        Peer.open_on(transport, key, "town", settings, state) as peer,
    ):
        await peer.bootstrap(next(iter(town.peers.values())).addrs)
        yield peer


async def seq_of(peer: Peer) -> int:
    models: Any = (await peer.status())["models"]
    return int(models[0]["seq"])


async def test_what_cannot_be_offered_is_neither_served_nor_remembered(open_town: OpenTown) -> None:
    async with open_town() as town:
        await town.peer("bob")
        disk = Disk()
        async with peer_on(town, "alice", disk) as alice:
            for tags in ([f"tag{number}" for number in range(9)], ["NO TAG"]):
                with pytest.raises(LocalError) as caught:
                    await alice.publish("builtin:digits", tags=tags)
                assert caught.value.code is Code.BAD_INPUT
                assert (await alice.status())["models"] == []
                assert disk.published == {}
            await alice.publish("builtin:digits")
            assert NAME in disk.published


async def test_who_speaks_what_only_ours_speak_is_told_without_being_asked_first(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        alice = await town.peer("alice")
        bob = await town.peer("bob")  # who joins through alice: she has never asked him anything
        asked: dict[bytes, list[Kind]] = {}
        handle = bob.parts.overlay.server.handle

        def heard(request: Message, *rest: Any) -> Any:
            asked.setdefault(request.key, []).append(request.kind)
            return handle(request, *rest)

        bob.parts.overlay.server.handle = heard
        published = await alice.parts.publisher.publish(draft_of(town, "alice"))
        assert {tuple(asked[key]) for key in published.sealed.keys} == {(Kind.ADD_PROVIDER,)}


async def test_a_full_disk_does_not_keep_a_model_from_being_taken_back(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        bob = await town.peer("bob")
        disk = Disk()
        async with peer_on(town, "alice", disk, record_lifetime=1000.0) as alice:
            await alice.publish("builtin:digits")
            seq = await seq_of(alice)
            disk.full = True
            with pytest.raises(LocalError, match="served no more, but the network cannot be told: no space"):
                await alice.unpublish(NAME)
            assert (await alice.status())["models"] == []
            assert disk.published == {}  # the next start does not bring it back
            (offer,) = await bob.find(model=NAME)
            with pytest.raises(NotFound):
                await alice.unpublish(NAME)
            await trio.sleep(600)
            (same,) = await bob.find(model=NAME)
            assert same.record.seq == offer.record.seq == seq  # it is not renewed
            disk.full = False
            await alice.publish("builtin:digits")
            assert await seq_of(alice) > seq
            assert (await alice.unpublish(NAME))["withdrawn"]


async def test_a_disk_that_takes_nothing_changes_nothing_and_ends_nothing(open_town: OpenTown) -> None:
    async with open_town() as town:
        bob = await town.peer("bob")
        disk = Disk()
        async with peer_on(town, "alice", disk) as alice:
            disk.full = True
            with pytest.raises(LocalError, match="no space"):
                await alice.publish("builtin:digits")
            assert (await alice.status())["models"] == []
            disk.full = False
            await alice.publish("builtin:digits")
            disk.full = disk.stuck = True
            with pytest.raises(LocalError, match="no space"):
                await alice.unpublish(NAME)
            assert (await bob.invoke(NAME, DIGIT))["label"]  # it is served as before
            disk.full = disk.stuck = False
            assert (await alice.unpublish(NAME))["withdrawn"]
            with pytest.raises(NotFound):
                await bob.invoke(NAME, DIGIT)
            disk.full = True
            await alice.parts.restoring.restore()  # which forgets old withdrawals, or tries to


async def test_a_renewal_that_the_disk_does_not_allow_is_tried_again(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        await town.peer("bob")
        disk = Disk()
        async with peer_on(town, "alice", disk, record_lifetime=1000.0) as alice:
            await alice.publish("builtin:digits")
            seq = await seq_of(alice)
            disk.full = True
            await trio.sleep(550)
            assert await seq_of(alice) == seq
            disk.full = False
            await trio.sleep(100)
            assert await seq_of(alice) > seq


async def test_an_offer_that_is_due_for_renewal_while_it_is_withdrawn(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        await town.peer("bob")
        async with peer_on(town, "alice", Disk(), record_lifetime=1000.0) as alice:
            await alice.publish("builtin:digits")
            await trio.sleep(499.9)
            town.freeze("bob")  # the withdrawal takes its time, and half of the offer's life is over
            with pytest.raises(RemoteError, match="nobody else was told"):
                await alice.unpublish(NAME)
            await trio.sleep(10)
            town.world.thaw(town.peers["bob"].peer_id)
            await trio.sleep(30)
            assert await town.peers["bob"].find(model=NAME, all=True) == []


async def test_who_does_not_wait_for_a_publish_has_published_all_the_same(open_town: OpenTown) -> None:
    async with open_town() as town:
        bob = await town.peer("bob")
        async with peer_on(town, "alice", Disk()) as alice:
            town.freeze("bob")
            with trio.move_on_after(0.2):
                await alice.publish("builtin:digits")
            town.world.thaw(bob.peer_id)
            with trio.fail_after(10):
                while (await bob.status())["records"] == 0:
                    await trio.sleep(0.01)
            assert (await bob.find(model=NAME))[0].provider == alice.id
            assert (await alice.unpublish(NAME))["withdrawn"]


async def test_another_version_takes_the_place_of_the_first_also_when_nobody_hears_of_it(
    open_town: OpenTown, tmp_path: Path
) -> None:
    (tmp_path / "pubshop.py").write_text("def shout(text: str) -> str:\n    return text.upper()\n")
    async with open_town() as town:
        bob = await town.peer("bob")
        async with peer_on(town, "alice", Disk()) as alice:

            async def publish(version: str) -> None:
                await alice.publish(
                    "pubshop:shout", model=f"shout@{version}", task="x-town/shout", cwd=str(tmp_path)
                )

            await publish("1")
            town.freeze("bob")
            with pytest.raises(RemoteError, match="nobody else was told"):
                await publish("2")
            town.world.thaw(bob.peer_id)
            with trio.fail_after(20):
                while [offer.model for offer in await bob.find(model="shout", all=True)] != ["shout@2"]:
                    await trio.sleep(0.1)
            assert (await alice.unpublish("shout"))["withdrawn"]


def draft_of(town: Any, name: str) -> OfferRecord:
    """An offer to publish without a model behind it: nothing of its telling depends on how fast one loads."""
    return own_offer(town.key(name), "acme/one", "x-acme/one", network="town")


@pytest.mark.parametrize("tuning", [LAN, WAN], ids=lambda tuning: tuning.name)
@pytest.mark.parametrize("acquainted", [0.0, 2.0, 30.0])
async def test_beside_a_frozen_neighbour_alone_a_publish_says_that_nobody_was_told(
    acquainted: float, tuning: Tuning, open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    """However long it takes to give up: who was dropped for his silence only now was there to be told."""
    async with open_town() as town:
        alice, bob = await town.peer("alice", tuning=tuning), await town.peer("bob", tuning=tuning)
        await trio.sleep(acquainted)  # how fast bob answers is known, or it is not
        assert bob.peer_id in alice.parts.overlay.table
        town.freeze("bob")
        began = trio.current_time()
        with pytest.raises(RemoteError, match="no peer that is known here answered") as caught:
            await alice.parts.publisher.publish(draft_of(town, "alice"))
        assert caught.value.code is Code.UNREACHABLE
        assert "told again" in caught.value.hint
        assert trio.current_time() - began < 10 * tuning.patience
        town.world.thaw(bob.peer_id)
        await bob.bootstrap(alice.addrs)  # as `join` does where it knows nobody
        with trio.fail_after(30):
            while not await bob.find(model="acme/one", all=True):
                await trio.sleep(1)


@pytest.mark.parametrize("fate", ["frozen for long", "killed"])
async def test_who_has_no_neighbour_any_more_is_alone(
    fate: str, open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        alice, _ = await town.peer("alice", tuning=LAN), await town.peer("bob", tuning=LAN)
        await trio.sleep(2)
        if fate == "killed":
            town.kill("bob")
        else:
            town.freeze("bob")
            await trio.sleep(120)
            assert not len(alice.parts.overlay.table)
        published = await alice.parts.publisher.publish(draft_of(town, "alice"))
        assert (published.asked, published.stored) == (0, 0)


async def test_a_frozen_neighbour_holds_up_no_publish_where_another_answers(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    async with open_town() as town:
        alice = await town.peer("alice", tuning=LAN)
        for name in ("bob", "carol"):
            await town.peer(name, tuning=LAN)
        await trio.sleep(2)
        town.freeze("bob")
        published = await alice.parts.publisher.publish(draft_of(town, "alice"))
        assert (published.asked, published.stored) == (1, 1)


async def test_who_only_speaks_like_one_of_ours_is_asked_first_after_it_was_silent(
    open_town: OpenTown, autojump_clock: trio.testing.MockClock
) -> None:
    """As a stock node does that hears beats: ADD_PROVIDER is nothing that it answers."""
    async with open_town() as town:
        alice = await town.peer("alice")
        bob = await town.peer("bob")
        heard: list[Kind] = []
        handle = bob.parts.overlay.server.handle

        def stock(request: Message, *rest: Any) -> Any:
            heard.append(request.kind)
            reply = handle(request, *rest)
            return None if request.kind is Kind.ADD_PROVIDER else reply._replace(records=None)

        bob.parts.overlay.server.handle = stock
        publisher = alice.parts.publisher
        sealed = publisher._signing.together([draft_of(town, "alice")])[0].sealed
        key = next(iter(sealed.keys))
        for first in (Kind.ADD_PROVIDER, Kind.FIND_NODE, Kind.FIND_NODE):
            heard.clear()
            await publisher._store(key, [sealed])
            assert heard[0] is first
            await trio.sleep(5)  # until the request that was not answered has failed
