"""Something is wrong, and a person asks: `doctor` and `logs` beside real peers, with real causes."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.live
PATIENCE = 30.0  # seconds, on a machine that is busy with other tests


def states(lines: list[Any]) -> dict[str, str]:
    return {line["check"]: line["state"] for line in lines}


def failures(lines: list[Any]) -> list[tuple[str, str]]:
    return [(line["check"], line["hint"]) for line in lines if line["state"] == "failed"]


def test_all_is_well_before_anything_was_started(shell: Any) -> None:
    status, lines, err = shell.run("alice", "doctor")
    assert (status, failures(lines), err) == (0, [], "")
    found = states(lines)
    assert found.items() >= {
        "python": "ok", "libraries": "ok", "backends": "ok", "home": "ok", "identity": "note", "peer": "note",
        "port": "ok", "bootstrap": "note", "dht": "skipped", "call": "ok", "worker": "ok", "clock": "ok",
    }.items()  # fmt: skip
    assert not (shell.base / "alice").exists()  # asking changes nothing


def test_all_is_well_beside_running_peers(shell: Any) -> None:
    with shell.join("alice") as (_, alice), shell.join("bob"):
        for who, bootstrap in (("alice", ()), ("carol", ("--bootstrap", alice["addrs"][0]))):
            status, lines, err = shell.run(who, "doctor", *bootstrap)
            assert (status, failures(lines), err) == (0, [], "")
            found = states(lines)
            assert (found["bootstrap"], found["dht"]) == ("ok", "ok")
            assert found["peer"] == ("ok" if who == "alice" else "note")
            assert found.get("addresses") == ("note" if who == "alice" else None)  # loopback alone
        assert shell.run("alice", "status")[0] == 0  # it goes on


def test_a_bootstrap_where_nobody_is_or_of_another_network(shell: Any) -> None:
    with shell.join("alice") as (_, alice):
        addr = alice["addrs"][0]
        closed = addr.replace(f"/tcp/{addr.split('/')[4]}/", "/tcp/1/")
        status, lines, err = shell.run("carol", "doctor", "--bootstrap", closed, "--bootstrap", addr)
        assert (status, [check for check, _ in failures(lines)]) == (4, ["bootstrap"])
        assert "refused" in next(line["why"] for line in lines if line["state"] == "failed")
        error = json.loads(err.splitlines()[-1])["error"]
        assert (error["code"], error["hint"]) == ("unreachable", failures(lines)[0][1])
        status, lines, _ = shell.run("carol", "doctor", "--bootstrap", addr, "--network", "another")
        assert status == 4
        assert "no peer of the network 'another'" in next(
            line["text"] for line in lines if line["state"] == "failed"
        )


def test_a_stopped_peer_a_busy_port_and_a_readable_key(shell: Any) -> None:
    with shell.join("alice") as (process, alice):
        port = alice["addrs"][0].split("/")[4]
        shell.env["MODELNET_LISTEN"] = f"/ip4/127.0.0.1/tcp/{port}"
        status, lines, _ = shell.run("carol", "doctor")
        assert (status, [check for check, _ in failures(lines)]) == (6, ["port"])
        del shell.env["MODELNET_LISTEN"]
        (shell.base / "alice" / "identity.key").chmod(0o644)
        status, lines, _ = shell.run("alice", "doctor")
        key = shell.base / "alice" / "identity.key"
        assert (status, failures(lines)) == (6, [("identity", f"chmod 600 {key}")])
        key.chmod(0o600)
        os.kill(process.pid, signal.SIGSTOP)
        try:
            status, lines, _ = shell.run("alice", "doctor")
        finally:
            os.kill(process.pid, signal.SIGCONT)
        assert (status, [check for check, _ in failures(lines)]) == (4, ["peer"])
        assert f"kill -CONT {process.pid}" in failures(lines)[0][1]


def test_a_broken_config_hides_nothing_else(shell: Any) -> None:
    (shell.base / "alice").mkdir()
    (shell.base / "alice" / "config.toml").write_text('bootstraps = ["/ip4/192.0.2.7"]\n')
    status, lines, _ = shell.run("alice", "doctor")
    assert (status, [check for check, _ in failures(lines)]) == (6, ["config"])
    assert "line 1" in next(line["text"] for line in lines if line["check"] == "config")
    assert states(lines)["worker"] == "ok"


def test_a_library_that_cannot_be_imported_is_named(shell: Any) -> None:
    (shell.base / "numpy.py").write_text("raise ImportError('not the numpy that was meant')\n")
    status, lines, err = shell.run("alice", "doctor")
    error = json.loads(err.splitlines()[-1])["error"]
    assert (status, lines, error["code"]) == (6, [], "bad-state")
    assert "not the numpy that was meant" in error["message"]
    assert "pip install" in error["hint"]


def test_the_log_keeps_what_happened_and_is_followed(shell: Any) -> None:
    (shell.base / "mine.py").write_text(
        "def shout(text):\n    print('heard', text)\n    return {'a': 'A'}[text]\n"
    )
    with shell.join("alice") as (process, alice):
        assert shell.run("alice", "publish", "mine:shout")[0] == 0
        assert shell.run("alice", "invoke", "shout", "a")[0] == 0
        with shell.start("alice", "logs", "-f") as follower:
            wait_for(follower, lambda line: line["message"] == "heard a")
            assert shell.run("alice", "invoke", "shout", "b")[0] == 5
            wait_for(follower, lambda line: line["level"] == "ERROR" and "KeyError: 'b'" in line["message"])
            follower.send_signal(signal.SIGINT)
            assert follower.wait(PATIENCE) == 130
            assert follower.stderr.read().count("\n") == 1  # where the log is, and nothing else
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    path = shell.base / "alice" / "log" / "peer.log"
    assert "heard a" in (shell.base / "alice.log").read_text()  # its stderr has it, too
    status, lines, err = shell.run("alice", "logs", "-n", "1000")  # also when nobody runs
    assert (status, lines[-1]["message"]) == (0, "left the network")
    assert alice["peer"] in lines[0]["message"]
    assert str(path) in err


def test_why_a_peer_did_not_start_is_in_its_log_but_not_that_one_runs_already(shell: Any) -> None:
    with shell.join("alice"):
        assert shell.run("alice", "join")[0] == 6
        before = read(shell)
        assert "already running" not in before
    assert shell.run("alice", "join", "--publish", "mine:nothing")[0] != 0
    assert "ended: " in read(shell).removeprefix(before)


def read(shell: Any) -> str:
    return Path(shell.base / "alice" / "log" / "peer.log").read_text()


def wait_for(follower: Any, wanted: Any) -> None:
    """Lines until one is `wanted`; the process ends the wait if it ends."""
    until = time.monotonic() + PATIENCE
    while line := follower.stdout.readline():
        if wanted(json.loads(line)):
            return
        assert time.monotonic() < until, line
    raise AssertionError(follower.stderr.read())
