"""A name that two people claim, and a model that two peers serve for one owner, as seen from a shell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.live
Shell = Any  # of conftest.py, which tests cannot import

MINE = """
def loud(text):
    return text.upper()
def quiet(text):
    return text.lower()
"""


@pytest.fixture
def mine(shell: Shell) -> Path:
    """A module of the user's own, in the directory where the commands are typed."""
    path: Path = shell.base / "mine.py"
    path.write_text(MINE)
    return path


def said(ran: tuple[int, list[Any], str]) -> Any:
    status, lines, stderr = ran
    assert status == 0, stderr
    return lines[-1] if lines else None


def test_a_name_that_two_claim_is_settled_once_and_stays_so(shell: Shell, mine: Path) -> None:
    said(shell.run("carol", "id"))  # a home of her own, or she would remember nothing
    with shell.join("alice") as (_, alice), shell.join("bob") as (_, bob):
        said(shell.run("alice", "publish", "mine:loud", "--model", "say"))
        assert said(shell.run("carol", "invoke", "say", "Hello"))["output"] == "HELLO"
        said(shell.run("bob", "publish", "mine:quiet", "--model", "say"))
        # carol has used it, in a process that is gone; dave has not
        assert said(shell.run("carol", "invoke", "say", "Hello"))["output"] == "HELLO"
        status, _, stderr = shell.run("dave", "invoke", "say", "Hello")
        error = json.loads(stderr.splitlines()[-1])["error"]
        assert (status, error["code"]) == (3, "ambiguous")
        assert alice["peer"] in error["message"]
        assert bob["peer"] in error["message"]
        said(shell.run("dave", "owner", "trust", "say", bob["peer"]))
        assert said(shell.run("dave", "invoke", "say", "Hello"))["output"] == "hello"
        # a running peer keeps to what its own home's commands say
        assert shell.run("alice", "invoke", "say", "Hello")[0] == 3
        said(shell.run("alice", "owner", "trust", "say", bob["peer"]))
        assert said(shell.run("alice", "invoke", "say", "Hello"))["output"] == "hello"


def test_two_peers_serve_one_owners_model_and_one_comes_back_after_a_kill(shell: Shell, mine: Path) -> None:
    said(shell.run("carol", "id"))
    key, seal = shell.base / "acme.key", shell.base / "loud.manifest"
    acme = said(shell.run("carol", "owner", "key", str(key)))["owner"]
    sign = ("owner", "sign", "mine:loud", "--model", "acme/loud@1", "--key", str(key), "--out", str(seal))
    with shell.join("alice"):
        assert said(shell.run("alice", *sign))["owner"] == acme
        with shell.join("bob") as (process, _):
            for who in ("alice", "bob"):
                told = said(shell.run(who, "publish", "mine:loud", "--manifest", str(seal)))
                assert (told["model"], told["owner"]) == ("acme/loud@1", acme)
            process.kill()
        assert said(shell.run("carol", "invoke", "acme/loud", "Hello"))["output"] == "HELLO"
        said(shell.run("alice", "unpublish", "acme/loud"))
        with shell.join("bob") as (_, bob):  # which still knows in whose name it serves
            answer = said(shell.run("carol", "invoke", "acme/loud", "Hello"))
            assert (answer["output"], answer["provider"]) == ("HELLO", bob["peer"])
        [line] = shell.run("carol", "owner", "list")[1]
        assert (line["model"], line["owner"], line["how"]) == ("acme/loud", acme, "first-use")
