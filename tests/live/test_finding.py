"""Searches with real processes: conditions, reasons, and the news of a provider that is killed."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer
from typing import Any

import pytest

pytestmark = pytest.mark.live
Shell = Any  # of conftest.py, which tests cannot import


@contextmanager
def no_longer(process: Any, seconds: float) -> Iterator[None]:
    """News that do not come are an empty line then, and not a test that hangs."""
    timer = Timer(seconds, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def test_conditions_and_reasons(shell: Shell) -> None:
    with shell.join("alice", "--publish", "builtin:digits") as (_, alice), shell.join("bob"):
        for asker in ("bob", "nobody"):  # a running peer, and a temporary one
            search = ("image-classification and framework:numpy and not licence:gpl*", "--explain")
            status, (offer,), stderr = shell.run(asker, "find", *search)
            assert (status, offer["provider"]) == (0, alice["peer"]), stderr
            assert "framework:numpy" in offer["why"]
        status, offers, stderr = shell.run(
            "bob", "find", "image-classification and parameters>1B", "--explain"
        )
        assert (status, offers) == (3, [])
        assert "ruled out by parameters>1B: 1" in stderr
        status, _, stderr = shell.run("bob", "find", "task:image-clasification", "framework:numpy")
        assert status == 3
        hint = json.loads(stderr.splitlines()[-1])["error"]["hint"]
        assert "find 'task:image-classification framework:numpy'" in hint


def test_the_news_of_a_provider_that_is_killed(shell: Shell) -> None:
    # carol is why alice can tell that bob is gone: a peer that reaches nobody does not say so of others
    with (
        shell.join("alice"),
        shell.join("carol"),
        shell.join("bob", "--publish", "builtin:digits") as (provider, bob),
    ):
        argv = ("find", "--model", "modelnet/digits", "--watch", "--interval", "0.5")
        with shell.start("alice", *argv) as watching, no_longer(watching, 60):
            first = json.loads(watching.stdout.readline())
            assert (first["event"], first["provider"]) == ("appeared", bob["peer"])
            provider.kill()
            while (news := json.loads(watching.stdout.readline()))["event"] != "gone":
                assert (news["event"], news["state"]) == ("changed", "suspect")
            assert news["provider"] == bob["peer"]
            watching.send_signal(signal.SIGINT)
            assert watching.wait(10) == 130
