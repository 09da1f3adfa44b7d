"""The commands `config`, `logs` and `doctor` as typed: output, errors, exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from modelnet_p2p.node.logs.file import keep_log

Cli = Callable[..., Any]  # Any: Ran of conftest.py, which tests cannot import


def test_config_show(cli: Cli, home: Any) -> None:
    home.path.mkdir()
    home.config_path.write_text("timeout = 5\n")
    ran = cli("config", "show", "--network", "town", "--json")
    assert (ran.status, json.loads(ran.out)) == (
        0,
        {
            "home": str(home.path),
            "network": "town",
            "tuning": "lan",
            "bootstrap": [],
            "listen": None,
            "lan": False,
            "timeout": 5.0,
            "gateway": None,
            "gateway_key_file": None,
            "gateway_origins": [],
        },
    )
    ran = cli("config", "show", "--network", "town", "--origin")
    assert ran.status == 0
    assert [line.split()[-1] for line in ran.out.splitlines()[1:]] == [
        "MODELNET_HOME", "--network", "default", "default", "default", "default", f"{home.config_path}:1",
        "default", "default", "default",
    ]  # fmt: skip


def test_config_show_of_a_broken_file_says_what_to_do(cli: Cli, home: Any) -> None:
    home.path.mkdir()
    home.config_path.write_text("timout = 5\n")
    ran = cli("config", "show")
    assert (ran.status, ran.out) == (6, "")
    assert "line 1: there is no setting 'timout'; did you mean 'timeout'?" in ran.err
    path = cli("config", "path")  # the way to repair it must not need it
    assert (path.status, path.out.strip()) == (0, str(home.config_path))
    assert "did you mean" in path.err


def test_config_path_before_there_is_one(cli: Cli, home: Any) -> None:
    ran = cli("config", "path", "--json")
    assert json.loads(ran.out) == {"path": str(home.config_path), "exists": False}
    assert not home.path.exists()


def test_config_alone_shows_its_help(cli: Cli) -> None:
    ran = cli("config")
    assert (ran.status, ran.out) == (2, "")
    assert "show" in ran.err


def test_logs(cli: Cli, home: Any) -> None:
    ran = cli("logs")
    assert (ran.status, ran.out) == (7, "")
    assert "hint: modelnet-peer join" in ran.err
    with keep_log(home) as keep:
        for word in ("one", "two", "three"):
            keep(word)
    ran = cli("logs", "-n", "2")
    assert (ran.status, [line.split()[-1] for line in ran.out.splitlines()]) == (0, ["two", "three"])
    assert str(home.path) in ran.err
    line = json.loads(cli("logs", "-n", "1", "--json").out)
    assert (line["level"], line["source"], line["message"]) == ("INFO", "join", "three")


@pytest.mark.parametrize("command", ["config", "logs", "doctor"])
def test_help_comes_with_examples(cli: Cli, command: str) -> None:
    ran = cli(command, "--help")
    assert ran.status == 0
    assert "Examples:" in ran.out
