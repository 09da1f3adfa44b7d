"""`status --watch`: what it makes of a peer that answers, stops and returns, and what fits a terminal."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from rich.cells import cell_len

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.checkup.health import Concern
from modelnet_p2p.node.cli.screen import View, screen
from modelnet_p2p.node.cli.watching import Watch
from modelnet_p2p.node.control import client

Cli = Callable[..., Any]  # Any: Ran and FakePeer of conftest.py, which tests cannot import
STOPPED = LocalError(Code.NOT_RUNNING, "no peer is running")
SILENT = LocalError(Code.DEADLINE, "it has said nothing for 3 s")


def status(uptime: float, **told: Any) -> dict[str, Any]:
    return {"peer": "alice", "uptime_s": uptime, "connections": 1, "models": [], **told}


def test_a_peer_that_never_answered_is_an_error() -> None:
    with pytest.raises(LocalError) as caught:
        Watch().on_silence(STOPPED)
    assert caught.value is STOPPED


def test_a_peer_that_stops_and_returns_is_told_of_once_each() -> None:
    watch = Watch(" --home /tmp/second")
    assert watch.on_answer(status(5), (), 0).news == ""
    looks = [watch.on_silence(error) for error in (STOPPED, STOPPED, SILENT)]
    assert [bool(look.news) for look in looks] == [True, False, True]
    assert "modelnet-peer join --home /tmp/second" in looks[0].trouble
    assert looks[0].status == status(5)  # what was last known stays on the screen
    back = watch.on_answer(status(1), (), 9)
    assert (back.trouble, back.news) == ("", "the peer has been restarted")
    assert watch.on_answer(status(3), (), 11).news == ""


def test_a_peer_that_was_only_silent() -> None:
    watch = Watch()
    watch.on_answer(status(5), (), 0)
    watch.on_silence(SILENT)
    assert watch.on_answer(status(9), (), 4).news == "the peer answers again"


def test_what_rises_is_compared_with_a_minute_ago() -> None:
    watch = Watch()
    counts = [0, 2, 4, 4, 4]
    looks = [
        watch.on_answer(status(100 + 30 * i, refused={"expired": count}), (), 30.0 * i)
        for i, count in enumerate(counts)
    ]
    assert [[concern.code for concern in look.concerns] for look in looks] == [[], [], ["clock"], [], []]


# --- the screen ---

MODEL = {"model": "acme/summarise", "state": "serving", "in_flight": 1, "queued": 3, "calls": 12_345,
         "faults": 7, "calls_per_s": 4.25, "p50_ms": 12.3, "p99_ms": 456.7}  # fmt: skip
ALICE = {"peer": "12D3KooW" + "A" * 44, "version": "0.1.0", "network": "public", "uptime_s": 62,
         "addrs": ["/ip4/127.0.0.1/tcp/4001/p2p/12D3KooWA"], "connections": 1, "table": 2, "records": 9,
         "rss_bytes": 64 << 20, "calls_per_s": 4.25, "p50_ms": 12.3, "p99_ms": 456.7,
         "refused": {"forged": 2, "stale": 1}}  # fmt: skip
BOB = {"peer": "12D3KooW" + "B" * 44, "addrs": ["/ip4/192.0.2.7/tcp/4001"], "connected": True, "rtt_ms": 1.5,
       "state": "alive"}  # fmt: skip
CAROL = {**BOB, "peer": "12D3KooW" + "C" * 44, "connected": False, "rtt_ms": None, "state": "unknown"}


def shown(width: int, height: int, models: int = 1, peers: int = 1, told: int = 0, **more: Any) -> list[str]:
    concern = Concern("failing", "shout failed 3 times in a row: oh", "modelnet-peer logs says where")
    view = View(
        {**ALICE, "models": [MODEL] * models},
        [CAROL, *[BOB] * (peers - 1)] if peers else [],
        [concern] * told,
        clock="12:00:00",
        **more,
    )
    return [words for words, _ in screen(view, width, height)]


def test_a_screen_of_80_by_24() -> None:
    lines = shown(80, 24, peers=2, told=1)
    assert lines[0] == "modelnet-peer 0.1.0  network public  up 1 min 2 s  12:00:00"
    assert lines[1] == ALICE["peer"]
    assert lines[4] == "connections 1   known 2   records 9   refused 3   memory 64 MiB"
    assert lines[5].startswith("calls/s 4.25   p50 12.3 ms   p99 457 ms   running 1   waiting 3")
    assert lines[7:9] == ["! shout failed 3 times in a row: oh", "  modelnet-peer logs says where"]
    assert lines[11].split() == ["acme/summarise", "1", "3", "12345", "7", "4.25", "12.3", "457"]
    assert lines[14].split() == ["…BBBBBBBBBBBB", "alive", "1.50", "/ip4/192.0.2.7/tcp/4001"]
    assert "not connected" in lines[15]  # behind those that are
    assert lines[-1] == "Ctrl-C leaves"


def test_a_wide_screen_has_whole_ids() -> None:
    assert any(str(BOB["peer"]) in line for line in shown(120, 40, peers=2))


def test_what_is_left_out_is_counted() -> None:
    lines = shown(80, 24, models=64, peers=100, told=9)
    assert "  and 7 more: modelnet-peer status" in lines
    cut = [line for line in lines if line.startswith("and ")]
    told = [line for line in lines if line.startswith(("acme", "…"))]
    assert len(cut) == 2
    assert sum(int(line.split()[1]) for line in cut) + len(told) == 164


def test_an_empty_peer_is_told_what_to_do_next() -> None:
    text = "\n".join(shown(80, 24, models=0, peers=0))
    assert "no model is published: modelnet-peer publish builtin:digits" in text
    assert "no other peer is known" in text


def test_a_stopped_peer_says_so_above_what_was_last_known() -> None:
    lines = shown(80, 24, trouble="the peer has stopped; waiting for it: modelnet-peer join")
    assert lines[3].startswith("the peer has stopped")
    assert any(line.startswith("acme/summarise") for line in lines)


@pytest.mark.parametrize("width", [1, 20, 80, 120, 300])
@pytest.mark.parametrize("height", [1, 5, 10, 24, 60])
@pytest.mark.parametrize("many", [0, 3, 64])
def test_nothing_is_wider_or_longer_than_the_terminal(width: int, height: int, many: int) -> None:
    lines = shown(width, height, models=many, peers=many, told=many, trouble="gone" if many else "")
    assert len(lines) == height
    assert max(map(cell_len, lines)) <= width


def test_what_strangers_wrote_moves_no_cursor() -> None:
    wicked = {**BOB, "addrs": ["/dns4/\x1b[2J\n\u202eevil\u6f22/tcp/1"]}
    text = "\n".join(words for words, _ in screen(View(ALICE, [wicked]), 80, 24))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert len(text.splitlines()) == 24


# --- into a pipe ---


@pytest.fixture
def two_looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Ctrl-C during the second pause; the seconds of all pauses."""
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(time, "sleep", sleep)
    return pauses


def test_watching_into_a_pipe(cli: Cli, bob: Any, two_looks: list[float]) -> None:
    ran = cli("status", "--watch", "--interval", "60")
    assert (ran.status, ran.err) == (130, "")
    first, second = ran.out.splitlines()
    assert first.split()[1:] == second.split()[1:] or "calls/s" in second
    assert "models 1" in first
    assert all(50 < pause <= 60 for pause in two_looks)


def test_watching_as_json(cli: Cli, bob: Any, two_looks: list[float]) -> None:
    ran = cli("status", "--watch", "--json")
    looks = [json.loads(line) for line in ran.out.splitlines()]
    assert (ran.status, len(looks)) == (130, 2)
    assert looks[0]["models"][0]["model"] == "acme/echo"
    assert looks[0]["warnings"] == [
        {
            "code": "loopback",
            "message": "only this machine can reach it",
            "hint": looks[0]["warnings"][0]["hint"],
        }
    ]
    assert looks[0]["at_unix"] <= looks[1]["at_unix"]


def test_nothing_to_watch(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "START_GRACE", 0.0)
    ran = cli("status", "--watch")
    assert ran.status == 7
    assert ran.err.splitlines()[1].startswith("hint: modelnet-peer join")


def test_an_interval_without_watching(cli: Cli, bob: Any) -> None:
    ran = cli("status", "--interval", "5")
    assert ran.status == 2
    assert "--watch --interval" in ran.err


def test_status_once_tells_its_concerns_too(cli: Cli, bob: Any) -> None:
    assert "note" in cli("status").out
    assert json.loads(cli("status", "--json").out)["warnings"][0]["code"] == "loopback"
