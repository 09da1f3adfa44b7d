"""Weights between whole peers: who shares them, how they are found by name, and who does not give them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modelnet_p2p.errors import Code, LocalError, NotFound, RemoteError
from modelnet_p2p.names import parse_digest
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.node.serving.terms import Terms
from modelnet_p2p.node.sources import source_of
from modelnet_p2p.node.weights.hashing import artifact_of

# Any: the fixture that opens a town, see conftest.py
OpenTown = Any
DIGITS = "modelnet/digits"


async def test_a_model_is_fetched_from_all_who_share_it(open_town: OpenTown, tmp_path: Path) -> None:
    async with open_town() as town:
        alice, bob, dave = [await town.peer(name) for name in ("alice", "bob", "dave")]
        published = await alice.publish("builtin:digits", share_weights=True)
        await bob.publish("builtin:digits", share_weights=True)
        await dave.publish("builtin:digits")  # and keeps its files to itself
        carol = await town.peer("carol", listen=False)
        carol.keep_weights_under(tmp_path)
        offers = await carol.find(where=f"model:{DIGITS} and gives:weights")
        assert {offer.provider for offer in offers} == {alice.id, bob.id}
        said: list[str] = []
        pulled = await carol.pull(DIGITS, on_event=said.append)
        assert "fetching from 2 peers" in said
        assert (pulled["digest"], pulled["model"]) == (published["digest"], "modelnet/digits@1")
        assert pulled["owner"] == published["owner"]
        assert pulled["fetched"] == pulled["size"]
        assert {one["peer"] for one in pulled["from"]} <= {alice.id, bob.id}
        assert artifact_of(Path(pulled["path"])).root == parse_digest(published["digest"])
        for name in (DIGITS, published["digest"], published["uri"], pulled["uri"]):
            again = await carol.pull(name)
            assert (again["fetched"], again["path"], again["model"]) == (0, pulled["path"], pulled["model"])
        (line,) = await carol.kept_weights()
        assert (line["whole"], line["models"], line["shared"]) == (True, ["modelnet/digits@1"], False)
        # who shares it has it
        alice.keep_weights_under(tmp_path / "alice")
        own = await alice.pull(DIGITS)
        assert own["fetched"] == 0
        assert own["path"].endswith("digits.safetensors")


async def test_a_directory_that_is_called_like_what_was_pulled_says_so(
    open_town: OpenTown, tmp_path: Path
) -> None:
    async with open_town() as town:
        await (await town.peer("alice")).publish("builtin:digits", share_weights=True)
        carol = await town.peer("carol")
        carol.keep_weights_under(tmp_path / "cache")
        pulled = await carol.pull(DIGITS)

        async def meant(text: str) -> Source:
            unsaid: dict[str, Any] = dict.fromkeys(
                ("model", "task", "module", "interpreter", "environ", "options", "manifest", "share_weights")
            )
            where = str(tmp_path / "here")
            return await source_of(
                text, carol.parts.pulls, carol.revoking, tags=(), cwd=where, terms=Terms(), **unsaid
            )

        before = await meant(DIGITS)
        assert (before.spec, before.model, before.notes) == (pulled["path"], "modelnet/digits@1", ())
        path = tmp_path / "here" / DIGITS
        path.mkdir(parents=True)
        for other in ("other", "other@no version"):
            (tmp_path / "here" / other).mkdir()
        [note] = (await meant(DIGITS)).notes
        assert note.startswith(f"{DIGITS} is the directory {path} here, and not what was pulled")
        assert note.endswith(f"modelnet-peer publish '{pulled['uri']}'")
        assert (await meant(str(pulled["uri"]))).spec == pulled["path"]
        assert [(await meant(text)).notes for text in ("other", "other@no version")] == [(), ()]


async def test_what_nobody_shares(open_town: OpenTown, tmp_path: Path) -> None:
    async with open_town() as town:
        alice, carol = await town.peer("alice"), await town.peer("carol")
        carol.keep_weights_under(tmp_path)
        with pytest.raises(NotFound, match="nobody alive offers"):
            await carol.pull(DIGITS)
        await alice.publish("builtin:digits")
        with pytest.raises(RemoteError, match="nobody alive shares") as raised:
            await carol.pull(DIGITS)
        assert "--share-weights" in raised.value.hint
        await alice.publish("builtin:digits", share_weights=True)
        await alice.publish("builtin:digits")  # again, and this time not
        with pytest.raises(RemoteError, match="nobody alive shares"):
            await carol.pull(DIGITS)
        await alice.publish("builtin:digits", share_weights=True)
        assert (await carol.pull(DIGITS))["fetched"]
        await alice.unpublish(DIGITS)
        # it is here, whoever offers it now
        assert (await carol.pull(DIGITS))["fetched"] == 0


async def test_what_has_no_weights(open_town: OpenTown, tmp_path: Path) -> None:
    async with open_town() as town:
        alice, carol = await town.peer("alice"), await town.peer("carol")
        with pytest.raises(LocalError, match="no home"):
            await carol.pull(DIGITS)
        carol.keep_weights_under(tmp_path)
        with pytest.raises(LocalError, match="no files that could be shared") as raised:
            await alice.publish("builtin:echo", share_weights=True)
        assert raised.value.code is Code.BAD_INPUT
        assert not (await alice.status())["models"]
        await alice.publish("builtin:echo")
        with pytest.raises(LocalError, match="has no digest"):
            await carol.pull("modelnet/echo")
        with pytest.raises(NotFound, match="not here"):
            await carol.publish("modelnet:acme/net@1")
        with pytest.raises(LocalError):
            await carol.pull("sha256:12")
