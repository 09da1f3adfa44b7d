"""An owner whose key is stolen: two providers serve the model, callers use it, and the key is revoked."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.live
Shell = Any  # of conftest.py, which tests cannot import


@pytest.fixture
def mine(shell: Shell) -> Path:
    path: Path = shell.base / "mine.py"
    path.write_text("def loud(text):\n    return text.upper()\n")
    return path


def said(ran: tuple[int, list[Any], str]) -> Any:
    status, lines, stderr = ran
    assert status == 0, stderr
    return lines[-1] if lines else None


def refused(ran: tuple[int, list[Any], str], status: int, code: str) -> Any:
    assert ran[0] == status, ran[2]
    error = json.loads(ran[2].splitlines()[-1])["error"]
    assert error["code"] == code
    return error


def test_a_stolen_key_is_revoked_and_stays_so_across_restarts(shell: Shell, mine: Path) -> None:
    said(shell.run("carol", "id"))
    key, seal, end = (shell.base / f"acme.{what}" for what in ("key", "manifest", "revocation"))
    acme = said(shell.run("carol", "owner", "key", str(key)))["owner"]
    heir = said(shell.run("carol", "owner", "key", str(shell.base / "acme2.key")))["owner"]
    publish = ("publish", "mine:loud", "--manifest", str(seal))
    revoke = ("--reason", "stolen on the train", "--successor", heir, "--out", str(end))
    assert said(shell.run("carol", "owner", "revoke", "--key", str(key), *revoke))["revoked"] == acme
    with shell.join("zoe"), shell.join("alice"), shell.join("bob") as (process, _):
        sign = ("owner", "sign", "mine:loud", "--model", "acme/loud", "--key", str(key), "--out", str(seal))
        said(shell.run("alice", *sign))
        for who in ("alice", "bob"):
            said(shell.run(who, *publish))
        assert said(shell.run("carol", "invoke", "acme/loud", "Hello"))["output"] == "HELLO"
        key.unlink()  # what was made in advance is enough
        told = said(shell.run("zoe", "owner", "revoke", "--file", str(end)))
        assert (told["models"], told["holders"]["asked"]) == (["acme/loud"], 2)
        started = time.monotonic()
        error = refused(shell.run("carol", "invoke", "acme/loud", "Hello"), 3, "not-found")
        assert time.monotonic() - started < 30  # seconds: a start of Python, a walk, and a loaded machine
        assert acme in error["message"]
        assert "stolen on the train" in error["message"]
        assert f"owner trust --home {shell.base / 'carol'} acme/loud {heir}" in error["hint"]
        for who, command in (("dave", ("find", "--model", "acme/loud")), ("dave", ("show", "acme/loud"))):
            assert "stolen on the train" in refused(shell.run(who, *command), 3, "not-found")["message"]
        # providers have withdrawn it, and take it no more
        assert said(shell.run("bob", "status"))["models"] == []
        assert acme in refused(shell.run("bob", *publish), 6, "forbidden")["message"]
        [line] = shell.run("carol", "owner", "list")[1]
        assert (line["owner"], line["revoked"]["reason"]) == (acme, "stolen on the train")
        process.kill()
    # a whole network later: nobody is left who could tell them
    with shell.join("bob"):
        assert acme in refused(shell.run("bob", *publish), 6, "forbidden")["message"]
    with shell.join("mallory"):  # a thief who starts afresh serves it to himself alone
        said(shell.run("mallory", *publish))
        assert said(shell.run("mallory", "invoke", "acme/loud", "Hello"))["output"] == "HELLO"
        error = refused(shell.run("carol", "invoke", "acme/loud", "Hello"), 3, "not-found")
        assert "stolen on the train" in error["message"]  # carol's own memory
        with shell.join("bob"):  # who tells him, and everybody
            until = time.monotonic() + 60
            while said(shell.run("mallory", "status"))["models"] and time.monotonic() < until:
                time.sleep(0.5)  # the peers find each other, bob tells again what he told before
            assert said(shell.run("mallory", "status"))["models"] == []
    assert "withdrawn" in (shell.base / "mallory.log").read_text()
