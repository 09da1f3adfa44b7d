"""Tensors between alice's peer and her models' workers: shared, given back, never mixed up."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.models import Models
from modelnet_p2p.node.serving.served import Served
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.node.serving.worker import regions, sharing
from modelnet_p2p.payload import Value, decode_value, encode_value

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="memory that can be sealed is Linux's"
)

Call = Callable[..., Awaitable[tuple[Any, list[Any]]]]  # Any: each test knows what its model gives
MakeSource = Callable[..., Source]
Gone = Callable[[int], Awaitable[None]]

MIB = 1 << 20
HANG = 60

HALL = """
import asyncio, os, sys, time
import numpy as np

kept = []

def echo(value):
    return value

def total(array):
    return float(array.sum())

def keep(array):
    kept.append(array)
    return [float(a.sum()) for a in kept]

def mark(array):
    array[0] = 77
    return 0

def count(n):
    for i in range(n):
        yield np.full(1 << 18, i, np.float32)

def make(n):
    return np.ones(n, np.uint8)

def fails(array):
    raise ValueError("no")

async def slow(array):
    await asyncio.sleep(60 if array[0] else 0)
    return array * 2

async def fills(n):
    return np.full(1 << 20, n, np.float32)

def dies(array):
    os.kill(os.getpid(), 9)

def forks(array):
    if os.fork() == 0:
        time.sleep(300)
        os._exit(0)
    return float(array.sum())

def maps(_):
    return open("/proc/self/maps").read().count("memfd:modelnet")
"""

# A model runs in the worker's process and may change all of it.
LIAR = """
import numpy as np
from modelnet_p2p.node.serving.child import line
from modelnet_p2p.node.serving.policy import places
from modelnet_p2p.node.serving.policy.notes import Note, NoteKind

lie = [""]
old = places.Lifted.message

def message(self, offsets):
    value, rows = old(self, offsets)
    match lie[0]:
        case "beyond": rows[0][1] = 1 << 40
        case "overlap": rows[1:] = [rows[0]]
        case "header": rows[0][2] = b"what"
        case "path": rows[0][0] = ["nowhere"]
        case "shape": return "no message at all"
    return [value, rows]

places.Lifted.message = message
packed = line.Line._packed

def say(self, kind):
    self._house.control.memory.spent = lambda: [Note(kind, 1)]

async def lying(self, event):
    event = await packed(self, event)
    match lie[0]:
        case "region": return type(event)(event.value, extra={"region": 99})
        case "freed": say(self, NoteKind.FREED)
        case "grant": say(self, NoteKind.GRANT)
    return event

line.Line._packed = lying

async def greedy(self, size):
    grant = self._house.control.ask()
    asked = [grant.number, 1 << 50] if lie[0] == "greedy" else [grant.number, size, 0]
    await self._send(line.Item(None, extra={"room": asked}))
    await self.waits.answered(self, grant)
    return grant.region

granted = line.Line._granted

def tell(which):
    lie[0] = which
    line.Line._granted = greedy if which in ("greedy", "odd") else granted
    return [np.ones(1 << 18, np.float32), np.ones(1 << 18, np.float32)]
"""


@pytest.fixture
def hall(shop: Path, source: MakeSource) -> MakeSource:
    (shop / "hall.py").write_text(HALL)
    (shop / "liar.py").write_text(LIAR)
    return source


def mapped() -> int:
    """Pieces of shared memory that this process maps."""
    return Path("/proc/self/maps").read_text().count("memfd:modelnet")


def arrived(served: Served, value: Value) -> Value:
    """`value` as the call server has it when its body was received into the model's memory."""
    payload = encode_value(value)
    body = served.allocate(payload.size)
    assert body is not None
    body[:] = b"".join(payload.buffers)
    return decode_value(body, payload.tree)


def ones(mib: int, number: float = 1.0) -> Any:
    return np.full(mib << 18, number, np.float32)


async def test_tensors_in_values_go_there_and_back(models: Models, hall: MakeSource, call: Call) -> None:
    served = await models.add(hall("hall:echo"))
    values: list[Any] = [
        ones(1),
        [ones(2), "x", {"a": ones(1, 2.0), "b": np.arange(3)}],
        {"deep": [[[ones(1)]]]},
    ]
    for value in values:
        answer, _ = await call(served, value)
        np.testing.assert_equal(answer, value)
    assert 0 < models.shared.taken <= 16 * MIB
    streamed = await models.add(hall("hall:count"))
    _, items = await call(streamed, 5)
    assert [(float(item[0]), item.shape) for item in items] == [(n, (1 << 18,)) for n in range(5)]


async def test_a_received_body_is_not_copied(models: Models, hall: MakeSource, call: Call) -> None:
    served = await models.add(hall("hall:mark"))
    value: Any = arrived(served, {"x": ones(1), "y": "z"})["x"]  # type: ignore[index] # what was put in
    taken = models.shared.taken
    await call(served, value)
    assert value[0] == 77  # the model wrote there
    assert models.shared.taken == taken
    own = ones(1)
    await call(served, own)
    assert own[0] == 1  # what a caller of this process gave is his


async def test_memory_is_reused_when_nobody_keeps_it(models: Models, hall: MakeSource, call: Call) -> None:
    served = await models.add(hall("hall:total"))
    for n in range(20):
        value = arrived(served, ones(4, n))
        assert (await call(served, value))[0] == n * (1 << 20)
        del value
    assert mapped() == 1  # freed before each end was sent: one piece was enough
    assert models.shared.taken < 5 * MIB


async def test_what_a_model_raises_does_not_keep_its_input(
    models: Models, hall: MakeSource, call: Call
) -> None:
    """A traceback holds the frames, and so the input, until nobody holds it."""
    served = await models.add(hall("hall:fails"))
    said = []
    for _ in range(10):
        value = arrived(served, ones(1))
        try:
            await call(served, value)
        except LocalError as error:
            said.append(error.message)
        del value
    assert said == ["the model raised ValueError: no"] * 10
    assert models.shared.taken < 3 * MIB


async def test_what_a_model_keeps_is_not_overwritten(models: Models, hall: MakeSource, call: Call) -> None:
    served = await models.add(hall("hall:keep"))
    for n in range(1, 6):
        value = arrived(served, ones(1, n))
        answer, _ = await call(served, value)
        del value
        assert answer == [float(k << 18) for k in range(1, n + 1)]


async def test_what_a_user_keeps_is_not_overwritten(models: Models, hall: MakeSource, call: Call) -> None:
    served = await models.add(hall("hall:echo"))
    kept = [(await call(served, ones(1, n)))[0] for n in range(5)]
    assert [float(array.min()) for array in kept] == [float(array.max()) for array in kept] == [0, 1, 2, 3, 4]


async def test_a_forked_child_keeps_what_it_sees(
    models: Models, hall: MakeSource, call: Call, nursery: trio.Nursery
) -> None:
    served = await models.add(hall("hall:forks"))
    for n in range(3):
        value = arrived(served, ones(1, n))
        assert (await call(served, value))[0] == n << 18
        del value
        assert mapped() <= 1
    assert models.shared.taken <= 2 * MIB


async def test_no_memory_left_means_the_socket(models: Models, hall: MakeSource, call: Call) -> None:
    models.shared = regions.Quota(MIB)
    served = await models.add(hall("hall:echo"))
    assert served.allocate(2 * MIB) is None
    np.testing.assert_array_equal((await call(served, ones(2)))[0], ones(2))
    assert models.shared.taken == 0
    assert served.allocate(100) is None  # too little to be worth it


async def test_answers_beyond_the_limit(models: Models, hall: MakeSource, call: Call) -> None:
    served = await models.add(hall("hall:make"))
    with pytest.raises(LocalError) as caught:
        await call(served, (512 << 20) + 1)
    assert caught.value.code is Code.TOO_LARGE
    assert (await call(served, MIB))[0].sum() == MIB


async def test_built_in_models_have_no_memory_of_their_own(models: Models) -> None:
    served = await models.add(Source("builtin:digits"))
    assert served.allocate(MIB) is None


async def test_a_thousand_calls_leave_nothing(
    models: Models, hall: MakeSource, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regions, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(sharing, "TIDY_SECONDS", 0.02)
    served = await models.add(hall("hall:echo"))
    failing = await models.add(hall("hall:fails"))
    await call(served, 0)
    handles = len(os.listdir("/proc/self/fd"))
    for n in range(1000):
        array = np.full(1 << 15, n, np.float32)  # 128 KiB
        value = arrived(served, array) if n % 2 else array
        assert (await call(served, value))[0][7] == n
        if n % 10 == 0:
            with pytest.raises(LocalError, match="ValueError: no"):
                await call(failing, arrived(failing, array))
        del value
    assert models.shared.taken <= 6 * (1 << 18)
    with trio.fail_after(HANG):
        while models.shared.taken:
            await trio.sleep(0.01)
    assert mapped() == 0
    assert len(os.listdir("/proc/self/fd")) <= handles + 1  # a stream of the failing one
    # the workers let go, too
    other = await models.add(hall("hall:maps"))
    assert (await call(other, 0))[0] == 0
    with trio.fail_after(HANG):
        while Path(f"/proc/{served.pid}/maps").read_text().count("memfd:modelnet"):
            await trio.sleep(0.01)


async def test_cancelled_calls_give_their_memory_back(
    patient_models: Models, hall: MakeSource, call: Call
) -> None:
    served = await patient_models.add(hall("hall:slow"))
    pid = served.pid
    handles = len(os.listdir("/proc/self/fd"))
    for n in range(100):
        value = arrived(served, ones(1)) if n % 2 else ones(1)
        with trio.move_on_after(0.002 * (n % 5)):
            await call(served, value)
        del value
    assert served.pid == pid
    value = arrived(served, np.zeros(1 << 18, np.float32))
    assert (await call(served, value))[0].sum() == 0
    del value
    assert patient_models.shared.taken <= 8 * MIB
    assert len(os.listdir("/proc/self/fd")) <= handles + 8


async def test_a_cancelled_answer_is_not_written_over_another_ones(
    patient_models: Models, hall: MakeSource, call: Call
) -> None:
    """Its memory is nobody else's before the worker has stopped writing."""
    served = await patient_models.add(hall("hall:fills"))
    wrong: list[float] = []

    async def ask(number: int, patience: float) -> None:
        with trio.move_on_after(patience):
            answer = (await call(served, number))[0]
            wrong.extend(answer[answer != number][:1])

    for lap in range(15):
        async with trio.open_nursery() as nursery:
            for n in range(6):
                nursery.start_soon(ask, lap * 10 + n, 60.0 if n % 2 else 0.003 * lap)
    assert wrong == []


async def test_killed_workers_give_everything_back(
    models: Models, hall: MakeSource, call: Call, gone: Gone
) -> None:
    served = await models.add(hall("hall:dies"))
    handles = len(os.listdir("/proc/self/fd"))
    for n in range(2):  # a third death in a row would have the next call refused
        value = arrived(served, ones(2)) if served.pid and n % 2 else ones(2)
        with pytest.raises(LocalError, match="signal 9"):
            await call(served, value)
        del value
    with trio.fail_after(HANG):
        while models.shared.taken:
            await trio.sleep(0.01)
    assert mapped() == 0
    assert len(os.listdir("/proc/self/fd")) <= handles


async def test_a_body_outlives_the_worker_it_was_meant_for(
    models: Models, hall: MakeSource, call: Call, gone: Gone
) -> None:
    served = await models.add(hall("hall:total"))
    value = arrived(served, ones(1, 3.0))
    first = served.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    await gone(first)
    with trio.fail_after(HANG):
        while served.pid == first:
            await trio.sleep(0.01)
    assert (await call(served, value))[0] == 3 << 18  # copied into the new one's memory
    assert served.pid not in (first, None)


@pytest.mark.parametrize(
    "lie",
    ["beyond", "overlap", "header", "path", "shape", "region", "freed", "grant", "greedy", "odd"],
)
async def test_a_worker_that_lies_about_memory_is_killed(
    models: Models, hall: MakeSource, call: Call, lie: str
) -> None:
    served = await models.add(hall("liar:tell"))
    assert len((await call(served, ""))[0]) == 2
    first = served.pid
    said = [""]
    try:
        await call(served, lie)
    except LocalError as error:
        said.append(error.message)
    # a false note may be read after the end of the call in which it was sent
    assert "broke the protocol" in said[-1] or lie in ("freed", "grant")
    with trio.fail_after(HANG):
        while served.pid == first:
            await trio.sleep(0.01)
    assert len((await call(served, ""))[0]) == 2  # the next one is another
