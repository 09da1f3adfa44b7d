"""An agent's tools on the network in memory, asked by the official client; what goes in and comes out."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import trio
from mcp import Client
from mcp.shared.exceptions import MCPError

from modelnet_p2p.errors import Code, LocalError, RemoteError
from modelnet_p2p.node.control.table import Emit, Request, dispatch
from modelnet_p2p.node.control.wire import ITEM
from modelnet_p2p.node.mcp.answers import MAX_ANSWER_BYTES, MAX_TEXT_CHARS, Pieces, as_error, as_text
from modelnet_p2p.node.mcp.arguments import Wanted, Wish
from modelnet_p2p.node.mcp.server import build_server

OpenTown = Any  # the fixture that opens a town, see conftest.py
DIGIT = {"dtype": "float32", "shape": [1, 8, 8], "data": [0.0] * 64}

both_editions = pytest.mark.parametrize("mode", ["auto", "legacy"])  # of the protocol


def text_of(result: Any) -> str:  # Any: a content block is one of many
    assert len(result.content) == 1
    text = result.content[0].text
    assert isinstance(text, str)
    return text


@both_editions
async def test_an_agent_finds_describes_and_calls_a_model(open_town: OpenTown, mode: str) -> None:
    async with open_town() as town:
        alice, carol = await town.peer("alice"), await town.peer("carol", listen=False)
        await alice.publish("builtin:digits")
        async with Client(build_server(partial(dispatch, carol)), mode=mode) as agent:
            listed = (await agent.list_tools()).tools
            assert [tool.name for tool in listed] == ["find_models", "describe_model", "invoke_model"]
            assert all(tool.input_schema["type"] == "object" and tool.output_schema for tool in listed)

            found = await agent.call_tool("find_models", {"task": "image-classification"})
            (line,) = found.structured_content["models"]
            assert (line["name"], line["state"], line["load"]) == ("modelnet/digits@1", "alive", 0.0)
            assert line["inputs"][0]["shape"] == [None, 8, 8]
            assert line["uri"] in text_of(found)

            described = await agent.call_tool("describe_model", {"model": line["uri"]})
            (offer,) = described.structured_content["offers"]
            assert offer["provider"] == alice.id
            assert offer["framework"]

            called = await agent.call_tool("invoke_model", {"target": line["uri"], "input": DIGIT})
            assert not called.is_error
            answer = called.structured_content
            assert answer["provider"] == alice.id
            assert answer["output"]["scores"]["shape"] == [1, 10]
            assert '"dtype": "float32"' in text_of(called)


@both_editions
async def test_each_piece_of_a_stream_is_told_as_progress(mode: str) -> None:
    pieces = ["one ", "two ", "three"]
    told: list[tuple[float, str | None]] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, message))

    async def ask(method: str, request: Request, emit: Emit) -> object:  # a peer that streams
        assert (method, request.value, request.params["timeout"]) == ("invoke", "x", 7.0)
        for piece in pieces:
            await emit(ITEM, piece)
        return {"done": True, "output": None, "model": "words", "provider": "12D3KooWx", "attempts": 1}

    async with Client(build_server(ask, seconds=7.0), mode=mode) as agent:
        asked = {"target": "words", "input": "x"}
        result = await agent.call_tool("invoke_model", asked, progress_callback=on_progress)
    assert told == list(enumerate(pieces, 1))
    assert text_of(result) == result.structured_content["output"] == "one two three"
    assert result.structured_content["pieces"] == 3


async def test_what_goes_wrong_is_told_with_cause_and_hint(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, carol = await town.peer("alice"), await town.peer("carol")
        await alice.publish("builtin:digits", tags=["small"])
        async with Client(build_server(partial(dispatch, carol))) as agent:
            for tool, asked, code, words in (
                ("invoke_model", {"target": "nobodys", "input": "x"}, "not-found", "nobodys"),
                ("invoke_model", {"target": "x"}, "bad-input", "'input' is missing"),
                ("invoke_model", {"target": "modelnet/digits", "input": "x"}, "bad-input", "digits"),
                ("find_models", {"tsk": "x"}, "bad-input", "there is no argument 'tsk'"),
                ("find_models", {"query": "and and"}, "bad-input", ""),
                ("describe_model", {"model": "nobodys"}, "not-found", "nobodys"),
            ):
                result = await agent.call_tool(tool, asked)
                assert result.is_error
                assert result.structured_content["error"]["code"] == code, text_of(result)
                assert words in text_of(result)
                assert "\nhint: " in text_of(result), text_of(result)
            near = await agent.call_tool("invoke_model", {"target": "modelnet/digit", "input": "x"})
            assert "did you mean modelnet/digits?" in text_of(near)
            nothing = await agent.call_tool("find_models", {"task": "text-generation"})
            assert nothing.structured_content["models"] == []
            assert "nobody offers task 'text-generation'" in nothing.structured_content["note"]
            tagged = await agent.call_tool("find_models", {"tag": "smal"})
            assert tagged.structured_content["note"].endswith("; tags in sight: small")
            with pytest.raises(MCPError, match="there is no tool 'wrong'"):
                await agent.call_tool("wrong", {})


async def test_with_nothing_asked_the_models_in_sight_are_listed(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, carol = await town.peer("alice"), await town.peer("carol", listen=False)
        await alice.publish("builtin:digits")
        for peer in alice, carol:  # carol has heard of nothing yet
            async with Client(build_server(partial(dispatch, peer))) as agent:
                found = await agent.call_tool("find_models", {})
            assert [line["name"] for line in found.structured_content["models"]] == ["modelnet/digits@1"]


@both_editions
async def test_cancelling_a_call_cancels_it_on_the_far_side(mode: str) -> None:
    begun, ended = trio.Event(), trio.Event()

    async def ask(method: str, request: Any, emit: Any) -> Any:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with Client(build_server(ask), mode=mode) as agent:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(agent.call_tool, "invoke_model", {"target": "slow", "input": ""})
                await begun.wait()
                scope.cancel()
        with trio.fail_after(20):
            await ended.wait()


def test_what_agents_write_is_taken_for_what_it_can_only_mean() -> None:
    wish = Wish.of(
        {"target": "m", "input": '{"dtype":"int32","shape":[2],"data":[1,2]}', "params": '{"n":3}'}
    )
    assert isinstance(wish.value, np.ndarray)
    assert wish.params == {"n": 3}
    assert Wish.of({"target": "m", "input": '{"a": 1}', "timeout": "5"}) == Wish("m", '{"a": 1}', {}, 5.0)
    assert Wanted.of({"task": "", "limit": 3}) == Wanted(None, None, None, None, 3)


@pytest.mark.parametrize(
    "asked",
    [
        {"target": 3, "input": 1},
        {"target": "m", "input": 1, "timeout": 0},
        {"target": "m", "input": 1, "timeout": True},
        {"target": "m", "input": 1, "timeout": 1e9},
        {"target": "m", "input": 1, "params": "no object"},
        {"target": "m", "input": {"dtype": "object", "shape": [1], "data": [1]}},
        {"input": 1},
    ],
)
def test_what_no_call_can_be_made_of_is_refused(asked: dict[str, object]) -> None:
    with pytest.raises(LocalError) as refused:
        Wish.of(asked)
    assert refused.value.code is Code.BAD_INPUT


def test_the_chunks_of_a_chat_become_its_text() -> None:
    pieces = Pieces()
    chunks: list[Any] = [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hel"}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"content": "lo"}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"total_tokens": 5}},
    ]
    assert [pieces.add(chunk) for chunk in chunks] == ["Hel", "lo", ""]
    told = {"output": "Hello", "finish_reason": "stop", "usage": {"total_tokens": 5}}
    assert pieces.joined() == told
    call: dict[str, Any] = {"choices": [{"delta": {"tool_calls": [{"id": "1"}]}}]}
    pieces.add(call)
    assert pieces.joined() == {"output": [*chunks, call]}


def test_pieces_of_other_kinds_stay_a_list() -> None:
    pieces = Pieces()
    for item in ("a", np.array([1.5], np.float32), 3):
        pieces.add(item)
    assert pieces.joined() == {"output": ["a", {"dtype": "float32", "shape": [1], "data": [1.5]}, 3]}


def test_an_answer_without_end_is_cut_off_and_a_long_one_shortened() -> None:
    pieces = Pieces()
    with pytest.raises(LocalError) as refused:
        for _ in range(MAX_ANSWER_BYTES):
            pieces.add("x" * 65536)
    assert refused.value.code is Code.TOO_LARGE
    assert as_text("x" * MAX_TEXT_CHARS) == "x" * MAX_TEXT_CHARS
    assert as_text("x" * (MAX_TEXT_CHARS + 1)).endswith(f"of {MAX_TEXT_CHARS + 1} characters)")


def test_an_error_names_its_peer_and_has_a_next_step() -> None:
    text, told = as_error(RemoteError(Code.BUSY, "all slots are taken", peer="12D3KooWx"))
    assert text.startswith("busy: all slots are taken (peer 12D3KooWx)\nhint: try again")
    assert told["error"]["retryable"] is True
