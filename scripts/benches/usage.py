"""What the processes of a system use, as the kernel counts it: CPU time and memory (Linux only).

Memory is the proportional set size: a page that two processes share counts half for each, so that shared
memory counts once when their sum is taken.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")
SAMPLE_EVERY = 0.004  # seconds; 128 MiB take some hundred milliseconds at least
KIB_PER_MIB = 1024.0


def is_known_here() -> bool:
    return (PROC / "self" / "smaps_rollup").exists()


def tree(root: int) -> set[int]:
    """That process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in PROC.glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            children.setdefault(int(_fields(int(entry.name))[1]), []).append(int(entry.name))
    found, waiting = set(), [root]
    while waiting:
        pid = waiting.pop()
        found.add(pid)
        waiting += children.get(pid, ())
    return found


def cpu_seconds(pids: Collection[int]) -> float:
    """User and system time of these processes, all their threads, to a hundredth of a second."""
    ticks = 0
    for pid in pids:
        with suppress(OSError):
            fields = _fields(pid)
            ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS


def pss(pids: Collection[int]) -> float:
    """MiB."""
    kib = 0
    for pid in pids:
        with suppress(OSError):
            lines = (PROC / str(pid) / "smaps_rollup").read_text().splitlines()
            kib += next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return kib / KIB_PER_MIB


def _fields(pid: int) -> list[str]:
    """Of /proc/PID/stat, from the state on; the name before it may hold anything."""
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


class Peak:
    """The most memory that these processes had at once, so far."""

    def __init__(self, pids: Collection[int]) -> None:
        self.pids = pids
        self.mib = pss(pids)

    def look(self) -> None:
        self.mib = max(self.mib, pss(self.pids))


@contextmanager
def watching(*peaks: Peak) -> Iterator[None]:
    """Looks again and again while the block lasts; takes CPU time, so not while time is measured."""
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            for peak in peaks:
                peak.look()
            time.sleep(SAMPLE_EVERY)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
