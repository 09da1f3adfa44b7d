"""Runs the calls of one model of a server: a request each, answered as the server answers.

It runs inside the peer: it is ours, and waits for a socket and nothing else. A caller that leaves closes its
connection, which is how these servers learn that they may stop. What goes wrong is told to whoever looks
after the server, at once: that is sooner than the next look.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.contract import Emit, no_module
from modelnet_p2p.node.serving.description import MAX_SLOTS, Description
from modelnet_p2p.node.serving.guarding import guard
from modelnet_p2p.node.serving.source import SLOTS, Source, slots_of
from modelnet_p2p.node.serving.upstream import json_values
from modelnet_p2p.node.serving.upstream.address import Address
from modelnet_p2p.node.serving.upstream.answers import Answer, vectors_of
from modelnet_p2p.node.serving.upstream.connection import Gone
from modelnet_p2p.node.serving.upstream.events import Events
from modelnet_p2p.node.serving.upstream.faults import SERVER
from modelnet_p2p.node.serving.upstream.http import HIDDEN, Http, Reply, key_of, open_http
from modelnet_p2p.node.serving.upstream.looking import list_models, look_at, named
from modelnet_p2p.node.serving.upstream.requests import (
    MAX_REQUEST_BYTES,
    Kind,
    Request,
    embedding_texts,
    text_request,
)
from modelnet_p2p.payload import Value

if TYPE_CHECKING:
    from modelnet_p2p.tensor import Array

MAX_ANSWER_BYTES = 64 << 20  # of one streamed answer, as the server writes it: some 300,000 tokens
TEXTS_A_REQUEST = 64  # of a call for embeddings: a request's answer stays below 4 MiB
OPTIONS = frozenset({SLOTS})  # where the server does not tell, or the publisher knows better
BLAMELESS = frozenset({Code.BAD_INPUT, Code.TOO_LARGE})  # of the faults: they say nothing about the server

Trouble = Callable[[str, LocalError], None]  # (the source's spec, what its server did)


class UpstreamModel:
    """One model of one server, as the peer's table of models runs it."""

    waits = True
    pid = None  # no process of ours
    is_down = False  # a server that is away is withdrawn
    remembered = None  # what it serves may change at any time: it is asked again
    _kind: Kind

    def __init__(self, source: Source, address: Address, http: Http, key: str, trouble: Trouble) -> None:
        self._source = source
        self._address = address
        self._http = http
        self._key = key
        self._trouble = trouble
        self._counts = True  # the server takes `stream_options`, so it counts tokens
        self.on_changed: Callable[[], None] = lambda: None  # whoever looks after the server sees to that

    def allocate(self, size: int) -> memoryview | None:
        return None

    async def warm(self) -> None:
        pass  # `describe` has asked it

    async def describe(self) -> Description:
        """Asks the model for a token or a vector; raises LocalError if it gives none."""
        source = self._source
        with self._hiding(), guard(Code.MODEL_ERROR, f"{SERVER}: "):
            listed = await list_models(self._http)
            model = named(listed, self._address.model)
            if model is None:
                raise LocalError(Code.NOT_FOUND, f"{self._address.base} has no model {self._address.model!r}")
            looked = await look_at(self._http, model, source.task)
        self._kind = looked.kind
        return replace(looked.description, slots=slots_of(source, looked.description.slots, MAX_SLOTS))

    async def call(
        self, method: str, value: Value, params: Mapping[str, Value], emit: Emit, caller: str = ""
    ) -> Value:
        """One call; raises LocalError, and whatever `emit` raises."""
        try:
            with self._hiding(), guard(Code.MODEL_ERROR, f"{SERVER}: "):
                if self._kind is not Kind.EMBEDDING:
                    await self._text(text_request(value, params, self._kind), emit)
                    return None
                output = await self._vectors(value, params)
        except LocalError as error:
            if error.code not in BLAMELESS:
                self._trouble(self._source.spec, error)
            raise
        if method == "invoke":
            return output
        await emit(output)
        return None

    @contextmanager
    def _hiding(self) -> Iterator[None]:
        """No error quotes the publisher's key, be it to callers, in a log or in `status`."""
        try:
            yield
        except LocalError as error:
            if self._key and self._key in error.message:
                error.message = error.message.replace(self._key, HIDDEN)
            raise

    # --- text ---

    async def _text(self, request: Request, emit: Emit) -> None:
        fields = {"model": self._address.model, **request.fields, "stream": True}
        if self._counts:
            counted = {**fields, "stream_options": {"include_usage": True}}
            try:
                return await self._stream(request, counted, emit)
            except LocalError as error:
                if error.code is not Code.BAD_INPUT or "stream_options" not in error.message:
                    raise
            await self._stream(request, fields, emit)
            self._counts = False  # only now: a caller may have put that word into the refusal
            return
        await self._stream(request, fields, emit)

    async def _stream(self, request: Request, fields: Mapping[str, Value], emit: Emit) -> None:
        body = json_values.dump(fields, MAX_REQUEST_BYTES)
        answer = Answer(plain=request.plain)
        try:
            async with self._http.stream(request.kind.value, body) as reply:
                if reply.streams:
                    await _pass_on(reply, answer, emit)
                else:  # it does not stream, or refuses with status 200
                    for item in answer.on_body(await reply.json()):
                        await _give(emit, item)
        except Gone as error:
            if answer.given or not error.begun:
                raise
            raise error.undelivered() from error
        for item in answer.end():
            await _give(emit, item)

    # --- vectors ---

    async def _vectors(self, value: Value, params: Mapping[str, Value]) -> Value:
        """A tensor for texts; for a map, a map that counts tokens, too."""
        import numpy as np  # not at the top: a server may serve none

        texts, fields = embedding_texts(value, params)
        parts: list[Array] = []
        tokens = 0
        for at in range(0, len(texts), TEXTS_A_REQUEST):
            some = texts[at : at + TEXTS_A_REQUEST]
            asked = {"model": self._address.model, "input": some, **fields}
            body = json_values.dump(asked, MAX_REQUEST_BYTES)
            part, counted = vectors_of(await self._http.post(Kind.EMBEDDING.value, body), len(some))
            if parts and part.shape[1] != parts[0].shape[1]:
                raise LocalError(Code.MODEL_ERROR, f"{SERVER} gave vectors of two lengths")
            parts.append(part)
            tokens += counted
        vectors = np.concatenate(parts)
        if not isinstance(value, dict):
            return vectors
        return {"embeddings": vectors, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


async def _pass_on(reply: Reply, answer: Answer, emit: Emit) -> None:
    """Each event's items as soon as it has come. A slow caller slows the server."""
    events, size = Events(), 0
    async for data in reply.body:
        size += len(data)
        if size > MAX_ANSWER_BYTES:
            raise LocalError(Code.TOO_LARGE, f"{SERVER} answered with more than {MAX_ANSWER_BYTES} bytes")
        for event in events.feed(data):
            for item in answer.on_event(event):
                await _give(emit, item)
        if answer.done:
            return await reply.to_its_end()
    for event in events.close():
        for item in answer.on_event(event):
            await _give(emit, item)


async def _give(emit: Emit, item: Value) -> None:
    """Emit what a server sent: if it cannot be sent on, that is the server's fault and not the caller's."""
    try:
        await emit(item)
    except LocalError as error:
        if error.code not in (Code.BAD_INPUT, Code.TOO_LARGE):
            raise
        raise LocalError(
            Code.MODEL_ERROR, f"{SERVER} sent what cannot be passed on: {error.message}"
        ) from error


@asynccontextmanager
async def open_upstream(source: Source, trouble: Trouble) -> AsyncIterator[UpstreamModel]:
    """The runner of one model, `http://host/v1#model`; raises LocalError (bad-input)."""
    address = Address.parse(source.spec)
    key, _ = key_of(address, source.environ)
    async with open_http(address, key) as http:
        yield UpstreamModel(source, address, http, key, trouble)


def check_upstream(source: Source) -> None:
    """What can be said of such a source without asking anybody; raises LocalError (bad-input)."""
    key_of(Address.parse(source.spec), source.environ)
    if source.module is not None:
        raise no_module(source)
    unknown = sorted(set(source.options) - OPTIONS)
    if unknown:
        words = f"a model of a server takes no option {unknown[0][:40]!r}"
        raise LocalError(Code.BAD_INPUT, words, hint=f"it takes {', '.join(sorted(OPTIONS))}")
    slots_of(source, 1, MAX_SLOTS)  # whatever it is: that it is one
