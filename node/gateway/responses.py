"""/v1/responses: a chat model's answer in the newer of OpenAI's two forms, whole or as its events in
their order."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from modelnet_p2p.errors import Code, ModelnetError, RemoteError
from modelnet_p2p.node.calls.outcome import Begun
from modelnet_p2p.node.gateway.asking import chat_body
from modelnet_p2p.node.gateway.calling import MAX_WHOLE_BYTES, Calling, Gateway, all_headers, first_headers
from modelnet_p2p.node.gateway.errors import error_object
from modelnet_p2p.node.gateway.forms import chat_fit, check_messages, flag
from modelnet_p2p.node.gateway.http import EVENTS, Http
from modelnet_p2p.node.gateway.pieces import Json, chat_piece
from modelnet_p2p.node.gateway.sse import named_event, trailer
from modelnet_p2p.offers import Offer
from modelnet_p2p.payload import Value

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_ECHOED = ("instructions", "max_output_tokens", "metadata", "temperature", "top_p", "user")

Emit = Callable[[str, Json], None]


async def responses(gateway: Gateway, http: Http) -> None:
    """POST /v1/responses"""
    body = await http.json()
    chat = chat_body(body)
    check_messages(chat["messages"])
    calling = Calling(gateway, http, body.get("model"))
    streams = flag(body, "stream")
    answer = _Answer(body, http, calling, streams)
    try:
        outcome = await calling.run(chat_fit(chat), answer.begin, answer.add)
        answer.end()
    except ModelnetError as error:
        if not http.answering:
            raise
        answer.fail(error)
        await http.finish(answer.said())
        return
    gateway.gauges.counted(outcome.model, answer.counted)
    if not streams:
        await http.say(answer.response("completed"), headers=all_headers(outcome))
        return
    await http.finish(answer.said() + trailer(outcome))


class _Answer:
    """A response as it grows: its output items, and the events that tell of them where it is streamed."""

    def __init__(self, body: Json, http: Http, calling: Calling, streams: bool) -> None:
        self._body = body
        self._http = http
        self._calling = calling
        self._streams = streams
        self._id = _name("resp")
        self._created = int(time.time())
        self._sequence = 0
        self._said: list[bytes] = []  # events that leave together
        self._done: list[Json] = []  # output items, whole
        self._open: _Message | _Call | None = None
        self._finish: str | None = None
        self._offer: Offer | None = None
        self.counted: Json = {}

    async def begin(self, begun: Begun) -> None:
        self._offer = begun.offer
        if self._streams:
            await self._http.start(200, EVENTS, first_headers(begun))
        for name in ("response.created", "response.in_progress"):
            self._emit(name, {"response": self.response("in_progress")})

    async def add(self, item: Value) -> None:
        assert self._offer is not None
        choice, usage = chat_piece(item, self._offer)
        self.counted = usage or self.counted
        if self._calling.held > MAX_WHOLE_BYTES:
            words = f"the answer has more than {MAX_WHOLE_BYTES >> 20} MiB"
            raise RemoteError(Code.TOO_LARGE, words, peer=self._offer.provider)
        if choice is None:
            return
        self._finish = choice["finish_reason"] or self._finish
        delta = choice["delta"]
        if (text := delta.get("content")) and isinstance(text, str):
            if not isinstance(self._open, _Message):
                self._switch(_Message(len(self._done) + (self._open is not None)))
            assert isinstance(self._open, _Message)
            self._open.add(text, self._emit)
        calls = delta.get("tool_calls")
        for piece in calls if isinstance(calls, list) else ():
            self._add_call(piece)
        if self._said:
            await self._http.write(self.said())

    def _add_call(self, piece: object) -> None:
        if not isinstance(piece, dict) or not isinstance(function := piece.get("function") or {}, dict):
            return
        at = piece.get("index", 0)
        if not isinstance(self._open, _Call) or self._open.index != at:
            call = _Call(
                len(self._done) + (self._open is not None), at, piece.get("id"), function.get("name")
            )
            self._switch(call)
        assert isinstance(self._open, _Call)
        if arguments := function.get("arguments"):
            self._open.add(str(arguments), self._emit)

    def _switch(self, following: _Message | _Call | None) -> None:
        """One item ends, another begins."""
        if self._open is not None:
            self._done.append(self._open.end(self._emit))
        self._open = following
        if following is not None:
            following.begin(self._emit)

    def end(self) -> None:
        if self._open is None and not self._done:  # a message, if an empty one
            self._switch(_Message(0))
        self._switch(None)
        incomplete = self._finish in _INCOMPLETE
        status = "incomplete" if incomplete else "completed"
        self._emit(f"response.{status}", {"response": self.response(status)})

    def fail(self, error: ModelnetError) -> None:
        """The last event of a stream whose provider was lost, or whose model failed."""
        response = self.response("failed")
        told = error_object(error)["error"]
        assert isinstance(told, dict)
        response["error"] = {**told, "code": told["code"] or "server_error"}
        self._emit("response.failed", {"response": response})

    def _emit(self, name: str, fields: Json) -> None:
        if self._streams:
            told = {"type": name, "sequence_number": self._sequence, **fields}
            self._sequence += 1
            self._said.append(named_event(name, told))

    def said(self) -> bytes:
        """Events that are still to be sent."""
        said = b"".join(self._said)
        self._said.clear()
        return said

    def response(self, status: str) -> Json:
        """The whole object, as far as it has come."""
        body, reason = self._body, _INCOMPLETE.get(self._finish or "")
        if status == "completed" and reason is not None:
            status = "incomplete"
        ended = status in ("completed", "incomplete")
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": reason} if status == "incomplete" else None,
            **{name: body.get(name) for name in _ECHOED},
            "model": self._offer.model if self._offer else body.get("model"),
            "output": self._done if ended or status == "failed" else [],
            "parallel_tool_calls": body.get("parallel_tool_calls", True),
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None, **(body.get("reasoning") or {})},
            "store": False,
            "text": body.get("text") or {"format": {"type": "text"}},
            "tool_choice": body.get("tool_choice") or "auto",
            "tools": body.get("tools") or [],
            "truncation": "disabled",
            "usage": self._usage() if ended else None,
        }

    def _usage(self) -> Json:
        read, written = (_number(self.counted.get(name)) for name in ("prompt_tokens", "completion_tokens"))
        return {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": read + written,
        }


class _Message:
    """Text that is being said."""

    def __init__(self, index: int) -> None:
        self._id = _name("msg")
        self._texts: list[str] = []
        self._place = {"item_id": self._id, "output_index": index, "content_index": 0}
        self._index = index

    def _item(self, status: str, content: list[Json]) -> Json:
        return {"id": self._id, "type": "message", "role": "assistant", "status": status, "content": content}

    def begin(self, emit: Emit) -> None:
        item = self._item("in_progress", [])
        emit("response.output_item.added", {"output_index": self._index, "item": item})
        emit("response.content_part.added", {**self._place, "part": _text_part("")})

    def add(self, text: str, emit: Emit) -> None:
        self._texts.append(text)
        emit("response.output_text.delta", {**self._place, "delta": text, "logprobs": []})

    def end(self, emit: Emit) -> Json:
        text = "".join(self._texts)
        part = _text_part(text)
        emit("response.output_text.done", {**self._place, "text": text, "logprobs": []})
        emit("response.content_part.done", {**self._place, "part": part})
        item = self._item("completed", [part])
        emit("response.output_item.done", {"output_index": self._index, "item": item})
        return item


class _Call:
    """A function that the model wants called."""

    def __init__(self, output_index: int, index: object, call_id: object, name: object) -> None:
        self.index = index  # as the model counts its calls
        self._index = output_index
        self._id = _name("fc")
        self._call_id = str(call_id or _name("call"))
        self._name = str(name or "")
        self._arguments: list[str] = []
        self._place = {"item_id": self._id, "output_index": output_index}

    def _item(self, status: str, arguments: str) -> Json:
        return {
            "id": self._id,
            "type": "function_call",
            "status": status,
            "call_id": self._call_id,
            "name": self._name,
            "arguments": arguments,
        }

    def begin(self, emit: Emit) -> None:
        item = self._item("in_progress", "")
        emit("response.output_item.added", {"output_index": self._index, "item": item})

    def add(self, arguments: str, emit: Emit) -> None:
        self._arguments.append(arguments)
        emit("response.function_call_arguments.delta", {**self._place, "delta": arguments})

    def end(self, emit: Emit) -> Json:
        arguments = "".join(self._arguments)
        told = {**self._place, "name": self._name, "arguments": arguments}
        emit("response.function_call_arguments.done", told)
        item = self._item("completed", arguments)
        emit("response.output_item.done", {"output_index": self._index, "item": item})
        return item


def _text_part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _name(prefix: str) -> str:
    return f"{prefix}_{os.urandom(16).hex()}"


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0
