"""`status --watch` in a real terminal, beside real peers that are called, stopped and started again."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from glass import visible, wait_for
from tmux import Pane, Tmux, missing

pytestmark = [pytest.mark.live, pytest.mark.skipif(bool(missing()), reason=missing() or "")]

TO_THE_END = r"(?s:.*)Ctrl-C leaves\Z"  # the last line of the screen: all above it is drawn
PROGRAM = [sys.executable, "-c", "from modelnet_p2p.node.cli import main; main()"]


@pytest.fixture
def tmux(shell: Any) -> Iterator[Tmux]:  # Any: the Shell of conftest.py, which tests cannot import
    with Tmux(shell.base, shell.env) as tmux:
        yield tmux


def watching(shell: Any, who: str) -> str:
    words = [*PROGRAM, "status", "--watch", "--interval", "0.3", "--home", str(shell.base / who)]
    return shlex.join(words)


def resize(tmux: Tmux, name: str, columns: int, rows: int) -> None:
    tmux.tell("resize-window", "-t", f"{name}:", "-x", str(columns), "-y", str(rows))


def begin(pane: Pane, shell: Any, who: str) -> None:
    pane.run("echo before")
    pane.start(watching(shell, who))


def test_the_screen_of_a_peer_that_is_called_stopped_and_started_again(shell: Any, tmux: Tmux) -> None:
    pane = tmux.open("alice")
    resize(tmux, "alice", 80, 24)
    with (
        shell.join("bob") as (_, bob),
        shell.join("alice", "--publish", "builtin:digits") as (process, alice),
    ):
        begin(pane, shell, "alice")
        lines = wait_for(tmux, "alice", rf"^modelnet/digits\S* +0 +0 +0 +0 +0\.00 +- +-${TO_THE_END}")
        assert len(lines) == 24
        assert alice["peer"] in lines
        assert any(line.startswith("connections 1") for line in lines)
        assert any(line.startswith(f"…{bob['peer'][-12:]}") for line in lines)
        assert "! only this machine can reach it" in lines
        assert lines[-1] == "every 0.3 s    Ctrl-C leaves"

        resize(tmux, "alice", 120, 40)
        lines = wait_for(tmux, "alice", rf"^{bob['peer']} {TO_THE_END}")
        assert len(lines) == 40

        (shell.base / "digit.json").write_text('{"dtype":"float32","shape":[1,8,8],"data":%s}' % ([1.0] * 64))
        status, answer, error = shell.run("bob", "invoke", "modelnet/digits", "--input", "digit.json")
        assert (status, len(answer)) == (0, 1), error
        wait_for(tmux, "alice", r"^modelnet/digits\S* +0 +0 +1 +0 +[\d.]+ +[\d.]+ +[\d.]+$")

        process.terminate()
        process.wait(10)
        lines = wait_for(tmux, "alice", r"^the peer has stopped; waiting for it: modelnet-peer join --home ")
        assert alice["peer"] in lines
    with shell.join("alice") as (_, again):
        assert again["peer"] == alice["peer"]
        wait_for(tmux, "alice", r"^! no other peer is connected$")
        assert not any("has stopped" in line for line in visible(tmux, "alice"))
        pane.press("C-c")
        wait_for(
            tmux, "alice", r"^3:130>"
        )  # the status that it ended with, on the prompt of a sound terminal
    text = "\n".join(visible(tmux, "alice"))
    assert "before" in text  # what was on the terminal is there again
    assert "connections" not in text
    assert pane.run("stty -a | grep -o ' echo '").text.strip() == "echo"
    assert tmux.tell("display-message", "-p", "-t", "alice:", "#{alternate_on}#{cursor_flag}").strip() == "01"


def test_a_screen_that_is_put_aside_and_killed(shell: Any, tmux: Tmux) -> None:
    pane = tmux.open("alice")
    with shell.join("alice"):
        begin(pane, shell, "alice")
        wait_for(tmux, "alice", "Ctrl-C leaves")
        pane.press("C-z")
        wait_for(tmux, "alice", r"^3:148>")  # the shell has its terminal back, as it was
        assert not any("Ctrl-C leaves" in line for line in visible(tmux, "alice"))
        pane.press("f")
        pane.press("g")
        pane.press("Enter")
        wait_for(tmux, "alice", "Ctrl-C leaves")
        tmux.tell("run-shell", f"kill -TERM $(pgrep -s {pane.pid} -f 'status --watch')")
        wait_for(tmux, "alice", r"^4:130>")
    assert "before" in "\n".join(visible(tmux, "alice"))
