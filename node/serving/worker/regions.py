"""Memory that a peer shares with one worker: allocated here, lent to calls, used again when nobody sees it.

Large tensors cross between the two processes in it and are never sent. Fresh pages cost five times as much
as the copy into warm ones, so memory is kept for a while and reused. It is lent by life: while any view of
it lives in this process, or the worker has not said that it is done, it is nobody else's. So a model or a
user that keeps an array keeps the memory, and what one caller sent never shows up in another one's call.

Only memory files that can be sealed are used (Linux): a worker that could cut off its file would end the
peer at the next touch. Elsewhere tensors go through the socket.
"""

from __future__ import annotations

import logging
import mmap
import os
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelnet_p2p.node.serving.policy.notes import BadNote
from modelnet_p2p.node.serving.policy.places import LEAST_BYTES, is_plain
from modelnet_p2p.payload import ALIGNMENT

if TYPE_CHECKING:
    from modelnet_p2p.tensor import Array

log = logging.getLogger(__name__)

# Of all workers together: two of the largest calls with their answers. What finds no room is sent.
MAX_SHARED_BYTES = 2 << 30
MAX_REGIONS = 128  # each is a descriptor or two, and where nobody raised the limit a peer has 1,024
IDLE_SECONDS = 5.0  # memory that nobody used for so long is let go; callers that are busy come back sooner
TIDY_SECONDS = 2.5  # between two looks for such memory
LOOSE = 2  # times what is asked for is the largest that is reused: a small tensor does not hold much


class Quota:
    """How many bytes of shared memory a peer has in all, mapped in it or not yet let go by its last user."""

    def __init__(self, limit: int = MAX_SHARED_BYTES, regions: int = MAX_REGIONS) -> None:
        self._limit = limit
        self._regions = regions
        self._taken = 0
        self._count = 0
        self._back: deque[int] = deque()  # from finalizers, which run in any thread: appending is all they do

    @property
    def taken(self) -> int:
        """Bytes now in use."""
        self._collect()
        return self._taken

    def take(self, size: int) -> bool:
        """Whether there is room for so many bytes more; they are taken then."""
        self._collect()
        if self._taken + size > self._limit or self._count >= self._regions:
            return False
        self._taken += size
        self._count += 1
        return True

    def give(self, size: int) -> None:
        """What was taken is let go; may be called from any thread."""
        self._back.append(size)

    def _collect(self) -> None:
        while self._back:
            self._taken -= self._back.popleft()
            self._count -= 1


class Region:
    """One piece of shared memory: leased (a view of it lives here), lent (the worker has it), or idle."""

    __slots__ = (
        "__weakref__",
        "address",
        "handle",
        "idle_since",
        "inbound",
        "leased",
        "lent",
        "map",
        "number",
        "size",
        "worn",
    )

    def __init__(self, number: int, size: int) -> None:
        """Raises OSError when this machine has no memory or descriptor left."""
        handle = os.memfd_create("modelnet", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(handle, size)
            _seal(handle)
            self.map = mmap.mmap(handle, size)
        except OSError:
            os.close(handle)
            raise
        self.number = number
        self.size = size
        self.handle: int | None = handle  # to be handed to the worker, None after that
        self.address = 0
        self.leased = False
        self.inbound = False  # leased for a call's input, not for an answer
        self.lent = 0  # calls that brought it to the worker, which has not yet freed it
        self.worn = False
        self.idle_since: float | None = None  # when it was first seen idle

    @property
    def idle(self) -> bool:
        return not self.leased and not self.lent

    def close_handle(self) -> None:
        if self.handle is not None:
            os.close(self.handle)
            self.handle = None


def _seal(handle: int) -> None:
    """From now on nobody changes the file's length, in whichever process."""
    import fcntl  # not at the top: not on every system, and none but this knows seals

    fcntl.fcntl(handle, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write to a region; it ends with the last view of `memory`."""

    region: Region
    memory: memoryview


def size_class(size: int) -> int:
    """`size` rounded up to one of eight steps between two powers of two, and to whole pages of 4 KiB."""
    step = 1 << max(12, size.bit_length() - 4)
    return -(-size // step) * step


class Pool:
    """The shared memory of one worker. Nothing here blocks or waits."""

    def __init__(self, quota: Quota) -> None:
        self._quota = quota
        self._regions: dict[int, Region] = {}
        self._next = 1
        self._ended: deque[int] = deque()  # whose last view is gone; filled by finalizers, in any thread
        self._closed = not hasattr(os, "memfd_create")
        self.forgotten: list[int] = []  # regions let go that the worker knows: it is to be told

    @property
    def regions(self) -> int:
        """How many there are."""
        return len(self._regions)

    @property
    def idle(self) -> int:
        """How many of them could be reused."""
        self._collect()
        return sum(region.idle for region in self._regions.values())

    def lease(self, size: int, *, inbound: bool = False) -> Lease | None:
        """Writable memory of `size` bytes, not cleared; None when that is too little to be shared, when the
        quota is used up, or when this machine has none left."""
        if self._closed or size < LEAST_BYTES:
            return None
        self._collect()
        region = self._fitting(size) or self._fresh(size_class(size))
        if region is None:
            return None
        import numpy as np  # not at the top: only a tensor brings it

        base: Array = np.frombuffer(region.map, np.uint8)
        region.address = base.__array_interface__["data"][0]
        region.leased, region.inbound, region.idle_since = True, inbound, None
        # numpy makes views of views refer to the array that owns the memory: this one, however they were made
        weakref.finalize(base, self._ended.append, region.number).atexit = False
        return Lease(region, base.data[:size])

    def _fitting(self, size: int) -> Region | None:
        fitting = [
            r for r in self._regions.values() if r.idle and size <= r.size <= max(size * LOOSE, LEAST_BYTES)
        ]
        return min(fitting, key=lambda region: region.size, default=None)

    def _fresh(self, size: int) -> Region | None:
        if not self._quota.take(size):
            self._let_go([region for region in self._regions.values() if region.idle])
            if not self._quota.take(size):
                return None
        try:
            region = Region(self._next, size)
        except OSError as error:
            self._quota.give(size)
            log.info("no shared memory of %d bytes: %s", size, error)
            return None
        # the map's own end, not the region's: a user who keeps an array keeps the memory
        weakref.finalize(region.map, self._quota.give, size).atexit = False
        self._regions[region.number] = region
        self._next += 1
        return region

    def _collect(self) -> None:
        while self._ended:
            region = self._regions.get(self._ended.popleft())
            if region is None:
                continue  # let go before its last view was
            region.leased = False
            if region.worn and region.idle:
                self._let_go([region])

    def holding(self, arrays: Sequence[Array]) -> tuple[Region, Sequence[int]] | None:
        """The region in which all of them lie as the wire has them, one behind the other, and where; only one
        that holds a call's input, for a model may write to what it is given."""
        home = self._at(arrays[0].__array_interface__["data"][0])
        if home is None:
            return None
        offsets: list[int] = []
        end = 0
        for array in arrays:
            offset: int = array.__array_interface__["data"][0] - home.address
            if offset < end or offset % ALIGNMENT or offset + array.nbytes > home.size or not is_plain(array):
                return None
            offsets.append(offset)
            end = offset + array.nbytes
        return home, offsets

    def _at(self, address: int) -> Region | None:
        for region in self._regions.values():
            if region.leased and region.inbound and region.address <= address < region.address + region.size:
                return region
        return None

    def freed(self, number: object, *, worn: bool = False) -> None:
        """The worker is done with a region that a call had brought; raises BadNote if none had."""
        region = self._regions.get(number) if type(number) is int else None
        if region is None or not region.lent:
            raise BadNote("it frees memory that it was not lent")
        region.lent -= 1
        region.worn = region.worn or worn
        self._collect()
        if region.worn and region.idle:
            self._let_go([region])

    def tidy(self, now: float) -> None:
        """Let go of what has been idle for IDLE_SECONDS."""
        self._collect()
        old: list[Region] = []
        for region in self._regions.values():
            if not region.idle:
                continue
            if region.idle_since is None:
                region.idle_since = now
            elif now - region.idle_since >= IDLE_SECONDS:
                old.append(region)
        self._let_go(old)

    def _let_go(self, regions: Sequence[Region]) -> None:
        for region in regions:
            if self._regions.pop(region.number, None) is not None:
                if region.handle is None:
                    self.forgotten.append(region.number)
                region.close_handle()

    def close(self) -> None:
        """The worker is gone: what nobody here looks at is let go at once, the rest with its last view."""
        self._closed = True
        self._let_go(list(self._regions.values()))
        self.forgotten.clear()
