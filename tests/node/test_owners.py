"""Whose model a bare name means: remembered on first use, chosen by command, never changed by a stranger."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bad_disks import FullDisk, Stop, StoppingDisk
from modelnet_p2p.errors import Code, LocalError, NotFound
from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.names import ModelUri
from modelnet_p2p.node import owners as page
from modelnet_p2p.node.owners import Owners, forget, trust
from modelnet_p2p.query import Query

# Any: the fixture that opens a town, see conftest.py
OpenTown = Any
NOW = 1_790_000_000.5


def owner(name: str) -> PeerId:
    return KeyPair(hashlib.sha256(name.encode()).digest()).id


def query(text: str) -> Query:
    return Query.of_uri(ModelUri.parse(text), "town")


ALICE, BOB = owner("alice"), owner("bob")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "home" / "owners"


def test_the_first_answer_decides_and_a_choice_replaces_it(place: Path) -> None:
    owners = Owners("town", place)
    assert owners.meant(query("shout")) is None
    owners.used(query("shout"), ALICE, NOW)
    owners.used(query("shout@2"), BOB, NOW)  # the name is the same, whatever its version
    assert owners.meant(query("shout@2")) == ALICE
    assert [stat.S_IMODE(path.stat().st_mode) for path in (place.parent, place)] == [0o700, 0o700]
    assert trust(owners, "shout", BOB.text)["how"] == "chosen"
    assert owners.meant(query("shout")) == BOB
    assert forget(owners, "shout") == {"model": "shout", "forgotten": True}
    assert owners.meant(query("shout")) is None
    with pytest.raises(NotFound, match="shout"):
        forget(owners, "shout")


@pytest.mark.parametrize("kept", [True, False], ids=["in a home", "without a home"])
def test_what_is_remembered_is_listed_and_ends_with_a_peer_that_has_no_home(place: Path, kept: bool) -> None:
    where = place if kept else None
    owners = Owners("town", where)
    owners.used(query("shout"), ALICE, NOW)
    owners.trust("acme/count", BOB, NOW)
    assert [known.to_map() for known in owners.all()] == [
        {"model": "acme/count", "owner": BOB.text, "how": "chosen", "since_unix": int(NOW)},
        {"model": "shout", "owner": ALICE.text, "how": "first-use", "since_unix": int(NOW)},
    ]
    assert Owners("town", where).all() == (owners.all() if kept else [])
    assert Owners("city", where).all() == []  # another network, another owner
    assert Owners("city", where).meant(query("shout")) is None


@pytest.mark.parametrize(
    "text",
    [f"modelnet:shout?owner={BOB}", f"modelnet:shout?provider={BOB}", f"shout?owner={BOB}&provider={BOB}"],
)
def test_who_says_whose_model_is_meant_neither_asks_the_memory_nor_changes_it(place: Path, text: str) -> None:
    owners = Owners("town", place)
    owners.used(query(text), BOB, NOW)
    owners.used(Query(task="x-town/shout", network="town"), BOB, NOW)
    assert owners.all() == []
    owners.used(query("shout"), ALICE, NOW)
    assert owners.meant(query(text)) is None


def test_what_another_process_changes_is_seen_by_the_next_call(place: Path) -> None:
    peer, command = Owners("town", place), Owners("town", place)
    assert peer.meant(query("shout")) is None
    command.used(query("shout"), ALICE, NOW)
    assert peer.meant(query("shout")) == ALICE
    command.trust("shout", BOB, NOW)
    assert peer.meant(query("shout")) == BOB
    command.forget("shout")
    assert peer.meant(query("shout")) is None
    command.used(query("shout"), ALICE, NOW)
    peer.used(query("shout"), BOB, NOW)  # a call that began before
    assert peer.meant(query("shout")) == command.meant(query("shout")) == ALICE


def test_damage_is_named_and_never_decided_anew_in_silence(place: Path) -> None:
    owners = Owners("town", place)
    owners.used(query("acme/shout"), ALICE, NOW)
    [path] = place.iterdir()
    whole = path.read_bytes()
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        for act in (lambda: Owners("town", place).meant(query("acme/shout")), Owners("town", place).all):
            with pytest.raises(LocalError) as caught:
                act()
            assert caught.value.code is Code.BAD_STATE
            assert str(path) in caught.value.message
            assert "owner trust acme/shout OWNER" in caught.value.hint
    owners.trust("acme/shout", BOB, NOW)
    assert owners.meant(query("acme/shout")) == BOB
    path.write_bytes(b"")
    assert owners.forget("acme/shout")
    assert owners.meant(query("acme/shout")) is None


def test_a_file_under_another_names_name_is_damage(place: Path) -> None:
    owners = Owners("town", place)
    owners.used(query("shout"), ALICE, NOW)
    [shout] = place.iterdir()
    owners.used(query("count"), BOB, NOW)
    [count] = set(place.iterdir()) - {shout}
    os.replace(count, shout)
    with pytest.raises(LocalError, match="belongs to another name"):
        owners.meant(query("shout"))


@pytest.mark.parametrize(
    ("change", "after"),
    [(lambda owners: owners.trust("shout", BOB, NOW), BOB), (lambda owners: owners.forget("shout"), None)],
    ids=["trust", "forget"],
)
def test_a_choice_is_old_or_new_wherever_it_stops(
    place: Path, change: Callable[[Owners], object], after: PeerId | None
) -> None:
    stops = 0
    while True:
        Owners("town", place).trust("shout", ALICE, NOW)
        try:
            change(Owners("town", place, disk=StoppingDisk(stops, random.Random(stops))))
        except Stop:
            stops += 1
            assert Owners("town", place).meant(query("shout")) in (ALICE, after)
            continue
        break
    assert stops > 0
    assert Owners("town", place).meant(query("shout")) == after
    assert all(not path.name.startswith(".") for path in place.iterdir())  # nothing is left lying about


def test_a_full_disk_costs_no_answer_and_no_choice_is_lost_in_silence(place: Path) -> None:
    owners = Owners("town", place, disk=FullDisk())
    owners.used(query("shout"), ALICE, NOW)
    assert owners.meant(query("shout")) == ALICE  # until the end of this peer
    assert Owners("town", place).meant(query("shout")) is None
    with pytest.raises(LocalError, match="No space left"):
        owners.trust("shout", BOB, NOW)


def test_a_process_that_stopped_in_the_midst_of_a_change_holds_nobody_up(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "LOCK_SECONDS", 0.02)
    owners = Owners("town", place)
    owners.trust("count", ALICE, NOW)
    descriptor = os.open(place, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(LocalError, match="another process"):
            owners.trust("shout", BOB, NOW)
        owners.used(query("shout"), ALICE, NOW)  # the call that was answered stays answered
        assert owners.meant(query("shout")) == ALICE
    finally:
        os.close(descriptor)
    owners.trust("shout", BOB, NOW)
    assert Owners("town", place).meant(query("shout")) == BOB


@pytest.mark.parametrize("kept", [True, False])
def test_there_is_an_end_to_what_is_remembered(
    place: Path, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "MAX_OWNERS", 3)
    owners = Owners("town", place if kept else None)
    for number in range(3):
        owners.trust(f"model{number}", ALICE, NOW)
    with pytest.raises(LocalError, match="3 names already"):
        owners.trust("model3", ALICE, NOW)
    owners.trust("model2", BOB, NOW)
    assert owners.meant(query("model2")) == BOB


def test_only_a_key_that_signs_can_own(place: Path) -> None:
    owners = Owners("town", place)
    rsa = PeerId(b"\x12\x20" + bytes(32))
    with pytest.raises(LocalError) as caught:
        owners.trust("shout", rsa, NOW)
    assert caught.value.code is Code.BAD_INPUT
    with pytest.raises(LocalError):
        trust(owners, "SHOUT", ALICE.text)


# --- peers ---


async def test_a_name_that_was_used_keeps_its_owner_whoever_claims_it_later(
    open_town: OpenTown, shop: Path
) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        carol = await town.peer("carol", listen=False)
        await alice.publish("ownershop:loud", model="say", task="x-town/say", cwd=str(shop))
        assert await carol.invoke("say", "hello") == "HELLO"
        await bob.publish("ownershop:quiet", model="say", task="x-town/say", cwd=str(shop))
        dave = await town.peer("dave", listen=False)
        with pytest.raises(NotFound) as caught:  # dave has never called it
            await dave.invoke("say", "Hello")
        assert caught.value.code is Code.AMBIGUOUS
        assert {alice.id, bob.id} <= set(caught.value.message.replace(",", "").split())
        dave.owners.trust("say", bob.peer_id, NOW)
        assert {await dave.invoke("say", "Hello") for _ in range(4)} == {"hello"}
        assert {await carol.invoke("say", "Hello") for _ in range(4)} == {"HELLO"}
        assert [item async for item in dave.stream("say", "Hello")] == ["hello"]


async def test_a_version_that_nobody_else_has_does_not_decide_whose_the_name_is(
    open_town: OpenTown, shop: Path
) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        carol = await town.peer("carol", listen=False)
        await alice.publish("ownershop:loud", model="say@1", cwd=str(shop))
        dave = await town.peer("dave", listen=False)
        assert await dave.invoke("say@1", "Hello") == "HELLO"
        await bob.publish("ownershop:quiet", model="say@2", cwd=str(shop))
        assert await carol.invoke("say@2", "Hello") == "hello"
        assert await carol.invoke("say@1", "Hello") == "HELLO"
        with pytest.raises(NotFound) as caught:
            await carol.invoke("say", "Hello")
        assert caught.value.code is Code.AMBIGUOUS
        assert carol.owners.all() == []
        assert await dave.invoke("say", "Hello") == "HELLO"  # he called it when it was alice's alone
        await alice.unpublish("say")
        erin = await town.peer("erin", listen=False)
        assert await erin.invoke("say@2", "Hello") == "hello"  # bob's alone by now
        assert [known.owner for known in erin.owners.all()] == [bob.peer_id]


async def test_when_the_remembered_owner_is_gone_nobody_takes_the_name_over(
    open_town: OpenTown, shop: Path
) -> None:
    async with open_town() as town:
        bob = await town.peer("bob")
        alice = await town.peer("alice")
        carol = await town.peer("carol", listen=False)
        await alice.publish("ownershop:loud", model="say", cwd=str(shop))
        await carol.invoke("say", "hello")
        await bob.publish("ownershop:quiet", model="say", cwd=str(shop))
        await alice.unpublish("say")
        with pytest.raises(NotFound) as caught:
            await carol.invoke("say", "hello")
        assert caught.value.code is Code.AMBIGUOUS
        assert alice.id in caught.value.message
        assert f"owner trust say {bob.id}" in caught.value.hint
        assert await carol.invoke(f"modelnet:say?owner={bob.id}", "Hello") == "hello"
        carol.owners.trust("say", bob.peer_id, NOW)
        assert await carol.invoke("say", "Hello") == "hello"


async def test_of_several_owners_the_hint_names_one_that_answers(open_town: OpenTown, shop: Path) -> None:
    async with open_town() as town:
        first = await town.peer("first")
        rivals = sorted([await town.peer("alice"), await town.peer("bob")], key=lambda peer: peer.id)
        for peer in rivals:
            await peer.publish("ownershop:loud", model="say", cwd=str(shop))
        silent, living = rivals  # the smaller id would be named by the alphabet
        assert first.id not in (silent.id, living.id)
        carol = await town.peer("carol", listen=False)
        town.freeze(next(name for name, peer in town.peers.items() if peer is silent))
        with pytest.raises(NotFound) as caught:
            await carol.invoke("say", "hello", timeout=20)
        assert caught.value.code is Code.AMBIGUOUS
        assert f"owner={living.id}" in caught.value.hint
        assert silent.id in caught.value.message
        assert silent.id not in caught.value.hint


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "ownershop.py").write_text(
        """
def loud(text: str) -> str:
    return text.upper()

def quiet(text: str) -> str:
    return text.lower()
"""
    )
    return tmp_path
