"""The journeys of a person at a shell: real `modelnet-peer` processes on 127.0.0.1."""

from __future__ import annotations

import json
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.live
READY_SECONDS = 60  # on a machine that is busy with other tests


def error_of(stderr: str) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(stderr.splitlines()[-1])["error"]
    return error


def test_publish_find_and_invoke_between_two_peers_and_a_passer_by(shell: Any) -> None:
    images = shell.base / "images.npy"
    np.save(images, np.zeros((2, 8, 8), np.float32))
    with shell.join("alice", "--publish", "builtin:digits") as (_, alice), shell.join("bob") as (_, bob):
        assert alice["event"] == "ready"
        assert alice.keys() >= {"peer", "addrs", "pid", "control", "bootstrap", "version"}
        assert bob["bootstrap"] == {"tried": 1, "reached": 1}
        for who in ("bob", "carol"):  # carol runs no peer
            status, offers, _ = shell.run(who, "find", "--task", "image-classification")
            assert (status, [offer["provider"] for offer in offers]) == (0, [alice["peer"]])
            status, lines, _ = shell.run(who, "invoke", "modelnet/digits", "--input", str(images))
            assert (status, len(lines), lines[0]["done"]) == (0, 1, True)
            assert lines[0]["output"]["scores"]["shape"] == [2, 10]
            assert shell.run(who, "ping", alice["peer"])[1][0]["ok"] is True
        status, lines, _ = shell.run("alice", "status")
        assert lines[0]["models"][0]["calls"] == 2
        assert lines[0]["control"] == alice["control"]
        assert shell.run("bob", "peers")[1][0]["peer"] == alice["peer"]
        assert shell.run("bob", "show", "modelnet/digits")[1][0]["verified"] is True
        assert shell.run("bob", "unpublish", "modelnet/digits")[0] == 3
        assert shell.run("alice", "unpublish", "modelnet/digits")[1][0]["withdrawn"] is True
        assert shell.run("bob", "find", "--task", "image-classification")[0] == 3


def test_a_generator_of_my_own_streams(shell: Any) -> None:
    (shell.base / "mine.py").write_text("def words(text):\n    yield from text.split()\n")
    with shell.join("alice"):
        status, lines, _ = shell.run("alice", "publish", "mine:words", "--model", "me/words")
        assert (status, lines[0]["model"]) == (0, "me/words")
        status, lines, _ = shell.run("carol", "invoke", "me/words", "to be or")
        assert (status, [line.get("item") for line in lines]) == (0, ["to", "be", "or", None])
        assert lines[-1]["output"] is None


def test_the_first_lines_of_the_readme_pasted_at_once(shell: Any) -> None:
    (shell.base / "mine.py").write_text("def shout(text):\n    return text.upper()\n")
    with shell.start("alice", "join"):  # nobody reads its ready line
        status, lines, stderr = shell.run("alice", "publish", "mine:shout", "--task", "text2text-generation")
        assert (status, lines[0]["model"]) == (0, "shout"), stderr
        status, lines, _ = shell.run("alice", "invoke", "task:text2text-generation", "hello")
        assert (status, lines[-1]["output"]) == (0, "HELLO")


def test_a_peer_that_joins_says_of_its_model_what_publish_would(shell: Any) -> None:
    (shell.base / "mine.py").write_text("def shout(text):\n    return text.upper()\n")
    said = ["--model", "me/shout", "--tag", "loud", "--tier", "edge", "--price", "usd_per_call=0.002"]
    with shell.join("alice", "--publish", "mine:shout", *said), shell.join("bob"):
        status, (offer,), _ = shell.run("bob", "find", "--tag", "loud")
        assert (status, offer["model"], offer["tier"]) == (0, "me/shout", "edge")
        assert offer["price"] == {"usd_per_call": 0.002}
        status, _, stderr = shell.run("bob", "find", "--tag", "lood")
        assert (status, error_of(stderr)["hint"].startswith("did you mean loud? ")) == (3, True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_join_ends_0_within_5_seconds(shell: Any, number: int) -> None:
    with shell.join("alice", "--publish", "builtin:digits") as (process, ready):
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(10) == 0
        assert time.monotonic() - began < 5
    assert not Path(ready["control"]).exists()
    assert shell.run("alice", "status")[0] == 7


def test_kill_9_keeps_identity_models_and_sequence(shell: Any) -> None:
    with shell.join("alice", "--publish", "builtin:digits") as (process, before):
        seq = shell.run("alice", "status")[1][0]["models"][0]["seq"]
        process.kill()
        process.wait()
    with shell.join("alice") as (_, after):
        assert after["peer"] == before["peer"]
        deadline = time.monotonic() + READY_SECONDS
        while not (models := shell.run("alice", "status")[1][0]["models"]) or not models[0]["seq"]:
            assert time.monotonic() < deadline
        assert models[0]["seq"] > seq


def test_what_is_in_use_and_what_is_damaged_is_6(shell: Any) -> None:
    with shell.join("alice") as (_, alice):
        status, _, stderr = shell.run("alice", "join")
        assert (status, error_of(stderr)["code"]) == (6, "in-use")
        busy = alice["addrs"][0].partition("/p2p/")[0]
        status, _, stderr = shell.run("bob", "join", "--listen", busy)
        assert (status, error_of(stderr)["code"]) == (6, "in-use")
    key = shell.base / "alice" / "identity.key"
    key.write_bytes(key.read_bytes()[:-1])
    status, _, stderr = shell.run("alice", "join")
    assert (status, error_of(stderr)["code"]) == (6, "bad-state")
    assert str(key) in stderr


def test_an_unreached_bootstrap_is_a_warning(shell: Any) -> None:
    with shell.join("alice") as (_, alice):
        gone = alice["addrs"][0]
    with shell.join("bob", "--bootstrap", gone) as (process, bob):
        assert bob["bootstrap"] == {"tried": 1, "reached": 0}
        assert process.poll() is None
        said = (shell.base / "bob.log").read_text()
        assert f"warning: the bootstrap {gone} did not answer: " in said
        assert "refused" in said
        assert "tried again every" in said


def test_a_bootstrap_of_another_network_is_a_warning(shell: Any) -> None:
    with shell.join("alice") as (_, alice):
        addr = alice["addrs"][0]
        with shell.join("bob", "--network", "lab", "--bootstrap", addr) as (_, bob):
            assert bob["bootstrap"] == {"tried": 1, "reached": 0}
            said = (shell.base / "bob.log").read_text()
            assert f"warning: the bootstrap {addr} answers, but is no peer of the network 'lab': " in said
            assert "tried again every" in said
        status, _, stderr = shell.run("carol", "find", "--network", "lab", "--bootstrap", addr, "--task", "a")
        assert (status, error_of(stderr)["code"]) == (4, "unreachable")
        assert "no peer of the network 'lab'" in stderr


def test_a_bootstrap_that_comes_later_is_met_as_the_warning_says(shell: Any) -> None:
    shell.env["MODELNET_TUNING"] = "test"
    with shell.join("alice") as (_, alice):
        addr = alice["addrs"][0]
    with shell.join("bob", "--bootstrap", addr):
        assert shell.run("bob", "peers")[1] == []
        with shell.join("alice", "--listen", addr.partition("/p2p/")[0]):
            deadline = time.monotonic() + READY_SECONDS
            while not shell.run("bob", "peers")[1]:
                assert time.monotonic() < deadline


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_restarted_peer_finds_its_network_again_without_a_bootstrap(shell: Any, end: int) -> None:
    elsewhere = {"XDG_RUNTIME_DIR": str(shell.base / "other")}  # as if on another machine
    (shell.base / "other").mkdir(mode=0o700)
    with shell.join("alice") as (_, alice):
        shell.env.update(elsewhere)
        with shell.join("bob", "--bootstrap", alice["addrs"][0]) as (process, _):
            process.send_signal(end)
            process.wait(20)
        with shell.join("bob") as (_, bob):
            assert bob["bootstrap"] == {"tried": 0, "reached": 0}
            assert [line["peer"] for line in shell.run("bob", "peers")[1]] == [alice["peer"]]
        with shell.join("bob", "--network", "another-one"):
            assert shell.run("bob", "peers", "--network", "another-one")[1] == []


@pytest.mark.parametrize("by", ["flag", "env", "config"])
def test_what_is_open_to_other_machines_is_said(shell: Any, by: str) -> None:
    argv = ["--listen", "/ip4/0.0.0.0/tcp/0"] if by == "flag" else []
    if by == "env":
        shell.env["MODELNET_LISTEN"] = "/ip4/0.0.0.0/tcp/0"
    if by == "config":
        (shell.base / "alice").mkdir()
        (shell.base / "alice" / "config.toml").write_text('listen = ["/ip4/0.0.0.0/tcp/0"]')
    with shell.join("alice", *argv):
        said = (shell.base / "alice.log").read_text()
    assert "open to other machines" in said
    shell.env.pop("MODELNET_LISTEN", None)
    with shell.join("bob"):
        assert "open to other machines" not in (shell.base / "bob.log").read_text()


def test_a_command_for_another_network_is_not_answered_by_this_one(shell: Any) -> None:
    with shell.join("alice"):
        status, lines, stderr = shell.run("alice", "find", "--task", "x", "--network", "lab")
        assert (status, lines, error_of(stderr)["code"]) == (2, [], "bad-input")


def test_two_networks_do_not_meet(shell: Any) -> None:
    with shell.join("alice", "--publish", "builtin:digits"):
        status, _, stderr = shell.run(
            "carol", "find", "--task", "image-classification", "--network", uuid.uuid4().hex
        )
    assert (status, error_of(stderr)["code"]) == (4, "unreachable")
