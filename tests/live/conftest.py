"""What the live journeys share: a user's shell, with peers as real processes on 127.0.0.1."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PROGRAM = [sys.executable, "-c", "from modelnet_p2p.node.cli import main; main()"]


class Shell:  # tests cannot import it: there it is `Any`
    """One user's environment: a network name of its own, a runtime directory, homes by name."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.env = {
            **os.environ,
            "XDG_RUNTIME_DIR": str(base),
            "MODELNET_NETWORK": f"test-{uuid.uuid4().hex}",
        }
        for name in ("MODELNET_HOME", "MODELNET_BOOTSTRAP", "MODELNET_LISTEN"):
            self.env.pop(name, None)

    def command(self, who: str, *argv: str) -> list[str]:
        return [*PROGRAM, *argv, "--home", str(self.base / who), "--json"]

    def run(self, who: str, *argv: str) -> tuple[int, list[Any], str]:
        command = self.command(who, *argv)
        done = subprocess.run(
            command, env=self.env, cwd=self.base, capture_output=True, text=True, timeout=90
        )
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr

    @contextmanager
    def start(self, who: str, *argv: str) -> Iterator[subprocess.Popen[str]]:
        """A command that is still at it; killed at the end if it still runs."""
        pipe, command = subprocess.PIPE, self.command(who, *argv)
        with subprocess.Popen(
            command, env=self.env, cwd=self.base, stdout=pipe, stderr=pipe, text=True
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    @contextmanager
    def join(self, who: str, *argv: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
        """A running peer and its ready line; killed at the end if it still runs."""
        log = open(self.base / f"{who}.log", "w")  # noqa: SIM115  closed below, when the process is gone
        command = self.command(who, "join", *argv)
        with subprocess.Popen(
            command, env=self.env, cwd=self.base, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                assert line, (self.base / f"{who}.log").read_text()
                yield process, json.loads(line)
            finally:
                process.kill()
                log.close()


def _shells() -> Iterator[Shell]:
    base = Path(tempfile.mkdtemp(prefix="mn-"))
    yield Shell(base)
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def shell() -> Iterator[Shell]:
    yield from _shells()


@pytest.fixture(scope="module")
def lasting_shell() -> Iterator[Shell]:
    """The same for all tests of a file."""
    yield from _shells()
