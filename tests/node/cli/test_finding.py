"""find: its search, its reasons, its news, and the names that were probably meant."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from modelnet_p2p.errors import NotFound
from modelnet_p2p.node.cli import nearest
from modelnet_p2p.node.cli.common import Session
from modelnet_p2p.node.cli.output import Output
from modelnet_p2p.node.config import load_settings
from modelnet_p2p.node.disk.home import Home
from modelnet_p2p.node.disk.runtime import Runtime

Cli = Callable[..., Any]  # Any: Ran and FakePeer of conftest.py, which tests cannot import
OFFER = {
    "model": "acme/echo",
    "task": "x-acme/greeting",
    "state": "alive",
    "rtt_ms": 1.0,
    "load": 0.5,
    "provider": "bob",
}


@pytest.mark.parametrize(
    ("argv", "where"),
    [
        (["text-generation", "and", "language:de"], "text-generation and language:de"),
        (["task:a and parameters<=7B"], "task:a and parameters<=7B"),
    ],
)
def test_a_search_in_one_word_or_many(cli: Cli, bob: Any, argv: list[str], where: str) -> None:
    ran = cli("find", *argv, "--limit", "5", "--timeout", "3", "--json")
    assert ran.status == 0
    assert bob.asked == [("find", (None, None, None, 5, False, 3.0, where))]


@pytest.mark.parametrize(
    ("argv", "says", "hint"),
    [
        (["licence:mit"], "does not say where to look", "modelnet-peer find 'task:text-generation and"),
        (["langage:de"], "at character 1", "did you mean language?"),
        (["task:"], "at character 6", "task:text-generation"),
        (["a", "--tag", "German"], "'German' is not a tag", "did you mean german?"),
        (["a", "--task", "Text Generation"], "is not a task", "did you mean text-generation?"),
        ([], "say what to find", "modelnet-peer find --task"),
        (["a", "--watch", "--limit", "3"], "--watch follows all offers, and takes no --limit", "leave one"),
        (["a", "--watch", "--explain"], "takes no --explain", "leave one"),
    ],
)
def test_a_wrong_search_is_told_before_anybody_is_asked(
    cli: Cli, argv: list[str], says: str, hint: str
) -> None:
    ran = cli("find", *argv)  # no peer is running
    assert (ran.status, ran.out) == (2, "")
    error, following = ran.err.splitlines()
    assert says in error
    assert hint in following


async def nobody(*args: object, **asked: object) -> list[object]:
    return []


@pytest.mark.parametrize(
    ("argv", "again"),
    [
        (["find", "--task", "text-clasification"], "find --task text-classification"),
        (["find", "--task", "greeting"], "find --task x-acme/greeting"),
        (["find", "text-clasification"], "find text-classification"),
        (["find", "task:text-generatoin", "language:de"], "find 'task:text-generation language:de'"),
        (["find", "summarize"], "find carol/summarise"),
        (["find", "--model", "summarize"], "find --model carol/summarise"),
        (["invoke", "task:text-clasification", "x"], "find --task text-classification"),
        (["find", "--tag", "englsh"], "find --tag english"),
        (["find", "englsh"], "find english"),
        (["find", "task:text-generation", "tag:englsh"], "find 'task:text-generation tag:english'"),
        (["find", "--task", "translation", "--tag", "germn"], "find --task translation --tag german"),
        (["find", "--model", "acme/echo", "--tag", "germn"], "find --model acme/echo --tag german"),
        (["find", "--task", "transl", "--tag", "german"], "find --task translation --tag german"),
        (["find", "--model", "acme/ehco", "--tag", "german"], "find --model acme/echo --tag german"),
        (["find", "task:translation", "tier:egde"], "find 'task:translation tier:edge'"),
        (["find", "tier:edge", "tag:a", "--task", "transl"], "find 'tier:edge tag:a' --task translation"),
    ],
)
def test_what_was_probably_meant(
    cli: Cli, bob: Any, monkeypatch: pytest.MonkeyPatch, argv: list[str], again: str
) -> None:
    async def call(*args: object, **asked: object) -> object:
        raise NotFound("nobody offers it")

    monkeypatch.setattr(bob, "find", nobody)
    monkeypatch.setattr(bob, "call", call)
    ran = cli(*argv)
    assert ran.status == 3
    hint = ran.err.splitlines()[-1]
    assert hint.startswith("hint: did you mean ")
    assert hint.endswith(f"? modelnet-peer {again}")


def test_who_finds_something_is_asked_for_no_names(cli: Cli, bob: Any) -> None:
    assert cli("find", "--task", "a", "--tag", "b").status == 0
    assert [what for what, _ in bob.asked] == ["find"]


def test_a_peer_that_is_alone_knows_its_own_tags(cli: Cli, bob: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bob, "find", nobody)
    bob.known = []
    assert (
        "hint: did you mean english? modelnet-peer find --tag english\n" in cli("find", "--tag", "englsh").err
    )
    ran = cli("find", "--tag", "frobnicate")
    assert (ran.status, "hint: modelnet-peer join --bootstrap" in ran.err) == (4, True)


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["--task", "text-classification"], "offer it yourself: modelnet-peer publish MODULE:NAME --task"),
        (["tag:frobnicate"], "what ruled others out: modelnet-peer find tag:frobnicate --explain"),
        (["--model", "acme/frobnicate"], "offer it yourself: modelnet-peer publish MODULE:NAME --model NAME"),
        (
            ["--tag", "frobnicate"],
            "this peer has heard of the tags english, loud; "
            "modelnet-peer find --task TASK --json shows those of a task",
        ),
        (
            ["--task", "translation", "--tag", "frobnicate"],
            "tags there: german, small; modelnet-peer find --task translation --json shows whose",
        ),
        (["--tag", "loud"], "modelnet-peer find --task TASK --json shows which tags there are; or offer it"),
    ],
)
def test_what_is_spelt_well_and_not_there(
    cli: Cli, bob: Any, monkeypatch: pytest.MonkeyPatch, argv: list[str], hint: str
) -> None:
    monkeypatch.setattr(bob, "find", nobody)
    ran = cli("find", *argv)
    assert (ran.status, f"hint: {hint}" in ran.err) == (3, True)


def test_for_a_hint_each_thing_is_asked_once(cli: Cli, bob: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bob, "find", nobody)
    ran = cli("find", "--task", "translation", "--model", "acme/frobnicate", "--tag", "frobnicate")
    assert "hint: tags there: german, small; " in ran.err
    assert bob.asked == [("known_tags", ("translation", "acme/frobnicate"))]


def test_an_error_is_late_by_one_patience_whatever_is_asked_for_its_hint(
    cli: Cli, bob: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*args: object) -> list[str]:
        await trio.sleep_forever()

    monkeypatch.setattr(bob, "find", nobody)
    monkeypatch.setattr(bob, "known_tags", never)
    monkeypatch.setattr(nearest, "PATIENCE", 0.3)
    began = time.monotonic()
    ran = cli("find", "--task", "translation", "--model", "acme/frobnicate", "--tag", "frobnicate")
    assert (ran.status, "hint: " in ran.err) == (3, True)
    assert 0.3 <= time.monotonic() - began < 2 * 0.3


def test_a_peer_that_is_restarted_meanwhile_is_not_waited_for_to_give_a_hint(home: Home) -> None:
    error = NotFound("nobody offers it", hint="offer it yourself")
    session = Session(load_settings(home=str(home.path)), Output(as_json=True))
    began = time.monotonic()
    with Runtime("public", home).lock(joining=True):
        nearest.add_hint(error, session, "find", {"task": "transl", "model": "acme/ehco", "tag": "germn"})
    assert error.hint.startswith("did you mean translation?")  # which is known without a peer
    assert time.monotonic() - began < 1.0


def test_where_no_tags_are_known_either(cli: Cli, bob: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def none(*args: object) -> list[str]:
        return []

    monkeypatch.setattr(bob, "find", nobody)
    monkeypatch.setattr(bob, "known_tags", none)
    yourself = "offer it yourself: modelnet-peer publish MODULE:NAME"
    assert f"shows which tags there are; or {yourself} --tag t\n" in cli("find", "--tag", "t").err
    assert f"hint: {yourself} --task x-ORG/a --tag t\n" in cli("find", "--task", "a", "--tag", "t").err


@pytest.mark.parametrize(
    "argv", [["--tag", "t"], ["--model", "acme/x"], ["task:a and tier:edge"], ["--task", "a"]]
)
def test_those_that_do_not_answer_are_spoken_of_where_there_are_any(
    cli: Cli, bob: Any, monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    monkeypatch.setattr(bob, "find", nobody)
    assert "--all" not in cli("find", *argv).err
    bob.silent = 2
    assert "hint: --all lists those that do not answer, too" in cli("find", *argv).err


def explained(*offers: dict[str, Any]) -> Any:
    tally = {
        **{"keys": ["/modelnet/public/task/a"], "read": 9, "ruled_out": {"tier:edge": 2, "cost:0": 6}},
        **{"cards": 40, "cards_ruled_out": 31, "messages": 12, "untimely": 7},
    }
    return SimpleNamespace(
        offers=[SimpleNamespace(to_map=lambda offer=offer: offer) for offer in offers],
        why=lambda offer: ["task:a", "answered\x1b[31m in 1.0 ms"],
        tally=None,
        to_map=lambda: tally,
    )


def test_the_reasons(cli: Cli, bob: Any) -> None:
    async def explain(*args: object, **asked: object) -> Any:
        return explained(OFFER)

    bob.explain = explain
    ran = cli("find", "--task", "a", "--explain")
    assert ran.status == 0
    assert ran.out.splitlines()[-1].startswith("1. acme/echo: task:a; answered")
    assert "looked under task/a: 9 offers read, 1 shown" in ran.err
    assert "cards read: 40, ruled out without their offers: 31; requests to holders: 12" in ran.err
    assert "refused as over, or not yet valid by this machine's clock: 7\n" in ran.err
    assert ran.err.index("ruled out by cost:0: 6") < ran.err.index("ruled out by tier:edge: 2")
    line = json.loads(cli("find", "--task", "a", "--explain", "--json").out)
    assert (line["model"], line["why"][0]) == ("acme/echo", "task:a")


def test_the_reasons_when_nobody_was_meant(cli: Cli, bob: Any) -> None:
    async def explain(*args: object, **asked: object) -> Any:
        return explained()

    bob.explain = explain
    ran = cli("find", "task:a and tier:edge", "--explain")
    assert ran.status == 3
    assert "ruled out by tier:edge: 2" in ran.err
    assert "do not answer" not in ran.err
    assert ran.err.splitlines()[-1].startswith("hint: leave out a condition")


def test_news_come_as_they_happen_until_ctrl_c(home: Any, bob: Any) -> None:
    async def news() -> Any:  # Any: an async generator of what the table sends on
        import trio

        for event in ("appeared", "gone"):
            yield SimpleNamespace(to_map=lambda event=event: {"event": event, **OFFER})
        await trio.sleep_forever()

    bob.watch = lambda **asked: news()
    program = "from modelnet_p2p.node.cli import main; main()"
    command = [sys.executable, "-c", program, "find", "--task", "a", "--watch", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert watching.stderr is not None
        events = [json.loads(watching.stdout.readline())["event"] for _ in range(2)]
        watching.send_signal(signal.SIGINT)
        assert watching.wait(10) == 130
        assert "error" not in watching.stderr.read()
    assert events == ["appeared", "gone"]


def test_news_for_people_are_a_line_each(cli: Cli, bob: Any) -> None:
    async def news() -> Any:  # Any: an async generator of what the table sends on
        yield SimpleNamespace(to_map=lambda: {"event": "appeared", **OFFER})

    bob.watch = lambda **asked: news()
    bob.known = []
    ran = cli("find", "--task", "a", "--watch")
    assert ran.status == 0
    assert ran.out[10:] == "appeared  acme/echo  x-acme/greeting  alive  bob\n"
    assert "reaches no other one yet" in ran.err
