"""What a server tells of its models, and whether they answer.

All of these servers list their models at `/models`; what else they say differs. vLLM tells the context length
there, llama-server the number of parameters, too; Ollama tells both, and what a model can do, when asked for
the one model. Beyond that there is one honest test: a model is asked for one token, or for one vector. That
test also says what an unknown model is for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import trio

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.description import MAX_SLOTS, Description
from modelnet_p2p.node.serving.upstream import json_values
from modelnet_p2p.node.serving.upstream.address import MAX_UPSTREAM_NAME, served_name
from modelnet_p2p.node.serving.upstream.answers import Answer, vectors_of
from modelnet_p2p.node.serving.upstream.events import Events
from modelnet_p2p.node.serving.upstream.faults import SERVER
from modelnet_p2p.node.serving.upstream.http import SILENT_SECONDS, Http
from modelnet_p2p.node.serving.upstream.requests import MAX_REQUEST_BYTES, Kind
from modelnet_p2p.records import Spec

LIST_SECONDS = 10.0  # of silence: a list is told from memory, also by a server that is hard at work
ASIDE_SECONDS = 5.0
MAX_LISTED = 1024  # models of one server that are looked at
ENOUGH_ITEMS = 4  # of an answer that was to be one token long: a role, the token, the end
SLOTS = 16  # calls at once where a server does not tell; it has a queue of its own
VLLM_SLOTS = 64  # it batches up to 256
MAX_FIGURE = 1 << 53  # parameters, tokens: more is no number of those
TEXT_TASK, VECTOR_TASK = "text-generation", "feature-extraction"
VECTOR_TASKS = frozenset({VECTOR_TASK, "sentence-similarity"})
_VECTOR_WORDS = ("embed", "bge-", "gte-", "e5-", "minilm", "sentence-t", "nomic-", "arctic-")
CANNOT = frozenset({Code.BAD_INPUT, Code.NOT_FOUND, Code.UNKNOWN_METHOD})  # for that, perhaps something else
_FRAMEWORKS = {"vllm": "vllm", "llamacpp": "llama.cpp", "sglang": "sglang"}
GATEWAY = "modelnet-p2p"  # the framework of what is behind another peer's gateway


@dataclass(frozen=True, slots=True)
class Listed:
    """One model of a server's list, with all that was said of it there."""

    name: str
    fields: Mapping[str, object]

    @property
    def of_a_peer(self) -> Mapping[str, object]:
        """What another peer's gateway tells of it; an empty map from another server."""
        return _map(self.fields.get("modelnet"))

    def may_be_served(self, me: str) -> bool:
        """Whether it can be asked here, and does not come by such a detour already: two peers that publish
        each other's gateways would else find more and more models of the same."""
        told = self.of_a_peer
        paths = told.get("endpoints")
        asked = not isinstance(paths, list) or any(f"/v1{kind.value}" in paths for kind in Kind)
        return asked and not (
            told and (told.get("framework") == GATEWAY or self.fields.get("owned_by") == me)
        )


@dataclass(frozen=True, slots=True)
class Looked:
    """A model that has answered, and what is known of it."""

    kind: Kind
    description: Description


async def list_models(http: Http) -> list[Listed]:
    """All models of that server, in its order; raises LocalError."""
    usual = "the URL of such a server usually ends in /v1"
    try:
        body = await http.get("/models", seconds=LIST_SECONDS)
    except LocalError as error:
        if error.code is not Code.NOT_FOUND:
            raise
        raise LocalError(
            Code.NOT_FOUND, f"{SERVER} has no list of models there (/models)", hint=usual
        ) from error
    data = body.get("data", body.get("models")) if isinstance(body, dict) else body
    if data is None and isinstance(body, dict) and "data" in body:
        data = []  # Ollama's list of no models
    if not isinstance(data, list):
        raise LocalError(Code.BAD_INPUT, f"{SERVER} lists no models as OpenAI's API does", hint=usual)
    found: dict[str, Listed] = {}
    for fields in data[:MAX_LISTED]:
        name = fields.get("id") if isinstance(fields, dict) else None
        if isinstance(name, str) and name.isprintable() and 0 < len(name) <= MAX_UPSTREAM_NAME:
            found.setdefault(name, Listed(name, fields))
    return list(found.values())


def named(listed: Sequence[Listed], name: str) -> Listed | None:
    """The one that is called so."""
    return next((model for model in listed if is_named(model.name, name)), None)


def is_named(full: str, name: str) -> bool:
    """Whether `name` means the model of that full name: Ollama means `:latest` where no tag is said."""
    return full in (name, f"{name}:latest")


async def look_at(http: Http, model: Listed, task: str | None) -> Looked:
    """Ask the model for a token or a vector, and describe it; raises LocalError if it gives none.

    With a `task` that its publisher named it must be able to do that.
    """
    shown = await _shown(http, model)
    kind, dimensions = await _first_answer(http, model.name, _candidates(model, shown, task))
    framework = _framework(model, shown)
    vectors = kind is Kind.EMBEDDING
    texts = Spec("messages", "json") if kind is Kind.CHAT else Spec("prompt", "text")
    description = Description(
        name=served_name(model.name),
        task=VECTOR_TASK if vectors else TEXT_TASK,
        framework=framework,
        precision=_precision(shown),
        inputs=(Spec("texts", "json") if vectors else texts,),
        outputs=(Spec("embeddings", "tensor", "float32", (None, dimensions)),)
        if vectors
        else (Spec("text", "text"),),
        parameters=_parameters(model, shown),
        context_length=_context(model, shown),
        size_bytes=_figure(_map(model.fields.get("meta")).get("size")),
        streams=not vectors,
        slots=await _slots(http, framework),
        idempotent=True,
    )
    return Looked(kind, description)


async def check(http: Http, name: str, kind: Kind) -> int:
    """One token or one vector of a model that does that; the vector's length, else 0. Raises LocalError."""
    match kind:
        case Kind.CHAT:
            asked: dict[str, object] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        case Kind.COMPLETION:
            asked = {"prompt": "Hi", "max_tokens": 1}
        case Kind.EMBEDDING:
            body = json_values.dump({"model": name, "input": ["Hi"]}, MAX_REQUEST_BYTES)
            return int(vectors_of(await http.post(kind.value, body), 1)[0].shape[1])
    try:
        await _one_token(http, name, kind, asked)
    except LocalError as error:
        if kind is not Kind.CHAT or "max_completion_tokens" not in error.message:
            raise
        asked["max_completion_tokens"] = asked.pop("max_tokens")  # OpenAI's newer models
        await _one_token(http, name, kind, asked)
    return 0


async def _one_token(http: Http, name: str, kind: Kind, fields: Mapping[str, object]) -> None:
    """The beginning of an answer; streamed, for a model that does not heed `max_tokens` may go on and on."""
    body = json_values.dump({"model": name, "stream": True, **fields}, MAX_REQUEST_BYTES)
    answer, events, items = Answer(plain=False), Events(), 0
    try:
        with trio.fail_after(SILENT_SECONDS):
            async with http.stream(kind.value, body) as reply:
                if not reply.streams:
                    answer.on_body(await reply.json())
                    return
                async for data in reply.body:
                    for event in events.feed(data):
                        items += len(answer.on_event(event))
                    if answer.done or items >= ENOUGH_ITEMS:
                        return await reply.to_its_end()
    except trio.TooSlowError as error:
        raise LocalError(Code.MODEL_ERROR, f"{SERVER} gave no token in {SILENT_SECONDS:g} s") from error
    answer.end()


async def _first_answer(http: Http, name: str, kinds: Sequence[Kind]) -> tuple[Kind, int]:
    """The first of these that the model does; another is tried only where the server says that it cannot."""
    trouble: LocalError | None = None
    for kind in kinds:
        try:
            return kind, await check(http, name, kind)
        except LocalError as error:
            if error.code not in CANNOT:
                raise
            trouble = trouble or error  # the most likely kind has the words that matter
    assert trouble is not None
    raise trouble


def _candidates(model: Listed, shown: Mapping[str, object], task: str | None) -> list[Kind]:
    task = task or (VECTOR_TASK if model.of_a_peer.get("task") in VECTOR_TASKS else None)
    if task is not None:
        return [Kind.EMBEDDING] if task in VECTOR_TASKS else [Kind.CHAT, Kind.COMPLETION]
    abilities = shown.get("capabilities")
    if isinstance(abilities, list):  # Ollama knows
        if "completion" in abilities:
            return [Kind.CHAT, Kind.COMPLETION]
        if "embedding" in abilities:
            return [Kind.EMBEDDING]
    lower = model.name.lower()
    if any(word in lower for word in _VECTOR_WORDS):
        return [Kind.EMBEDDING, Kind.CHAT, Kind.COMPLETION]
    return [Kind.CHAT, Kind.COMPLETION, Kind.EMBEDDING]


async def _shown(http: Http, model: Listed) -> Mapping[str, object]:
    """What Ollama tells of the model; an empty map from another server."""
    if model.of_a_peer or model.fields.get("owned_by") in _FRAMEWORKS:
        return {}
    body = json_values.dump({"model": model.name}, MAX_REQUEST_BYTES)
    return _map(await http.aside("/api/show", body, seconds=ASIDE_SECONDS))


async def _slots(http: Http, framework: str) -> int:
    if framework == "llama.cpp":
        slots = _figure(_map(await http.aside("/props", None, seconds=ASIDE_SECONDS)).get("total_slots"))
        return min(slots, MAX_SLOTS) if slots else SLOTS
    return VLLM_SLOTS if framework == "vllm" else SLOTS


def _framework(model: Listed, shown: Mapping[str, object]) -> str:
    if "model_info" in shown or "details" in shown:
        return "ollama"
    if model.of_a_peer:
        return GATEWAY
    return _FRAMEWORKS.get(str(model.fields.get("owned_by")), "openai")


def _context(model: Listed, shown: Mapping[str, object]) -> int | None:
    """Tokens: what is served, rather than what the model was trained for."""
    meta, details = _map(model.fields.get("meta")), _map(shown.get("model_info"))
    of_its_family = [figure for name, figure in details.items() if name.endswith(".context_length")]
    told = [
        *(model.fields.get(name) for name in ("max_model_len", "context_length", "max_context_length")),
        *(meta.get(name) for name in ("n_ctx", "n_ctx_train")),
        *of_its_family,
        model.of_a_peer.get("context_length"),
    ]
    return next((figure for tokens in told if (figure := _figure(tokens))), None)


def _parameters(model: Listed, shown: Mapping[str, object]) -> int | None:
    told = (
        _map(model.fields.get("meta")).get("n_params"),
        _map(shown.get("model_info")).get("general.parameter_count"),
        model.of_a_peer.get("parameters"),
    )
    return next((figure for count in told if (figure := _figure(count))), None)


def _precision(shown: Mapping[str, object]) -> str:
    level = _map(shown.get("details")).get("quantization_level")
    text = level.lower() if isinstance(level, str) else ""
    return text if text.isascii() and 0 < len(text) <= 16 and text.replace("_", "").isalnum() else ""


def _map(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _figure(value: object) -> int | None:
    return value if type(value) is int and 0 < value < MAX_FIGURE else None
