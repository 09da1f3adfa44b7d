"""What goes wrong around a person at a shell, and what they then see: one journey, one test.

Real processes on 127.0.0.1. In each the question is the same: is there an answer or one error with a
cause and a next step, is the exit code the documented one, and does everything end that should.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelnet_p2p.tuning import LAN

pytestmark = pytest.mark.live
Shell = Any  # of conftest.py, which tests cannot import

MINE = """
import time, os
def shout(text, mark="!"):
    return text.upper() + mark
def slow(text):
    for number in range(1000):
        yield f"{number} "
        time.sleep(0.05)
def hang(text):
    while True:
        try:
            time.sleep(1)
        except BaseException:
            pass
def die(text):
    os._exit(9)
def fail(text):
    print("this is not the answer")
    raise ValueError("of two\\nlines")
"""


@pytest.fixture
def mine(shell: Shell) -> Path:
    """A module of the user's own, in the directory where the commands are typed."""
    path: Path = shell.base / "mine.py"
    path.write_text(MINE)
    return path


def error_of(stderr: str) -> dict[str, Any]:
    """The error object, which is the last line; and nothing above it is a traceback."""
    assert "Traceback" not in stderr
    error: dict[str, Any] = json.loads(stderr.splitlines()[-1])["error"]
    assert error["message"]
    assert error["hint"] or error["code"] == "cancelled"
    assert "\n" not in error["message"]
    return error


def ends(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and stderr of a process that ends within five seconds."""
    began = time.monotonic()
    _, stderr = process.communicate(timeout=20)
    assert time.monotonic() - began < 5
    return process.returncode, stderr or ""


def test_a_stranger_who_knows_one_address_finds_and_calls(shell: Shell, mine: Path) -> None:
    with shell.join("alice") as (_, alice), shell.join("bob", "--publish", "mine:shout"):
        shell.env["XDG_RUNTIME_DIR"] = str(shell.base / "elsewhere")  # as if on another machine
        (shell.base / "elsewhere").mkdir(mode=0o700)
        known = ("--bootstrap", alice["addrs"][0])
        status, offers, stderr = shell.run("carol", "find", "--model", "shout", *known)
        assert (status, [offer["model"] for offer in offers]) == (0, ["shout"])
        assert "temporary client" in stderr
        status, lines, _ = shell.run("carol", "invoke", "shout", "hi", "--param", 'mark="?"', *known)
        assert (status, lines[-1]["output"]) == (0, "HI?")
        assert not (shell.base / "carol").exists()  # who only asks leaves nothing behind


def test_kill_9_a_provider_and_the_next_one_answers(shell: Shell) -> None:
    images = shell.base / "images.npy"
    np.save(images, np.zeros((1, 8, 8), np.float32))
    publish = ("--publish", "builtin:digits")
    with shell.join("alice", *publish) as (one, alice), shell.join("bob", *publish), shell.join("carol"):
        one.kill()
        one.wait()
        status, lines, _ = shell.run("carol", "invoke", "modelnet/digits", "--input", str(images))
        assert (status, lines[-1]["done"]) == (0, True)
        assert lines[-1]["provider"] != alice["peer"]


def test_a_neighbour_that_freezes_ends_nobody_and_is_told_when_it_wakes(shell: Shell) -> None:
    with shell.join("alice") as (one, _), shell.join("bob") as (other, _):
        until = time.monotonic() + 30
        while not shell.run("alice", "status")[1][0]["table"]:
            assert time.monotonic() < until  # alice has not heard yet what bob speaks
        other.send_signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            status, lines, stderr = shell.run("alice", "publish", "builtin:digits")
            if (
                status == 0
            ):  # alice knew nobody any more when she was ready to tell: three requests were in vain
                assert time.monotonic() - began > LAN.request_timeout
                assert lines[0]["holders"] == {"asked": 0, "stored": 0}
            else:
                assert (status, error_of(stderr)["code"]) == (4, "unreachable")
                assert "no peer that is known here answered" in error_of(stderr)["message"]
            assert shell.run("alice", "status")[0] == 0
            assert one.poll() is None
        finally:
            other.send_signal(signal.SIGCONT)
        until = time.monotonic() + 60
        while True:
            status, offers, _ = shell.run("bob", "find", "--model", "modelnet/digits")
            if status == 0 or time.monotonic() > until:
                break
        assert (status, [offer["model"] for offer in offers]) == (0, ["modelnet/digits@1"])


def test_after_kill_9_and_join_all_is_served_again_when_it_says_ready(shell: Shell, mine: Path) -> None:
    with shell.join("bob"):
        with shell.join("alice", "--publish", "mine:shout") as (process, _):
            before = shell.run("bob", "find", "--model", "shout")[1][0]
            process.kill()
            process.wait()
        with shell.join("alice"):
            status, lines, _ = shell.run("bob", "invoke", "shout", "again")
            assert (status, lines[-1]["output"]) == (0, "AGAIN!")
            after = shell.run("bob", "find", "--model", "shout")[1][0]
            assert after["provider"] == before["provider"]
            assert after["seq"] > before["seq"]
            assert shell.run("alice", "status")[1][0]["models"][0]["state"] == "serving"


def test_after_kill_9_a_callable_runs_where_it_was_published(shell: Shell) -> None:
    home = shell.base / "bobs directory"
    home.mkdir()
    # an interpreter of the publisher's own: this one, but it leaves its mark
    interpreter = shell.base / "python-of-bob"
    publisher = [
        sys.executable,
        "-c",
        f"import sys; sys.executable = {str(interpreter)!r}\nfrom modelnet_p2p.node.cli import main; main()",
    ]
    interpreter.write_text(f'#!/bin/sh\nFROM_WRAPPER=yes exec {sys.executable} "$@"\n')
    interpreter.chmod(0o755)
    (home / "where.py").write_text(
        "import os\n"
        "def where(text):\n"
        "    return [os.environ.get('COLOUR'), os.environ.get('FROM_WRAPPER'), os.getcwd()]\n"
    )
    expected = ["blue", "yes", str(home)]
    with shell.join("alice") as (process, _):
        done = subprocess.run(
            [*publisher, "publish", "where:where", "--home", str(shell.base / "alice")],
            env={**shell.env, "COLOUR": "blue"},
            cwd=home,
            capture_output=True,
            text=True,
            timeout=90,
        )
        assert done.returncode == 0, done.stderr
        assert shell.run("alice", "invoke", "where", "x")[1][-1]["output"] == expected
        process.kill()
        process.wait()
    with shell.join("alice"):
        assert shell.run("alice", "invoke", "where", "x")[1][-1]["output"] == expected


def test_a_model_that_cannot_come_back_is_told_in_one_line_and_can_be_forgotten(
    shell: Shell, mine: Path
) -> None:
    with shell.join("alice", "--publish", "mine:shout"):
        pass
    mine.unlink()
    with shell.join("alice"):
        said = (shell.base / "alice.log").read_text()
        assert "Traceback" not in said
        assert "cannot serve shout again" in said
        assert "modelnet-peer unpublish shout" in said
        assert [m["state"] for m in shell.run("alice", "status")[1][0]["models"]] == ["failed"]
        assert shell.run("alice", "unpublish", "shout")[0] == 0
        assert shell.run("alice", "status")[1][0]["models"] == []
    with shell.join("alice"):
        assert "cannot serve" not in (shell.base / "alice.log").read_text()


def test_what_is_withdrawn_is_gone_for_the_others(shell: Shell, mine: Path) -> None:
    with shell.join("alice", "--publish", "mine:shout"), shell.join("bob"):
        assert shell.run("bob", "invoke", "shout", "x")[0] == 0
        assert shell.run("alice", "unpublish", "shout")[0] == 0
        for argv in (("find", "--model", "shout"), ("invoke", "shout", "x"), ("show", "shout")):
            status, lines, stderr = shell.run("bob", *argv)
            assert (status, lines, error_of(stderr)["code"]) == (3, [], "not-found")


def test_kill_9_in_the_middle_of_a_stream(shell: Shell, mine: Path) -> None:
    with shell.join("alice", "--publish", "mine:slow") as (provider, _), shell.join("bob"):
        with shell.start("bob", "invoke", "slow", "x") as asking:
            assert json.loads(asking.stdout.readline()) == {"item": "0 "}
            provider.kill()
            status, stderr = ends(asking)
        assert status in (4, 5)
        assert error_of(stderr)["code"] in ("unreachable", "model-error")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_join_ends_in_time_with_a_hung_model_and_calls_in_flight(
    shell: Shell, mine: Path, number: int
) -> None:
    publish = ("--publish", "mine:slow", "--publish", "mine:hang")
    with (
        shell.join("alice", *publish) as (process, _),
        shell.join("bob"),
        shell.start("bob", "invoke", "hang", "x"),
        shell.start("bob", "invoke", "slow", "x") as streaming,
        shell.start("alice", "invoke", "hang", "x"),
    ):
        assert json.loads(streaming.stdout.readline()) == {"item": "0 "}
        process.send_signal(number)
        began = time.monotonic()
        assert process.wait(20) == 0
        assert time.monotonic() - began < 5
        status, stderr = ends(streaming)
        assert status in (4, 5)
        error_of(stderr)
    assert "Traceback" not in (shell.base / "alice.log").read_text()


def test_ctrl_c_ends_a_call_and_the_model_is_free_again(shell: Shell, mine: Path) -> None:
    with shell.join("alice", "--publish", "mine:slow"):
        with shell.start("alice", "invoke", "slow", "x") as asking:
            asking.stdout.readline()
            asking.send_signal(signal.SIGINT)
            status, stderr = ends(asking)
        assert (status, error_of(stderr)["code"]) == (130, "cancelled")
        deadline = time.monotonic() + 20
        while shell.run("alice", "status")[1][0]["models"][0]["in_flight"]:
            assert time.monotonic() < deadline


@pytest.mark.parametrize("model", ["die", "fail"])
def test_a_model_that_fails_is_one_line_and_the_peer_goes_on(shell: Shell, mine: Path, model: str) -> None:
    with shell.join("alice", "--publish", f"mine:{model}", "--publish", "mine:shout"):
        status, lines, stderr = shell.run("alice", "invoke", model, "x")
        error = error_of(stderr)
        assert (status, lines, error["code"]) == (5, [], "model-error")
        assert model == "die" or "ValueError: of two lines" in error["message"]
        assert shell.run("alice", "invoke", "shout", "x")[0] == 0
    said = (shell.base / "alice.log").read_text()
    assert "Traceback" not in said
    assert model == "die" or "mine.py:" in said


def test_a_call_that_takes_too_long_names_the_time_it_was_given(shell: Shell, mine: Path) -> None:
    with shell.join("alice", "--publish", "mine:hang"):
        status, _, stderr = shell.run("alice", "invoke", "hang", "x", "--timeout", "1")
        error = error_of(stderr)
        assert (status, error["code"]) == (4, "deadline")
        assert "--timeout" in error["hint"]


def test_one_who_reaches_nobody_is_told_so(shell: Shell, mine: Path) -> None:
    with shell.join("alice", "--publish", "mine:shout") as (_, alice):
        # alone, and it has not what is asked for: whether others have it is not for it to say
        status, _, stderr = shell.run("alice", "find", "--task", "translation")
        assert (status, error_of(stderr)["code"]) == (4, "unreachable")
        assert shell.run("alice", "invoke", "nothing", "x")[0] == 4
        assert shell.run("alice", "invoke", "shout", "x")[0] == 0  # what it has itself needs nobody
        gone = alice["addrs"][0]
    for argv in (("find", "--model", "shout"), ("invoke", "shout", "x")):
        status, _, stderr = shell.run("carol", *argv, "--bootstrap", gone)
        assert (status, error_of(stderr)["code"]) == (4, "unreachable")
        assert gone in error_of(stderr)["message"]


def test_a_damaged_state_file_is_named_and_nothing_is_touched(shell: Shell, mine: Path) -> None:
    with shell.join("alice", "--publish", "mine:shout") as (_, alice):
        pass
    damaged = next((shell.base / "alice" / "state" / "models").iterdir())
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-5])
    status, lines, stderr = shell.run("alice", "join")
    error = error_of(stderr)
    assert (status, lines, error["code"]) == (6, [], "bad-state")
    assert len(stderr.splitlines()) == 1
    assert str(damaged) in error["message"]
    assert damaged.read_bytes() == whole[:-5]
    damaged.write_bytes(whole)
    with shell.join("alice") as (_, again):
        assert again["peer"] == alice["peer"]


def test_a_full_disk_is_told_before_anything_is_served(shell: Shell, mine: Path) -> None:
    with shell.join("alice"), shell.join("bob"):
        models = shell.base / "alice" / "state" / "models"
        models.rmdir()
        models.write_text("in the way: writing below fails, as on a full disk, for root too")
        status, _, stderr = shell.run("alice", "publish", "mine:shout")
        assert (status, error_of(stderr)["code"]) == (6, "bad-state")
        assert shell.run("alice", "status")[1][0]["models"] == []
        assert shell.run("bob", "find", "--model", "shout")[0] == 3


def test_a_busy_port_and_a_second_join(shell: Shell) -> None:
    with shell.join("alice") as (_, alice):
        busy = alice["addrs"][0].partition("/p2p/")[0]
        for who, argv in (("alice", ()), ("bob", ("--listen", busy))):
            status, lines, stderr = shell.run(who, "join", *argv)
            assert (status, lines, error_of(stderr)["code"]) == (6, [], "in-use")


def test_ctrl_c_while_it_starts_is_an_orderly_end(shell: Shell) -> None:
    for delay in (0.2, 0.4, 0.8, 1.6):
        with shell.start("alice", "join") as process:
            time.sleep(delay)  # any moment will do
            process.send_signal(signal.SIGINT)
            status, stderr = ends(process)
        if status == -signal.SIGINT:
            continue  # on a slow machine: before the first line of ours ran
        assert (status, "Traceback" in stderr) == (0, False), stderr
