"""Requests, text and chunks of a model that generates, without a model: what is asked, held back and told."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.generation.chunks import Chance, Chunks
from modelnet_p2p.node.serving.backends.generation.requests import (
    COMPLETION_TOKENS,
    TEXT_TOKENS,
    Form,
    Sampling,
    overflow,
    plain_prompt,
    read_request,
)
from modelnet_p2p.node.serving.backends.generation.text import BROKEN, Detokeniser, Stops
from modelnet_p2p.node.serving.backends.generation.tools import ToolCall, ToolReader

HELLO = [{"role": "user", "content": "Hello"}]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
GREEDY = Sampling()


def test_a_text_takes_its_options_from_the_calls_parameters() -> None:
    request = read_request("Once", {"max_tokens": 7, "temperature": 1, "stop": "."}, GREEDY)
    assert (request.form, request.prompt, request.max_tokens) == (Form.TEXT, "Once", 7)
    assert (request.sampling.temperature, request.stop) == (1.0, (".",))
    assert read_request("Once", {}, GREEDY).max_tokens == TEXT_TOKENS


def test_completions_and_chats_are_told_apart() -> None:
    completion = read_request({"prompt": ["Once"]}, {}, GREEDY)
    assert (completion.form, completion.prompt, completion.max_tokens) == (
        Form.COMPLETION,
        "Once",
        COMPLETION_TOKENS,
    )
    assert read_request({"prompt": [5, 6]}, {}, GREEDY).prompt == (5, 6)
    chat = read_request({"messages": HELLO, "user": "alice", "stream": True}, {}, GREEDY)
    assert (chat.form, chat.max_tokens) == (Form.CHAT, None)
    assert read_request({"messages": HELLO, "max_completion_tokens": 3}, {}, GREEDY).max_tokens == 3


def test_messages_become_what_templates_expect() -> None:
    call = {"id": "call_0", "type": "function", "function": {"name": "weather", "arguments": '{"at": "Ulm"}'}}
    messages = [
        {
            "role": "developer",
            "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief"}],
        },
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "rain", "tool_call_id": "call_0"},
    ]
    system, assistant, tool = read_request({"messages": messages}, {}, GREEDY).messages
    assert system == {"role": "system", "content": "Be brief"}
    assert assistant["tool_calls"] == [call | {"function": {"name": "weather", "arguments": {"at": "Ulm"}}}]
    assert tool == {"role": "tool", "content": "rain", "tool_call_id": "call_0"}
    assert plain_prompt(({"role": "user", "content": "Hi"},)) == "User: Hi\nAssistant:"


def test_the_makers_sampling_holds_where_the_caller_says_nothing() -> None:
    maker = Sampling(0.7, 0.9, 40)
    assert read_request("x", {}, maker).sampling == maker
    sampling = read_request("x", {"temperature": 0, "top_k": -1, "seed": 3, "logit_bias": {"7": -100}}, maker)
    assert sampling.sampling == Sampling(0.0, 0.9, 0, 3, logit_bias={7: -100.0})


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (7, "got int"),
        ({}, "neither messages nor prompt"),
        ({"prompt": []}, "several prompts"),
        ({"prompt": ["a", "b"]}, "several prompts"),
        ({"prompt": [1, -2]}, "several prompts"),
        ({"prompt": 7}, "prompt is int"),
        ({"messages": []}, "messages"),
        ({"messages": ["hello"]}, "role"),
        ({"messages": [{"role": "king", "content": ""}]}, "role"),
        ({"messages": [{"role": "user"}]}, "no content"),
        ({"messages": [{"role": "user", "content": 7}]}, "content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "tool call"),
        ({"messages": HELLO, "max_tokens": 0}, "max_tokens"),
        ({"messages": HELLO, "max_tokens": True}, "max_tokens"),
        ({"messages": HELLO, "temperature": 3}, "temperature"),
        ({"messages": HELLO, "temperature": float("nan")}, "temperature"),
        ({"messages": HELLO, "top_p": "high"}, "top_p"),
        ({"messages": HELLO, "n": 2}, "n=2"),
        ({"messages": HELLO, "stop": [""]}, "stop"),
        ({"messages": HELLO, "stop": ["x"] * 17}, "stop"),
        ({"messages": HELLO, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"messages": HELLO, "logit_bias": {"x": 1}}, "logit_bias"),
        ({"messages": HELLO, "tools": [{"type": "function"}]}, "tool"),
        ({"messages": HELLO, "tools": [WEATHER], "tool_choice": "required"}, "forced"),
        ({"messages": HELLO, "response_format": {"type": "json_schema"}}, "json_schema"),
        ({"messages": HELLO, "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"prompt": "x", "echo": True}, "echo"),
        ({"prompt": "x", "min_p": 0.1}, "takes no parameter 'min_p'"),
    ],
)
def test_what_makes_no_sense_is_named(value: Any, words: str) -> None:
    with pytest.raises(LocalError) as caught:
        read_request(value, {}, GREEDY)
    assert caught.value.code is Code.BAD_INPUT
    assert words in caught.value.message


def test_an_option_that_nobody_knows_is_named_with_those_that_are() -> None:
    with pytest.raises(LocalError, match="this model takes no parameter 'bogus'") as caught:
        read_request("Once", {"bogus": 1, "temperature": 0}, GREEDY)
    assert caught.value.code is Code.BAD_INPUT
    assert "max_tokens" in caught.value.hint
    usual = {"model": "m", "stream": True, "stream_options": {}, "user": "alice", "store": False}
    more = {"parallel_tool_calls": True, "reasoning_effort": "low", "service_tier": "auto", "bogus": None}
    assert read_request({"messages": HELLO, **usual, **more}, {}, GREEDY).form is Form.CHAT


def test_an_overflow_names_the_numbers() -> None:
    error = overflow(64, 60, 10)
    assert error.code is Code.BAD_INPUT
    assert "maximum context length is 64 tokens" in error.message
    assert "70" in error.message
    assert "60 in the prompt" in error.message


def utf8(tokens: list[int]) -> str:
    """A tokenizer whose tokens are bytes, and from 256 on special ones."""
    return bytes(token for token in tokens if token < 256).decode(errors="replace")


@given(st.text(max_size=40), st.text(max_size=8))
def test_characters_come_whole(text: str, prompt: str) -> None:
    reader = Detokeniser(utf8, list(prompt.encode()))
    pieces = [reader.feed(token) for token in text.encode()]
    pieces.append(reader.end())
    assert "".join(pieces) == text.rstrip(BROKEN) or BROKEN in text
    if BROKEN not in text:
        assert not any(BROKEN in piece for piece in pieces)


def test_half_a_character_at_the_end_is_nothing() -> None:
    reader = Detokeniser(utf8)
    assert [reader.feed(token) for token in "aé".encode()[:2]] == ["a", ""]
    assert reader.end() == ""


def test_bytes_that_are_no_character_are_not_held_for_ever() -> None:
    reader = Detokeniser(utf8)
    assert "".join(reader.feed(0xFF) for _ in range(100)).count(BROKEN) > 80


def test_special_tokens_are_no_text_and_pile_nothing_up() -> None:
    reader = Detokeniser(utf8, list(b"word"))
    assert [reader.feed(300) for _ in range(50)] == [""] * 50
    assert reader.feed(ord("x")) == "x"


def words(tokens: list[int]) -> str:
    """A decoder that drops the space before the first word, as those of SentencePiece do."""
    return "".join(f" {'abc'[token]}" for token in tokens).removeprefix(" ")


def test_the_space_between_prompt_and_answer_is_kept() -> None:
    assert Detokeniser(words, [0]).feed(1) == " b"
    assert Detokeniser(words).feed(1) == "b"


@given(st.lists(st.text("ab.", max_size=4), max_size=12), st.lists(st.text("ab.", min_size=1, max_size=3)))
def test_nothing_of_a_stop_string_is_sent(pieces: list[str], stops: list[str]) -> None:
    machine, sent = Stops(stops), ""
    for piece in pieces:
        sent += machine.feed(piece)
    whole = "".join(pieces)
    places = [at for stop in stops if (at := whole.find(stop)) >= 0]
    assert machine.found == bool(places)
    if places:
        assert whole.startswith(sent)
        assert not any(stop in sent for stop in stops)
        assert machine.feed("more") == machine.end() == ""
    else:
        assert sent + machine.end() == whole


def test_a_stop_string_that_does_not_come_is_sent_after_all() -> None:
    machine = Stops(["END"])
    assert [machine.feed(piece) for piece in ("a", "E", "N", "x")] == ["a", "", "", "ENx"]


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "weather", "arguments": {"at": "Ulm"}}\n</tool_call>',
        '<tool_call>{"name": "weather", "arguments": {"at": "Ulm"}}',
        '{"name": "weather", "parameters": {"at": "Ulm"}}',
        '\n[{"name": "weather", "arguments": {"at": "Ulm"}}]',
    ],
)
def test_tool_calls_of_known_forms_are_told_apart(text: str) -> None:
    reader = ToolReader(["weather"])
    assert [reader.feed(character) for character in text] == [""] * len(text)
    assert reader.end() == ("", [ToolCall("weather", '{"at": "Ulm"}')])


@pytest.mark.parametrize(
    "text",
    ["It rains <tool", '{"name": "rm", "arguments": {}}', "[1, 2", "<tool_call>nonsense", "plain", "  "],
)
def test_everything_else_stays_text(text: str) -> None:
    reader = ToolReader(["weather"])
    sent = "".join(reader.feed(character) for character in text)
    assert (sent + reader.end()[0]) == text


def test_chunks_of_a_chat() -> None:
    chunks = Chunks(read_request({"messages": HELLO}, {}, GREEDY))
    items: list[Any] = [
        *chunks.piece("Hel"),
        *chunks.piece(""),
        *chunks.piece("lo"),
        *chunks.end("stop", 3, 2),
    ]
    choices = [item["choices"][0] for item in items[:-1]]
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": "Hel"},
        {"content": "lo"},
        {},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None, None, "stop"]
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert items[-1] == {"choices": [], "usage": usage}


def test_chunks_of_completions_and_of_plain_text() -> None:
    chunks = Chunks(read_request({"prompt": "x", "logprobs": 1}, {}, GREEDY))
    chance = Chance("Hi", -0.5, (Chance("Hi", -0.5), Chance("Ho", -1.5)))
    items: list[Any] = [*chunks.piece("Hi", [chance]), *chunks.end("length", 1, 1)]
    first, last = items[0]["choices"][0], items[1]["choices"][0]
    assert (first["text"], last["text"], last["finish_reason"]) == ("Hi", "", "length")
    assert first["logprobs"] == {
        "tokens": ["Hi"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{"Hi": -0.5, "Ho": -1.5}],
        "text_offset": [0],
    }
    plain = Chunks(read_request("x", {}, GREEDY))
    assert [*plain.piece("Hi"), *plain.end("stop", 1, 1)] == ["Hi"]


def test_chunks_with_a_tool_call_and_with_logprobs() -> None:
    request = read_request(
        {"messages": HELLO, "tools": [WEATHER], "logprobs": True, "top_logprobs": 1}, {}, GREEDY
    )
    chunks = Chunks(request)
    text = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    assert chunks.piece(text, [Chance("t", -1.0, (Chance("é", -1.0),))]) == []
    items: list[Any] = chunks.end("stop", 9, 9)
    call = items[0]["choices"][0]
    assert call["delta"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": "{}"}
    assert call["logprobs"]["content"][0]["top_logprobs"] == [
        {"token": "é", "logprob": -1.0, "bytes": [195, 169]}
    ]
    assert items[1]["choices"][0]["finish_reason"] == "tool_calls"
    assert (
        read_request({"messages": HELLO, "tools": [WEATHER], "tool_choice": "none"}, {}, GREEDY).tools == ()
    )
