"""From OpenAI's requests to a model's input, and from our errors to theirs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import trio

from modelnet_p2p.errors import Code, LocalError, NotFound, RemoteError
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.node.gateway.errors import KINDS, BadRequest, error_object, kind_of, to_bytes
from modelnet_p2p.node.gateway.forms import chat_fit, check_messages, endpoints_of, for_model, transcript
from modelnet_p2p.node.gateway.http import BODY_SECONDS, Http, Room, parse_object
from modelnet_p2p.node.gateway.pieces import Whole
from modelnet_p2p.node.gateway.tensors import from_npy
from modelnet_p2p.offers import Offer, State
from modelnet_p2p.records import Manifest, OfferRecord, Spec, seal_manifest

ALICE = KeyPair(b"alice".ljust(32, b"."))


def offered(model: str, task: str, takes: tuple[Spec, ...], gives: tuple[Spec, ...]) -> Offer:
    manifest = Manifest(owner=ALICE.id, name=model, task=task, issued_unix=1)
    record = OfferRecord(
        provider=ALICE.id,
        network="public",
        manifest=manifest,
        manifest_envelope=seal_manifest(manifest, ALICE),
        seq=1,
        issued_us=1,
        expires_us=2,
        inputs=takes,
        outputs=gives,
    )
    return Offer(record, b"envelope", ("/ip4/127.0.0.1/tcp/1",), State.ALIVE)


def test_every_code_of_ours_has_its_kind() -> None:
    assert set(KINDS) == set(Code)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (NotFound("nobody"), 404, "model_not_found"),
        (RemoteError(Code.BUSY, "busy"), 429, "rate_limit_exceeded"),
        (BadRequest("no", "n"), 400, None),
        (
            LocalError(Code.BAD_INPUT, "this model's maximum context length is 128 tokens"),
            400,
            "context_length_exceeded",
        ),
        (RemoteError(Code.TOO_LARGE, "more than the context window"), 400, "context_length_exceeded"),
        (RemoteError(Code.MODEL_ERROR, "the context window"), 500, "model_error"),
    ],
)
def test_errors_as_openai_has_them(error: LocalError, status: int, code: str | None) -> None:
    kind = kind_of(error)
    assert (kind.status, kind.code) == (status, code)
    told: Any = error_object(error)["error"]
    assert told["message"] == error.message
    assert told["modelnet"]["code"] == error.code.value


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "1", "{", '{"a":1,"a":2}', '{"a":NaN}', '{"a":-Infinity}', '{"a":1e999}', "{}x",
        '{"a":\xff}', '{"a":' + "[" * 100_000 + "]" * 100_000 + "}", '{"a":' + "1" * 5000 + "}",
    ],
)  # fmt: skip
def test_json_is_read_strictly(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_object(text.encode("latin-1"))


def test_what_json_cannot_say_is_the_models_error() -> None:
    for value in (np.zeros(2), float("nan"), b"x", "\ud800"):
        with pytest.raises(LocalError) as caught:
            to_bytes({"a": value})
        assert caught.value.code is Code.MODEL_ERROR


def test_a_model_that_takes_messages_gets_the_request_without_what_is_ours() -> None:
    body = {
        "model": "m",
        "stream": True,
        "n": 1,
        "messages": [],
        "seed": 1,
        "stop": None,
        "max_completion_tokens": 3,
    }
    assert for_model(body) == {"messages": [], "seed": 1, "max_tokens": 3}


@pytest.mark.parametrize(
    ("task", "gives", "chats"),
    [
        ("text-classification", (Spec("labels", "json"),), False),
        ("zero-shot-classification", (Spec("scores", "tensor", "float32", (None, 3)),), False),
        ("text-classification", (Spec("label", "text"),), True),
        ("text-classification", (), True),  # a function that does not say what it gives
        ("x-modelnet/function", (Spec("answer", "json"),), True),  # it may be a map with `choices`
    ],
)
def test_who_gives_labels_does_not_chat(task: str, gives: tuple[Spec, ...], chats: bool) -> None:
    offer = offered("acme/moods", task, (Spec("text", "text"),), gives)
    assert ("/v1/chat/completions" in endpoints_of(offer)) == chats
    ask = chat_fit({"messages": [{"role": "user", "content": "Hello"}]})
    if chats:
        assert ask(offer) == ("Hello", {})
        return
    with pytest.raises(BadRequest, match=r"acme/moods cannot chat: .* ask it at /api/v1/invoke"):
        ask(offer)


def test_a_conversation_as_text() -> None:
    one: list[dict[str, Any]] = [{"role": "user", "content": "hi"}]
    assert transcript(one) == "hi"
    parts = [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}]
    assert transcript(parts) == "hi"
    more: list[dict[str, Any]] = [
        {"role": "system", "content": "be kind"},
        *one,
        {"role": "assistant", "content": None},
    ]
    assert transcript(more) == "system: be kind\nuser: hi\nassistant: \nassistant:"
    with pytest.raises(BadRequest, match="text alone"):
        transcript([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}])


@pytest.mark.parametrize(
    "messages", [None, [], {}, ["hi"], [{"content": "hi"}], [{"role": "user", "content": 1}]]
)
def test_messages_that_are_none(messages: object) -> None:
    with pytest.raises(BadRequest):
        check_messages(messages)


@pytest.mark.parametrize(
    "header",
    ["{'descr': (", "'" * 3, "(" * 300, "{'descr':'<f4','fortran_order':False,'shape':(True,)}", "  x\n y"],
)
def test_a_npy_header_that_is_none_is_the_clients_error(header: str) -> None:
    data = header.encode()
    with pytest.raises(BadRequest):
        from_npy(b"\x93NUMPY\x01\x00" + len(data).to_bytes(2, "little") + data + bytes(4))


@pytest.mark.parametrize("calls", [5, True, "no", {"index": 0}, [5]])
def test_tool_calls_of_another_form_are_the_models_error(calls: object) -> None:
    offer: Any = type("Offer", (), {"model": "m", "provider": "p"})
    with pytest.raises(RemoteError) as caught:
        Whole(offer).add({"delta": {"tool_calls": calls}, "finish_reason": None})
    assert caught.value.code is Code.MODEL_ERROR


async def test_a_body_that_another_application_reads_must_arrive_in_time(autojump_clock: object) -> None:
    messages = [{"type": "http.request", "body": b"{", "more_body": True}]

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await trio.sleep_forever()

    async def send(message: Any) -> None:
        pass

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass

    began = trio.current_time()
    http = Http({"method": "POST"}, receive, send, Room())
    with pytest.raises(LocalError) as caught:
        await http.pass_to(app)
    assert caught.value.code is Code.DEADLINE
    assert trio.current_time() - began == pytest.approx(BODY_SECONDS)
