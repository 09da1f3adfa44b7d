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
from modelnet_p2p.node.disk.files import write_durably
from modelnet_p2p.node.disk.home import Home, encode_key
from modelnet_p2p.node.disk.revocations import Kept, RevocationFiles
from modelnet_p2p.node.manifests import seal_end
from modelnet_p2p.node.owners import Owners
from modelnet_p2p.records import Revocation, open_manifest, open_revocation

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
    assert "that `owner key` has made" in error_of(ran)["hint"]
    assert cli("owner", "sign", "weights.pt", "--out", str(broken)).status == 6
    assert bob.asked == []


# --- the end of a key ---


@pytest.fixture
def acme(cli: Cli, tmp_path: Path) -> tuple[str, Path]:
    """An owner's id and key file."""
    path = tmp_path / "acme.key"
    return lines(cli("owner", "key", str(path), "--json").out)[0]["owner"], path


def test_a_key_is_revoked_through_the_running_peer_which_never_sees_it(
    cli: Cli, bob: Any, acme: tuple[str, Path]
) -> None:
    who, key = acme
    argv = ["owner", "revoke", "--key", str(key), "--reason", "stolen", "--successor", owner("carol")]
    ran = cli(*argv, "--model", "acme/x", "--timeout", "9")
    assert ran.status == 0
    assert f"revoking {who}" in ran.err
    assert "cannot be undone" in ran.err
    assert "on 1970-01-02: stolen" in ran.out
    assert "under 5 keys, to 2 of 3 peers or more" in ran.out
    method, (envelope, asked) = bob.asked[-1]
    assert (method, asked) == ("revoke", {"models": ("acme/x",), "timeout": 9.0})
    record = open_revocation(envelope).record
    assert isinstance(record, Revocation)
    assert (str(record.revoked), record.reason, str(record.successor)) == (who, "stolen", owner("carol"))
    assert key.read_bytes() not in envelope
    [line] = lines(cli(*argv, "--json").out)
    assert line.items() >= {"models": ["acme/x"], "keys": 5, "holders": {"asked": 3, "stored": 2}}.items()


def test_a_revocation_is_made_in_advance_kept_safe_and_told_without_the_key(
    cli: Cli, acme: tuple[str, Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    who, key = acme
    made = tmp_path / "acme.revocation"
    ran = cli("owner", "revoke", "--key", str(key), "--out", str(made), "--json")  # no peer runs
    assert (ran.status, lines(ran.out)) == (0, [{"revoked": who, "path": str(made)}])
    assert stat.S_IMODE(made.stat().st_mode) == 0o600  # whoever reads it can end the key
    key.unlink()
    ran = cli("owner", "revoke", "--file", str(made), "--json")
    assert (ran.status, error_of(ran)["code"]) == (7, "not-running")
    bob = request.getfixturevalue("bob")
    assert cli("owner", "revoke", "--file", str(made)).status == 0
    assert bob.asked[-1][1][0] == made.read_bytes()


def test_what_revokes_nothing_is_refused_before_anybody_is_asked(
    cli: Cli, bob: Any, acme: tuple[str, Path], tmp_path: Path
) -> None:
    who, key = acme
    broken = tmp_path / "broken.revocation"
    broken.write_bytes(b"nonsense")
    for argv in (
        [],
        ["--key", str(key), "--file", str(broken)],
        ["--file", str(broken)],
        ["--file", str(tmp_path / "missing")],
        ["--file", str(broken), "--reason", "late"],
        ["--key", str(tmp_path / "no.key")],
        ["--key", str(key), "--successor", "carol"],
        ["--key", str(key), "--successor", who],
        ["--key", str(key), "--reason", "x" * 200],
        ["--key", str(key), "--reason", "two\nlines"],
    ):
        ran = cli("owner", "revoke", *argv, "--json")
        assert (ran.status, ran.out, error_of(ran)["code"]) == (2, "", "bad-input"), argv
    assert bob.asked == []


def test_a_mistyped_key_is_looked_for_beside_and_never_made_anew(
    cli: Cli, bob: Any, acme: tuple[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "as-long-as-a-key").write_bytes(bytes(68))
    ran = cli("owner", "revoke", "--key", str(tmp_path / "acme.kye"), "--json")
    assert (ran.status, error_of(ran)["hint"]) == (2, f"keys there: {acme[1]}")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty" / "acme.key", tmp_path / "nowhere" / "acme.key"):
        ran = cli("owner", "revoke", "--key", str(path), "--json")
        assert f"none lies in {path.parent}" in error_of(ran)["hint"]


def test_a_revoked_owner_is_marked_in_the_list_and_not_trusted_anew(cli: Cli, bob: Any) -> None:
    alice = owner("alice")
    cli("owner", "trust", "acme/shout", alice)
    bob.ended[alice] = {"revoked": alice, "issued_unix": 0, "reason": "lost", "successor": None}
    assert lines(cli("owner", "list", "--json").out)[0]["revoked"] == bob.ended[alice]
    ran = cli("owner", "list")
    assert "acme/shout: its owner's key was revoked on 1970-01-01: lost" in ran.err
    ran = cli("owner", "trust", "acme/other", alice, "--json")
    assert (ran.status, error_of(ran)["code"]) == (6, "forbidden")


def test_the_list_marks_revoked_owners_where_no_peer_runs(cli: Cli, home: Home) -> None:
    key = KeyPair(hashlib.sha256(b"alice").digest())
    cli("owner", "trust", "acme/shout", str(key.id))
    sealed = open_revocation(seal_end(key, "lost", None, 1_700_000_000_000_000))
    RevocationFiles(home.revocations_path).save(Kept(sealed, None))
    path = home.path / "alice.key"
    write_durably(path, encode_key(key))
    ran = cli("owner", "sign", "m:f", "--key", str(path), "--out", str(home.path / "x.manifest"), "--json")
    assert (ran.status, error_of(ran)["code"]) == (6, "forbidden")
    [line] = lines(cli("owner", "list", "--json").out)
    assert line["revoked"] == {
        "revoked": str(key.id), "issued_unix": 1_700_000_000, "reason": "lost", "successor": None,
    }  # fmt: skip


def test_a_search_that_a_revocation_emptied_says_so(cli: Cli, bob: Any) -> None:
    ran = cli("find", "--model", "acme/ended", "--json")
    error = error_of(ran)
    assert (ran.status, error["code"]) == (3, "not-found")
    assert error["message"] == "its owner's key was revoked"
    assert error["hint"] == "modelnet-peer owner trust acme/ended OWNER"
