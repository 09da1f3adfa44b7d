"""What the Tab key gives: asked as bash asks, answered beside a peer and without one."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from typing import Any

import pytest

from modelnet_p2p.node.cli import words
from modelnet_p2p.node.serving.backends.builtin import BuiltinBackend
from modelnet_p2p.node.serving.backends.echo import EchoBackend
from modelnet_p2p.node.serving.backends.minilm import MiniLmBackend

Cli = Callable[..., Any]  # Any: Ran and FakePeer of conftest.py, which tests cannot import
Tab = Callable[[str], list[str]]


@pytest.fixture
def tab(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Tab:
    """The answers to a line, after its `modelnet-peer `."""

    def press(line: str) -> list[str]:
        with monkeypatch.context() as context:
            context.setenv("_MODELNET_PEER_COMPLETE", "bash_complete")
            context.setenv("COMP_WORDS", f"modelnet-peer {line}")
            ran = cli()
        assert (ran.status, ran.err) == (0, "")
        return str(ran.out).split()

    return press


def plain(answers: list[str]) -> list[str]:
    return [answer.removeprefix("plain,") for answer in answers if answer.startswith("plain,")]


def test_commands_and_flags(tab: Tab) -> None:
    assert plain(tab("un")) == ["unpublish"]
    assert {"join", "status", "completion"} <= set(plain(tab("")))
    assert plain(tab("status --w")) == ["--watch"]
    assert plain(tab("invoke x --wire f")) == ["float16"]


def test_sources(tab: Tab) -> None:
    assert plain(tab("publish builtin:d")) == ["builtin:digits"]
    assert plain(tab("join --publish b")) == list(words.BUILTINS)
    assert tab("publish weights") == ["file,weights"]


def test_every_builtin_is_one() -> None:
    backends = (BuiltinBackend, EchoBackend, MiniLmBackend)
    assert all(any(backend.claims(name) for backend in backends) for name in words.BUILTINS)


def test_files_and_folders(tab: Tab) -> None:
    assert tab("invoke m --input ./di") == ["file,./di"]
    assert tab("status --home ") == ["dir,"]


def test_models_of_the_running_peer(tab: Tab, bob: Any) -> None:
    assert plain(tab("unpublish ")) == ["acme/echo"]
    assert plain(tab("invoke ")) == ["acme/echo", "carol/summarise"]
    assert plain(tab("show carol")) == plain(tab("find --model carol")) == ["carol/summarise"]
    assert tab("unpublish nobody") == []


def test_the_home_on_the_line_is_the_one_that_is_asked(tab: Tab, bob: Any, home: Any) -> None:
    assert tab("unpublish --home /nowhere ") == []
    assert plain(tab(f"unpublish --home {shlex.quote(str(home.path))} ")) == ["acme/echo"]


def test_without_a_peer_there_are_no_names_and_no_words(tab: Tab) -> None:
    assert tab("invoke ") == tab("unpublish ") == []


def test_a_peer_that_hangs_holds_up_nobody(tab: Tab, bob: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "PATIENCE", 0.05)

    def hang() -> list[str]:
        time.sleep(0.5)
        return ["late"]

    monkeypatch.setattr(bob, "known_models", hang)
    began = time.monotonic()
    assert tab("invoke ") == []
    assert time.monotonic() - began < 0.4


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_scripts(cli: Cli, shell: str) -> None:
    ran = cli("completion", shell)
    assert (ran.status, ran.err) == (0, "")
    assert f"_MODELNET_PEER_COMPLETE={shell}_complete" in ran.out
    assert json.loads(cli("completion", shell, "--json").out) == {"shell": shell, "script": ran.out}


def test_the_shell_in_use_is_meant(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    assert "function _modelnet_peer_completion" in cli("completion").out
    monkeypatch.setenv("SHELL", "/bin/dash")
    ran = cli("completion")
    assert ran.status == 2
    assert "modelnet-peer completion bash" in ran.err
