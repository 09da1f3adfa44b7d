"""Disks that fail, for tests of what has to survive that."""

from __future__ import annotations

import random
from pathlib import Path

from modelnet_p2p.node.disk.files import Disk


class FullDisk(Disk):
    """Nothing more can be written."""

    def write(self, descriptor: int, data: memoryview) -> int:
        raise OSError(28, "No space left on device")


class Stop(BaseException):
    """kill -9: nothing after it runs."""


class StoppingDisk(Disk):
    """Stops at operation `at`, before or halfway; what was not synced by then is cut at a random place."""

    def __init__(self, at: int, rng: random.Random) -> None:
        self.left = at
        self.rng = rng
        self.stopped = False
        self.unsynced: dict[int, Path] = {}

    def _step(self) -> None:
        if self.stopped or self.left == 0:
            if not self.stopped:
                self.stopped = True
                for path in self.unsynced.values():
                    if path.exists():
                        path.write_bytes(path.read_bytes()[: self.rng.randrange(1 + path.stat().st_size)])
            raise Stop
        self.left -= 1

    def create(self, path: Path, mode: int) -> int:
        self._step()
        descriptor = super().create(path, mode)
        self.unsynced[descriptor] = path
        return descriptor

    def write(self, descriptor: int, data: memoryview) -> int:
        self._step()
        return super().write(descriptor, data[: self.rng.randrange(1, len(data) + 1)])

    def sync(self, descriptor: int) -> None:
        self._step()
        super().sync(descriptor)
        del self.unsynced[descriptor]

    def rename(self, source: Path, target: Path) -> None:
        self._step()
        assert source not in self.unsynced.values()  # or the name could come to hold half a file
        super().rename(source, target)

    def remove(self, path: Path) -> None:
        self._step()
        super().remove(path)

    def sync_directory(self, path: Path) -> None:
        self._step()
        super().sync_directory(path)
