"""The gateway's application asked for models of every form, in a town whose network is in memory."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from safetensors.numpy import load, save

from crowds import fill
from modelnet_p2p.identity import KeyPair

SUPPORT = str(Path(__file__).parents[2] / "support")
MODELS = {
    "chat": "text-generation",
    "words": "text2text-generation",
    "embed": "feature-extraction",
    "double": "x-test/tensors",
    "broken": "summarization",
    "nonsense": "translation",
}
HI = [{"role": "user", "content": "one two three"}]
# Any: the fixtures, see the two conftest.py
OpenTown = Any
OpenClient = Any
Client = Any


@asynccontextmanager
async def opened(open_town: OpenTown, open_client: OpenClient, *names: str) -> AsyncIterator[Client]:
    """A client of bob's gateway; alice serves those models."""
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(publish, alice, name)
        async with open_client(bob) as client:
            client.alice = alice
            yield client


async def publish(peer: Any, name: str) -> None:
    await peer.publish(f"talkers:{name}", task=MODELS[name], cwd=SUPPORT)


async def test_chat_whole_streamed_and_with_tools(open_town: OpenTown, open_client: OpenClient) -> None:
    async with opened(open_town, open_client, "chat", "words") as client:
        path = "/v1/chat/completions"
        whole = await client.post(
            path, {"model": "chat", "messages": HI, "temperature": 0.5, "max_tokens": None}
        )
        assert whole.status == 200
        answer = whole.json()
        assert answer["object"] == "chat.completion"
        assert answer["choices"][0]["message"]["content"] == "one two three "
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert answer["usage"] == {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
        assert whole.headers["x-modelnet-peer"] == client.alice.id
        assert whole.headers["x-modelnet-hops"] == whole.headers["x-modelnet-attempts"] == "1"
        assert float(whole.headers["x-modelnet-network-ms"]) >= 0

        asked = {"model": "task:text-generation", "messages": HI, "stream": True, "max_completion_tokens": 2}
        stream = await client.post(path, {**asked, "stream_options": {"include_usage": True}})
        assert stream.headers["content-type"].startswith("text/event-stream")
        chunks = stream.events()
        assert {(c["object"], c["id"], c["model"]) for c in chunks} == {
            ("chat.completion.chunk", chunks[0]["id"], "chat")
        }
        deltas = [c["choices"][0]["delta"] for c in chunks[:-1]]
        assert deltas == [{"role": "assistant", "content": "one "}, {"content": "two "}, {}]
        assert chunks[-2]["choices"][0]["finish_reason"] == "length"
        assert (chunks[-1]["choices"], chunks[-1]["usage"]["total_tokens"]) == ([], 4)
        assert b": x-modelnet-hops=1 " in stream.body
        assert stream.body.endswith(b"data: [DONE]\n\n")

        tool = {"type": "function", "function": {"name": "say", "parameters": {}}}
        called = (await client.post(path, {"model": "chat", "messages": HI, "tools": [tool]})).json()[
            "choices"
        ][0]
        assert called["finish_reason"] == "tool_calls"
        assert called["message"]["content"] is None
        assert called["message"]["tool_calls"] == [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "say", "arguments": '{"text":"one two three"}'},
            }
        ]
        plain = (await client.post(path, {"model": "words", "messages": HI})).json()
        assert plain["choices"][0]["message"]["content"] == "one two three "
        assert plain["usage"]["total_tokens"] == 0
        refused = await client.post(path, {"model": "words", "messages": HI, "tools": [tool]})
        assert (refused.status, refused.json()["error"]["param"]) == (400, "tools")


async def test_completions(open_town: OpenTown, open_client: OpenClient) -> None:
    async with opened(open_town, open_client, "chat", "words") as client:
        for model in ("chat", "words"):
            whole = (await client.post("/v1/completions", {"model": model, "prompt": ["a b"]})).json()
            assert whole["object"] == "text_completion"
            assert whole["choices"][0]["text"].strip() == "a b"
        stream = await client.post("/v1/completions", {"model": "words", "prompt": "a b", "stream": True})
        assert [c["choices"][0]["text"] for c in stream.events()] == ["a ", "b ", ""]
        for wrong in (
            {"prompt": [1, 2]},
            {"prompt": ["a", "b"]},
            {},
            {"prompt": "a", "best_of": 2},
            {"prompt": "a", "n": 2},
        ):
            assert (await client.post("/v1/completions", {"model": "words", **wrong})).status == 400


async def test_embeddings(open_town: OpenTown, open_client: OpenClient) -> None:
    async with opened(open_town, open_client, "embed", "words") as client:
        path, asked = "/v1/embeddings", {"model": "embed", "input": ["banana", "x"]}
        plain = (await client.post(path, {**asked, "dimensions": 3})).json()
        assert [row["embedding"] for row in plain["data"]] == [[6.0, 3.0, 0.5], [1.0, 0.0, 0.5]]
        coded = (await client.post(path, {**asked, "input": "banana", "encoding_format": "base64"})).json()
        vector = np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), "<f4")
        assert vector.tolist() == [6.0, 3.0, 0.5]
        wrong: dict[str, Any]
        for wrong in (
            {"dimensions": 2},
            {"input": [[1, 2]]},
            {"input": []},
            {"encoding_format": "int8"},
            {"model": "words"},
        ):
            refused = await client.post(path, {**asked, **wrong})
            assert refused.status == 400, refused.body
        assert (await client.post("/v1/chat/completions", {"model": "embed", "messages": HI})).status == 400


async def test_responses(open_town: OpenTown, open_client: OpenClient) -> None:
    async with opened(open_town, open_client, "chat") as client:
        whole = (
            await client.post("/v1/responses", {"model": "chat", "input": "a b", "instructions": "be kind"})
        ).json()
        assert whole["status"] == "completed"
        assert whole["output"][0]["content"][0]["text"] == "a b "
        assert whole["usage"]["input_tokens"] == 2
        asked = {
            "model": "chat",
            "input": [{"role": "user", "content": [{"type": "input_text", "text": "a b"}]}],
        }
        stream = await client.post("/v1/responses", {**asked, "stream": True, "max_output_tokens": 1})
        lines = [line for line in stream.body.decode().split("\n") if line.startswith("data: ")]
        events = [json.loads(line.removeprefix("data: ")) for line in lines]
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert [event["type"].removeprefix("response.") for event in events] == [
            "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta",
            "output_text.done", "content_part.done", "output_item.done", "incomplete",
        ]  # fmt: skip
        assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
        tool = {"type": "function", "name": "say", "parameters": {}}
        called = (await client.post("/v1/responses", {**asked, "tools": [tool]})).json()
        assert called["output"][0]["type"] == "function_call"
        assert json.loads(called["output"][0]["arguments"]) == {"text": "a b"}
        for wrong in (
            {"previous_response_id": "x"},
            {"store": True},
            {"tools": [{"type": "web_search"}]},
            {"input": 1},
        ):
            refused = await client.post("/v1/responses", {**asked, **wrong})
            assert refused.status == 400
            assert next(iter(wrong)) in refused.json()["error"]["message"] + str(
                refused.json()["error"]["param"]
            )


async def test_what_the_swarm_offers(open_town: OpenTown, open_client: OpenClient) -> None:
    async with opened(open_town, open_client, "chat", "embed", "double") as client:
        listed = {entry["id"]: entry for entry in (await client.get("/v1/models")).json()["data"]}
        assert listed.keys() == {"chat", "embed"}
        assert "/v1/responses" in listed["chat"]["modelnet"]["endpoints"]
        assert listed["embed"]["modelnet"]["endpoints"] == ["/v1/embeddings", "/api/v1/invoke"]
        assert listed["chat"]["owned_by"] == client.alice.id
        others = (await client.get("/v1/models?task=x-test/tensors")).json()["data"]
        assert [entry["id"] for entry in others] == ["double"]
        one = (await client.get("/v1/models/chat")).json()
        assert one == listed["chat"]
        assert (await client.get("/v1/models/nobody/has-it")).json()["error"]["code"] == "model_not_found"
        assert (await client.get("/v1/models?task=Not%20a%20task")).status == 400


async def test_what_an_offer_says_of_itself_stands_where_other_clients_pass_it_over(
    open_town: OpenTown, open_client: OpenClient
) -> None:
    said = {"tags": ["quick"], "tier": "edge", "languages": ["de"], "licence": "MIT"}
    async with opened(open_town, open_client, "chat") as client:
        price = {"usd_per_call": 0.002}
        await client.alice.publish("talkers:words", task="text-generation", cwd=SUPPORT, price=price, **said)
        listed = {entry["id"]: entry for entry in (await client.get("/v1/models")).json()["data"]}
        assert listed["words"].keys() == {"id", "object", "created", "owned_by", "modelnet"}
        (found,) = await client.alice.find(model="words")
        line, told = found.to_map(), listed["words"]["modelnet"]
        for name in ("price", *said):
            assert told[name] == line[name]
        assert told["price"] == price
        assert told["provider"] == client.alice.id
        assert (
            not told.keys()
            - line.keys()
            - {"endpoints", "providers", "precision", "parameters", "context_length"}
        )
        # what an offer does not say is empty where it always stands, and else is not there
        silent = listed["chat"]["modelnet"]
        assert (silent["languages"], silent["licence"]) == ([], "")
        assert not silent.keys() & {"price", "tier", "tags"}


async def test_whoever_asks_a_busy_provider_is_told_of_another(
    open_town: OpenTown, open_client: OpenClient
) -> None:
    name, digit = "modelnet/digits", {"input": {"dtype": "float32", "shape": [1, 8, 8], "data": [0] * 64}}
    async with open_town() as town:
        alice, bob, carol = [await town.peer(name) for name in ("alice", "bob", "carol")]
        for provider in (alice, bob):
            await provider.publish("builtin:digits")
        fill(alice, name)
        async with open_client(carol) as client:
            path = f"/api/v1/invoke/modelnet:{name}?provider="
            refused = await client.post(path + alice.id, digit)
            assert (refused.status, refused.headers["retry-after"]) == (429, "1")
            told = refused.json()["error"]["modelnet"]
            assert (told["code"], told["peer"], told["instead"]) == ("busy", alice.id, bob.id)
            assert (await client.post(path + told["instead"], digit)).json()["provider"] == bob.id
            for model in (name, "nobodys"):
                assert b"instead" not in (await client.post(f"/api/v1/invoke/{model}", digit)).body


async def test_any_model_with_any_input(open_town: OpenTown, open_client: OpenClient) -> None:
    async with opened(open_town, open_client, "double", "words") as client:
        path, x = "/api/v1/invoke/double", np.array([[1, 2]], np.float32)
        tensor = {"dtype": "float32", "shape": [1, 2], "data": [1, 2]}
        plain = (await client.post(path, {"input": tensor, "params": {"by": 3}})).json()
        assert plain["output"]["y"] == {"dtype": "float32", "shape": [1, 2], "data": [3.0, 6.0]}
        assert (plain["done"], plain["attempts"], len(plain["trace"])) == (True, 1, 1)

        file = io.BytesIO()
        np.save(file, x)
        both = {"content_type": "application/x-npy", "accept": "application/x-npy"}
        npy = await client.post(f"{path}?params=%7B%22by%22:3%7D", file.getvalue(), **both)
        assert np.load(io.BytesIO(npy.body)).tolist() == [[3.0, 6.0]]
        safe = await client.post(
            path, file.getvalue(), content_type="application/x-npy", accept="application/x-safetensors"
        )
        assert load(safe.body)["y"].tolist() == [[2.0, 4.0]]
        bad = await client.post(path, save({"x": x}), content_type="application/x-safetensors")
        assert bad.status == 500  # the function cannot multiply a map: its own error, with its words
        assert "TypeError" in bad.json()["error"]["message"]
        assert (await client.post(path, {"input": tensor, "wire": "int8"})).status == 200
        for where, kind, words in (
            (f"{path}?params=xx", "application/x-npy", "'params' in the URL is not JSON: "),
            (f"{path}?params=[]", "application/x-npy", "'params' in the URL is not a JSON object"),
            (
                path,
                "application/xml",
                "a body of the content-type 'application/xml' is not taken: ",
            ),
            (path, "application/json", "the request's body is not JSON: "),
        ):
            bad = await client.post(where, b"<x/>", content_type=kind)
            assert (bad.status, bad.json()["error"]["message"][: len(words)]) == (400, words)
        for wrong in (b"", b"\x93NUMPY\x01\x00", file.getvalue()[:-1], b"x" * 100):
            assert (await client.post(path, wrong, content_type="application/x-npy")).status == 400
        mistaken = "%7B%22dtype%22:%22float32%22,%22shape%22:%5B1%5D,%22data%22:%5B1.0%5D%7D"
        odd = await client.post(
            f"{path}?params={mistaken}", file.getvalue(), content_type="application/x-npy"
        )
        assert odd.status == 400
        for body in (
            {},
            {"input": 1, "inptu": 2},
            {"input": 1, "params": [1]},
            {"input": tensor, "wire": "x"},
        ):
            assert (await client.post(path, body)).status == 400
        text = await client.post(
            "/api/v1/invoke/words", "ä b".encode(), content_type="text/plain; charset=utf-8"
        )
        assert text.json()["output"] == ["ä ", "b "]
        lines = (
            (await client.post("/api/v1/invoke/words?stream=1", {"input": "a b"})).body.decode().splitlines()
        )
        assert [json.loads(line).get("item") for line in lines] == ["a ", "b ", None]
        assert json.loads(lines[-1])["done"]


async def test_a_uri_in_the_path_means_exactly_that_model(
    open_town: OpenTown, open_client: OpenClient
) -> None:
    """What stands behind its `?` belongs to it, not to the gateway."""
    async with opened(open_town, open_client, "words") as client:
        path, own, other = "/api/v1/invoke/modelnet:words", client.alice.id, KeyPair(b"o" * 32).id
        for pin in ("", f"?owner={own}", f"?provider={own}&params=%7B%7D"):
            answer = await client.post(path + pin, {"input": "a b"})
            assert answer.json().get("output") == ["a ", "b "], (pin, answer.body)
        for pin in (f"?owner={other}", f"?provider={other}", f"?owner={own}&digest=sha256:{'11' * 32}"):
            answer = await client.post(path + pin, {"input": "a b"})
            assert (answer.status, answer.json()["error"]["code"]) == (404, "model_not_found"), pin
        odd = await client.post(f"{path}?onwer={own}", {"input": "a b"})
        assert (odd.status, odd.json()["error"]["param"]) == (400, "onwer")


async def test_how_a_model_that_fails_is_told(open_town: OpenTown, open_client: OpenClient) -> None:
    async with opened(open_town, open_client, "broken", "nonsense", "chat") as client:
        path = "/v1/chat/completions"
        failed = await client.post(path, {"model": "broken", "messages": HI})
        assert (failed.status, failed.headers["x-should-retry"]) == (500, "false")
        assert "it broke" in failed.json()["error"]["message"]
        assert failed.headers["x-modelnet-peer"] == client.alice.id
        midway = await client.post(path, {"model": "broken", "messages": HI, "stream": True})
        assert midway.status == 200
        assert midway.events()[0]["choices"][0]["delta"]["content"] == "one "
        assert midway.events()[-1]["error"]["code"] == "model_error"
        assert b"[DONE]" not in midway.body
        lost = await client.post("/v1/responses", {"model": "broken", "input": "x", "stream": True})
        assert b'"type":"response.failed"' in lost.body
        nonsense = await client.post(path, {"model": "nonsense", "messages": HI})
        assert nonsense.json()["error"]["code"] == "model_error"
        wrong: dict[str, Any]
        for wrong in (
            {"n": 2},
            {"messages": []},
            {"model": None},
            {"model": "not a name"},
            {"stream": "yes"},
        ):
            assert (await client.post(path, {"model": "chat", "messages": HI, **wrong})).status == 400, wrong
        figures = (await client.get("/metrics")).body.decode()
        assert 'modelnet:request_failure_total{code="model-error"}' in figures
        assert "modelnet:num_requests_running 0.0" in figures


async def test_hanging_up_stops_the_model(
    open_town: OpenTown, open_client: OpenClient, tmp_path: Path
) -> None:
    told = tmp_path / "slow"
    async with open_town() as town:
        alice, bob = await town.peer("alice"), await town.peer("bob")
        await alice.publish("talkers:slow", task="text-generation", cwd=SUPPORT)
        async with open_client(bob) as client:
            hang_up = trio.Event()
            body = {"model": "slow", "stream": True, "messages": [{"role": "user", "content": str(told)}]}
            async with trio.open_nursery() as nursery:

                async def ask() -> None:
                    await client.ask("POST", "/v1/chat/completions", body, hang_up=hang_up)

                nursery.start_soon(ask)
                with trio.fail_after(30):
                    while not told.with_suffix(".count").exists():
                        await trio.sleep(0.01)
                hang_up.set()
            with trio.fail_after(30):
                while not told.exists():
                    await trio.sleep(0.01)
            assert told.read_text() == "stopped"


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_what_is_not_there(open_town: OpenTown, open_client: OpenClient, method: str) -> None:
    async with open_town() as town, open_client(await town.peer("alice")) as client:
        answer = await client.ask(method, "/v1/chat/completions")
        assert (answer.status, answer.json()["error"]["code"]) == (405, "method_not_allowed")
        assert (await client.ask(method, "/v1/engines")).status == 404
