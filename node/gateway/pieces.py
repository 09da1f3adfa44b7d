"""What a model streams, brought into one form: OpenAI's choices and usage, whatever it was that came.

A stranger's model gives what it likes. Maps with `choices` are taken as they are, with their types
checked as far as anything here relies on them; text becomes a delta; anything else is the model's error.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from modelnet_p2p.errors import Code, RemoteError
from modelnet_p2p.offers import Offer
from modelnet_p2p.payload import Value

Json = dict[str, Any]  # Any: a stranger's JSON, passed on as it came
MAX_TOOL_CALLS = 128  # in one answer


class Piece(NamedTuple):
    """Of an answer: at most one choice, and what was counted where that is told."""

    choice: Json | None
    usage: Json | None = None


def chat_piece(item: Value, offer: Offer) -> Piece:
    """A chat model's item: its choice has a `delta`."""
    if isinstance(item, str):
        return Piece({"index": 0, "delta": {"content": item}, "finish_reason": None})
    piece = _piece(item, offer)
    choice = piece.choice
    if choice is not None and "delta" not in choice:
        if isinstance(message := choice.pop("message", None), dict):  # a whole answer at once
            choice["delta"] = message
        elif isinstance(text := choice.pop("text", ""), str):
            choice["delta"] = {"content": text} if text else {}
    if choice is not None and not isinstance(choice.get("delta"), dict):
        raise _nonsense(offer)
    return piece


def text_piece(item: Value, offer: Offer) -> Piece:
    """A completing model's item: its choice has a `text`."""
    if isinstance(item, str):
        return Piece({"index": 0, "text": item, "logprobs": None, "finish_reason": None})
    piece = _piece(item, offer)
    choice = piece.choice
    if choice is not None:
        if "text" not in choice:
            delta = choice.pop("delta", None) or choice.pop("message", None) or {}
            choice["text"] = delta.get("content") or "" if isinstance(delta, dict) else None
        if not isinstance(choice["text"], str):
            raise _nonsense(offer)
        choice.setdefault("logprobs", None)
    return piece


def _piece(item: Value, offer: Offer) -> Piece:
    if not isinstance(item, dict):
        if item is None or isinstance(item, list):
            raise _nonsense(offer)
        return Piece({"index": 0, "text": str(item), "finish_reason": None})
    choices, usage = item.get("choices", []), item.get("usage")
    if not isinstance(choices, list) or len(choices) > 1 or not isinstance(usage, dict | None):
        raise _nonsense(offer)
    if not choices:
        return Piece(None, usage)
    if not isinstance(choices[0], dict) or not isinstance(choices[0].get("finish_reason"), str | None):
        raise _nonsense(offer)
    choice = {**choices[0], "index": 0}
    choice.setdefault("finish_reason", None)
    return Piece(choice, usage)


def _nonsense(offer: Offer) -> RemoteError:
    return RemoteError(
        Code.MODEL_ERROR,
        f"{offer.model} gave something that is neither text nor a chunk of OpenAI's form",
        peer=offer.provider,
        hint="a model that chats gives pieces of text, or maps with 'choices'",
    )


class Whole:
    """The pieces of a chat answer, put together into its message."""

    def __init__(self, offer: Offer) -> None:
        self._offer = offer
        self._texts: dict[str, list[str]] = {}  # content, refusal, reasoning_content
        self._calls: dict[int, Json] = {}
        self._logprobs: Json | None = None
        self.finish: str | None = None

    def add(self, choice: Json) -> None:
        delta = choice["delta"]
        for name, value in delta.items():
            if isinstance(value, str) and name != "role":
                self._texts.setdefault(name, []).append(value)
        calls = delta.get("tool_calls") or []
        if not isinstance(calls, list):
            raise _nonsense(self._offer)
        for call in calls:
            self._add_call(call)
        if isinstance(told := choice.get("logprobs"), dict):
            self._add_logprobs(told)
        self.finish = choice["finish_reason"] or self.finish

    def _add_call(self, piece: object) -> None:
        if not isinstance(piece, dict):
            raise _nonsense(self._offer)
        at = piece.get("index", len(self._calls))
        function = piece.get("function") or {}
        if not isinstance(at, int) or not isinstance(function, dict) or len(self._calls) >= MAX_TOOL_CALLS:
            raise _nonsense(self._offer)
        call = self._calls.setdefault(
            at, {"id": "", "type": "function", "function": {"name": "", "arguments": []}}
        )
        call["id"] = piece.get("id") or call["id"]
        call["function"]["name"] += str(function.get("name") or "")
        call["function"]["arguments"].append(str(function.get("arguments") or ""))

    def _add_logprobs(self, told: Json) -> None:
        if self._logprobs is None:
            self._logprobs = {}
        for name, values in told.items():
            if isinstance(values, list):
                self._logprobs.setdefault(name, []).extend(values)

    @property
    def tool_calls(self) -> list[Json]:
        return [
            {**call, "function": {**call["function"], "arguments": "".join(call["function"]["arguments"])}}
            for _, call in sorted(self._calls.items())
        ]

    def text(self, name: str = "content") -> str:
        return "".join(self._texts.get(name, ()))

    def choice(self) -> Json:
        """As a choice of `chat.completion`."""
        message: Json = {"role": "assistant", "content": self.text() if "content" in self._texts else None}
        message |= {name: "".join(parts) for name, parts in self._texts.items() if name != "content"}
        message.setdefault("refusal", None)
        if calls := self.tool_calls:
            message["tool_calls"] = calls
        elif message["content"] is None:
            message["content"] = ""
        finish = self.finish or ("tool_calls" if self._calls else "stop")
        return {"index": 0, "message": message, "logprobs": self._logprobs, "finish_reason": finish}


def no_usage() -> Json:
    """For models that do not count."""
    return {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
