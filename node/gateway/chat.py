"""/v1/chat/completions and /v1/completions, as a stream of events or whole."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from modelnet_p2p.errors import Code, ModelnetError, RemoteError
from modelnet_p2p.node.calls.outcome import Begun
from modelnet_p2p.node.calls.router import Fit
from modelnet_p2p.node.gateway.calling import MAX_WHOLE_BYTES, Calling, Gateway, all_headers, first_headers
from modelnet_p2p.node.gateway.errors import BadRequest, to_bytes
from modelnet_p2p.node.gateway.forms import chat_fit, check_messages, completion_fit, flag
from modelnet_p2p.node.gateway.http import EVENTS, Http
from modelnet_p2p.node.gateway.pieces import Json, Piece, Whole, chat_piece, no_usage, text_piece
from modelnet_p2p.node.gateway.sse import DONE, error_event, event, trailer
from modelnet_p2p.offers import Offer
from modelnet_p2p.payload import Value


async def chat_completions(gateway: Gateway, http: Http) -> None:
    """POST /v1/chat/completions"""
    body = await http.json()
    check_messages(body.get("messages"))
    await _answer(gateway, http, body, Chat(body), chat_fit(body))


async def completions(gateway: Gateway, http: Http) -> None:
    """POST /v1/completions"""
    body = await http.json()
    body["prompt"] = _prompt(body.get("prompt"))
    if body.get("best_of") not in (None, 1):
        raise BadRequest("only one completion can be asked for: 'best_of' is 1", "best_of")
    await _answer(gateway, http, body, Completion(body), completion_fit(body))


def _prompt(prompt: object) -> str:
    match prompt:
        case str():
            return prompt
        case [str(one)]:
            return one
        case [str(), *_]:
            raise BadRequest("one prompt a request: a list of several is not taken", "prompt")
    raise BadRequest("'prompt' must be text; tokens mean something else to each model", "prompt")


async def _answer(gateway: Gateway, http: Http, body: Json, style: Style, fit: Fit) -> None:
    if body.get("n") not in (None, 1):
        raise BadRequest("one answer a request: 'n' is 1", "n")
    calling = Calling(gateway, http, body.get("model"))
    if flag(body, "stream"):
        await _stream(calling, style, fit, _includes_usage(body))
    else:
        await _whole(calling, style, fit)


def _includes_usage(body: Json) -> bool:
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise BadRequest("'stream_options' must be an object", "stream_options")
    return flag(options, "include_usage")


class Style(ABC):
    """How an answer of one of the two endpoints looks."""

    prefix: str
    whole: str  # `object` of an answer, and of a piece of it
    chunk: str

    def __init__(self, body: Json) -> None:
        self.id = f"{self.prefix}-{os.urandom(12).hex()}"
        self.created = int(time.time())

    def head(self, name: str, offer: Offer) -> Json:
        return {"id": self.id, "object": name, "created": self.created, "model": offer.model}

    @abstractmethod
    def piece(self, item: Value, offer: Offer) -> Piece:
        """One item of the model."""

    @abstractmethod
    def opening(self, choice: Json) -> None:
        """The first choice of a stream gets what a client expects there."""

    @abstractmethod
    def closing(self) -> Json:
        """The choice that ends a stream whose model did not say that it had finished."""

    @abstractmethod
    def collector(self, offer: Offer) -> Collector:
        """What puts a whole answer together."""


class Collector(ABC):
    @abstractmethod
    def add(self, choice: Json) -> None: ...

    @abstractmethod
    def choice(self) -> Json: ...


class Chat(Style):
    prefix, whole, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def piece(self, item: Value, offer: Offer) -> Piece:
        return chat_piece(item, offer)

    def opening(self, choice: Json) -> None:
        choice["delta"] = {"role": "assistant", **choice["delta"]}

    def closing(self) -> Json:
        return {"index": 0, "delta": {}, "finish_reason": "stop"}

    def collector(self, offer: Offer) -> Collector:
        return _WholeChat(offer)


class Completion(Style):
    prefix, whole, chunk = "cmpl", "text_completion", "text_completion"

    def piece(self, item: Value, offer: Offer) -> Piece:
        return text_piece(item, offer)

    def opening(self, choice: Json) -> None:
        pass

    def closing(self) -> Json:
        return {"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}

    def collector(self, offer: Offer) -> Collector:
        return _WholeText()


class _WholeChat(Whole, Collector):
    pass


class _WholeText(Collector):
    def __init__(self) -> None:
        self._texts: list[str] = []
        self._finish: str | None = None
        self._logprobs: Any = None  # a stranger's JSON

    def add(self, choice: Json) -> None:
        self._texts.append(choice["text"])
        self._finish = choice["finish_reason"] or self._finish
        told = choice.get("logprobs")
        if isinstance(told, dict):
            if self._logprobs is None:
                self._logprobs = {}
            for name, values in told.items():
                if isinstance(values, list):
                    self._logprobs.setdefault(name, []).extend(values)

    def choice(self) -> Json:
        return {
            "index": 0,
            "text": "".join(self._texts),
            "logprobs": self._logprobs,
            "finish_reason": self._finish or "stop",
        }


class _Events:
    """An answer on its way out, as events."""

    def __init__(self, http: Http, style: Style, with_usage: bool) -> None:
        self._http = http
        self._style = style
        self._with_usage = with_usage
        self._front = self._back = b""  # of each event, around its choices
        self._finished = self._opened = False
        self._head: Json = {}
        self.offer: Offer | None = None
        self.usage: Json | None = None

    async def begin(self, begun: Begun) -> None:
        self.offer = begun.offer
        self._head = self._style.head(self._style.chunk, begun.offer)
        self._front = b"data: " + to_bytes(self._head)[:-1] + b',"choices":['
        self._back = b'],"usage":null}\n\n' if self._with_usage else b"]}\n\n"
        await self._http.start(200, EVENTS, first_headers(begun))

    async def add(self, item: Value) -> None:
        assert self.offer is not None
        choice, usage = self._style.piece(item, self.offer)
        self.usage = usage or self.usage
        if choice is None:
            return
        if not self._opened:
            self._opened = True
            self._style.opening(choice)
        self._finished = self._finished or choice["finish_reason"] is not None
        await self._http.write(self._front + to_bytes(choice) + self._back)

    def end(self) -> bytes:
        """What is still to be said."""
        last = b""
        if not self._finished:
            choice = self._style.closing()
            if not self._opened:
                self._style.opening(choice)
            last = self._front + to_bytes(choice) + self._back
        if self._with_usage:
            last += event({**self._head, "choices": [], "usage": self.usage or no_usage()})
        return last


async def _stream(calling: Calling, style: Style, fit: Fit, with_usage: bool) -> None:
    http = calling.http
    events = _Events(http, style, with_usage)
    try:
        outcome = await calling.run(fit, events.begin, events.add)
        last = events.end()
    except ModelnetError as error:
        if not http.answering:
            raise
        await http.finish(error_event(error))
        return
    calling.gateway.gauges.counted(outcome.model, events.usage or {})
    await http.finish(last + trailer(outcome) + DONE)


async def _whole(calling: Calling, style: Style, fit: Fit) -> None:
    offer: Offer | None = None
    whole: Collector | None = None
    usage: Mapping[str, Any] | None = None

    async def begin(begun: Begun) -> None:
        nonlocal offer, whole
        offer = begun.offer
        whole = style.collector(offer)

    async def add(item: Value) -> None:
        nonlocal usage
        assert offer is not None
        assert whole is not None
        choice, counted = style.piece(item, offer)
        usage = counted or usage
        if choice is not None:
            whole.add(choice)
        if calling.held > MAX_WHOLE_BYTES:
            raise RemoteError(
                Code.TOO_LARGE, f"the answer has more than {MAX_WHOLE_BYTES >> 20} MiB", peer=offer.provider
            )

    outcome = await calling.run(fit, begin, add)
    assert offer is not None
    assert whole is not None
    calling.gateway.gauges.counted(outcome.model, usage or {})
    answer = {**style.head(style.whole, offer), "choices": [whole.choice()], "usage": usage or no_usage()}
    await calling.http.say(answer, headers=all_headers(outcome))
