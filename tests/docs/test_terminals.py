"""The terminal that a page is typed into: exit statuses, what stays on the screen, Ctrl-C, no leftovers."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from terminals import Terminal

pytestmark = pytest.mark.live


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    environ = {"PATH": os.environ["PATH"], "TERM": "xterm-256color", "LANG": "C.UTF-8"}
    with Terminal(tmp_path, environ) as opened:
        yield opened


def test_each_command_has_its_status_and_its_lines(terminal: Terminal) -> None:
    terminal.start("echo one; echo two >&2; (exit 7)")
    assert terminal.finish() == (7, ["one", "two"])
    terminal.start("cat <<'END'\n$x\nEND")
    assert terminal.finish() == (0, ["$x"])


def test_the_shell_is_the_same_one_throughout(terminal: Terminal) -> None:
    for command in ("name=alice", "cd /", "sleep 100 &", "kill %1; wait"):
        terminal.start(command)
        terminal.finish()
    terminal.start('echo "$name $PWD"')
    assert terminal.finish() == (0, ["alice /"])


def test_what_was_overwritten_is_not_on_the_screen(terminal: Terminal) -> None:
    terminal.start(r"printf 'working ...\r\033[Kdone\n'")
    assert terminal.finish() == (0, ["done"])


def test_ctrl_c_ends_what_is_in_the_foreground_alone(terminal: Terminal) -> None:
    terminal.start("""bash -c 'trap "exit 130" INT; echo begun; sleep 100 & wait; echo not this'""")
    terminal.wait_for(re.compile("begun"))
    terminal.interrupt()
    assert terminal.finish() == (130, ["begun"])
    terminal.start("echo still here")
    assert terminal.finish() == (0, ["still here"])


def test_it_is_a_terminal_for_what_runs_in_it(terminal: Terminal) -> None:
    terminal.start("test -t 0 && test -t 1 && test -t 2 && echo yes")
    assert terminal.finish() == (0, ["yes"])


def test_patience_ends_with_what_was_seen(terminal: Terminal) -> None:
    terminal.start("echo seen; sleep 100")
    with pytest.raises(TimeoutError, match=r"(?s)did not appear.*seen"):
        terminal.wait_for(re.compile("never"), patience=0.5)


def test_nothing_that_it_started_is_left(tmp_path: Path) -> None:
    with Terminal(tmp_path, {"PATH": os.environ["PATH"], "TERM": "dumb"}) as terminal:
        terminal.start("sleep 100 & echo $!")
        pid = int(terminal.finish()[1][0])
        terminal.start("sleep 100")
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
