"""A large tensor on its whole way: from bob's array into the memory of alice's worker, and back."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="memory that can be sealed is Linux's"
)

HALL = """
import numpy as np

def mark(array):
    array[0] = 5
    return [float(array[1]), open("/proc/self/smaps_rollup").read(), open("/proc/self/maps").read()]

def echo(value):
    return value
"""

Open = Callable[[], AbstractAsyncContextManager[Any]]  # Any: the town of this folder's conftest


def mapped() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:modelnet")


async def test_a_body_is_received_where_the_model_reads_it(open_town: Open, tmp_path: Path) -> None:
    (tmp_path / "hall.py").write_text(HALL)
    async with open_town() as town:
        alice = await town.peer("alice")
        bob = await town.peer("bob")
        await alice.publish("hall:mark", cwd=str(tmp_path))
        array = np.full(4 << 20, 3, np.float32)  # 16 MiB
        for _ in range(5):
            value, rollup, maps = await bob.invoke("mark", array)
            assert value == 3
            assert array[0] == 3
            # what is shared counts once, half of it here and half in the peer
            private = sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_"))
            assert private < 64 << 10, "the tensor is not in the worker's own memory"
            assert maps.count("memfd:modelnet") == mapped() == 1


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
async def test_every_caller_gets_his_own(open_town: Open, tmp_path: Path, dtype: Any) -> None:
    (tmp_path / "hall.py").write_text(HALL)
    async with open_town() as town:
        alice = await town.peer("alice")
        callers = [await town.peer("bob"), await town.peer("carol"), alice]
        await alice.publish("hall:echo", cwd=str(tmp_path))
        kept: list[tuple[Any, Any]] = []
        for n in range(12):
            sent = {"x": np.arange(n, n + (1 << 17)).astype(dtype), "n": n}
            kept.append((sent, await callers[n % 3].invoke("echo", sent)))
        for sent, came in kept:
            assert came["x"].dtype == dtype
            np.testing.assert_equal(came, sent)
        kept.clear()
        del sent, came
        gc.collect()
        assert mapped() <= 8
