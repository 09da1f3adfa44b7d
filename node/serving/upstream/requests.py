"""From a call's input to the body of a request: what a caller may say, and nothing beside it.

The fields that pass are listed. What is not a matter of the model but of its publisher's account there
(`store`, `service_tier`, …) is left out; everything else is refused by name, for it may be something that
only the publisher should set, such as a chat template. Nothing in a call is fetched: pictures and sounds come
in the message itself, or the caller would choose what a server in the publisher's network requests.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.payload import Value

MAX_TEXTS = 2048  # of one call for embeddings; OpenAI's own bound
MAX_REQUEST_BYTES = 16 << 20  # a few photographs; written in one go, in some 50 ms


class Kind(Enum):
    """What a model does; the value is the path of its endpoint."""

    CHAT = "/chat/completions"
    COMPLETION = "/completions"
    EMBEDDING = "/embeddings"


@dataclass(frozen=True, slots=True)
class Request:
    """One request for text. `plain` if the caller wants pieces of text, not OpenAI's chunks."""

    kind: Kind
    fields: dict[str, Value]
    plain: bool


_SAMPLING = frozenset(
    {"max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop", "logit_bias", "logprobs"}
    | {"frequency_penalty", "presence_penalty", "repetition_penalty", "repeat_penalty"}
)
_CHAT = _SAMPLING | frozenset(
    {"messages", "max_completion_tokens", "tools", "tool_choice", "parallel_tool_calls", "functions"}
    | {"function_call", "response_format", "top_logprobs", "reasoning_effort", "reasoning", "verbosity"}
    | {"prediction", "modalities", "audio"}
)
_COMPLETION = _SAMPLING | frozenset({"prompt", "suffix", "echo"})
_EMBEDDING = frozenset({"input", "dimensions"})
_OURS = frozenset({"model", "stream", "stream_options", "n", "encoding_format"})  # set here, whatever is said
_ACCOUNT = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
    | {"prompt_cache_retention"}
)
_PARTS = frozenset({"text", "refusal", "image_url", "input_audio", "audio_url", "video_url"})
_MESSAGE = frozenset({"role", "content"})
_URL = frozenset({"url"})
_MEDIA = ("image_url", "audio_url", "video_url")


def text_request(value: Value, params: Mapping[str, Value], kind: Kind) -> Request:
    """A call for text: a prompt, or OpenAI's request body as a map, of a model whose own kind is `kind`.

    Raises LocalError (bad-input).
    """
    if isinstance(value, str):
        asks = {"messages": [{"role": "user", "content": value}]}
        fields: dict[str, Value] = dict(asks) if kind is Kind.CHAT else {"prompt": value}
        return Request(kind, _allowed({**params, **fields}, kind), plain=True)
    if not isinstance(value, dict):
        raise _bad("it takes a text, or a map with `messages`")
    fields = {**value, **params}
    if ("messages" in fields) == ("prompt" in fields):
        raise _bad("it takes either `messages` or a `prompt`")
    kind = Kind.CHAT if "messages" in fields else Kind.COMPLETION
    if fields.get("n") not in (None, 1):
        raise _bad("it gives one answer a call: `n` is 1")
    fields = _allowed(fields, kind)
    if kind is Kind.CHAT:
        _check_messages(fields["messages"])
    elif not isinstance(fields["prompt"], str | list):
        raise _bad("`prompt` is a text")
    return Request(kind, fields, plain=False)


def embedding_texts(value: Value, params: Mapping[str, Value]) -> tuple[list[Value], dict[str, Value]]:
    """The texts of a call for embeddings, and the fields beside them; raises LocalError (bad-input)."""
    fields: dict[str, Value] = {**value, **params} if isinstance(value, dict) else {**params, "input": value}
    fields = _allowed(fields, Kind.EMBEDDING)
    asked = fields.pop("input", None)
    texts = [asked] if isinstance(asked, str) else asked
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise _bad("it takes a text, or a list of texts")
    if len(texts) > MAX_TEXTS:
        raise _bad(f"it takes at most {MAX_TEXTS} texts a call")
    return texts, fields


def _allowed(fields: Mapping[str, Value], kind: Kind) -> dict[str, Value]:
    known = {Kind.CHAT: _CHAT, Kind.COMPLETION: _COMPLETION, Kind.EMBEDDING: _EMBEDDING}[kind]
    unknown = sorted(set(fields) - known - _OURS - _ACCOUNT)
    if unknown:
        raise _bad(f"it takes no {unknown[0][:40]!r}", f"it takes {', '.join(sorted(known))}")
    return {name: field for name, field in fields.items() if name in known and field is not None}


def _check_messages(messages: Value) -> None:
    if not isinstance(messages, list) or not messages:
        raise _bad("`messages` is a list of messages")
    for message in messages:
        if not isinstance(message, dict):
            raise _bad("each message is a map with `role` and `content`")
        _check_spelling(message, _MESSAGE)
        content = message.get("content")
        if not isinstance(content, str | list | None):
            raise _bad("the content of a message is a text, or a list of parts")
        for part in content if isinstance(content, list) else ():
            if not isinstance(part, str):
                _check_part(part)


def _check_part(part: Value) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or kind not in _PARTS:
        raise _bad(
            f"a message holds no part of type {str(kind)[:40]!r}", f"one of {', '.join(sorted(_PARTS))}"
        )
    _check_spelling(part, _PARTS)
    for name in _MEDIA:
        media = part.get(name)
        if isinstance(media, dict):
            _check_spelling(media, _URL)
        url = media.get("url") if isinstance(media, dict) else media
        if url is not None and not (isinstance(url, str) and url[:5].lower() == "data:"):
            hint = "put it into the message: data:image/png;base64,…"
            raise _bad(f"this peer fetches nothing for others: {name} must be a data: URL", hint)


def _check_spelling(fields: Mapping[str, Value], names: Collection[str]) -> None:
    """Servers in Go take `URL` for `url`: what would be looked at under no name of ours is refused."""
    for name in fields:
        if name not in names and name.lower() in names:
            raise _bad(f"it takes no {name[:40]!r}", f"it is written {name.lower()!r}")


def _bad(words: str, hint: str = "") -> LocalError:
    return LocalError(Code.BAD_INPUT, words, hint=hint)
