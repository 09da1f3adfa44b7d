"""A busy peer names another one that serves the same model, and callers go there at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import trio

from crowds import fill
from modelnet_p2p.errors import Code, RemoteError
from modelnet_p2p.node.peer import Peer
from modelnet_p2p.node.serving.description import Description

OpenTown = Any  # the fixture that opens a town, see conftest.py
DIGIT = np.zeros((1, 8, 8), np.float32)
NAME = "modelnet/digits"


def description(peer: Peer) -> Description:
    served = peer.parts.models.get(NAME)
    assert served is not None
    return served.description


async def busy(caller: Peer, provider: Peer) -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        await caller.call(NAME, DIGIT, provider=provider.id)
    assert caught.value.code is Code.BUSY
    return caught.value


async def test_a_busy_peer_names_another_and_the_call_goes_there(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, bob, carol = [await town.peer(name) for name in ("alice", "bob", "carol")]
        for provider in (alice, bob):
            await provider.publish("builtin:digits")
        fill(alice, NAME)
        assert (await busy(carol, alice)).instead == bob.id
        for _ in range(8):
            outcome = await carol.call(NAME, DIGIT)
            assert outcome.provider == bob.id
        # with what carol remembers of her search gone stale, bob is read under his own key
        offer = next(offer for offer in await carol.find(model=NAME) if offer.provider == alice.id)
        target = carol._target(NAME, None)
        found = await carol.parts.router.find_at(target, bob.id, offer)
        assert found is not None
        assert found.provider == bob.id


async def test_whom_the_caller_has_asked_already_is_named_to_nobody(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, bob, carol = [await town.peer(name) for name in ("alice", "bob", "carol")]
        for provider in (alice, bob):
            await provider.publish("builtin:digits")
            fill(provider, NAME)
        with pytest.raises(RemoteError) as caught:
            await carol.call(NAME, DIGIT)
        assert (caught.value.code, caught.value.instead) == (Code.BUSY, "")
        assert "instead" not in caught.value.to_map()


async def test_who_knows_of_nobody_names_nobody(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, carol = [await town.peer(name) for name in ("alice", "carol")]
        await alice.publish("builtin:digits")
        fill(alice, NAME)
        assert (await busy(carol, alice)).instead == ""


async def test_only_the_same_model_of_the_same_owner_is_named(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, bob = [await town.peer(name) for name in ("alice", "bob")]
        for provider in (alice, bob):
            await provider.publish("builtin:digits")
        mine = description(alice)
        assert alice.parts.elsewhere.name(mine) == bob.id
        for other in (
            replace(mine, version="7"),
            replace(mine, name="modelnet/letters"),
            replace(mine, manifest_envelope=b"another seal"),
            replace(mine, manifest_envelope=None),
        ):
            assert alice.parts.elsewhere.name(other) == ""
        await bob.unpublish(NAME)
        assert alice.parts.elsewhere.name(mine) == ""


async def test_a_lying_hint_leads_nowhere(open_town: OpenTown) -> None:
    """Whoever is named must have an offer that is meant, sealed by the same owner."""
    async with open_town() as town:
        alice, bob, mallory = [await town.peer(name) for name in ("alice", "bob", "mallory")]
        await alice.publish("builtin:digits")
        await mallory.publish("builtin:echo", model=NAME)  # her own model by that name
        offer = next(offer for offer in await bob.find(model=NAME) if offer.provider == alice.id)
        router, target = bob.parts.router, bob._target(NAME, None)
        with trio.fail_after(60):
            for lie in (mallory.id, bob.id, "12D3KooWnobody", "", "x" * 128, town.key("nobody").id.text):
                assert await router.find_at(target, lie, offer) is None
        found = await router.find_at(target, alice.id, offer)
        assert found is not None
