"""Memory is used again when nobody sees it, and not before."""

from __future__ import annotations

import gc
import mmap
import os
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from modelnet_p2p.node.serving.policy.notes import BadNote
from modelnet_p2p.node.serving.policy.places import LEAST_BYTES
from modelnet_p2p.node.serving.worker.regions import IDLE_SECONDS, Lease, Pool, Quota, Region, size_class

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="memory that can be sealed is Linux's"
)

MIB = 1 << 20


def mapped() -> int:
    """Pieces of shared memory that this process maps."""
    return Path("/proc/self/maps").read_text().count("memfd:modelnet")


def lease(pool: Pool, size: int, *, inbound: bool = False) -> Lease:
    found = pool.lease(size, inbound=inbound)
    assert found is not None
    return found


@pytest.mark.parametrize("size", [1, 4096, 4097, LEAST_BYTES, MIB + 1, 128 * MIB + 64, (512 << 20) - 1])
def test_size_classes_waste_little(size: int) -> None:
    found = size_class(size)
    assert found >= size
    assert found % 4096 == 0
    assert found <= max(4096, size * 9 // 8 + 4096)
    assert size_class(found) == found


def test_any_view_keeps_the_memory() -> None:
    pool = Pool(Quota())
    held = lease(pool, MIB)
    number = held.region.number
    array = np.ndarray((100,), np.float32, buffer=held.memory, offset=64)
    views = [array[3:9].reshape(2, 3).T, held.memory[5:6], array.view(np.uint8)[::2], array.data]
    del held, array
    other = lease(pool, MIB)
    while views:
        assert pool.idle == 0
        assert other.region.number != number
        del other
        other = lease(pool, MIB)
        views.pop()
    assert pool.idle == 1
    assert lease(pool, MIB).region.number == number


def test_what_the_worker_has_is_not_reused_until_it_is_freed() -> None:
    pool = Pool(Quota())
    region = lease(pool, MIB).region
    region.lent += 1
    assert pool.idle == 0
    with pytest.raises(BadNote):
        pool.freed(region.number + 1)
    pool.freed(region.number)
    assert pool.idle == 1
    for number in (region.number, 99, -1, "1", None, True, [1]):
        with pytest.raises(BadNote):
            pool.freed(number)


def test_a_region_that_a_forked_process_may_see_is_never_reused() -> None:
    quota = Quota()
    pool = Pool(quota)
    held = lease(pool, MIB)
    held.region.lent += 1
    number = held.region.number
    held.region.close_handle()  # as if it was handed over
    pool.freed(number, worn=True)
    assert pool.regions == 1  # somebody here still looks at it
    del held
    assert lease(pool, MIB).region.number != number
    assert pool.forgotten == [number]


def test_a_small_tensor_does_not_hold_large_memory() -> None:
    pool = Pool(Quota())
    number = lease(pool, 64 * MIB).region.number
    assert lease(pool, 32 * MIB).region.number == number
    assert lease(pool, 31 * MIB).region.number != number
    assert pool.lease(LEAST_BYTES - 1) is None


def test_the_quota_bounds_bytes_and_pieces_of_all_pools() -> None:
    quota = Quota(4 * MIB, 3)
    mine, theirs = Pool(quota), Pool(quota)
    held = lease(mine, 3 * MIB)
    assert theirs.lease(2 * MIB) is None
    second = lease(theirs, MIB)
    assert quota.taken == 4 * MIB
    del held  # idle, and given up for what is wanted now
    third = lease(mine, MIB)
    assert third.region.size == MIB
    del second
    theirs.close()
    assert quota.taken == MIB
    small = [mine.lease(LEAST_BYTES) for _ in range(4)]
    assert small[2:] == [None, None]


def test_idle_memory_is_let_go_after_a_while() -> None:
    before, handles = mapped(), len(os.listdir("/proc/self/fd"))
    quota = Quota()
    pool = Pool(quota)
    held = lease(pool, 2 * MIB)
    lease(pool, MIB)
    pool.tidy(10.0)
    pool.tidy(10.0 + IDLE_SECONDS - 0.1)
    assert pool.regions == 2
    pool.tidy(10.0 + IDLE_SECONDS)
    assert pool.regions == 1
    assert pool.forgotten == []  # the worker never knew it
    held.region.close_handle()
    del held
    pool.tidy(20.0)
    lease(pool, 2 * MIB)  # used in between: its time begins anew
    pool.tidy(20.0 + IDLE_SECONDS)
    pool.tidy(20.0 + 2 * IDLE_SECONDS)
    assert len(pool.forgotten) == 1
    assert (pool.regions, quota.taken) == (0, 0)
    assert (mapped(), len(os.listdir("/proc/self/fd"))) == (before, handles)


def test_a_view_outlives_its_worker() -> None:
    before = mapped()
    quota = Quota()
    pool = Pool(quota)
    held = lease(pool, MIB)
    view = np.frombuffer(held.memory, np.uint8)
    view[:] = 7
    del held
    pool.close()
    assert pool.lease(MIB) is None
    assert view.sum() == 7 * MIB
    assert quota.taken == MIB
    del view
    assert (quota.taken, mapped()) == (0, before)


def test_views_may_end_in_any_thread() -> None:
    pool = Pool(Quota())
    box = [lease(pool, MIB).memory]
    thread = threading.Thread(target=box.clear)
    thread.start()
    thread.join()
    assert pool.idle == 1


def test_nobody_can_cut_the_memory_off() -> None:
    """The touch of a page that is gone would end the process."""
    region = Region(1, MIB)
    assert region.handle is not None
    for size in (0, MIB - 1, 2 * MIB):
        with pytest.raises(PermissionError):
            os.ftruncate(region.handle, size)
    other = mmap.mmap(region.handle, MIB)
    other[:3] = b"abc"
    assert region.map[:3] == b"abc"
    region.close_handle()


def test_without_memory_or_descriptors_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str, flags: int) -> int:
        raise OSError(24, "Too many open files")

    quota = Quota()
    pool = Pool(quota)
    monkeypatch.setattr(os, "memfd_create", none)
    assert pool.lease(MIB) is None
    monkeypatch.undo()
    monkeypatch.setattr(mmap, "mmap", lambda *_: none("", 0))
    handles = len(os.listdir("/proc/self/fd"))
    assert pool.lease(MIB) is None
    assert len(os.listdir("/proc/self/fd")) == handles
    assert (quota.taken, pool.regions) == (0, 0)


def test_where_a_value_lies_already() -> None:
    pool = Pool(Quota())
    inbound = lease(pool, MIB, inbound=True)
    first = np.ndarray((1000,), np.float32, buffer=inbound.memory, offset=64)
    second = np.ndarray((10, 10), np.int8, buffer=inbound.memory, offset=64 * 64)
    assert pool.holding([first, second]) == (inbound.region, [64, 64 * 64])
    elsewhere = np.zeros(1000)
    answer = np.ndarray((1000,), np.float32, buffer=lease(pool, MIB).memory)
    for arrays in (
        [second, first],  # the receiver takes them in one order only
        [first, first],
        [first, elsewhere],
        [first[1:]],  # not on a multiple of 64
        [first[::2]],
        [second.T[1:]],
        [elsewhere],
        [answer],  # a user may hold it: a model must not write to it
    ):
        assert pool.holding(arrays) is None
    del inbound, first, second, arrays
    gc.collect()
    assert pool.idle >= 1
