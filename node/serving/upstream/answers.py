"""From what a server sends to what a caller gets: chunks, pieces of text, the count of tokens, vectors.

A chunk's `choices` are passed on as they came (deltas, tool calls, log probabilities, reasoning); the fields
around them (`id`, `created`, `model`) are the server's and stay here. The count of tokens comes last, once,
wherever the server put it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.upstream import json_values
from modelnet_p2p.node.serving.upstream.events import Event
from modelnet_p2p.node.serving.upstream.faults import SERVER, fault_in_stream
from modelnet_p2p.payload import Value

if TYPE_CHECKING:
    from modelnet_p2p.tensor import Array

DONE = b"[DONE]"
MAX_CHOICES = 8  # of one chunk: one was asked for
MAX_DIMENSIONS = 65_536  # of one vector; the largest models have some thousand


class Answer:
    """A machine over the events of one streamed answer."""

    def __init__(self, *, plain: bool) -> None:
        self._plain = plain
        self._finished = False  # a choice told its reason to end
        self.done = False  # the server said that this was all
        self.given = False  # the caller has got something of it
        self.usage: dict[str, Value] | None = None

    def on_event(self, event: Event) -> list[Value]:
        """The items of one event; raises LocalError for one that tells of a failure, or makes no sense."""
        if event.data.strip() == DONE:
            self.done = True
        if self.done or not event.data.strip():
            return []
        body = json_values.load(event.data)
        if event.is_error:
            raise fault_in_stream(body)
        return self.on_body(body)

    def on_body(self, body: object) -> list[Value]:
        """The items of one chunk, or of an answer that was not streamed."""
        if not isinstance(body, dict):
            raise _senseless()
        if body.get("error") or body.get("object") == "error":
            raise fault_in_stream(body)
        usage, choices = body.get("usage"), body.get("choices")
        if isinstance(usage, dict):
            self.usage = usage
        if choices is None and isinstance(usage, dict):
            return []
        if not isinstance(choices, list) or len(choices) > MAX_CHOICES:
            raise _senseless()
        return self._items([_as_chunk(choice) for choice in choices])

    def end(self) -> list[Value]:
        """The last items, when the server has ended its answer; raises LocalError if that was too early."""
        if not (self.done or self._finished):
            raise LocalError(Code.MODEL_ERROR, f"{SERVER} ended its answer in the middle")
        if self._plain or self.usage is None:
            return []
        return [{"choices": [], "usage": self.usage}]

    def _items(self, choices: list[dict[str, Value]]) -> list[Value]:
        self._finished = self._finished or any(choice.get("finish_reason") for choice in choices)
        if self._plain:
            items: list[Value] = [text for choice in choices if (text := _text_of(choice))]
        else:
            items = [{"choices": choices}] if choices else []
        self.given = self.given or bool(items)
        return items


def _as_chunk(choice: object) -> dict[str, Value]:
    """A choice with a `delta`, where a server that does not stream gave the whole `message`."""
    if not isinstance(choice, dict):
        raise _senseless()
    if "message" in choice and "delta" not in choice:
        choice = {**choice, "delta": choice["message"]}
        del choice["message"]
    return choice


def _text_of(choice: dict[str, Value]) -> str:
    delta = choice.get("delta")
    text = delta.get("content") if isinstance(delta, dict) else choice.get("text")
    return text if isinstance(text, str) else ""


def vectors_of(body: object, count: int) -> tuple[Array, int]:
    """The vectors of `count` texts, float32 [count, d], and how many tokens these had.

    Raises LocalError (model-error).
    """
    import numpy as np  # not at the top: a server may serve none

    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(data, list) or len(data) != count or not all(isinstance(row, dict) for row in data):
        raise _senseless()
    rows: list[Array | None] = [None] * count
    for place, row in enumerate(data):
        index = row.get("index", place)
        if type(index) is not int or not 0 <= index < count or rows[index] is not None:
            raise _senseless()
        rows[index] = _vector(row.get("embedding"))
    found = [row for row in rows if row is not None]
    if len({row.shape for row in found}) != 1:
        raise _senseless()
    usage = body.get("usage") if isinstance(body, dict) else None
    tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return np.stack(found), tokens if type(tokens) is int and tokens >= 0 else 0


def _vector(numbers: object) -> Array:
    import numpy as np

    try:
        if isinstance(numbers, str):  # base64 of little-endian floats: what OpenAI's own clients ask for
            vector = np.frombuffer(base64.b64decode(numbers, validate=True), "<f4").astype(np.float32)
        elif isinstance(numbers, Sequence):
            vector = np.asarray(numbers, np.float32)
        else:
            raise _senseless()
    except (ValueError, TypeError, OverflowError, binascii.Error) as error:
        raise _senseless() from error
    if vector.ndim != 1 or not 0 < len(vector) <= MAX_DIMENSIONS:
        raise _senseless()
    return vector


def _senseless() -> LocalError:
    return LocalError(Code.MODEL_ERROR, f"{SERVER} sent an answer that is not OpenAI's")
