"""A shop of strange models, and alice, who serves them."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from modelnet_p2p.node.serving.models import Models, open_models
from modelnet_p2p.node.serving.served import Served
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.payload import Value
from modelnet_p2p.tuning import TEST

SHOP = """
import asyncio, os, sys, time, threading
from collections.abc import AsyncIterator, Iterator
import numpy as np

def upper(text: str, suffix: str = "") -> str:
    return text.upper() + suffix

def raising(text):
    raise KeyError("no such word\\nin the book")

def stops(text):
    raise StopIteration

def dying(text):
    os._exit(int(text))

def leaving(text):
    sys.exit(3)

def interrupting(text):
    os.kill(os.getpid(), 2)  # as Ctrl-C would, were the worker in the terminal's group
    time.sleep(60)

def selfkill(text):
    os.kill(os.getpid(), 9)

def hanging(text):
    if text == "hang":
        while True:
            time.sleep(0.01)
    return text

def printing(text):
    print("to stdout")
    os.write(1, b"straight to descriptor 1\\n")
    return text

def unsendable(text):
    return {1, 2}

def pid(text):
    return os.getpid()

def double(array: np.ndarray) -> np.ndarray:
    return array * 2

def words(text: str) -> Iterator[str]:
    for word in text.split():
        yield word

def endless(path):
    try:
        n = 0
        while True:
            yield n
            n += 1
            time.sleep(0.005)
    finally:
        open(path, "w").write("closed")

def broken_stream(text):
    yield "one"
    raise ValueError("two")

class Counter:
    def __init__(self):
        self.n = 0
        self.thread = threading.get_ident()
    def __call__(self, value):
        assert self.thread == threading.get_ident()
        self.n += value
        return self.n
    def close(self):
        open("closed.txt", "w").write(str(self.n))

class Invoked:
    def invoke(self, value, *, by: int = 1):
        return value * by

class Picky:
    def __init__(self):
        raise RuntimeError("no licence found")

async def later(text: str, seconds: float = 0.0) -> str:
    await asyncio.sleep(seconds)
    return text + "!"

async def ticks(n: int) -> AsyncIterator[int]:
    for i in range(n):
        await asyncio.sleep(0)
        yield i

async def stubborn(text):
    while True:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            pass

async def blocking(text):
    time.sleep(60)

async def selfcancel(text):
    raise asyncio.CancelledError

def grandchild(text):
    import subprocess
    return subprocess.Popen(["sleep", "300"]).pid

def forked(text):
    pid = os.fork()
    if pid == 0:
        time.sleep(300)
        os._exit(0)
    os.kill(os.getpid(), 9)

def closes_everything(text):
    os.closerange(3, 64)
    time.sleep(60)

meeting = asyncio.Barrier(8)

async def meet(text):
    await meeting.wait()
    return text + "!"

def repeatable(text):
    return text
repeatable.idempotent = True

class Repeatable:
    idempotent = True
    languages = ("de", "en")
    licence = "MIT"
    def __call__(self, text):
        return text

class Named:
    def idempotent(self):
        return "a method that happens to be called so"
    def __call__(self, text):
        return text

def dies_slowly(text):
    os.closerange(3, 64)
    time.sleep(0.4)
    os._exit(7)

def environment(name):
    return [os.environ.get(name), os.getcwd(), sys.path[0], os.getsid(0) == os.getpid()]
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A directory with the module `shop`."""
    (tmp_path / "shop.py").write_text(SHOP)
    return tmp_path


@pytest.fixture
def source(shop: Path) -> Callable[..., Source]:
    """Makes a source published from the shop's directory: `source("shop:upper")`."""

    def make(spec: str, **fields: object) -> Source:
        given = {"interpreter": sys.executable, "cwd": str(shop), "environ": dict(os.environ)} | fields
        return Source(spec, **given)  # type: ignore[arg-type] # the tests name real fields

    return make


@pytest.fixture
async def models() -> AsyncIterator[Models]:
    """Alice's models, with the short waits of the `test` tuning."""
    async with open_models(TEST) as found:
        yield found


@pytest.fixture
async def patient_models() -> AsyncIterator[Models]:
    """The same, for models that obey: a machine under load does not get them killed for being late."""
    async with open_models(replace(TEST, cancel_grace=60.0, shutdown_grace=60.0)) as found:
        yield found


@pytest.fixture
def call() -> Callable[..., object]:
    """`await call(served, value, **params)` gives (value, items)."""

    async def run(
        served: Served, value: Value, *, method: str = "invoke", timeout: float = 60.0, **params: Value
    ) -> tuple[Value, list[Value]]:
        items: list[Value] = []

        async def emit(item: Value) -> None:
            items.append(item)

        deadline = trio.current_time() + timeout
        answer = await served.run(method, value, params, emit, deadline)
        return answer.value, items

    return run


@pytest.fixture
def gone() -> Callable[[int], object]:
    """`await gone(pid)` returns when that process has ended; the test's own deadline bounds it."""

    def alive(pid: int) -> bool:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        return state != "Z"  # a zombie waits for its parent alone

    async def wait(pid: int) -> None:
        with trio.fail_after(60):
            while alive(pid):
                await trio.sleep(0.01)

    return wait
