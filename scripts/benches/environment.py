"""The Python environment of the systems that are compared, outside of the checkout and of our own.

    scripts/bench --prepare

makes it. pip installs torch first, by its exact version: what hivemind asks for by itself are gigabytes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from processes import Failed

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modelnet-bench"
FOLDER = CACHE / "rivals"
PYTHON = FOLDER / "bin" / "python"
# The torch build without CUDA; hivemind's wheel brings its Go daemon; grpcio is what it was compared with.
STEPS = (("torch==2.13.0",), ("hivemind==1.1.12", "grpcio==1.85.1"))
FINISHED = FOLDER / "finished"  # holds STEPS once they are all done

HOW = "scripts/bench --prepare makes it (some 1.5 GB, once)"


def missing() -> str | None:
    """One line that says what is not there and how to make it; None if all is."""
    try:
        if FINISHED.read_text() == repr(STEPS):
            return None
    except FileNotFoundError:
        pass
    return f"{FOLDER} is not there or not finished: {HOW}"


def prepare(say: Callable[[str], None]) -> None:
    """Makes it, unless it is there; raises Failed with pip's last lines."""
    if missing() is None:
        say(f"{FOLDER} is ready")
        return
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.parent.mkdir(parents=True, exist_ok=True)
    base = getattr(sys, "_base_executable", sys.executable)  # not this environment's: it may go away
    say(f"making {FOLDER} ...")
    _run([base, "-m", "venv", str(FOLDER)])
    for step in STEPS:
        say(f"installing {' '.join(step)} ...")
        _run([str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", *step])
    FINISHED.write_text(repr(STEPS))
    say(f"ready: {FOLDER}")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).splitlines()[-10:])
        raise Failed(f"`{' '.join(command)}` ended with {done.returncode}\n{last}")
