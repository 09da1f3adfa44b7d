"""What a model that generates gives its caller: plain pieces, or OpenAI chunks as far as they are its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelnet_p2p.node.serving.backends.generation.requests import Form, Request
from modelnet_p2p.node.serving.backends.generation.text import BROKEN
from modelnet_p2p.node.serving.backends.generation.tools import ToolReader
from modelnet_p2p.payload import Value


@dataclass(frozen=True, slots=True)
class Chance:
    """A token's text, the natural logarithm of its probability and, if it was drawn, `others` beside it."""

    text: str
    logprob: float
    others: tuple[Chance, ...] = ()


class Chunks:
    """The items of one call, in order: `piece` for each piece of text, then `end` once."""

    def __init__(self, request: Request) -> None:
        self._form = request.form
        self._tells = request.logprobs is not None
        self._tools = ToolReader(_names(request)) if request.tools else None
        self._chances: list[Chance] = []  # of text that is held back
        self._offset = 0  # characters so far, for completions
        self._is_first = True

    def piece(self, text: str, chances: Sequence[Chance] = ()) -> list[Value]:
        """The items for a piece, none while all of it is held back."""
        self._chances += chances
        if self._tools is not None:
            text = self._tools.feed(text)
        return [self._chunk(text)] if text else []

    def end(self, reason: str, prompt_tokens: int, completion_tokens: int) -> list[Value]:
        """The last items: what was held back, the reason (stop, length), the usage."""
        items: list[Value] = []
        if self._tools is not None:
            rest, calls = self._tools.end()
            if rest:
                items.append(self._chunk(rest))
            if calls:
                told = [
                    {"index": n, "id": f"call_{n}", "type": "function"}
                    | {"function": {"name": call.name, "arguments": call.arguments}}
                    for n, call in enumerate(calls)
                ]
                items.append(self._choice({"delta": self._first() | {"tool_calls": told}}))
                reason = "tool_calls" if reason == "stop" else reason
        if self._form is Form.TEXT:
            return items
        last: dict[str, Value] = {"text": ""} if self._form is Form.COMPLETION else {"delta": self._first()}
        items.append(self._choice(last, reason))
        usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }
        return [*items, {"choices": [], "usage": usage}]

    def _chunk(self, text: str) -> Value:
        match self._form:
            case Form.TEXT:
                return text
            case Form.COMPLETION:
                return self._choice({"text": text})
            case Form.CHAT:
                return self._choice({"delta": self._first() | {"content": text}})

    def _first(self) -> dict[str, Value]:
        """The first delta of a chat says who speaks."""
        was_first, self._is_first = self._is_first, False
        return {"role": "assistant"} if was_first else {}

    def _choice(self, fields: dict[str, Value], reason: str | None = None) -> Value:
        told = self._logprobs() if self._tells and self._chances else None
        choice: dict[str, Value] = {"index": 0} | fields | {"finish_reason": reason, "logprobs": told}
        return {"choices": [choice]}

    def _logprobs(self) -> Value:
        chances, self._chances = self._chances, []
        if self._form is Form.CHAT:
            content = [
                _told(chance) | {"top_logprobs": [_told(o) for o in chance.others]} for chance in chances
            ]
            return {"content": content, "refusal": None}
        offsets: list[int] = []
        for chance in chances:
            offsets.append(self._offset)
            self._offset += len(chance.text)
        return {
            "tokens": [chance.text for chance in chances],
            "token_logprobs": [chance.logprob for chance in chances],
            "top_logprobs": [{o.text: o.logprob for o in chance.others} for chance in chances],
            "text_offset": offsets,
        }


def _told(chance: Chance) -> dict[str, Value]:
    data = None if BROKEN in chance.text else list(chance.text.encode())
    return {"token": chance.text, "logprob": chance.logprob, "bytes": data}


def _names(request: Request) -> list[str]:
    found: list[str] = []
    for tool in request.tools:
        match tool:
            case {"function": {"name": str(name)}}:
                found.append(name)
    return found
