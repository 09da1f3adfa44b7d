"""Several providers of one owner's model: each serves it in the owner's name, and nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from modelnet_p2p.errors import Code, LocalError, NotFound
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.node.manifests import full_name, seal_described, sealed_manifest
from modelnet_p2p.node.serving.source import Source

# Any: the fixture that opens a town, see conftest.py
OpenTown = Any
ACME = KeyPair(hashlib.sha256(b"acme").digest())
LOUD = {"model": "acme/loud@1", "task": "x-acme/loud", "digest": None, "licence": "MIT"}
SEAL = seal_described(LOUD, ACME, None, 1_790_000_000)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "replicashop.py").write_text(
        """
def one(text: str) -> str:
    return text.upper()

def two(text: str) -> str:
    return text.upper() + "!"
"""
    )
    return tmp_path


async def test_a_name_served_by_two_providers_of_one_owner_is_one_model(
    open_town: OpenTown, shop: Path
) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        carol = await town.peer("carol", listen=False)
        for peer in (alice, bob):
            told = await peer.publish("replicashop:one", manifest=SEAL, cwd=str(shop))
            assert (told["model"], told["owner"], told["task"], told["licence"]) == (
                "acme/loud@1", str(ACME.id), "x-acme/loud", "MIT",
            )  # fmt: skip
        first = (await carol.call("acme/loud", "hello")).provider
        assert carol.owners.known("acme/loud").owner == ACME.id
        await (alice if first == alice.id else bob).unpublish("acme/loud")
        outcome = await carol.call("acme/loud", "hello")  # the other one, without a question
        assert (outcome.output, outcome.provider) == ("HELLO", bob.id if first == alice.id else alice.id)


async def test_all_that_an_owner_signed_is_found_by_its_id_until_it_is_withdrawn(
    open_town: OpenTown, shop: Path
) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        carol = await town.peer("carol", listen=False)
        for peer in (alice, bob):
            await peer.publish("replicashop:one", manifest=SEAL, cwd=str(shop))
        await alice.publish("replicashop:two", model="alice/two", task="x-acme/loud", cwd=str(shop))

        async def found(owner: object) -> set[tuple[str, str]]:
            return {(offer.model, offer.provider) for offer in await carol.find(where=f"owner:{owner}")}

        assert await found(ACME.id) == {("acme/loud@1", alice.id), ("acme/loud@1", bob.id)}
        assert await found(alice.id) == {("alice/two", alice.id)}
        await alice.unpublish("acme/loud")
        assert await found(ACME.id) == {("acme/loud@1", bob.id)}


async def test_a_provider_takes_the_owners_seal_up_in_the_place_of_its_own(
    open_town: OpenTown, shop: Path
) -> None:
    async with open_town() as town:
        alice = await town.peer("alice")
        carol = await town.peer("carol", listen=False)
        names = {"model": "acme/loud@1", "task": "x-acme/loud"}
        assert (await alice.publish("replicashop:one", **names, cwd=str(shop)))["owner"] == alice.id
        await alice.publish("replicashop:one", manifest=SEAL, cwd=str(shop))
        assert [offer.owner for offer in await carol.find(model="acme/loud")] == [str(ACME.id)]
        assert len((await alice.status())["models"]) == 1


@pytest.mark.parametrize(
    "asked", [{"model": "acme/quiet"}, {"model": "acme/loud@2"}, {"task": "x-acme/quiet"}]
)
async def test_a_seal_stands_for_the_model_that_it_names_only(
    open_town: OpenTown, shop: Path, asked: dict[str, str]
) -> None:
    async with open_town() as town:
        alice = await town.peer("alice")
        with pytest.raises(LocalError) as caught:
            await alice.publish("replicashop:one", manifest=SEAL, cwd=str(shop), **asked)
        assert caught.value.code is Code.BAD_INPUT
        assert (await alice.status())["models"] == []


async def test_a_seal_that_is_broken_is_refused_before_anything_is_loaded(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice = await town.peer("alice")
        broken = bytearray(SEAL)
        broken[-1] ^= 1
        with pytest.raises(LocalError, match="no owner's seal"):
            await alice.publish("no_such_module:f", manifest=bytes(broken))


async def test_who_wants_version_1_gets_it_while_others_serve_version_2(
    open_town: OpenTown, shop: Path
) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        carol = await town.peer("carol", listen=False)
        second = seal_described({**LOUD, "model": "acme/loud@2"}, ACME, None, 1_790_000_100)
        await alice.publish("replicashop:one", manifest=SEAL, cwd=str(shop))
        await bob.publish("replicashop:two", manifest=second, cwd=str(shop))
        for _ in range(3):
            assert await carol.invoke("acme/loud@1", "hello") == "HELLO"
            assert await carol.invoke("acme/loud@2", "hello") == "HELLO!"
            assert await carol.invoke("acme/loud", "hello") in ("HELLO", "HELLO!")


async def test_a_model_rolls_from_one_version_to_the_next_without_a_failed_call(
    open_town: OpenTown, shop: Path
) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        carol = await town.peer("carol", listen=False)
        second = seal_described({**LOUD, "model": "acme/loud@2"}, ACME, None, 1_790_000_100)
        for peer in (alice, bob):
            await peer.publish("replicashop:one", manifest=SEAL, cwd=str(shop))
        first = (await carol.call("acme/loud@1", "hello")).provider
        rolls, stays = (alice, bob) if first == alice.id else (bob, alice)
        await rolls.publish("replicashop:two", manifest=second, cwd=str(shop))
        outcome = await carol.call("acme/loud@1", "hello")  # carol does not know yet who has rolled
        assert (outcome.output, outcome.provider) == ("HELLO", stays.id)
        assert await carol.invoke("acme/loud@2", "hello") == "HELLO!"
        await stays.publish("replicashop:two", manifest=second, cwd=str(shop))
        with pytest.raises(NotFound) as caught:
            await carol.invoke("acme/loud@1", "hello")
        assert caught.value.code is Code.NOT_FOUND
        assert await carol.invoke("acme/loud", "hello") == "HELLO!"


def test_a_seal_is_remembered_with_its_source() -> None:
    source = Source("m:f", manifest=SEAL)
    assert Source.from_map(source.to_map()) == source
    assert "manifest" not in Source("m:f").to_map()  # as before there were any
    for nonsense in (7, "not base64!", ["x"]):
        with pytest.raises(ValueError, match=r"seal|base64|padd|[Bb]ytes"):
            Source.from_map({**Source("m:f").to_map(), "manifest": nonsense})
    manifest = sealed_manifest(SEAL)
    assert (full_name(manifest), manifest.owner) == ("acme/loud@1", ACME.id)
