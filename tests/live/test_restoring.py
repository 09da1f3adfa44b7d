"""Models that a peer brings back when it starts, and workers that it brings back when they were killed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from modelnet_p2p.errors import Code, RemoteError
from modelnet_p2p.node.disk.files import open_json, seal_json
from modelnet_p2p.node.peer import Peer

pytestmark = pytest.mark.live

NETWORK = f"restoring-{os.getpid()}"
HANG = 60  # seconds: tells a hang from a machine where others build
MODEL = """
import os
def f(text): return f"{os.getpid()} {text}"
f.batches = 1
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))  # no peer of this machine is met by chance
    (tmp_path / "wares.py").write_text(MODEL)
    return tmp_path


@asynccontextmanager
async def alice(shop: Path) -> AsyncIterator[Peer]:
    """Her peer, when what she had published is back."""
    with trio.fail_after(4 * HANG):
        async with Peer.open(home=shop / "home", network=NETWORK, tuning="test") as peer:
            await peer.restored.wait()
            yield peer


async def publish(peer: Peer, shop: Path, spec: str = "wares:f", model: str = "f") -> None:
    environ = dict(os.environ)
    await peer.publish(spec, model=model, interpreter=sys.executable, cwd=str(shop), environ=environ)


async def models(peer: Peer) -> dict[str, Any]:
    return {str(line["model"]): line for line in (await peer.status())["models"]}  # type: ignore[attr-defined]


async def processes(peer: Peer, count: int) -> None:
    """Until that many models have a process."""
    with trio.fail_after(HANG):
        while sum(served.pid is not None for served in peer.parts.models.all().values()) < count:
            await trio.sleep(0.01)


async def test_models_are_back_before_any_of_them_is_loaded(shop: Path) -> None:
    (shop / "wares.py").write_text("".join(f"def f{number}(text): return text\n" for number in range(5)))
    async with alice(shop) as peer:
        for number in range(5):
            await publish(peer, shop, f"wares:f{number}", f"f{number}")
    async with alice(shop) as peer:
        served = peer.parts.models.all()
        assert len(served) == 5
        assert sum(each.pid is not None for each in served.values()) <= 2  # those that are warmed first
        assert await peer.invoke("f4", "hello") == "hello"  # it does not wait for its turn
        assert {line["state"] for line in (await models(peer)).values()} == {"serving"}
        await processes(peer, 5)  # nobody has to call for that


async def test_what_has_changed_is_loaded_before_it_is_announced(shop: Path) -> None:
    async with alice(shop) as peer:
        await publish(peer, shop)
    (shop / "wares.py").write_text(
        MODEL.replace("batches = 1", "batches = 16")
    )  # longer, or Python may take its old bytecode
    for _ in range(2):  # at the second start it is remembered as it is now
        async with alice(shop) as peer:
            served = peer.parts.models.get("f")
            assert served is not None
            assert served.description.batches == 16


async def test_one_that_is_gone_is_not_announced_and_one_that_breaks_is_taken_back(
    shop: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (shop / "needs.txt").write_text("there")
    (shop / "wares.py").write_text("open('needs.txt')\n" + MODEL)  # a file that nobody can know of
    (shop / "gone.py").write_text(MODEL)
    async with alice(shop) as peer:
        await publish(peer, shop)
        await publish(peer, shop, "gone:f", "gone")
    (shop / "needs.txt").unlink()
    (shop / "gone.py").unlink()
    async with alice(shop) as peer:
        with trio.fail_after(HANG):
            while {line["state"] for line in (await models(peer)).values()} != {"failed"}:
                await trio.sleep(0.01)
        assert await peer.find(model="f") == []
        assert "cannot serve f again" in caplog.text
        assert "cannot serve gone again" in caplog.text
    (shop / "needs.txt").write_text("there again")
    async with alice(shop) as peer:
        assert (await models(peer))["f"]["state"] == "serving"
        assert (await peer.unpublish("gone"))["withdrawn"]


async def test_what_somebody_wrote_into_the_memory_is_found_out(shop: Path) -> None:
    async with alice(shop) as peer:
        await publish(peer, shop)
    (file,) = (shop / "home" / "state" / "models").glob("*.json")
    spoils: list[dict[str, Any]] = [
        {"description": 7},
        {"version": "0.0.0"},
        {"stamps": [["/nowhere", 1, 2]]},
    ]
    for spoil in spoils:
        body = open_json(file.read_bytes())
        body["described"] = {**body["described"], **spoil}
        file.write_bytes(seal_json(body))
        async with alice(shop) as peer:  # it is loaded, and remembered anew
            assert (await models(peer))["f"]["state"] == "serving"
            await processes(peer, 1)
        described = open_json(file.read_bytes())["described"]
        assert all(described[name] != part for name, part in spoil.items())
    body = open_json(file.read_bytes())
    body["described"]["description"]["task"] = "x-other/task"  # sealed, but not what is loaded
    file.write_bytes(seal_json(body))
    async with alice(shop) as peer:
        with trio.fail_after(HANG):
            while (served := peer.parts.models.get("f")) is None or served.description.task[:8] == "x-other/":
                await trio.sleep(0.01)
        assert served.description.task == "x-modelnet/function"
        assert str(await peer.invoke("f", "hello")).endswith("hello")


async def test_kill_9_of_a_worker_is_told_at_once_and_made_good(shop: Path) -> None:
    """Its callers get their faults, the peer serves on, and nobody has to ask for the worker to be back."""
    (shop / "wares.py").write_text(
        "import asyncio, os\n"
        "async def f(text):\n"
        "    await asyncio.sleep(600 if text == 'wait' else 0)\n"
        "    return os.getpid()\n"
    )
    faults: list[RemoteError] = []

    async def waiting(peer: Peer) -> None:
        with pytest.raises(RemoteError) as caught:
            await peer.invoke("f", "wait", timeout=300)
        faults.append(caught.value)

    async with alice(shop) as peer, trio.open_nursery() as nursery:
        await publish(peer, shop)
        await peer.publish("builtin:echo", model="parrot")
        first = await peer.invoke("f", "now")
        assert isinstance(first, int)
        for _ in range(3):
            nursery.start_soon(waiting, peer)
        while (await models(peer))["f"]["in_flight"] < 3:
            await trio.sleep(0.01)
        await trio.sleep(0.1)
        os.kill(first, signal.SIGKILL)
        assert await peer.invoke("parrot", "hello") == "hello"
        with trio.fail_after(HANG):
            while len(faults) < 3:
                await trio.sleep(0.01)
            served = peer.parts.models.get("f")
            assert served is not None
            while served.pid in (None, first):
                await trio.sleep(0.01)
        assert {(error.code, error.retryable) for error in faults} == {(Code.MODEL_ERROR, True)}
        assert "signal 9" in faults[0].message
        assert await peer.invoke("f", "now") == served.pid
        assert (await models(peer))["f"]["state"] == "serving"
