"""Server-sent events, written as bytes: `data: {…}`, an error in its own event, and `[DONE]`."""

from __future__ import annotations

from modelnet_p2p.errors import ModelnetError
from modelnet_p2p.node.calls.outcome import Outcome
from modelnet_p2p.node.gateway.calling import last_words
from modelnet_p2p.node.gateway.errors import error_object, to_bytes

DONE = b"data: [DONE]\n\n"


def event(value: object) -> bytes:
    """One event; its JSON holds no line break."""
    return b"data: " + to_bytes(value) + b"\n\n"


def named_event(name: str, value: object) -> bytes:
    """One event with a type of its own, as /v1/responses has them."""
    return b"event: " + name.encode() + b"\ndata: " + to_bytes(value) + b"\n\n"


def error_event(error: ModelnetError) -> bytes:
    """How a stream ends that failed after its status was out: OpenAI's clients raise it as APIError."""
    return event(error_object(error))


def trailer(outcome: Outcome) -> bytes:
    """What is known only at the end, as a comment, which clients skip; HTTP's trailers reach hardly any."""
    words = " ".join(f"x-modelnet-{name}={value}" for name, value in last_words(outcome).items())
    return f": {words}\n\n".encode()
