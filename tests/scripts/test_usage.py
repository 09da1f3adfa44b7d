"""What the kernel says of processes: who descends from whom, their time, their memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from benches import usage

MIB = 1 << 20
CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(0, flush=True); input()'])"

pytestmark = pytest.mark.skipif(not usage.is_known_here(), reason="needs Linux's /proc")


@pytest.fixture
def family() -> Iterator[subprocess.Popen[bytes]]:
    """A child with a child of its own, both up."""
    command = [sys.executable, "-c", CHILD]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"0\n"
        yield child
        child.stdin.close()


def test_a_tree_holds_children_and_theirs(family: subprocess.Popen[bytes]) -> None:
    below = usage.tree(family.pid)
    assert family.pid in below
    assert len(below) == 2
    assert below < usage.tree(os.getpid())


def test_cpu_time_is_counted() -> None:
    before, started = usage.cpu_seconds([os.getpid()]), time.process_time()
    while time.process_time() - started < 0.1:
        sum(range(1000))
    assert 0.08 <= usage.cpu_seconds([os.getpid()]) - before < 1.0


def test_a_peak_is_seen_though_the_memory_is_given_back() -> None:
    peak = usage.Peak([os.getpid()])
    before = peak.mib
    with usage.watching(peak):
        much = bytearray(b"x" * (64 * MIB))
        seen = usage.Peak([os.getpid()]).mib
        while peak.mib < before + 60 and len(much):
            time.sleep(usage.SAMPLE_EVERY)
        del much
    assert seen >= before + 60
    assert usage.pss([os.getpid()]) < peak.mib


def test_who_is_gone_uses_nothing(family: subprocess.Popen[bytes]) -> None:
    family.kill()
    family.wait()
    assert usage.cpu_seconds([family.pid]) == 0
    assert usage.pss([family.pid]) == 0
