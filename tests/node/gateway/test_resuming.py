"""A provider dies under an answer: before its first word another one answers unseen, after it the same model
goes on elsewhere."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from modelnet_p2p.errors import Code, RemoteError
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.node.calls.resuming import relay
from modelnet_p2p.records import Manifest, seal_manifest

PACKAGE = """
import asyncio, hashlib, os
from modelnet_p2p.node.serving.backends.contract import Backend, Description
from modelnet_p2p.records import Spec

class Reciter(Backend):
    @classmethod
    def claims(cls, spec):
        return spec.startswith("recite:")
    async def load(self):
        self.shift = int(os.environ.get("SHIFT", "0"))
    def describe(self):
        return Description(
            name="reciter", version="1", task="text-generation", framework="reciter",
            digest=hashlib.sha256(b"r").digest(),
            inputs=(Spec("messages", "json"),), streams=True, slots=4,
            deterministic=self.source.spec.endswith("exact"),
        )
    async def invoke(self, value, params):
        return None
    async def stream(self, value, params):
        count = int(value["messages"][-1]["content"])
        if value.get("temperature"):
            await asyncio.sleep(1.0)
        usage = {"prompt_tokens": 1, "completion_tokens": count, "total_tokens": count + 1}
        for number in range(count):
            shown = number + self.shift if number > 3 else number
            yield {"choices": [{"index": 0, "delta": {"content": f"{shown} "}, "finish_reason": None}]}
            await asyncio.sleep(0.01)
        yield {"choices": [], "usage": usage}
"""
COUNT = 60
# Any: the fixtures, see the two conftest.py
OpenTown = Any
OpenClient = Any
Publish = Callable[..., Any]


@pytest.fixture
def publish(tmp_path: Path) -> Publish:
    """Have a peer serve the reciter of one owner, of which there may be many copies."""
    site = tmp_path / "site"
    info = site / "reciterpkg-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "reciterpkg.py").write_text(PACKAGE)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: reciterpkg\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[modelnet.backends]\nrecite = reciterpkg:Reciter\n")
    owner = KeyPair(hashlib.sha256(b"owner").digest())
    manifest = seal_manifest(
        Manifest(
            owner=owner.id,
            name="reciter",
            version="1",
            task="text-generation",
            digest=hashlib.sha256(b"r").digest(),
            issued_unix=1_700_000_000,
        ),
        owner,
    )

    async def published(peer: Any, spec: str = "recite:exact", shift: int = 0) -> None:
        environ = {**os.environ, "PYTHONPATH": str(site), "SHIFT": str(shift)}
        await peer.publish(spec, cwd="/", environ=environ, manifest=manifest)

    return published


@asynccontextmanager
async def two_providers(
    open_town: OpenTown,
    open_client: OpenClient,
    publish: Publish,
    *,
    spec: str = "recite:exact",
    shift: int = 0,
) -> AsyncIterator[tuple[Any, Any]]:
    """A town in which alice and carol serve the reciter (hers may say other numbers); a client of bob's."""
    async with open_town() as town:
        bob, alice, carol = [await town.peer(name) for name in ("bob", "alice", "carol")]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, alice, spec)
            nursery.start_soon(publish, carol, spec, shift)
        async with open_client(bob) as client:
            yield town, client


async def recited(town: Any, client: Any, kill_after: int, only: str = "") -> Any:
    """Ask for a recital, and kill its provider after so many words."""
    body = {"model": "reciter", "messages": [{"role": "user", "content": str(COUNT)}], "stream": True}
    killed: list[str] = []
    send = client.app

    async def watching(scope: Any, receive: Any, answer: Any) -> None:
        words = 0

        async def on_send(message: Any) -> None:
            nonlocal words
            await answer(message)
            if message["type"] == "http.response.start":
                told = dict(message["headers"])
                killed.append(told[b"x-modelnet-peer"].decode())
            words += b"content" in message.get("body", b"")
            if words == kill_after:
                words += 1
                name = next(name for name, peer in town.peers.items() if peer.id == killed[0])
                town.kill(name)

        await send(scope, receive, on_send)

    client.app = watching
    try:
        return await client.post("/v1/chat/completions", body)
    finally:
        client.app = send


def said(answer: Any) -> list[str]:
    return [
        choice["delta"]["content"].strip()
        for event in answer.events()
        for choice in event.get("choices", ())
        if "content" in choice["delta"]
    ]


async def test_the_same_model_goes_on_where_the_lost_one_stopped(
    open_town: OpenTown, open_client: OpenClient, publish: Publish
) -> None:
    async with two_providers(open_town, open_client, publish) as (town, client):
        answer = await recited(town, client, kill_after=10)
        assert said(answer) == [str(number) for number in range(COUNT)]  # none lost, none twice
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert b"error" not in answer.body
        figures = (await client.get("/metrics")).body.decode()
        assert 'modelnet:requests_resumed_total{model_name="reciter@1"} 1.0' in figures


async def test_where_only_the_models_process_dies_its_streams_go_on_as_well(
    open_town: OpenTown, open_client: OpenClient, publish: Publish
) -> None:
    """Of several: nobody knows at whose call it died."""
    count, answers = 300, []
    body = {"model": "reciter", "messages": [{"role": "user", "content": str(count)}], "stream": True}
    async with open_town() as town:
        bob, alice, carol = [await town.peer(name) for name in ("bob", "alice", "carol")]
        await publish(alice)
        served = alice.parts.models.get("reciter")
        async with open_client(bob) as client, trio.open_nursery() as nursery:

            async def ask() -> None:
                answers.append(await client.post("/v1/chat/completions", body))

            nursery.start_soon(ask)
            nursery.start_soon(ask)
            await publish(carol)
            while served.stats()["in_flight"] < 2:
                await trio.sleep(0.01)
            os.kill(served.pid, signal.SIGKILL)
    for answer in answers:
        assert said(answer) == [str(number) for number in range(count)]
        assert answer.body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(("spec", "shift"), [("recite:exact", 7), ("recite:loosely", 0)])
async def test_what_would_not_go_on_alike_ends_with_an_error(
    open_town: OpenTown, open_client: OpenClient, publish: Publish, spec: str, shift: int
) -> None:
    """One that answers otherwise, and one that never said that it repeats itself."""
    async with two_providers(open_town, open_client, publish, spec=spec, shift=shift) as (town, client):
        answer = await recited(town, client, kill_after=10)
        words = said(answer)
        assert 10 <= len(words) < COUNT
        assert "error" in answer.events()[-1]
        assert b"[DONE]" not in answer.body


async def test_alone_it_ends_with_the_loss(
    open_town: OpenTown, open_client: OpenClient, publish: Publish
) -> None:
    async with open_town() as town:
        bob, alice = await town.peer("bob"), await town.peer("alice")
        await publish(alice)
        async with open_client(bob) as client:
            answer = await recited(town, client, kill_after=3)
            assert answer.events()[-1]["error"]["code"] == "model_unreachable"
            assert answer.events()[-1]["error"]["modelnet"]["peer"] == alice.id


async def test_one_that_dies_before_its_first_word_is_replaced_unseen(
    open_town: OpenTown, open_client: OpenClient, publish: Publish
) -> None:
    async with two_providers(open_town, open_client, publish, spec="recite:loosely") as (town, client):
        body = {"model": "reciter", "messages": [{"role": "user", "content": "5"}], "temperature": 1}
        async with trio.open_nursery() as nursery:

            async def kill() -> None:
                """Whoever has been asked."""
                while True:
                    for name in ("alice", "carol"):
                        if (await town.peers[name].status())["models"][0]["in_flight"]:
                            town.kill(name)
                            return
                    await trio.sleep(0.01)

            nursery.start_soon(kill)
            answer = await client.post("/v1/chat/completions", body)
        assert answer.json()["choices"][0]["message"]["content"] == "0 1 2 3 4 "
        assert answer.headers["x-modelnet-attempts"] == "2"


async def relayed(code: Code, *items: str) -> tuple[RemoteError, list[list[str]]]:
    """How an answer ends of which each provider in turn gives one of `items` and is lost then, and who was
    left out at each."""
    record = SimpleNamespace(digest=b"d" * 32, gives=("deterministic",), name="m", version="", owner=None)
    asked: list[list[str]] = []

    async def call(target: str, timeout: float, avoid: Any, on_begin: Any, on_item: Any) -> Any:
        asked.append(list(avoid))
        await on_begin(SimpleNamespace(offer=SimpleNamespace(record=record, provider=f"p{len(asked)}")))
        await on_item(items[len(asked) - 1])
        raise RemoteError(code, f"lost {len(asked)}", retryable=True)

    async def ignore(_: object) -> None:
        pass

    with pytest.raises(RemoteError) as caught:
        await relay(call, "m", 5.0, ignore, ignore)
    return caught.value, asked


async def test_what_two_models_died_at_is_given_up() -> None:
    error, asked = await relayed(Code.MODEL_ERROR, "one", "one", "one")
    assert (error.message, asked) == ("lost 2", [[], ["p1"]])


async def test_who_does_not_repeat_a_lost_answer_is_not_lost_himself() -> None:
    """A third one is not asked: nobody says that he would repeat it."""
    error, asked = await relayed(Code.UNREACHABLE, "one", "another", "one")
    assert "does not repeat them" in error.message
    assert error.retryable  # from the start
    assert asked == [[], ["p1"]]


async def test_a_loss_at_the_end_of_the_time_is_told_as_that(autojump_clock: object) -> None:
    record = type(
        "Record", (), {"digest": b"d" * 32, "gives": ("deterministic",), "name": "m", "version": ""}
    )
    record.owner = KeyPair(hashlib.sha256(b"owner").digest()).id  # type: ignore[attr-defined]
    offer = type("Offer", (), {"record": record, "provider": "p"})
    begun: list[float] = []

    async def call(target: str, timeout: float, avoid: Any, on_begin: Any, on_item: Any) -> Any:
        begun.append(timeout)
        await on_begin(type("Begun", (), {"offer": offer}))
        await trio.sleep(10)
        raise RemoteError(Code.UNREACHABLE, "lost")

    async def ignore(_: object) -> None:
        pass

    with pytest.raises(RemoteError, match="lost"):
        await relay(call, "m", 5.0, ignore, ignore)
    assert begun == [5.0]
