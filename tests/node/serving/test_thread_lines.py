"""Alice's models that block: their thread takes the calls itself, and is not left alone with them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.models import Models
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.node.serving.worker import regions, sharing
from modelnet_p2p.node.serving.worker.regions import Quota
from modelnet_p2p.node.serving.worker.worker import open_worker
from modelnet_p2p.payload import Value, decode_value, encode_value
from modelnet_p2p.tuning import TEST

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="elsewhere the loop drives every line"
)

Call = Callable[..., Awaitable[tuple[Any, list[Any]]]]  # Any: each test knows what its model gives
MakeSource = Callable[..., Source]
Gone = Callable[[int], Awaitable[None]]

HANG = 60  # seconds: tells a hang from a machine where others build
PROMPT = 0.1  # seconds to close a generator that gives an item every 5 ms

CELLAR = """
import asyncio, functools, gc, os, signal, threading, time
import numpy as np

def here():
    return [threading.current_thread().name, threading.get_ident()]

imported = here()

class Seen:
    def __init__(self):
        self.made = here()
    def __call__(self, value):
        return [imported, self.made, here()]
    def close(self):
        open("closed.txt", "w").write(repr([imported, self.made, here()]))

def steps(n):
    try:
        for _ in range(n):
            yield here()
    finally:
        open("steps.txt", "w").write(repr([imported, here()]))

def runs(text):
    async def later():
        await asyncio.sleep(0)
        return text + "!"
    return asyncio.run(later())

def wraps(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)
    del wrapper.__wrapped__
    return wrapper

@wraps
async def wrapped(value):
    asyncio.get_running_loop()
    assert threading.current_thread() is threading.main_thread()
    await asyncio.sleep(0.001)
    if isinstance(value, str):
        raise KeyError(value)
    return value * 2

@wraps
async def waiting(path):
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(0.01)
        open(path, "w").write("cancelled")

@wraps
async def stubborn(text):
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

def noted(number):
    with open("noted.txt", "a") as file:
        file.write(f"{number}\\n")
    while not os.path.exists("go"):
        time.sleep(0.005)

def endless(path):
    try:
        while True:
            yield 0
            time.sleep(0.005)
    finally:
        open(path, "w").write("closed")

class Pond:
    def __call__(self, path):
        self.path = path
        yield from endless(path)
    def close(self):
        assert os.path.exists(self.path)
        open("pond.txt", "w").write(str(here() == imported))

def flood(path):
    try:
        while True:
            yield "x" * (1 << 20)
    finally:
        open(path, "w").write("closed")

def sleeps(pidfile):
    open(pidfile, "w").write(str(os.getpid()))
    time.sleep(60)

def forks(value):
    return os.fork()

def interrupted(text):
    raise KeyboardInterrupt

class Own(BaseException):
    pass

def unheard_of(text):
    raise Own(text)

def counts(value):
    if value != "count":
        return value
    gc.collect()
    return [len(gc.get_objects()), len(os.listdir("/proc/self/fd")), threading.active_count()]

def in_its_own_thread(array):
    def later(array):
        while not os.path.exists("go"):
            time.sleep(0.005)
    threading.Thread(target=later, args=(array,)).start()

def doubled(array):
    return array * 2

def wrong(array):
    raise ValueError("no")

@wraps
async def wrong_later(array):
    raise ValueError("no")
"""


@pytest.fixture
def cellar(shop: Path, source: MakeSource) -> MakeSource:
    (shop / "cellar.py").write_text(CELLAR)
    return source


async def no_items(item: Value) -> None:
    raise AssertionError(f"{item!r} was emitted")


def ones(mib: int, number: float = 1.0) -> Any:
    return np.full(mib << 18, number, np.float32)


async def test_one_thread_sees_all_of_a_model(
    patient_models: Models, cellar: MakeSource, call: Call, shop: Path, gone: Gone
) -> None:
    served = await patient_models.add(cellar("cellar:Seen"))
    pid = served.pid
    assert pid is not None
    answers = [(await call(served, 0))[0] for _ in range(3)]
    where = answers[0][0]
    assert where[0] == "model"  # the thread's name
    assert answers == [[where] * 3] * 3
    await patient_models.remove("seen")
    await gone(pid)
    assert (shop / "closed.txt").read_text() == repr([where] * 3)
    streamed = await patient_models.add(cellar("cellar:steps"))
    _, items = await call(streamed, 3)
    assert (shop / "steps.txt").read_text() == repr([items[0]] * 2)
    assert items == [items[0]] * 3


async def test_a_loop_of_the_models_own(models: Models, cellar: MakeSource, call: Call) -> None:
    served = await models.add(cellar("cellar:runs"))
    assert [(await call(served, text))[0] for text in ("a", "b")] == ["a!", "b!"]


async def test_a_wrapper_around_an_async_function(models: Models, cellar: MakeSource, call: Call) -> None:
    served = await models.add(cellar("cellar:wrapped"))
    assert served.description.slots == 1  # nobody saw what it is
    assert (await call(served, 4))[0] == 8
    np.testing.assert_array_equal((await call(served, ones(1)))[0], ones(1, 2.0))
    with pytest.raises(LocalError, match="the model raised KeyError: 'x'"):
        await call(served, "x")
    assert (await call(served, 5, method="stream")) == (None, [10])


async def test_a_cancelled_wrapper_is_cancelled_in_the_loop(
    patient_models: Models, cellar: MakeSource, call: Call, tmp_path: Path
) -> None:
    served = await patient_models.add(cellar("cellar:waiting"))
    pid, mark = served.pid, tmp_path / "mark"
    with pytest.raises(LocalError) as caught, trio.fail_after(HANG):
        await call(served, str(mark), timeout=0.1)
    assert caught.value.code is Code.DEADLINE
    assert mark.read_text() == "cancelled"  # all of its cleaning up was waited for
    assert served.pid == pid


async def test_a_stubborn_wrapper_takes_its_worker_with_it(
    models: Models, cellar: MakeSource, call: Call, gone: Gone
) -> None:
    served = await models.add(cellar("cellar:stubborn"))
    pid = served.pid
    assert pid is not None
    with pytest.raises(LocalError) as caught, trio.fail_after(HANG):
        await call(served, "", timeout=0.1)
    assert caught.value.code is Code.DEADLINE
    await gone(pid)


async def test_a_call_that_is_cancelled_before_its_turn_never_runs(cellar: MakeSource, shop: Path) -> None:
    """A worker is asked one call at a time; should it be more, they lie in their sockets."""
    scopes = [trio.CancelScope() for _ in range(3)]
    async with open_worker(cellar("cellar:noted"), replace(TEST, cancel_grace=HANG), Quota()) as worker:
        await worker.describe()

        async def one(number: int) -> None:
            with scopes[number]:
                await worker.call("invoke", number, {}, no_items)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, 0)
            with trio.fail_after(HANG):
                while not (shop / "noted.txt").exists():
                    await trio.sleep(0.005)
            nursery.start_soon(one, 1)
            nursery.start_soon(one, 2)
            await trio.testing.wait_all_tasks_blocked()
            scopes[1].cancel()
            await trio.testing.wait_all_tasks_blocked()
            (shop / "go").touch()
        await worker.call("invoke", 3, {}, no_items)
    assert [scope.cancelled_caught for scope in scopes] == [False, True, False]
    assert (shop / "noted.txt").read_text().split() == ["0", "2", "3"]


async def test_a_generator_is_closed_at_once_when_its_caller_leaves(
    patient_models: Models, cellar: MakeSource, tmp_path: Path
) -> None:
    served = await patient_models.add(cellar("cellar:endless"))
    pid, waits = served.pid, []
    for lap in range(5):
        mark = tmp_path / f"mark{lap}"
        left: list[float] = []
        with trio.CancelScope() as scope:

            async def emit(item: Value, scope: trio.CancelScope = scope, left: list[float] = left) -> None:
                scope.cancel()
                left.append(trio.current_time())

            await served.run("stream", str(mark), {}, emit, trio.current_time() + HANG)
        waits.append(trio.current_time() - left[0])
        assert mark.read_text() == "closed"
    assert min(waits) < PROMPT
    assert served.pid == pid


async def test_a_model_that_writes_to_nobody_is_cancelled_there(
    patient_models: Models, cellar: MakeSource, tmp_path: Path
) -> None:
    served = await patient_models.add(cellar("cellar:flood"))
    pid, mark = served.pid, tmp_path / "mark"

    async def emit(item: Value) -> None:
        await trio.sleep_forever()  # the sockets are full soon

    with trio.move_on_after(0.2), trio.fail_after(HANG):
        await served.run("stream", str(mark), {}, emit, trio.current_time() + HANG)
    assert mark.read_text() == "closed"
    assert served.pid == pid


async def test_a_worker_whose_peer_dies_does_not_wait_for_its_model(
    cellar: MakeSource, shop: Path, gone: Gone
) -> None:
    """One step of 60 s is on when the peer is killed."""
    parent = (
        "import sys, os, signal, trio\n"
        "from modelnet_p2p.node.serving.models import open_models\n"
        "from modelnet_p2p.node.serving.source import Source\n"
        "from modelnet_p2p.tuning import TEST\n"
        "async def emit(item): pass\n"
        "async def main():\n"
        "    async with open_models(TEST) as models, trio.open_nursery() as nursery:\n"
        "        served = await models.add(Source('cellar:sleeps', cwd=sys.argv[1]))\n"
        "        nursery.start_soon(served.run, 'invoke', 'pid', {}, emit, trio.current_time() + 60)\n"
        "        while not os.path.exists(sys.argv[1] + '/pid'): await trio.sleep(0.01)\n"
        "        print(served.pid, flush=True)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "trio.run(main)\n"
    )
    run = await trio.run_process([sys.executable, "-c", parent, str(shop)], capture_stdout=True, check=False)
    assert run.returncode == -signal.SIGKILL
    with trio.fail_after(10):  # a second for exit handlers, and what a busy machine takes
        await gone(int(run.stdout))


async def test_a_forked_process_that_comes_back_answers_nobody(
    models: Models, cellar: MakeSource, call: Call, gone: Gone
) -> None:
    served = await models.add(cellar("cellar:forks"))
    for _ in range(3):
        child, items = await call(served, 0)
        assert child > 0
        assert items == []
        await gone(child)


@pytest.mark.parametrize(
    ("spec", "how"), [("cellar:interrupted", "signal 2"), ("cellar:unheard_of", "exit status 1")]
)
async def test_what_is_no_mistake_ends_the_worker(
    models: Models, cellar: MakeSource, call: Call, spec: str, how: str
) -> None:
    served = await models.add(cellar(spec))
    for _ in range(2):
        with pytest.raises(LocalError) as caught:
            await call(served, "x")
        assert caught.value.code is Code.MODEL_ERROR
        assert f"the worker of {spec} died ({how})" in caught.value.message


async def test_a_thousand_small_calls_leave_nothing(models: Models, cellar: MakeSource, call: Call) -> None:
    served = await models.add(cellar("cellar:counts"))
    for _ in range(20):
        before, _ = await call(served, "count")
    for n in range(1000):
        if n % 10 == 0:
            with pytest.raises(LocalError):
                await call(served, 0, colour="red")
        await call(served, {"n": n, "text": "x" * 100}, method=("invoke", "stream")[n % 2])
    after, _ = await call(served, "count")
    assert after[0] <= before[0] + 20
    assert after[1:] == before[1:]


@pytest.mark.parametrize("spec", ["cellar:wrong", "cellar:wrong_later"])
async def test_a_fault_does_not_keep_its_input(
    models: Models, cellar: MakeSource, call: Call, spec: str
) -> None:
    served = await models.add(cellar(spec))
    for n in range(20):
        with pytest.raises(LocalError, match="ValueError: no"):
            await call(served, ones(1, n))
    assert models.shared.taken < 3 << 20


async def test_what_another_thread_lets_go_of_is_told_without_a_call(
    models: Models, cellar: MakeSource, call: Call, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regions, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(sharing, "TIDY_SECONDS", 0.02)
    served = await models.add(cellar("cellar:in_its_own_thread"))
    await call(served, ones(1))
    await trio.sleep(0.2)
    assert models.shared.taken >= 1 << 20  # it still looks at it
    (shop / "go").touch()
    with trio.fail_after(HANG):
        while models.shared.taken:
            await trio.sleep(0.01)


async def test_cancelled_calls_give_their_memory_back(
    patient_models: Models, cellar: MakeSource, call: Call
) -> None:
    """Cut off while it is sent, runs, asks for memory or writes to it: never anybody else's."""
    served = await patient_models.add(cellar("cellar:doubled"))
    pid, wrong = served.pid, []

    async def ask(number: int, patience: float) -> None:
        value: Any = ones(2, number)
        if number % 3:
            payload = encode_value(value)
            body = served.allocate(payload.size)
            assert body is not None
            body[:] = b"".join(payload.buffers)
            value = decode_value(body, payload.tree)
            del body
        with trio.move_on_after(patience):
            answer = (await call(served, value))[0]
            wrong.extend(answer[answer != 2 * number][:1])

    for lap in range(20):
        async with trio.open_nursery() as nursery:
            for n in range(6):
                nursery.start_soon(ask, lap * 10 + n, HANG if n % 2 else 0.0007 * lap)
    assert wrong == []
    assert served.pid == pid
    assert patient_models.shared.taken <= 32 << 20


async def test_a_peer_that_leaves_in_order_lets_the_model_stop_and_close(
    cellar: MakeSource, tmp_path: Path, gone: Gone
) -> None:
    mark, first = tmp_path / "mark", trio.Event()
    said: list[str] = []
    async with open_worker(cellar("cellar:Pond"), replace(TEST, cancel_grace=HANG), Quota()) as worker:
        assert (await worker.describe()).streams
        pid = worker.pid
        assert pid is not None

        async def one() -> None:
            async def emit(item: Value) -> None:
                first.set()

            with pytest.raises(LocalError) as caught:
                await worker.call("stream", str(mark), {}, emit)
            said.append(caught.value.message)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            await first.wait()
            await worker.close()
        await gone(pid)
    assert mark.read_text() == "closed"
    assert (tmp_path / "pond.txt").read_text() == "True"  # in its own thread, after that
    assert "died (exit status 0)" in said[0]


def test_no_thread_is_left_when_the_worker_was_never_asked(tmp_path: Path) -> None:
    """A control socket that ends before anything was loaded."""
    code = (
        "import socket, subprocess, sys\n"
        "ours, theirs = socket.socketpair()\n"
        "worker = subprocess.Popen([sys.executable, '-P', '-m', 'modelnet_p2p.node.serving.child.main',"
        " str(theirs.fileno())], pass_fds=(theirs.fileno(),), start_new_session=True)\n"
        "theirs.close(); ours.close()\n"
        "print(worker.wait(timeout=30))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stdout.strip() == "0", run.stderr
