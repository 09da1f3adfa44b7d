"""What an agent is told: the lines of a search, an answer put together from its pieces, what went wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from modelnet_p2p.errors import Code, LocalError, ModelnetError
from modelnet_p2p.jsonvalue import to_json
from modelnet_p2p.payload import Value

Answer = dict[str, Any]  # Any: JSON, the structured content of a tool's result

# of one answer, as JSON. It goes to the agent as text and as structure, through a pipe or an HTTP body; and
# whoever reads it is a model, whose whole context is smaller
MAX_ANSWER_BYTES = 8 << 20
MAX_TEXT_CHARS = 32_000  # of an answer as text; what is longer is summed up, and whole in the structure alone
MAX_MESSAGE_CHARS = 4096  # of one piece, told as progress; a token has five

_LINE = ("uri", "task", "state", "load", "rtt_ms", "provider", "inputs", "outputs")
# the next step for an agent, where an error brought none: it has tools, and no command line
_NEXT = {
    Code.NOT_FOUND: "find_models lists what there is",
    Code.AMBIGUOUS: "give the uri that find_models tells as target",
    Code.UNREACHABLE: "try again in a moment, or call task:TASK to let another provider answer",
    Code.DEADLINE: 'give it longer: {"timeout": 300}',
    Code.BUSY: "try again in a moment, or call task:TASK to let another provider answer",
    Code.BAD_INPUT: "describe_model tells what the model takes",
    Code.MODEL_ERROR: "describe_model tells what the model takes; find_models lists others",
    Code.TOO_LARGE: "send less at once, or ask for less",
    Code.NOT_RUNNING: "modelnet-peer join, in a terminal of this machine",
}


def line_of(offer: Mapping[str, Any]) -> Answer:
    """One offer of a search: what an agent needs to choose it and call it."""
    return {"name": offer.get("model"), **{name: offer.get(name) for name in _LINE}}


def offer_of(shown: Mapping[str, Any]) -> Answer:
    """One offer with all that its record says, without the signed bytes."""
    record = shown.get("record")
    said = (
        {name: value for name, value in record.items() if value not in (None, "", [], {})} if record else {}
    )
    return {"name": shown.get("model"), "provider": shown.get("provider"), **said}


class Pieces:
    """The items of an answer as they come, and what they come to."""

    def __init__(self) -> None:
        self.items: list[Value] = []
        self._bytes = 0

    def add(self, item: Value) -> str:
        """Keep one; what it says, for the progress. Raises LocalError (too-large)."""
        said = text_of(item)
        message = said if said is not None else _dumped(item)
        self._bytes += len(message) + 16
        if self._bytes > MAX_ANSWER_BYTES:
            raise _too_large("the answer goes on beyond")
        self.items.append(item)
        return message[:MAX_MESSAGE_CHARS]

    def joined(self) -> Answer:
        """The output, one text where all pieces are; `usage` and `finish_reason` where a model told them."""
        said = [text_of(item) for item in self.items]
        if any(piece is None for piece in said) or any(map(_has_more, self.items)):
            return {"output": to_json(self.items)}
        told: Answer = {"output": "".join(piece for piece in said if piece)}
        for item in self.items:
            if isinstance(item, dict):
                told.update(_told_besides(item))
        return told


def text_of(item: Value) -> str | None:
    """The text in a piece: itself, or that of a chunk as OpenAI's clients know it; None if it is neither."""
    if isinstance(item, str):
        return item
    if not isinstance(item, dict) or not isinstance(item.get("choices"), list):
        return None
    texts = [_of_choice(choice) for choice in item["choices"] if isinstance(choice, dict)]
    return "".join(text for text in texts if isinstance(text, str))


def _of_choice(choice: Mapping[str, Any]) -> object:
    delta = choice.get("delta")
    return delta.get("content") if isinstance(delta, dict) else choice.get("text")


def _has_more(item: Value) -> bool:
    """Whether a chunk holds what is no text: then the chunks themselves are the answer."""
    if not isinstance(item, dict):
        return False
    deltas = [choice.get("delta") for choice in item["choices"] if isinstance(choice, dict)]
    return len(deltas) > 1 or any(isinstance(delta, dict) and delta.get("tool_calls") for delta in deltas)


def _told_besides(chunk: Mapping[str, Any]) -> Answer:
    told: Answer = {"usage": to_json(chunk["usage"])} if chunk.get("usage") else {}
    for choice in chunk["choices"]:
        if choice.get("finish_reason"):
            told["finish_reason"] = str(choice["finish_reason"])
    return told


def answer_of(done: Mapping[str, Any], pieces: Pieces) -> Answer:
    """The structure of a call's answer: what came out, and from whom; raises LocalError (too-large)."""
    streamed = bool(pieces.items) and done.get("output") is None
    output = pieces.joined() if streamed else {"output": to_json(done.get("output"))}
    if not streamed and len(_dumped(output["output"])) > MAX_ANSWER_BYTES:
        raise _too_large("the answer has more than")
    how = {name: done.get(name) for name in ("model", "provider", "digest", "attempts", "ms")}
    return {**output, **how, **({"pieces": len(pieces.items)} if streamed else {})}


def as_text(answer: Value) -> str:
    """An answer as an agent reads it: text plain, all else as JSON, and what is long cut short."""
    text = answer if isinstance(answer, str) else _dumped(answer)
    if len(text) <= MAX_TEXT_CHARS:
        return text
    return f"{text[:MAX_TEXT_CHARS]}… (the first {MAX_TEXT_CHARS} of {len(text)} characters)"


def as_error(error: ModelnetError) -> tuple[str, Answer]:
    """What went wrong and what to do next, as text and as structure."""
    told = {**error.to_map(), "hint": error.hint or _NEXT.get(error.code, "")}
    about = f" (peer {error.peer})" if error.peer and error.peer not in error.message else ""
    hint = f"\nhint: {told['hint']}" if told["hint"] else ""
    return f"{error.code}: {error.message}{about}{hint}", {"error": told}


def nothing(wanted: str, tasks: Sequence[str], models: Sequence[str], tags: Sequence[str] = ()) -> str:
    """What is told when a search found nothing."""
    sight = [
        f"{kind} in sight: {', '.join(names[:12])}"
        for kind, names in (("tasks", tasks), ("models", models), ("tags", tags))
        if names
    ]
    what = f"nobody offers {wanted}" if wanted else "no models are in sight"
    return "; ".join([what, *sight])


def _dumped(value: object) -> str:
    return json.dumps(to_json(value), ensure_ascii=False)


def _too_large(how: str) -> LocalError:
    return LocalError(
        Code.TOO_LARGE,
        f"{how} the {MAX_ANSWER_BYTES >> 20} MiB that a tool may give",
        hint="ask for less of it; in a terminal, modelnet-peer invoke --out FILE.npy takes any size",
    )
