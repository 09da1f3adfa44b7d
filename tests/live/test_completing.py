"""The Tab key in real shells: what bash, zsh and fish make of the scripts that `completion` prints."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glass import type_in, wait_for
from tmux import Tmux, missing

pytestmark = pytest.mark.live

BESIDE = str(Path(sys.executable).parent)  # where `modelnet-peer` lies in an environment of its own


@pytest.fixture
def environ(shell: Any) -> dict[str, str]:  # Any: the Shell of conftest.py, which tests cannot import
    if not Path(BESIDE, "modelnet-peer").exists():
        pytest.skip("modelnet-peer is not installed beside this Python")
    home = str(shell.base / "alice")
    return {**shell.env, "PATH": f"{BESIDE}:{shell.env['PATH']}", "MODELNET_HOME": home, "HOME": home}


@pytest.fixture
def tmux(shell: Any, environ: dict[str, str]) -> Iterator[Tmux]:
    if missing():
        pytest.skip(missing())
    with Tmux(shell.base, environ) as tmux:
        yield tmux


def test_bash_completes_as_it_is_typed(shell: Any, tmux: Tmux) -> None:
    pane = tmux.open("alice")
    with shell.join("alice", "--publish", "builtin:digits"):
        pane.run("source <(modelnet-peer completion bash)")

        def type_(text: str, becomes: str) -> None:
            type_in(tmux, "alice", text, "Tab")
            wait_for(tmux, "alice", rf"^2:0> {becomes}$")
            pane.press("C-u")
            wait_for(tmux, "alice", r"^2:0>$")

        type_("modelnet-peer unp", "modelnet-peer unpublish")
        type_("modelnet-peer publish builtin:d", "modelnet-peer publish builtin:digits")
        type_("true; MODELNET_LOG=info modelnet-peer unpublish m", ".* unpublish modelnet/digits")
        type_("modelnet-peer status --wa", "modelnet-peer status --watch")
        (shell.base / "digit.npy").touch()
        type_("modelnet-peer invoke modelnet/digits --input dig", ".* --input digit.npy")


def test_fish_completes(shell: Any, environ: dict[str, str]) -> None:
    if shutil.which("fish") is None:
        pytest.skip("needs fish")
    with shell.join("alice", "--publish", "builtin:digits"):
        asked = [
            "modelnet-peer completion fish | source",
            "complete -C 'modelnet-peer unp'",
            "complete -C 'modelnet-peer publish builtin:d'",
            "complete -C 'modelnet-peer unpublish '",
        ]
        told = subprocess.run(
            ["fish", "-c", "; ".join(asked)], env=environ, capture_output=True, text=True, timeout=60
        )
    words = [line.partition("\t")[0] for line in told.stdout.splitlines()]
    assert words == ["unpublish", "builtin:digits", "modelnet/digits"], told.stderr


def test_zsh_completes(shell: Any, environ: dict[str, str], tmux: Tmux) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("needs zsh")
    pane = tmux.open("alice")
    with shell.join("alice", "--publish", "builtin:digits"):
        pane.start("PS1='%% ' zsh -f")
        wait_for(tmux, "alice", r"^%$")
        type_in(tmux, "alice", "autoload -U compinit; compinit -D -u; echo is ready", "Enter")
        wait_for(tmux, "alice", r"^is ready$")
        type_in(tmux, "alice", "source <(modelnet-peer completion zsh); echo has it", "Enter")
        wait_for(tmux, "alice", r"^has it$")
        for text, becomes in (("unp", "unpublish"), ("publish builtin:d", "publish builtin:digits")):
            type_in(tmux, "alice", f"modelnet-peer {text}", "Tab")
            wait_for(tmux, "alice", rf"^% modelnet-peer {becomes}$")
            pane.press("C-u")
        type_in(tmux, "alice", "exit", "Enter")
        pane.finish()
