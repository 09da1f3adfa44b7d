"""Stories of peers that say what a model costs, where it runs, under which licence, and are found by it."""

from __future__ import annotations

from typing import Any

import pytest

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.peer import Peer

# Any: the fixture that opens a town, see conftest.py
OpenTown = Any
TASK = "x-town/repeat"


async def found(peer: Peer, condition: str) -> list[str]:
    """The models of the task for which this holds."""
    return sorted(offer.model for offer in await peer.find(where=f"task:{TASK} and {condition}"))


async def test_a_stranger_finds_what_costs_little_and_runs_near(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        published = await alice.publish(
            "builtin:echo",
            model="alice/cheap",
            task=TASK,
            price={"usd_per_call": 0.002, "usd_per_hour": "0.5"},
            tier="edge",
            languages=["de-AT", "en"],
            licence="MIT",
        )
        assert (published["tier"], published["licence"]) == ("edge", "MIT")
        assert published["price"] == {"usd_per_call": 0.002, "usd_per_hour": 0.5}
        await alice.publish("builtin:echo", model="alice/dear", task=TASK, price={"usd_per_call": 3})
        await alice.publish("builtin:echo", model="alice/free", task=TASK)

        assert await found(bob, "cost<=0.5") == ["alice/cheap", "alice/free"]
        assert await found(bob, "cost<=0.01") == await found(bob, "cost:0") == ["alice/free"]
        assert await found(bob, "cost>=3") == ["alice/dear"]
        for condition in ("tier:edge", "language:de", "language:de-AT", "licence:mit"):
            assert await found(bob, condition) == ["alice/cheap"]
        assert await found(bob, "tier:cloud") == []

        [line] = [offer.to_map() for offer in await bob.find(model="alice/cheap")]
        assert {name: line[name] for name in ("tier", "licence", "languages", "price")} == {
            "tier": "edge",
            "licence": "MIT",
            "languages": ["de-AT", "en"],
            "price": {"usd_per_call": 0.002, "usd_per_hour": 0.5},
        }
        assert {"tier", "price", "languages"}.isdisjoint((await bob.find(model="alice/free"))[0].to_map())
        [shown] = await bob.show("alice/cheap")
        record: Any = shown["record"]
        assert (record["tier"], record["price"]) == ("edge", {"usd_per_call": 2000, "usd_per_hour": 500_000})

        await alice.publish("builtin:echo", model="alice/cheap", task=TASK)  # its price is taken back
        assert await found(bob, "cost:0") == ["alice/cheap", "alice/free"]
        assert await found(bob, "tier:edge") == []


async def test_a_dry_run_tells_the_terms_and_nobody_else(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice = await town.peer("alice")
        said = await alice.publish(
            "builtin:echo", model="alice/echo", tier="device", price={"eur_per_call": 1}, dry_run=True
        )
        assert (said["tier"], said["price"]) == ("device", {"eur_per_call": 1.0})
        assert (await alice.status())["models"] == []


async def test_a_licence_that_the_owner_has_not_sealed_is_refused(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice = await town.peer("alice")
        with pytest.raises(
            LocalError, match="the owner's seal of modelnet/digits is for another licence"
        ) as caught:
            await alice.publish("builtin:digits", licence="WTFPL")
        assert caught.value.code is Code.BAD_INPUT
        assert (await alice.status())["models"] == []
        own = await alice.publish("builtin:digits", model="alice/digits", licence="WTFPL")
        assert (own["owner"], own["licence"]) == (alice.id, "WTFPL")


async def test_offers_that_are_hidden_for_nobody_answers_there_are_counted(open_town: OpenTown) -> None:
    async with open_town() as town:
        bob = await town.peer("bob")
        await (await town.peer("alice")).publish("builtin:digits")
        assert (await bob.explain(where="model:modelnet/digits and tier:edge")).tally.silent == 0
        town.kill("alice")
        gone = await bob.explain(model="modelnet/digits")
        assert (gone.offers, gone.to_map()["silent"]) == ((), 1)
        everybody = await bob.explain(model="modelnet/digits", all=True)
        assert (len(everybody.offers), everybody.tally.silent) == (1, 0)
