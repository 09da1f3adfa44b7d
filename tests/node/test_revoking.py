"""Acme's key, with which a model is sealed that two peers serve, is stolen and revoked."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from bad_disks import FullDisk, Stop, StoppingDisk
from modelnet_p2p.dht.holding.revocations import PINNED, READ
from modelnet_p2p.errors import Code, LocalError, NotFound
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.names import Keys, provider_key
from modelnet_p2p.node.checkup.health import concerns
from modelnet_p2p.node.disk.revocations import Kept, RevocationFiles
from modelnet_p2p.node.manifests import seal_end
from modelnet_p2p.node.peer import Peer
from modelnet_p2p.records import Manifest, Revocation, Sealed, seal_manifest, seal_revocation

# Any: the fixture that opens a town, see conftest.py
OpenTown = Any
NOW = 1_700_000_000
NETWORK = "town"
ACME, ACME2, THIEF = (KeyPair(name.ljust(32, b".")) for name in (b"acme", b"acme2", b"thief"))


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "revokedshop.py").write_text("def loud(text: str) -> str:\n    return text.upper()\n")
    return tmp_path


def seal_of(key: KeyPair, name: str = "acme/loud") -> bytes:
    return seal_manifest(Manifest(key.id, name, "x-modelnet/function", NOW), key)


async def serve(peer: Peer, shop: Path, key: KeyPair = ACME, **more: Any) -> dict[str, object]:
    return await peer.publish("revokedshop:loud", manifest=seal_of(key), cwd=str(shop), **more)


def end_of(key: KeyPair, reason: str = "stolen", successor: KeyPair | None = None) -> bytes:
    return seal_end(key, reason, str(successor.id) if successor else None, NOW * 1_000_000)


def heard(peer: Peer) -> list[str]:
    lines: list[str] = []
    peer.notices.listen(lines.append)
    return lines


async def test_callers_and_providers_of_a_revoked_owner_are_told_and_nobody_takes_the_name_over(
    open_town: OpenTown, shop: Path
) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        carol, dave = await town.peer("carol", listen=False), await town.peer("dave", listen=False)
        for peer in (alice, bob):
            await serve(peer, shop, tags=("shouting",))
        assert await carol.invoke("acme/loud", "hello") == "HELLO"
        news = heard(bob)
        told = await alice.revoke(end_of(ACME, successor=ACME2))
        assert told.items() >= {"revoked": ACME.id.text, "models": ["acme/loud"], "reason": "stolen"}.items()
        # its own key as an owner's and as a peer's; the model's, both providers', its task's and its tag's
        assert told["keys"] == 7
        for peer, remembers in ((carol, True), (dave, False)):
            if remembers:
                await trio.sleep(2.1)  # what a search has found is good for two seconds
            with pytest.raises(NotFound) as caught:
                await peer.invoke("acme/loud", "hello")
            assert caught.value.code is Code.NOT_FOUND
            assert f"{ACME.id}" in caught.value.message
            assert "revoked" in caught.value.message
            assert "on 2023-11-14: stolen" in caught.value.message
            # nobody can know that a revocation was not the thief's: who has no reason to trust is given none
            assert (f"owner trust acme/loud {ACME2.id}" in caught.value.hint) is remembers
            for model in ("acme/loud", f"modelnet:acme/loud?owner={ACME.id}"):
                with pytest.raises(NotFound, match="revoked"):
                    await peer.show(model)
            for query in ({"model": "acme/loud"}, {"task": "x-modelnet/function"}, {"tag": "shouting"}):
                assert await peer.find(**query) == []
        assert [known.owner for known in carol.owners.all()] == [ACME.id]
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert [line for line in news if "acme/loud is withdrawn" in line] != []
        assert (await bob.status())["models"] == (await alice.status())["models"] == []
        for status in (await alice.status(), await bob.status()):
            (ended,) = status["ended"]
            assert (
                ended.items() >= {"model": "acme/loud", "revoked": ACME.id.text, "reason": "stolen"}.items()
            )
            (word,) = [concern for concern in concerns(status) if concern.code == "ended"]
            assert f"the key {ACME.id}, which sealed it, was revoked on 2023-11-14: stolen" in word.message
        for peer in (alice, bob, carol, dave):
            with pytest.raises(LocalError) as refused:
                await serve(peer, shop) if peer.addrs else peer.revoking.check(ACME.id, "the key")
            assert refused.value.code is Code.FORBIDDEN
            assert "was revoked on" in refused.value.message
        await serve(bob, shop, ACME2)
        assert ((await bob.status())["ended"], len((await alice.status())["ended"])) == ([], 1)
        carol.owners.trust("acme/loud", ACME2.id, NOW)
        assert await carol.invoke("acme/loud", "hello") == "HELLO"


async def test_a_thief_who_publishes_later_is_refused_with_the_proof(open_town: OpenTown, shop: Path) -> None:
    async with open_town() as town:
        alice = await town.peer("alice")
        await town.peer("bob")
        # revoked in advance, before anybody has met it
        await alice.revoke(end_of(ACME), models=["acme/loud"])
        mallory = await town.peer("mallory")
        mallory_s = mallory.parts.overlay.server.revocations
        assert mallory_s.of(ACME.id) is None
        with pytest.raises(LocalError) as caught:
            await serve(mallory, shop)
        assert caught.value.code is Code.FORBIDDEN
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert (await mallory.status())["models"] == []
        assert mallory_s.of(ACME.id) is not None  # an honest provider would know now
        assert mallory_s.account_of(ACME.id) is PINNED
        refused = (await alice.status())["refused"]
        assert isinstance(refused, dict)
        assert refused["revoked"] > 0
        carol = await town.peer("carol", listen=False)
        assert await carol.find(model="acme/loud") == []
        with pytest.raises(NotFound, match="revoked"):
            await carol.invoke("acme/loud", "hello")


async def test_a_peer_whose_own_key_is_revoked_hears_of_it_and_serves_no_more(
    open_town: OpenTown, shop: Path
) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        await serve(bob, shop)
        await serve(alice, shop)
        carol = await town.peer("carol", listen=False)
        news = heard(bob)
        told = await alice.revoke(end_of(town.key("bob")))
        assert told["models"] == ["acme/loud"]
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert any("this peer's own key was revoked" in line for line in news)
        assert (await bob.status())["models"] == []
        assert {offer.provider for offer in await carol.find(model="acme/loud")} == {alice.id}
        with pytest.raises(LocalError) as caught:
            await bob.publish("builtin:digits")
        assert caught.value.code is Code.FORBIDDEN
        with pytest.raises(NotFound, match="the key of the peer that is asked for"):
            await carol.invoke("acme/loud", "hello", provider=bob.id)


async def test_who_asks_for_an_owner_hears_of_his_end_where_no_model_is_left(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice = await town.peer("alice")
        await town.peer("bob")
        await alice.revoke(end_of(ACME))
        carol = await town.peer("carol", listen=False)
        carol.owners.trust("acme/other", ACME.id, NOW)  # a model that nobody could name to alice
        with pytest.raises(NotFound, match="the key of its owner"):
            await carol.invoke("acme/other", "hello")


async def test_a_stranger_s_revocation_under_a_name_changes_nothing_for_its_owner(
    open_town: OpenTown, shop: Path
) -> None:
    async with open_town() as town:
        alice, mallory = await town.peer("alice"), await town.peer("mallory")
        await serve(alice, shop)
        await mallory.revoke(end_of(THIEF, "acme/loud has moved", ACME2), models=["acme/loud"])
        carol = await town.peer("carol", listen=False)
        assert await carol.invoke("acme/loud", "hello") == "HELLO"
        await alice.unpublish("acme/loud")
        dave = await town.peer("dave", listen=False)
        with pytest.raises(NotFound) as caught:
            await dave.invoke("acme/loud", "hello")
        assert caught.value.hint.endswith("modelnet-peer owner trust acme/loud OWNER")
        assert ACME2.id.text not in caught.value.message + caught.value.hint
        assert len(dave.parts.overlay.server.revocations) == 0


async def test_what_was_heard_is_remembered_by_the_next_run(
    open_town: OpenTown, shop: Path, tmp_path: Path
) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        for peer in (alice, bob):
            peer.keep_revocations_under(tmp_path / peer.id / "revocations")
        await serve(bob, shop)
        await alice.revoke(end_of(ACME))
        await trio.testing.wait_all_tasks_blocked(0.05)
        for peer, keys in ((alice, 5), (bob, 4)):
            [kept] = RevocationFiles(tmp_path / peer.id / "revocations").load()
            assert (kept.sealed.envelope, kept.account) == (end_of(ACME), PINNED)
            assert len(kept.told) == keys
        again = tmp_path / bob.id / "revocations"
    async with open_town() as town:  # nobody of the first world is left
        zoe, bob = await town.peer("zoe"), await town.peer("bob")
        bob.keep_revocations_under(again)
        with pytest.raises(LocalError, match="was revoked"):
            await serve(bob, shop)
        await trio.testing.wait_all_tasks_blocked(0.05)
        key = provider_key(Keys(NETWORK).model("acme/loud"))
        held = zoe.parts.overlay.server.store.page(key, b"", 1 << 16).sealeds
        assert [sealed.envelope for sealed in held] == [end_of(ACME)]


# --- the disk ---


def end(key: KeyPair = ACME, reason: str = "stolen") -> Sealed:
    return seal_revocation(Revocation(key.id, NOW * 1_000_000, reason), key)


def told(kept: list[Kept]) -> list[tuple[bytes, str | None, tuple[bytes, ...]]]:
    return [(one.sealed.envelope, one.account, one.told) for one in kept]


def test_a_file_holds_all_of_it_and_one_for_each_key(tmp_path: Path) -> None:
    files = RevocationFiles(tmp_path / "home" / "revocations")
    assert files.load() == []
    mine, theirs = Kept(end(), PINNED, (b"\x12\x20" + bytes(32),)), Kept(end(THIEF), READ)
    for kept in (mine, theirs, mine):
        files.save(kept)
    assert sorted(told(files.load()), key=repr) == sorted(told([mine, theirs]), key=repr)
    files.remove(THIEF.id)
    files.remove(THIEF.id)
    assert told(files.load()) == told([mine])


def damaged(whole: bytes) -> Iterator[bytes]:
    for at in range(0, len(whole), 5):
        yield whole[:at]
        yield whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]


def test_damage_at_any_byte_is_named_and_nothing_is_forgotten_in_silence(tmp_path: Path) -> None:
    files = RevocationFiles(tmp_path)
    files.save(Kept(end(), PINNED))
    [path] = tmp_path.iterdir()
    whole, count = path.read_bytes(), 0
    for data in damaged(whole):
        path.write_bytes(data)
        with pytest.raises(LocalError) as caught:
            files.load()
        assert caught.value.code is Code.BAD_STATE
        assert str(path) in caught.value.message
        assert "\n" not in caught.value.message
        count += 1
    assert count > len(whole) // 3
    path.write_bytes(whole)
    assert len(files.load()) == 1
    path.rename(tmp_path / f"{THIEF.id}.json")
    with pytest.raises(LocalError, match="belongs to another key"):
        files.load()


def test_wherever_it_stops_the_file_is_the_old_or_the_new_one(tmp_path: Path) -> None:
    old = Kept(end(), READ)
    new = replace(old, account=PINNED, told=(bytes(34),))
    RevocationFiles(tmp_path).save(old)
    stops = 0
    while True:
        try:
            RevocationFiles(tmp_path, disk=StoppingDisk(stops, random.Random(stops))).save(new)
        except Stop:
            stops += 1
            assert told(RevocationFiles(tmp_path).load()) in (told([old]), told([new]))
            continue
        break
    assert stops > 5
    assert told(RevocationFiles(tmp_path).load()) == told([new])


async def test_a_damaged_file_keeps_a_peer_from_starting_and_is_named(
    open_town: OpenTown, tmp_path: Path
) -> None:
    RevocationFiles(tmp_path).save(Kept(end(), PINNED))
    [path] = tmp_path.iterdir()
    path.write_bytes(b"")
    async with open_town() as town:
        alice = await town.peer("alice")
        with pytest.raises(LocalError) as caught:
            alice.keep_revocations_under(tmp_path)
        assert str(path) in caught.value.message


async def test_what_strangers_told_is_written_one_after_the_other_and_the_last_of_it_on_leaving(
    open_town: OpenTown, tmp_path: Path
) -> None:
    async with open_town() as town:
        alice = await town.peer("alice")
        alice.keep_revocations_under(tmp_path)
        for number in range(5):
            key = KeyPair(b"stranger%d" % number + bytes(23))
            alice.revoking.remember(end(key), "198.51.100.0/24")
        await trio.sleep(0.25)
        written = len(list(tmp_path.glob("*.json")))
        assert 0 < written < 5
    assert len(RevocationFiles(tmp_path).load()) == 5


async def test_what_was_withdrawn_while_its_end_waited_is_not_ended(open_town: OpenTown, shop: Path) -> None:
    async with open_town() as town:
        await town.peer("bob")
        alice = await town.peer("alice")
        await serve(alice, shop)
        hosting, ended = alice.parts.hosting, list[list[str]]()

        async def disown() -> None:
            ended.append((await hosting.disown(ACME.id))[0])

        async with trio.open_nursery() as nursery, hosting._change("acme/loud"):
            nursery.start_soon(disown)
            await trio.testing.wait_all_tasks_blocked()
            del hosting._identities["acme/loud"]
        assert ended == [[]]
        assert hosting.ended == {}


async def test_a_proof_that_comes_as_a_peer_leaves_ends_nothing(open_town: OpenTown) -> None:
    """A store goes on behind: its last holder may answer when the models of this peer are let go already."""
    async with open_town() as town:
        alice = await town.peer("alice")
    alice.parts.publisher.on_revoked([end_of(ACME)], {ACME.id})
    assert alice.parts.revoking.of(ACME.id) is not None


async def test_a_full_disk_keeps_nobody_from_hearing_and_who_revokes_is_told(
    open_town: OpenTown, shop: Path, tmp_path: Path
) -> None:
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        carol = await town.peer("carol", listen=False)
        for peer in (bob, carol):
            peer.revoking.keep_under(tmp_path / peer.id, disk=FullDisk())
        await serve(bob, shop)
        assert await carol.invoke("acme/loud", "hello") == "HELLO"
        with pytest.raises(LocalError, match="No space left"):
            await bob.revoke(end_of(THIEF))
        await alice.revoke(end_of(ACME))
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert (await bob.status())["models"] == []
        with pytest.raises(NotFound, match="the key of its owner"):
            await carol.invoke("acme/loud", "hello", timeout=20)
    assert list(tmp_path.glob("12D3*/*")) == []  # and no half of a file either
