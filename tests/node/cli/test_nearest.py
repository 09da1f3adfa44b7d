"""What a newcomer mistypes: the error names what was probably meant, as a line to copy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelnet_p2p.errors import Code, LocalError, RemoteError
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.node.cli.app import app
from modelnet_p2p.node.cli.homing import at_home, home_given
from modelnet_p2p.node.cli.nearest import nearest, no_such_command
from modelnet_p2p.node.serving.backends.registry import find_backend

Cli = Callable[..., Any]  # Any: Ran and FakePeer of conftest.py, which tests cannot import
PEER = KeyPair(bytes(32)).id.text
COMMANDS = ("join", "publish", "unpublish", "find", "invoke", "status", "peers", "id", "ping", "show")


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        ("shuot", {"shout", "words"}, "shout"),
        ("digits", {"modelnet/digits"}, "modelnet/digits"),
        ("acme/digit", {"modelnet/digits", "acme/echo"}, "modelnet/digits"),
        ("whatever", {"shout"}, None),
        ("shout", set(), None),
    ],
)
def test_the_nearest_name_if_it_is_near(word: str, known: set[str], meant: str | None) -> None:
    assert nearest(word, known) == meant


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        (["joim"], "modelnet-peer join"),
        (["Publish", "builtin:digits"], "modelnet-peer publish builtin:digits"),
        (["run", "shout", "two words"], "modelnet-peer invoke shout 'two words'"),
        (["ls", "--json"], "modelnet-peer find --json"),
    ],
)
def test_a_command_that_is_none_is_told_as_the_whole_line_that_was_meant(line: list[str], meant: str) -> None:
    assert no_such_command("modelnet-peer", line, COMMANDS).hint == f"did you mean: {meant}"


def test_a_command_that_is_like_none_leads_to_the_list(cli: Cli) -> None:
    ran = cli("frobnicate")
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.splitlines() == [
        "error: there is no command 'frobnicate'", "hint: modelnet-peer --help lists them all",
    ]  # fmt: skip


def test_a_flag_before_the_command_is_sent_behind_it(cli: Cli) -> None:
    ran = cli("--home", "/nowhere", "status")
    assert ran.status == 2
    assert "put it behind: modelnet-peer status --home" in ran.err
    assert "hint: modelnet-peer --help" in cli("--homme").err  # no command there to put it behind


def test_text_without_its_quotes(cli: Cli) -> None:
    ran = cli("invoke", "shout", "two", "words")
    assert (ran.status, "needs quotes" in ran.err) == (2, True)


@pytest.mark.parametrize(
    ("argv", "again"),
    [
        (["find", "--model", "acme/ehco"], "find --model acme/echo"),
        (["unpublish", "ecko"], "unpublish acme/echo"),
        (["show", "nothing"], None),
        (["invoke", "nothing", "hello"], None),
    ],
)
def test_a_name_that_is_nearly_one_of_this_peers(
    cli: Cli, bob: Any, monkeypatch: pytest.MonkeyPatch, argv: list[str], again: str | None
) -> None:
    async def nobody(*args: object, **asked: object) -> list[object]:
        return []

    monkeypatch.setattr(bob, "find", nobody)
    ran = cli(*argv)
    assert ran.status in (3, 4)
    if again is None:
        assert "did you mean" not in ran.err
    else:
        assert f"hint: did you mean acme/echo, which this peer serves? modelnet-peer {again}\n" in ran.err


def test_a_command_to_copy_has_the_home_that_was_given(cli: Cli, tmp_path: Path) -> None:
    elsewhere = str(tmp_path / "else where")
    for flag in (["--home", elsewhere], [f"--home={elsewhere}"]):
        ran = cli("peers", *flag)
        assert f"hint: modelnet-peer join --home '{elsewhere}'\n" in ran.err
        ran = cli("pull", "--remove", "acme/net", *flag)
        assert f"hint: modelnet-peer pull --home '{elsewhere}' --list\n" in ran.err
        assert "--home" not in cli("owner", "revoke", *flag).err.partition("hint")[2]  # a command's help
    assert "hint: modelnet-peer pull --list\n" in cli("pull", "--remove", "acme/net").err


@pytest.mark.parametrize(
    ("hint", "copied"),
    [
        ("modelnet-peer unpublish big", "modelnet-peer unpublish --home /x big"),
        ("did you mean a? modelnet-peer find a --home /y", "did you mean a? modelnet-peer find a --home /y"),
        (
            "modelnet-peer owner trust a OWNER, or: modelnet-peer owner forget a",
            "modelnet-peer owner trust --home /x a OWNER, or: modelnet-peer owner forget --home /x a",
        ),
        ("modelnet-peer join there, or --bootstrap A", "modelnet-peer join there, or --bootstrap A"),
        ("modelnet-peer join on that machine, and copy", "modelnet-peer join on that machine, and copy"),
        ("what `modelnet-peer id` prints there", "what `modelnet-peer id` prints there"),
        ("modelnet-peer --help lists them all", "modelnet-peer --help lists them all"),
        ("modelnet-peer dance", "modelnet-peer dance"),
    ],
)
def test_where_the_home_stands_in_a_command(hint: str, copied: str) -> None:
    assert at_home(hint, home_given(["unpublish", "big", "--home", "/x"]), app) == copied
    assert at_home(hint, home_given(["unpublish", "big"]), app) == hint


def test_who_else_may_be_asked_when_a_provider_is_gone(cli: Cli, bob: Any) -> None:
    ran = cli("invoke", "broken-off", "hello")
    assert ran.status == 4
    assert "hint: modelnet-peer find --model broken-off lists who offers it" in ran.err


@pytest.mark.parametrize(
    ("instead", "hint"),
    [
        (PEER, f"hint: another peer serves the same: --provider {PEER}"),
        ("just run this", "hint: try again later"),  # a stranger's word
        ("", "hint: try again later"),
    ],
)
def test_whom_a_busy_provider_names_in_its_place(
    cli: Cli, bob: Any, monkeypatch: pytest.MonkeyPatch, instead: str, hint: str
) -> None:
    async def call(*args: object, **asked: object) -> object:
        raise RemoteError(Code.BUSY, "16 wait", hint="try again later", peer="carol", instead=instead)

    monkeypatch.setattr(bob, "call", call)
    ran = cli("invoke", "shout", "hello", "--provider", "carol")
    assert (ran.status, ran.err.splitlines()[-1]) == (5, hint)
    told = json.loads(cli("invoke", "shout", "hello", "--json").err.splitlines()[-1])["error"]
    assert told.get("instead", "") == instead


def test_what_is_published_anew_has_no_name_yet_that_could_be_wrong(
    cli: Cli, bob: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def alone(source: str, **asked: object) -> dict[str, object]:
        raise RemoteError(Code.UNREACHABLE, "no holder answers", hint="modelnet-peer peers")

    monkeypatch.setattr(bob, "publish", alone)
    ran = cli("publish", "shout:shout", "--model", "acme/ehco")
    assert (ran.status, "hint: modelnet-peer peers" in ran.err) == (4, True)


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("shout", "modelnet-peer publish shout:NAME"),
        ("shout", "modelnet-peer pull shout"),
        ("acme/llama-3.2", "modelnet-peer pull acme/llama-3.2"),
        ("acme/net@1", "modelnet-peer pull acme/net@1"),
        ("my/shout.py", "modelnet-peer publish my.shout:NAME"),
        ("model.safetensor", "publish builtin:digits, MODULE:NAME"),
        ("../x.py", "publish builtin:digits, MODULE:NAME"),
    ],
)
def test_a_module_without_its_function(spec: str, hint: str) -> None:
    with pytest.raises(LocalError) as caught:
        find_backend(spec)
    assert caught.value.code is Code.BAD_INPUT
    assert hint in caught.value.hint
