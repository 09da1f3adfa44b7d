"""Alice serves, Carol calls without awaiting: the swarm over peers on the network in memory."""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from modelnet_p2p import AsyncSwarm, LocalError, NotFound, Peer, RemoteError, Swarm
from modelnet_p2p.errors import Code
from modelnet_p2p.node.swarm.notebook import Offers

DIGIT = np.zeros((1, 8, 8), np.float32)
TASK = "image-classification"
# Any: the fixture that opens a town, see conftest.py
OpenTown = Any
Opening = Callable[[], AbstractAsyncContextManager[Peer]]

SHOP = """
import time

def count(until: int):
    for number in range(until):
        yield number
        time.sleep(0.001)

def hang(text: str) -> str:
    time.sleep(600)

def shout(text: str, mark: str = "!") -> str:
    return text.upper() + mark
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A directory with models that anybody might write."""
    (tmp_path / "swarmshop.py").write_text(SHOP)
    return tmp_path


@pytest.fixture
def town(open_town: OpenTown) -> dict[str, Peer]:
    """Whom Carol's thread knows, once her swarm is open."""
    return {}


@pytest.fixture
def carols(open_town: OpenTown, town: dict[str, Peer]) -> Opening:
    """Carol's peer, a client, in a town where Alice serves digits; all in the thread that opens it."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Peer]:
        async with open_town() as place:
            town["alice"] = await place.peer("alice")
            await town["alice"].publish("builtin:digits")
            yield await place.peer("carol", listen=False)

    return opened


@pytest.fixture
def swarm(carols: Opening) -> Iterator[Swarm]:
    with Swarm.open_on(carols) as swarm:
        yield swarm


def serve(swarm: Swarm, town: dict[str, Peer], name: str, shop: Path) -> None:
    """Alice publishes one of the shop's models, without Carol's help."""
    swarm._thread.run(lambda: town["alice"].publish(f"swarmshop:{name}", cwd=str(shop)))


def wait_until_idle(swarm: Swarm, town: dict[str, Peer]) -> None:
    """Nothing runs at Alice's any more; hangs, and is ended by the fail_after, where something does."""

    async def idle() -> None:
        with trio.fail_after(10):
            while any(line["in_flight"] for line in (await town["alice"].status())["models"]):  # type: ignore[attr-defined]
                await trio.sleep(0.005)

    swarm._thread.run(idle)


async def until_busy(town: dict[str, Peer]) -> None:
    with trio.fail_after(10):
        while not any(line["in_flight"] for line in (await town["alice"].status())["models"]):  # type: ignore[attr-defined]
            await trio.sleep(0.005)


def test_both_faces_have_every_word_of_the_peer_with_its_names() -> None:
    """Callbacks differ in what they return, and nothing else does."""

    def names(function: object) -> list[tuple[str, object, object]]:
        assert callable(function)
        parameters = inspect.signature(function).parameters.values()
        return [(one.name, one.kind, one.default) for one in parameters if one.name != "cls"]

    words = [
        "bootstrap",
        "find",
        "search",
        "watch",
        "explain",
        "show",
        "invoke",
        "call",
        "stream",
        "ping",
        "open",
    ]
    words += ["publish", "unpublish", "status", "peers"]
    for word in words:
        assert names(getattr(Swarm, word)) == names(getattr(Peer, word)), word
        assert names(getattr(AsyncSwarm, word)) == names(getattr(Peer, word)), word
    assert names(Swarm) == names(Swarm.open)


def test_a_script_finds_and_calls(swarm: Swarm, town: dict[str, Peer]) -> None:
    offers = swarm.find(task=TASK)
    assert isinstance(offers, Offers)
    assert [offer.provider for offer in offers] == [town["alice"].id]
    assert [offer.model for offer in swarm.search(model="modelnet/digits")] == ["modelnet/digits@1"]
    answer: Any = swarm.invoke(f"task:{TASK}", DIGIT)
    assert answer["scores"].shape == (1, 10)
    outcome = swarm.call("modelnet/digits", DIGIT, provider=town["alice"].id)
    assert (outcome.provider, outcome.attempts) == (town["alice"].id, 1)
    assert swarm.ping(town["alice"].id, 1)["ok"] is True
    assert swarm.show("modelnet/digits")[0]["verified"] is True
    assert swarm.status()["peer"] == swarm.id
    assert [line["peer"] for line in swarm.peers()] == [town["alice"].id]
    assert swarm.bootstrap(town["alice"].addrs).reached == town["alice"].addrs
    assert swarm.addrs == ()
    assert swarm.network_name in repr(swarm)


def test_a_script_is_told_why_and_follows_what_changes(swarm: Swarm, town: dict[str, Peer]) -> None:
    explained = swarm.explain(task=TASK)
    [offer] = explained.offers
    assert "answered in" in explained.why(offer)[-1]
    news = swarm.watch(task=TASK, interval=0.2)
    first = next(news)
    assert (first.event, first.offer.model) == ("appeared", "modelnet/digits@1")
    swarm._thread.run(lambda: town["alice"].unpublish("modelnet/digits"))
    last = next(news)
    assert (last.event, last.offer.model) == ("gone", "modelnet/digits@1")


def test_what_goes_wrong_is_the_same_error(swarm: Swarm) -> None:
    with pytest.raises(NotFound):
        swarm.invoke("no/such-model", 1)
    with pytest.raises(LocalError, match="not a model name"):
        swarm.stream("NO SUCH NAME", 1)
    with pytest.raises(LocalError, match="listens nowhere"):
        swarm.publish("builtin:digits")
    with pytest.raises(RemoteError) as caught:
        swarm.invoke("modelnet/digits", np.zeros((2, 7, 7), np.float32))
    assert caught.value.code is Code.BAD_INPUT
    with pytest.raises(NotFound):
        swarm.unpublish("modelnet/digits")


def test_several_threads_call_at_once(swarm: Swarm) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: swarm.invoke("modelnet/digits", DIGIT), range(32)))
    assert len(answers) == 32


def test_items_come_one_by_one_and_leaving_cancels_the_far_side(
    swarm: Swarm, town: dict[str, Peer], shop: Path
) -> None:
    serve(swarm, town, "count", shop)
    items = swarm.stream("count", 3)
    assert list(items) == [0, 1, 2]
    assert items.outcome is not None
    assert items.outcome.provider == town["alice"].id
    assert swarm.invoke("count", 2) == [0, 1]
    for item in swarm.stream("count", 10**9):
        if item == 5:
            break
    wait_until_idle(swarm, town)
    with swarm.stream("count", 10**9) as held:
        assert next(held) == 0
    assert list(held) == []  # closed is the end, not an error
    wait_until_idle(swarm, town)


def test_each_item_is_told_in_the_callers_thread(swarm: Swarm, town: dict[str, Peer], shop: Path) -> None:
    serve(swarm, town, "count", shop)
    told: list[object] = []

    def tell(item: object) -> None:
        assert threading.current_thread() is threading.main_thread()
        told.append(item)
        swarm.find(task=TASK)  # so it may call the swarm

    outcome = swarm.call("count", 3, on_item=tell)
    assert told == [0, 1, 2]
    assert outcome.output is None or outcome.output == []

    def refuse(item: object) -> None:
        raise ZeroDivisionError(item)

    with pytest.raises(ZeroDivisionError):
        swarm.call("count", 10**9, on_item=refuse)
    wait_until_idle(swarm, town)
    with pytest.raises(NotFound):
        swarm.call("no/such-model", 1, on_item=tell)


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_ctrl_c_cancels_the_far_side_and_is_raised(
    swarm: Swarm, town: dict[str, Peer], shop: Path, way: str
) -> None:
    serve(swarm, town, "hang", shop)

    async def press() -> None:
        await until_busy(town)
        os.kill(os.getpid(), signal.SIGINT)

    swarm._thread.begin(press)
    with pytest.raises(KeyboardInterrupt):
        if way == "invoke":
            swarm.invoke("hang", "")
        else:
            next(swarm.stream("hang", ""))
    wait_until_idle(swarm, town)
    assert swarm.find(task=TASK)  # and the swarm goes on


def test_a_closed_swarm_says_so_and_how_to_go_on(carols: Opening) -> None:
    swarm = Swarm.open_on(carols)
    items = swarm.stream("modelnet/digits", DIGIT)
    swarm.close()
    swarm.close()
    uses: list[Callable[[], object]] = [
        swarm.status,
        swarm.__enter__,
        lambda: next(items),
        lambda: swarm.stream("a", 1),
        lambda: list(swarm.search(task=TASK)),
        lambda: asyncio.run(swarm.aio.status()),
        lambda: asyncio.run(swarm.aio.__aenter__()),
    ]
    for use in uses:
        with pytest.raises(LocalError) as caught:
            use()
        assert caught.value.code is Code.NOT_RUNNING
        assert "Swarm.open()" in caught.value.hint
    assert "closed" in repr(swarm)


@pytest.mark.parametrize("face", ["sync", "asyncio"])
def test_closing_ends_the_calls_of_other_threads(
    carols: Opening, town: dict[str, Peer], shop: Path, face: str
) -> None:
    with Swarm.open_on(carols) as swarm:
        serve(swarm, town, "hang", shop)
        with ThreadPoolExecutor(1) as pool:
            if face == "sync":
                call = pool.submit(swarm.invoke, "hang", "")
            else:
                call = pool.submit(asyncio.run, swarm.aio.invoke("hang", ""))
            swarm._thread.run(lambda: until_busy(town))
            swarm.close()
            with pytest.raises(LocalError, match="is closed"):
                call.result(timeout=10)


def test_a_peer_that_comes_down_by_itself_ends_its_calls_and_closing_tells_why(carols: Opening) -> None:
    fall = trio.Event()

    async def fail() -> None:
        await fall.wait()
        raise ZeroDivisionError("a bug")

    @asynccontextmanager
    async def failing() -> AsyncIterator[Peer]:
        async with carols() as peer, trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            yield peer
            nursery.cancel_scope.cancel()

    swarm = Swarm.open_on(failing)

    async def for_ever() -> None:
        fall.set()
        await trio.sleep_forever()

    with pytest.raises(LocalError, match="is closed"):
        swarm._thread.run(for_ever)
    with pytest.raises(LocalError, match="is closed"):
        swarm.status()
    with pytest.raises(ZeroDivisionError, match="a bug"):
        swarm.close()
    swarm.close()  # it was told once


def test_what_keeps_it_from_opening_is_raised_and_leaves_no_thread() -> None:
    before = threading.active_count()
    with pytest.raises(LocalError) as caught:
        Swarm(network="no such name")
    assert caught.value.code is Code.BAD_INPUT
    assert "swarm" not in {thread.name for thread in threading.enumerate()}
    assert threading.active_count() <= before + 1  # trio's own cache may keep one for a while


def test_one_that_is_dropped_leaves_the_network(carols: Opening) -> None:
    swarm = Swarm.open_on(carols)
    ended = swarm._thread._ended
    items = swarm.stream("modelnet/digits", DIGIT)
    del swarm
    gc.collect()
    assert next(items)  # a stream holds on to its swarm
    del items
    gc.collect()
    ended.result(timeout=10)


def test_a_callback_of_the_peers_thread_is_told_that_it_cannot_wait(swarm: Swarm) -> None:
    async def callback() -> None:
        swarm.find(task=TASK)

    with pytest.raises(LocalError, match="cannot wait for that thread"):
        swarm._thread.run(callback)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of os.fork among threads, from Python 3.12 on
def test_after_a_fork_the_child_is_told_that_the_swarm_stayed_behind(swarm: Swarm) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            swarm.close()  # waits for nobody
            swarm.status()
        except LocalError as error:
            code = 42 if error.code is Code.NOT_RUNNING and "Swarm.open()" in error.hint else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 42
    assert swarm.find(task=TASK)


def test_in_a_running_asyncio_loop_both_faces_work(swarm: Swarm, town: dict[str, Peer], shop: Path) -> None:
    serve(swarm, town, "count", shop)

    async def cell() -> None:
        """As a notebook runs one."""
        assert swarm.find(task=TASK)
        aio = swarm.aio
        assert isinstance(await aio.find(task=TASK), Offers)
        assert [offer.model async for offer in aio.search(task=TASK)] == ["modelnet/digits@1"]
        assert [item async for item in aio.stream("count", 3)] == [0, 1, 2]
        answers = await asyncio.gather(*(aio.invoke("modelnet/digits", DIGIT) for _ in range(16)))
        assert len(answers) == 16
        told: list[object] = []

        async def tell(item: object) -> None:
            await asyncio.sleep(0)  # in this loop
            told.append(item)

        assert (await aio.call("count", 3, on_item=tell)).provider == town["alice"].id
        assert told == [0, 1, 2]
        with pytest.raises(NotFound):
            await aio.call("no/such-model", 3, on_item=tell)
        assert (await aio.ping(town["alice"].id, 1))["ok"] is True
        assert (await aio.show("modelnet/digits"))[0]["verified"] is True
        assert (await aio.status())["peer"] == aio.id == swarm.id
        assert len(await aio.peers()) == 1
        with pytest.raises(NotFound):
            await aio.unpublish("modelnet/digits")

    asyncio.run(cell())


@pytest.mark.parametrize("way", ["invoke", "stream", "left", "call"])
def test_cancelling_the_task_that_awaits_cancels_the_far_side(
    swarm: Swarm, town: dict[str, Peer], shop: Path, way: str
) -> None:
    serve(swarm, town, "hang" if way in ("invoke", "stream") else "count", shop)

    async def wait(aio: AsyncSwarm) -> None:
        if way == "invoke":
            await aio.invoke("hang", "")
        elif way == "stream":
            async for _ in aio.stream("hang", ""):
                pass
        elif way == "call":
            await aio.call("count", 10**9, on_item=lambda _: asyncio.sleep(0))
        else:
            async for item in aio.stream("count", 10**9):
                if item == 3:
                    await asyncio.sleep(600)

    async def main() -> None:
        task = asyncio.create_task(wait(swarm.aio))
        await swarm._thread.run_async(lambda: until_busy(town))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    gc.collect()
    wait_until_idle(swarm, town)


async def test_a_trio_program_may_await_it_too(carols: Opening) -> None:
    swarm = await trio.to_thread.run_sync(Swarm.open_on, carols)
    async with swarm.aio as aio:
        assert (await aio.find(task=TASK))[0].model == "modelnet/digits@1"
        with trio.move_on_after(0):
            await aio.status()
    assert swarm._thread.over


def test_an_async_block_closes_it(carols: Opening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Peer, "open", lambda **settings: carols())

    async def main() -> AsyncSwarm:
        async with AsyncSwarm.open(listen=[]) as swarm:
            assert await swarm.find(task=TASK)
        return swarm

    swarm = asyncio.run(main())
    with pytest.raises(LocalError, match="is closed"):
        asyncio.run(swarm.status())
