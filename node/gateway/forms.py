"""What an offer can be asked over OpenAI's interface, and how their request becomes its input.

A model whose input is `messages` (json) gets OpenAI's request body as it came. One that takes text gets the
conversation as text: so any Python function chats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any

from modelnet_p2p.node.calls.router import Fit
from modelnet_p2p.node.gateway.errors import BadRequest
from modelnet_p2p.offers import Offer
from modelnet_p2p.payload import Value

EMBEDDING_TASKS = ("feature-extraction", "sentence-similarity")
TEXT_TASKS = (
    "text-generation",
    "text2text-generation",
    "image-text-to-text",
    "any-to-any",
    "question-answering",
    "summarization",
    "translation",
)
LABELLING = ("-classification", "text-ranking")  # ends of Hugging Face's tasks: text-, token-, zero-shot-…
# what is the gateway's own matter: the model never sees it
_OURS = frozenset({"model", "stream", "stream_options", "n", "user", "store", "metadata", "service_tier"})
# what a model that takes plain text cannot heed, and where it would answer something else than was asked
_BEYOND_TEXT = ("tools", "functions", "logprobs", "top_logprobs", "audio", "suffix", "echo", "stop")

Fields = Mapping[str, Any]  # Any: of a request's JSON


class Form(Enum):
    """How a model is spoken to."""

    MESSAGES = "messages"  # OpenAI's own request body
    TEXT = "text"  # one text
    EMBEDDING = "embedding"  # texts that become vectors
    OTHER = "other"  # tensors and the like: /api/v1/invoke


def form_of(offer: Offer) -> Form:
    """Told by the offer's input specs, and by its task where it has none."""
    for spec in offer.inputs:
        if spec.name == "messages" and spec.kind == "json":
            return Form.MESSAGES
    if offer.task in EMBEDDING_TASKS:
        return Form.EMBEDDING
    takes_text = any(spec.kind == "text" for spec in offer.inputs) and not _gives_labels(offer)
    if takes_text or (not offer.inputs and offer.task in TEXT_TASKS):
        return Form.TEXT
    return Form.OTHER


def _gives_labels(offer: Offer) -> bool:
    """Whether it reads a text and tells what it is of: it has no text to answer a chat with."""
    gives_text = any(spec.kind == "text" for spec in offer.outputs)
    return offer.task.endswith(LABELLING) and bool(offer.outputs) and not gives_text


def endpoints_of(offer: Offer) -> list[str]:
    """The paths at which a model can be asked."""
    match form_of(offer):
        case Form.MESSAGES | Form.TEXT:
            mine = ["/v1/chat/completions", "/v1/completions", "/v1/responses"]
        case Form.EMBEDDING:
            mine = ["/v1/embeddings"]
        case Form.OTHER:
            mine = []
    return [*mine, "/api/v1/invoke"]


def for_model(body: Fields) -> dict[str, Value]:
    """What a model that takes messages is given of a request body."""
    given = {name: value for name, value in body.items() if name not in _OURS and value is not None}
    most = given.pop("max_completion_tokens", None)  # the newer name of the same
    if most is not None:
        given.setdefault("max_tokens", most)
    return given


def chat_fit(body: Fields) -> Fit:
    """How each provider is asked to chat."""
    return _fit(body, lambda: transcript(body["messages"]), "chat")


def completion_fit(body: Fields) -> Fit:
    """How each provider is asked to complete a prompt."""
    return _fit(body, lambda: body["prompt"], "complete text")


def _fit(body: Fields, plain: Callable[[], Value], what: str) -> Fit:
    """A model that takes messages is given the whole body, one that takes text what is `plain`."""

    def fit(offer: Offer) -> tuple[Value, Mapping[str, Value]]:
        match form_of(offer):
            case Form.MESSAGES:
                return for_model(body), {}
            case Form.TEXT:
                _check_plain(offer, body)
                return plain(), {}
        raise cannot(offer, what)

    return fit


def flag(body: Fields, name: str) -> bool:
    """A field that is true or false, which it is if missing or null; raises BadRequest."""
    value = body.get(name)
    if not isinstance(value, bool | None):
        raise BadRequest(f"{name!r} must be true or false", name)
    return bool(value)


def cannot(offer: Offer, what: str) -> BadRequest:
    """For a model that is asked for what it does not do."""
    there = ", ".join(endpoints_of(offer))
    return BadRequest(f"{offer.model} cannot {what}: its task is {offer.task}; ask it at {there}", "model")


def _check_plain(offer: Offer, body: Fields) -> None:
    for name in _BEYOND_TEXT:
        if body.get(name):
            raise BadRequest(f"{offer.model} takes plain text: it does not know {name!r}", name)
    wanted = body.get("response_format")
    if isinstance(wanted, dict) and wanted.get("type") not in (None, "text"):
        raise BadRequest(f"{offer.model} takes plain text: it gives no JSON on demand", "response_format")


def check_messages(messages: object) -> None:
    """Raises BadRequest unless these are messages as OpenAI has them, as far as we look into them."""
    if not isinstance(messages, list) or not messages:
        raise BadRequest("'messages' must be a list of at least one message", "messages")
    for at, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRequest("a message must be an object with a 'role'", f"messages[{at}]")
        if not isinstance(message.get("content"), str | list | None):
            raise BadRequest("a message's 'content' is text, or a list of parts", f"messages[{at}].content")


def transcript(messages: Sequence[Fields]) -> str:
    """A conversation as one text: what the user says, where that is all; else line by line with its roles."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return text_of(messages[0].get("content"), "messages[0].content")
    lines = [
        f"{message['role']}: {text_of(message.get('content'), f'messages[{at}].content')}"
        for at, message in enumerate(messages)
    ]
    return "\n".join([*lines, "assistant:"])


def text_of(content: object, where: str) -> str:
    """The text of a message; raises BadRequest for a picture or a sound."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for part in content if isinstance(content, list) else [content]:
        if not isinstance(part, dict) or not isinstance(text := part.get("text"), str):
            raise BadRequest("this model takes text alone", where)
        texts.append(text)
    return "".join(texts)
