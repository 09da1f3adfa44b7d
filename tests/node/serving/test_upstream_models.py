"""Models of a server, served: what they are found to be, how calls go, and how the server may misbehave."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing
from trio.testing import MockClock

import recorded_streams as recorded
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.description import Description
from modelnet_p2p.node.serving.models import Models, open_models
from modelnet_p2p.node.serving.served import Served
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.node.serving.upstream.connection import MAX_HEAD_BYTES
from modelnet_p2p.tuning import TEST
from upstream_server import Say, Server, chat_events, in_memory, model_list, say_events, say_json

CHAT = "POST /v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "Hi"}]}
KEY = "sk-not-for-callers"


@dataclass(slots=True)
class Box:
    """A peer's table of models, and the server behind them at http://box/v1."""

    server: Server
    models: Models
    troubles: list[LocalError] = field(default_factory=list)

    async def add(self, model: str = "tiny", **fields: Any) -> Served:
        return await self.models.add(Source(f"http://box/v1#{model}", **fields))

    async def describe(self, model: str = "tiny", **fields: Any) -> Description:
        return await self.models.rehearse(Source(f"http://box/v1#{model}", **fields))


@asynccontextmanager
async def open_box() -> AsyncIterator[Box]:
    server = Server()
    async with in_memory(box=server), open_models(TEST) as models:
        box = Box(server, models)
        models.on_trouble = lambda spec, error: box.troubles.append(error)
        yield box


async def call(served: Served, value: Any, method: str = "invoke", **params: Any) -> list[Any]:
    """The items of a call, and its output behind them unless that is None."""
    items: list[Any] = []

    async def emit(value: Any) -> None:
        items.append(value)

    answer = await served.run(method, value, params, emit, trio.current_time() + 20)
    return items if answer.value is None else [*items, answer.value]


async def fault(served: Served, value: Any = HI) -> LocalError:
    with pytest.raises(LocalError) as caught:
        await call(served, value)
    return caught.value


# --- what they are ---


async def test_what_vllm_tells() -> None:
    async with open_box() as box:
        box.server.serve_chat("Qwen/Qwen2.5-0.5B-Instruct", owned_by="vllm", max_model_len=2048)
        found = await box.describe("Qwen/Qwen2.5-0.5B-Instruct")
        assert (found.name, found.task) == ("qwen/qwen2.5-0.5b-instruct", "text-generation")
        assert (found.framework, found.context_length) == ("vllm", 2048)
        assert found.streams
        assert found.idempotent
        assert not found.deterministic
        assert [spec.name for spec in found.inputs] == ["messages"]
        assert box.server.asked[-1].body["max_tokens"] == 1


async def test_what_llama_server_tells() -> None:
    async with open_box() as box:
        meta = {"n_ctx": 8192, "n_ctx_train": 32768, "n_params": 7615616512, "size": 4431389696}
        box.server.serve_chat("/m/Qwen.gguf", owned_by="llamacpp", meta=meta)
        box.server.on("GET /props", say_json({"total_slots": 4}))
        found = await box.describe("/m/Qwen.gguf")
        assert (found.name, found.framework, found.slots) == ("qwen", "llama.cpp", 4)
        assert (found.context_length, found.parameters, found.size_bytes) == (8192, 7615616512, 4431389696)


async def test_what_ollama_tells() -> None:
    async with open_box() as box:
        box.server.serve_chat("llama3.2:1b", owned_by="library")
        shown = {
            "capabilities": ["completion", "tools"],
            "details": {"family": "llama", "quantization_level": "Q8_0"},
            "model_info": {"general.parameter_count": 1235814432, "llama.context_length": 131072},
        }
        box.server.on("POST /api/show", say_json(shown))
        found = await box.describe("llama3.2:1b")
        assert (found.name, found.framework, found.precision) == ("llama3.2-1b", "ollama", "q8_0")
        assert (found.context_length, found.parameters) == (131072, 1235814432)


@pytest.mark.parametrize(
    ("name", "kind", "refusal"),
    [
        ("nomic-embed-text", "/v1/embeddings", 400),
        ("some-vectors", "/v1/embeddings", 501),
        ("base-model", "/v1/completions", 404),
    ],
)
async def test_what_a_model_is_for_is_found_out_by_asking_it(name: str, kind: str, refusal: int) -> None:
    async with open_box() as box:
        box.server.on("GET /v1/models", say_json(model_list(name)))
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
            box.server.on(f"POST {path}", say_json({"error": {"message": "not with this model"}}, refusal))
        vector = {"data": [{"index": 0, "embedding": [0.5, 1, 2]}]}
        text = {"choices": [{"index": 0, "text": "x", "finish_reason": "length"}]}
        box.server.on(f"POST {kind}", say_json(vector if "embed" in kind else text))
        found = await box.describe(name)
        if "embed" in kind:
            assert (found.task, found.streams) == ("feature-extraction", False)
            assert found.outputs[0].shape == (None, 3)
        else:
            assert (found.task, found.streams) == ("text-generation", True)
            assert [(spec.name, spec.kind) for spec in found.inputs] == [("prompt", "text")]


async def test_a_model_that_fails_is_not_taken_for_one_of_another_kind() -> None:
    async with open_box() as box:
        box.server.serve_chat("tiny")
        box.server.on(CHAT, say_json({"error": "CUDA out of memory"}, 500))
        box.server.on("POST /v1/embeddings", say_json({"data": [{"index": 0, "embedding": [1]}]}))
        with pytest.raises(LocalError, match="out of memory"):
            await box.describe()


async def test_a_task_that_is_named_is_what_is_asked_for() -> None:
    async with open_box() as box:
        box.server.serve_chat("tiny")
        box.server.on("POST /v1/embeddings", say_json({"data": [{"index": 0, "embedding": [1]}]}))
        assert (await box.describe(task="sentence-similarity")).streams is False
        spec = "http://box/v1#tiny"
        found = await box.models.rehearse(Source(spec, task="translation", model="acme/mine@2"))
        assert (found.name, found.version, found.task, found.streams) == (
            "acme/mine",
            "2",
            "translation",
            True,
        )


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (say_json({"detail": "Not Found"}, 404), Code.NOT_FOUND),
        (say_json({"hello": "world"}), Code.BAD_INPUT),
        (Say(200, [b"<html>"], "text/html"), Code.MODEL_ERROR),
        (say_json(model_list("other")), Code.NOT_FOUND),
        (say_json({"object": "list", "data": None}), Code.NOT_FOUND),
        (Say(302, headers=(("location", "http://elsewhere/v1/models"),)), Code.MODEL_ERROR),
        (Say(200, [b"x" * (17 << 20)]), Code.TOO_LARGE),
        (say_json({"error": "Unauthorized"}, 401), Code.FORBIDDEN),
        (Say(200, [b"\x1f\x8b"], headers=(("content-encoding", "gzip"),)), Code.MODEL_ERROR),
        (Say(200, headers=(("x", "y" * 2 * MAX_HEAD_BYTES),)), Code.MODEL_ERROR),
        (Say(200, [b'{"data":'], cut=True), Code.MODEL_ERROR),
    ],
)
async def test_what_is_no_such_server_is_one_typed_error(said: Say, code: Code) -> None:
    async with open_box() as box:
        box.server.on("GET /v1/models", said)
        with pytest.raises(LocalError) as caught:
            await box.add()
        assert caught.value.code is code
        assert {asked.path for asked in box.server.asked} == {"/v1/models"}  # no redirect was followed


async def test_nobody_there() -> None:
    async with open_box() as box:
        box.server.away = True
        with pytest.raises(LocalError, match="cannot be reached: connection refused"):
            await box.add()
        for spec in ("http://user:pw@box/v1#tiny", "http://box/v1?key=pw#tiny"):
            with pytest.raises(LocalError, match="takes no user"):
                await box.models.add(Source(spec))
        assert box.models.all() == {}


# --- calls ---


async def test_a_chat_goes_through_as_it_comes(autojump_clock: MockClock) -> None:
    async with open_box() as box:
        box.server.serve_chat("tiny")
        served = await box.add(environ={"MODELNET_UPSTREAM_KEY": KEY})
        tools = [{"type": "function", "function": {"name": "weather"}}]
        asks = {**HI, "tools": tools, "logprobs": True, "model": "other", "stream": False, "n": 1}
        for stream in recorded.STREAMS:
            box.server.on(CHAT, say_events(stream[:100], stream[100:]))
            for method in ("invoke", "stream"):
                items = await call(served, asks, method, temperature=0.5)
                assert items[-1]["usage"]["total_tokens"] > 0
                assert all(item["choices"] for item in items[:-1])
            asked = box.server.asked[-1]
            assert asked.headers["authorization"] == f"Bearer {KEY}"
            assert asked.body == {
                **{"model": "tiny", "stream": True, "stream_options": {"include_usage": True}},
                **{**HI, "tools": tools, "logprobs": True, "temperature": 0.5},
            }
        assert box.server.open == 1  # one connection for all of it
        assert box.troubles == []


async def test_a_text_is_answered_by_text() -> None:
    async with open_box() as box:
        box.server.serve_chat("tiny", texts=("Hel", "lo"))
        assert await call(await box.add(), "Hi", max_tokens=2) == ["Hel", "lo"]
        assert box.server.asked[-1].body["messages"] == [{"role": "user", "content": "Hi"}]


async def test_a_server_that_does_not_count_or_does_not_stream() -> None:
    async with open_box() as box:
        box.server.serve_chat("tiny")
        served = await box.add()

        def picky(body: Any) -> Say:
            if "stream_options" in body:
                return say_json({"error": {"message": "Unrecognized request argument: stream_options"}}, 400)
            return say_events(*chat_events("a", usage=False))

        box.server.on(CHAT, picky)
        for _ in range(2):
            items = await call(served, HI)
            assert items[1] == {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
            assert all(item["choices"] for item in items)  # nothing is made up
        assert len([asked for asked in box.server.asked if "stream_options" in (asked.body or ())]) == 1

        choice = {"index": 0, "message": {"role": "assistant", "content": "ab"}, "finish_reason": "stop"}
        box.server.on(CHAT, say_json({"choices": [choice], "usage": {"total_tokens": 3}}))
        assert await call(served, HI) == [
            {"choices": [{"index": 0, "delta": choice["message"], "finish_reason": "stop"}]},
            {"choices": [], "usage": {"total_tokens": 3}},
        ]


async def test_vectors_come_in_parts_and_as_one_tensor() -> None:
    async with open_box() as box:

        def embed(body: Any) -> Say:
            rows = [{"index": i, "embedding": [len(text), 0.5]} for i, text in enumerate(body["input"])]
            return say_json({"data": rows[::-1], "usage": {"prompt_tokens": len(rows), "total_tokens": 9}})

        box.server.on("GET /v1/models", say_json(model_list("bge-small")))
        box.server.on("POST /v1/embeddings", embed)
        served = await box.add("bge-small")
        texts = ["x" * size for size in range(1, 151)]
        [tensor] = await call(served, texts)
        assert (tensor.dtype, tensor.shape) == (np.float32, (150, 2))
        assert tensor[:, 0].tolist() == list(range(1, 151))
        assert [len(asked.body["input"]) for asked in box.server.asked[-3:]] == [64, 64, 22]
        [answer] = await call(served, {"input": ["a", "bb"], "encoding_format": "base64"})
        assert answer["embeddings"].tolist() == [[1, 0.5], [2, 0.5]]
        assert answer["usage"] == {"prompt_tokens": 2, "total_tokens": 2}
        assert (await call(served, "abc", "stream"))[0].tolist() == [[3, 0.5]]


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (say_json({"error": {"message": "too long"}}, 400), Code.BAD_INPUT),
        (say_json({"error": {"message": f"bad key {KEY}"}}, 401), Code.FORBIDDEN),
        (say_json({"error": {"message": f"what is {KEY}?"}}, 500), Code.MODEL_ERROR),
        (say_json({"error": {"message": "gone"}}, 404), Code.NOT_FOUND),
        (say_json({"error": {"message": "slow"}}, 429, **{"retry-after": "5"}), Code.BUSY),
        (Say(307, headers=(("location", "http://169.254.169.254/"),)), Code.MODEL_ERROR),
        (say_events(recorded.VLLM_ERROR), Code.MODEL_ERROR),
        (say_events(recorded.VLLM[:300], cut=True), Code.MODEL_ERROR),
        (say_events(b"data: " + b"x" * (2 << 20)), Code.MODEL_ERROR),
        (say_events(b'data: {"choices":[{"delta":{"content":"\\ud800"}}]}\n\n'), Code.MODEL_ERROR),
        (say_events(b'data: {"choices":' + b'[{"a":' * 26 + b"1" + b"}]" * 26 + b"}\n\n"), Code.MODEL_ERROR),
        (Say(200, [b"hello"], "text/plain"), Code.MODEL_ERROR),
        (say_json({"error": "with status 200"}), Code.MODEL_ERROR),
    ],
)
async def test_whatever_a_server_does_is_one_typed_fault_and_the_model_serves_on(
    said: Say, code: Code
) -> None:
    async with open_box() as box:
        box.server.serve_chat("tiny")
        served = await box.add(environ={"MODELNET_UPSTREAM_KEY": KEY})
        box.server.on(CHAT, said)
        error = await fault(served)
        assert error.code is code
        assert KEY not in json.dumps(error.to_map())
        assert error.retryable == (code is Code.BUSY)
        assert [trouble.code for trouble in box.troubles] == ([] if code is Code.BAD_INPUT else [code])
        box.server.serve_chat("tiny")
        assert await call(served, "Hi") == ["Hel", "lo"]


async def test_a_server_that_has_gone_is_told_at_once_and_others_may_answer(
    autojump_clock: MockClock,
) -> None:
    async with open_box() as box:
        box.server.serve_chat("tiny", texts=("a",))
        served = await box.add()
        box.server.away = True
        await call(served, "Hi")  # on the connection that is still there
        box.server.on(CHAT, say_events(cut=True))
        assert (await fault(served)).code is Code.BUSY  # it had begun to answer, and said nothing
        assert (await fault(served)).code is Code.BUSY  # it is not there
        assert [error.code for error in box.troubles] == [Code.BUSY, Code.BUSY]


async def test_a_caller_s_mistake_is_told_without_asking_the_server() -> None:
    async with open_box() as box:
        box.server.serve_chat("tiny")
        served = await box.add()
        before = len(box.server.asked)
        odd: list[Any] = [7, {"prompt": "x", **HI}, {**HI, "chat_template": "x"}, {**HI, "seed": b"x"}]
        for value in [*odd, {**HI, "top_p": float("nan")}]:
            assert (await fault(served, value)).code is Code.BAD_INPUT
        assert (await fault(served, "x" * (17 << 20))).code is Code.TOO_LARGE
        assert len(box.server.asked) == before
        assert box.troubles == []


@pytest.mark.parametrize("frozen", [True, False])
async def test_a_caller_that_leaves_closes_the_connection(frozen: bool) -> None:
    async with open_box() as box:
        box.server.serve_chat("tiny")
        served = await box.add()
        box.server.on(CHAT, say_events(*chat_events("a")[:2], hang=True))
        box.server.frozen = frozen
        asked, box.server.closed = len(box.server.asked), trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, served, HI)
            with trio.fail_after(20):
                while len(box.server.asked) == asked:
                    await trio.sleep(0.001)
            assert served.stats()["in_flight"] == 1
            nursery.cancel_scope.cancel()
        with trio.fail_after(20):
            await box.server.closed.wait()
        assert (box.server.open, served.stats()["in_flight"]) == (0, 0)
        assert box.troubles == []


async def test_a_connection_that_the_server_has_closed_meanwhile_is_made_anew(
    autojump_clock: MockClock,
) -> None:
    async with open_box() as box:
        box.server.serve_chat("tiny", texts=("a",))
        served = await box.add()
        await trio.testing.wait_all_tasks_blocked()
        before = box.server.open
        box.server.hang_up()
        await trio.testing.wait_all_tasks_blocked()
        assert (before, box.server.open) == (1, 0)
        assert await call(served, "Hi") == ["a"]
        assert box.troubles == []


async def test_a_server_that_is_silent_is_not_asked_twice(autojump_clock: MockClock) -> None:
    async with open_box() as box:
        box.server.serve_chat("tiny", texts=("a",))
        served = await box.add()
        assert box.server.open == 1  # a connection is kept, and used again
        before, box.server.frozen = len(box.server.asked), True

        async def emit(item: Any) -> None:
            raise AssertionError("nothing was said")

        with pytest.raises(LocalError, match="said nothing") as caught:
            await served.run("stream", HI, {}, emit, trio.current_time() + 2000)
        assert caught.value.code is Code.BUSY
        assert len(box.server.asked) - before == 1


async def test_a_caller_s_mistake_does_not_end_the_counting() -> None:
    async with open_box() as box:
        box.server.serve_chat("tiny")
        served = await box.add()
        box.server.on(CHAT, say_json({"error": {"message": "no such tool: 'stream_options'"}}, 400))
        assert (await fault(served)).code is Code.BAD_INPUT
        box.server.serve_chat("tiny")
        assert (await call(served, HI))[-1]["usage"]["total_tokens"] == 5


async def test_as_many_calls_at_once_as_it_has_slots() -> None:
    async with open_box() as box:
        box.server.serve_chat("tiny")
        served = await box.add(options={"slots": "3"})
        box.server.frozen = True
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(call, served, HI)
            await trio.testing.wait_all_tasks_blocked()
            assert (served.stats()["in_flight"], served.stats()["queued"]) == (3, 2)
            nursery.cancel_scope.cancel()
