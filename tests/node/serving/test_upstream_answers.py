"""What servers of others send becomes items, however it is cut; what makes no sense becomes a typed fault."""

from __future__ import annotations

import json
from contextlib import suppress
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import recorded_streams as recorded
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.upstream import json_values
from modelnet_p2p.node.serving.upstream.answers import Answer, vectors_of
from modelnet_p2p.node.serving.upstream.events import MAX_EVENT_BYTES, Event, Events
from modelnet_p2p.node.serving.upstream.faults import fault_of
from modelnet_p2p.payload import Value, decode_value, encode_value


def items_of(stream: bytes, cuts: list[int] | None = None, *, plain: bool = False) -> list[Value]:
    """The items of a stream that arrives in pieces."""
    events, answer = Events(), Answer(plain=plain)
    places = [0, *sorted(cuts or []), len(stream)]
    parts = [stream[start:end] for start, end in pairwise(places)]
    found = [event for part in parts for event in events.feed(part)] + events.close()
    return [item for event in found for item in answer.on_event(event)] + answer.end()


def texts_of(items: list[Value]) -> list[object]:
    chunks: list[Any] = items  # Any: JSON
    return [choice["delta"].get("content") for chunk in chunks for choice in chunk["choices"]]


def test_each_server_s_stream_becomes_chunks_and_a_count() -> None:
    ollama = items_of(recorded.OLLAMA)
    assert ollama[0] == {
        "choices": [
            {
                "index": 0,
                "delta": {"role": "assistant", "content": "", "reasoning": "Okay"},
                "finish_reason": None,
            }
        ]
    }
    assert texts_of(ollama[:-1]) == ["", "Grüße", "", ""]
    assert "weather" in json.dumps(ollama[2])  # the tool call as it came
    assert ollama[-1] == {
        "choices": [],
        "usage": {"prompt_tokens": 22, "completion_tokens": 73, "total_tokens": 95},
    }
    vllm = items_of(recorded.VLLM)
    assert texts_of(vllm[:-1]) == ["", "OK", ""]
    assert '"logprob": -0.0123' in json.dumps(vllm[1])
    llama = items_of(recorded.LLAMA)
    assert texts_of(llama[:-1]) == [None, None, "Hi", None]
    assert "reasoning_content" in json.dumps(llama[1])
    others = (recorded.TRANSFORMERS, recorded.LM_STUDIO, recorded.OPEN_ROUTER)
    for items in (ollama, vllm, llama, *map(items_of, others)):
        last = items[-1]
        assert isinstance(last, dict)
        assert last["choices"] == []
        assert last["usage"]["total_tokens"] > 0
        for item in items:  # each can travel
            assert decode_value(b"".join(map(bytes, encode_value(item).buffers))) == item


def test_a_text_is_answered_by_pieces_of_text() -> None:
    for stream, text in [
        (recorded.TRANSFORMERS, [" w", " th"]),
        (recorded.OLLAMA, ["Grüße"]),
        (recorded.VLLM, ["OK"]),
        (recorded.LLAMA, ["Hi"]),
        (recorded.LM_STUDIO, ["Hey"]),
        (recorded.OPEN_ROUTER, ["Yes"]),
        (b'data: {"choices":[{"index":0,"text":" Paris","finish_reason":"length"}]}\n\n', [" Paris"]),
    ]:
        assert items_of(stream, plain=True) == text


@given(
    st.sampled_from(recorded.STREAMS),
    st.lists(st.integers(0, 1500), max_size=12),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
)
def test_it_does_not_matter_where_a_stream_is_cut_nor_how_its_lines_end(
    stream: bytes, cuts: list[int], end: bytes
) -> None:
    whole = items_of(stream)
    other = stream.replace(b"\r\n", b"\n").replace(b"\n", end)
    assert items_of(other, [min(cut, len(other)) for cut in cuts]) == whole


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (recorded.VLLM_ERROR, "EngineCore encountered an issue."),
        (recorded.LLAMA_OLD_ERROR, "Context size has been exceeded."),
        (recorded.LM_STUDIO_ERROR, "The model has crashed."),
        (b'data: {"object":"error","message":"no\\nmore","code":507}\n\n', "no more"),
        (b'data: {"error":"just words"}\n\n', "just words"),
        (recorded.VLLM.partition(b'"finish_reason":"stop"')[0], "in the middle"),
        (b"", "in the middle"),
        (b"data: {]\n\n", "not JSON"),
        (b"data: 7\n\n", "not OpenAI's"),
        (b'data: {"choices":7}\n\n', "not OpenAI's"),
        (b'data: {"choices":[7]}\n\n', "not OpenAI's"),
        (b'data: {"choices":[{"index":123456789012345678901234567890}]}\n\n', "not JSON"),
        (b'data: {"choices":[{"logprob":NaN}]}\n\n', "not JSON"),
        (b'data: {"choices":[{"delta":' + b"[" * 40 + b"]" * 40 + b"}]}\n\n", "nested"),
        (b'data: {"choices":' + b"[" * 100_000 + b"\n\n", "not JSON"),
        (b"data: " + b"x" * MAX_EVENT_BYTES, "KiB"),
        (b"data: x\n" * (MAX_EVENT_BYTES + 1), "KiB"),
    ],
)
def test_what_breaks_off_or_makes_no_sense_is_one_fault_of_the_model(stream: bytes, words: str) -> None:
    with pytest.raises(LocalError, match=words) as caught:
        items_of(stream)
    assert caught.value.code is Code.MODEL_ERROR
    assert "\n" not in caught.value.message


def test_an_error_in_the_stream_that_names_a_status_is_that_status_s_fault() -> None:
    with pytest.raises(LocalError) as caught:
        items_of(b'data: {"error":{"message":"too long","code":"400"}}\n\n')
    assert (caught.value.code, caught.value.message) == (Code.BAD_INPUT, "too long")


def test_half_a_character_is_mended() -> None:
    value = json_values.load(b'{"a\\ud83d":["x\\ud83d","\\ud83d\\ude00"]}')
    assert value == {"a\ufffd": ["x\ufffd", "\U0001f600"]}


@given(st.binary(max_size=300), st.integers(1, 9))
def test_no_bytes_make_the_parser_raise_anything_else(data: bytes, step: int) -> None:
    events, answer = Events(100), Answer(plain=False)
    with suppress(LocalError):
        for at in range(0, len(data), step):
            for event in events.feed(data[at : at + step]):
                answer.on_event(event)
        for event in events.close():
            answer.on_event(event)
        answer.end()


@given(
    st.recursive(
        st.none() | st.text() | st.integers() | st.floats(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    ["choices", "delta", "message", "usage", "error", "data", "embedding", "index", "code"]
                ),
                inner,
            )
        ),
    )
)
def test_no_json_makes_the_reader_raise_anything_else(body: object) -> None:
    with suppress(LocalError):
        Answer(plain=True).on_body(body)
    with suppress(LocalError):
        vectors_of(body, 1)


def test_an_answer_that_was_not_streamed_is_one_chunk() -> None:
    answer = Answer(plain=False)
    body = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
        "usage": {"total_tokens": 2},
    }
    assert [*answer.on_body(body), *answer.end()] == [
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"total_tokens": 2}},
    ]
    assert answer.on_event(Event(b"")) == []


def test_vectors_in_any_order_and_in_base64() -> None:
    packed = "AACAPwAAAEA="  # 1.0, 2.0 as little-endian floats
    body = {
        "data": [{"index": 1, "embedding": [3, 4.5]}, {"index": 0, "embedding": packed}],
        "usage": {"prompt_tokens": 7},
    }
    vectors, tokens = vectors_of(body, 2)
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[1, 2], [3, 4.5]]
    assert tokens == 7
    senseless: list[list[dict[str, object]]] = [
        [],
        [{"embedding": [1]}, {"embedding": [1, 2]}],
        [{"embedding": []}, {"embedding": []}],
        [{"index": 0, "embedding": [1]}, {"index": 0, "embedding": [1]}],
        [{"index": 0, "embedding": [1]}, {"index": 2, "embedding": [1]}],
        [{"embedding": ["x"]}, {"embedding": ["y"]}],
        [{"embedding": "AAA="}, {"embedding": "AAA="}],
        [{"embedding": [[1]]}, {"embedding": [[1]]}],
    ]
    for data in senseless:
        with pytest.raises(LocalError, match="not OpenAI's"):
            vectors_of({"data": data}, 2)


@pytest.mark.parametrize(
    ("status", "body", "code", "words"),
    [
        (
            400,
            {"error": {"message": "This model's maximum context length is 9 tokens."}},
            "bad-input",
            "maximum context",
        ),
        (
            422,
            {"detail": [{"loc": ["body"], "msg": "Input should be a valid list"}]},
            "bad-input",
            "valid list",
        ),
        (401, {"error": {"message": "Incorrect API key provided: sk-abc"}}, "forbidden", "publisher's key"),
        (403, "no", "forbidden", "publisher's key"),
        (404, {"error": {"message": "model 'x' not found"}}, "not-found", "model 'x' not found"),
        (413, "", "too-large", "size"),
        (429, {"error": "slow down"}, "busy", "slow down"),
        (503, {"error": {"code": 503, "message": "Loading model"}}, "busy", "Loading model"),
        (502, "<html><body>Bad Gateway</body></html>", "busy", r"busy \(502\)$"),
        (500, {"error": {"message": "CUDA error\n  at ggml"}}, "model-error", "CUDA error at ggml"),
        (501, {"error": {"message": "no embeddings"}}, "unknown-method", "no embeddings"),
        (302, "", "model-error", "elsewhere"),
        (500, {"error": {"message": "x" * 100_000}}, "model-error", "xx"),
    ],
)
def test_a_refusal_becomes_one_typed_fault(status: int, body: object, code: str, words: str) -> None:
    fault = fault_of(status, body, {})
    assert fault.code == code
    assert fault.retryable == (code == "busy")
    assert "sk-abc" not in fault.message + fault.hint
    assert len(fault.message) < 400
    with pytest.raises(LocalError, match=words):
        raise fault


def test_when_to_come_again_is_in_the_hint() -> None:
    assert "in 7 s" in fault_of(429, "", {"retry-after": "7"}).hint
    for odd in ("-1", "Wed, 21 Oct 2026 07:28:00 GMT", "9" * 50, "99999", "٣"):
        assert "later" in fault_of(503, "", {"retry-after": odd}).hint


def test_data_without_bytes_is_bounded_too() -> None:
    events = Events(100)
    with pytest.raises(LocalError):
        events.feed(b"data:\n" * 200)
