"""The scripts that a newcomer runs first, as processes: they end as they say and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent.parent / "scripts"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """This environment, with temporary files in a folder that can be looked at afterwards."""
    return {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(SCRIPTS)}


def processes_below(folder: Path) -> Iterator[int]:
    """Pids of processes with a path below `folder` in their environment (Linux only, others see none)."""
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"MODELNET_HOME={folder}".encode() in entry.read_bytes():
                yield int(entry.parent.name)
        except OSError:  # it ended meanwhile, or is somebody else's
            continue


@pytest.mark.live
def test_the_demo_says_ok_and_leaves_nothing(tmp_path: Path, environ: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "demos", "--json"],
        env=environ, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["demo"] == "ok"
    assert {answer["task"] for answer in last["answers"]} == {"image-classification", "text-classification"}
    assert all(answer["correct"] for answer in last["answers"])
    readers = {answer["provider"] for answer in last["answers"] if answer["task"] == "image-classification"}
    assert len(readers) == 2  # the second one answered after the first was killed
    assert list(tmp_path.iterdir()) == []
    assert list(processes_below(tmp_path)) == []


@pytest.mark.live
def test_a_demo_that_is_interrupted_ends_its_peers(tmp_path: Path, environ: dict[str, str]) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "demos"],
        env=environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # a shell starts what runs in its background with the signal ignored, and that would be inherited
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert demo.stderr is not None
    for line in demo.stderr:  # until the first peer is up
        if b"joins" in line:
            break
    demo.send_signal(signal.SIGINT)
    demo.stderr.read()
    assert demo.wait(timeout=30) == 130
    demo.stderr.close()
    assert list(tmp_path.iterdir()) == []
    assert list(processes_below(tmp_path)) == []


@pytest.mark.live
@pytest.mark.slow
def test_the_bench_prints_the_contracts_lines(environ: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benches", "wire", "first", "--quick", "--json", "--against", "trio"],
        env=environ, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    calls = {"invoke_100B", "calls_per_s_16", "calls_per_s_64", "connect_first_call"}
    tensors = {"tensor_up_1MiB", "tensor_up_16MiB", "tensor_up_128MiB", "cpu_s_per_GB", "extra_memory_128MiB"}
    own = {"small_call_p99_quiet", "small_call_p99_busy", "small_call_p99_during_bulk", "handshake_cpu"}
    commands = {"help", "join_ready", "first_answer", "publish", "find", "idle_memory"}
    programs = {
        "find_again",
        "call",
        "sync_overhead",
        *(f"{w}_{n}MiB" for w in ("send", "fetch") for n in (1, 16)),
    }
    seen = {line["figure"] for line in lines} - {"slow_link_128MiB"}  # that needs root
    assert seen == calls | tensors | own | commands | programs
    assert calls | tensors <= {line["figure"] for line in lines if line["via"] == "trio"}
    assert "beside the marks" in done.stderr
    for line in lines:
        assert set(line) == {"figure", "via", "unit", "median", "min", "max", "n", "params"}
        assert line["min"] <= line["median"] <= line["max"]
