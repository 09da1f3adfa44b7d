"""`owner` with a running peer and without: what it prints, what it keeps, what it refuses."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelnet_p2p.identity import KeyPair
from modelnet_p2p.node.disk.home import Home
from modelnet_p2p.node.owners import Owners
from modelnet_p2p.records import open_manifest

Cli = Callable[..., Any]  # Any: Ran and FakePeer of conftest.py, which tests cannot import


def owner(name: str) -> str:
    return str(KeyPair(hashlib.sha256(name.encode()).digest()).id)


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def error_of(ran: Any) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(ran.err.splitlines()[-1])["error"]
    return error


@pytest.fixture(params=["running", "not running"])
def maybe_running(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("bob") if request.param == "running" else None


def test_a_choice_is_listed_replaced_and_forgotten(cli: Cli, maybe_running: Any) -> None:
    alice, carol = owner("alice"), owner("carol")
    ran = cli("owner", "list")
    assert (ran.status, ran.out) == (0, "")
    assert "none yet" in ran.err
    trusted = lines(cli("owner", "trust", "acme/shout", alice, "--json").out)
    assert trusted == lines(cli("owner", "list", "--json").out)
    assert trusted[0].items() >= {"model": "acme/shout", "owner": alice, "how": "chosen"}.items()
    assert cli("owner", "trust", f"modelnet:acme/shout@2?owner={carol}").out.endswith(f"{carol}\n")
    assert lines(cli("owner", "list", "--json").out)[0]["owner"] == carol
    assert carol in cli("owner", "list").out
    assert lines(cli("owner", "forget", "acme/shout", "--json").out) == [
        {"model": "acme/shout", "forgotten": True}
    ]
    ran = cli("owner", "forget", "acme/shout", "--json")
    assert (ran.status, error_of(ran)["code"]) == (3, "not-found")


def test_without_a_peer_each_network_has_owners_of_its_own(cli: Cli, home: Home) -> None:
    assert cli("owner", "trust", "shout", owner("alice"), "--network", "town").status == 0
    assert lines(cli("owner", "list", "--json").out) == []
    assert [known.name for known in Owners("town", home.owners_path).all()] == ["shout"]
    assert not home.key_path.exists()  # nothing about owners needs a peer's key


@pytest.mark.parametrize(
    "argv",
    [["trust", "shout"], ["trust", "shout", "bob"], ["trust", "SHOUT", owner("alice")], ["forget", "A b"]],
)
def test_what_makes_no_sense_is_refused(cli: Cli, maybe_running: Any, argv: list[str]) -> None:
    ran = cli("owner", *argv, "--json")
    assert (ran.status, ran.out, error_of(ran)["code"]) == (2, "", "bad-input")


def test_an_owners_key_is_made_once(cli: Cli, tmp_path: Path, home: Home) -> None:
    path = tmp_path / "acme.key"
    made = lines(cli("owner", "key", str(path), "--json").out)[0]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    ran = cli("owner", "key", str(path), "--json")
    assert (ran.status, error_of(ran)["code"], path.read_bytes()) == (6, "in-use", before)
    assert made["owner"].startswith("12D3Koo")
    assert cli("owner", "key", str(tmp_path / "no" / "such.key")).status == 6


def test_an_owner_seals_what_the_running_peer_describes(
    cli: Cli, bob: Any, home: Home, tmp_path: Path
) -> None:
    key, sealed = tmp_path / "acme.key", tmp_path / "echo.manifest"
    acme = lines(cli("owner", "key", str(key), "--json").out)[0]["owner"]
    argv = ["owner", "sign", "m:f", "--model", "acme/x@2", "--licence", "MIT", "--out", str(sealed), "--json"]
    ran = cli(*argv, "--key", str(key))
    assert ran.status == 0
    assert lines(ran.out)[0].items() >= {"model": "acme/x@2", "owner": acme, "digest": None}.items()
    assert "cannot say which code" in ran.err
    assert bob.asked[-1][1][1]["dry_run"] is True
    manifest = open_manifest(sealed.read_bytes())
    assert (str(manifest.owner), manifest.name, manifest.version, manifest.licence) == (
        acme, "acme/x", "2", "MIT",
    )  # fmt: skip

    assert cli("publish", "m:f", "--manifest", str(sealed)).status == 0
    assert bob.asked[-1][1][1]["manifest"] == sealed.read_bytes()
    ran = cli(*argv)  # the peer's own key, where no other is named
    assert lines(ran.out)[0]["owner"] == lines(cli("id", "--json").out)[0]["peer"]


def test_a_seal_or_key_that_is_none_is_refused_before_anything_is_loaded(
    cli: Cli, bob: Any, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.manifest"
    broken.write_bytes(b"nonsense")
    for path in (broken, tmp_path / "missing"):
        ran = cli("publish", "m:f", "--manifest", str(path), "--json")
        assert (ran.status, error_of(ran)["code"]) == (2, "bad-input")
    ran = cli("owner", "sign", "m:f", "--key", str(tmp_path / "no.key"), "--out", str(broken), "--json")
    assert (ran.status, error_of(ran)["code"]) == (2, "bad-input")
    assert "owner key" in error_of(ran)["hint"]
    assert cli("owner", "sign", "weights.pt", "--out", str(broken)).status == 6
    assert bob.asked == []
