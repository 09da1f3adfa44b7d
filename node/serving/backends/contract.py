"""What a model is to a peer: a source that somebody published, and a backend that loads and runs it.

A backend neither knows the network nor picks an event loop. Small built-in ones run inside the peer
(trio), all others in a worker process (asyncio, which most model code expects); whatever blocks
goes through the `Offload` that its host hands in.
"""

from __future__ import annotations

import base64
import logging
import os
import traceback
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

from modelnet_p2p.errors import Code, LocalError, ModelnetError
from modelnet_p2p.names import MAX_VERSION_BYTES, check_tag
from modelnet_p2p.node.serving.backends.rows import Rows, joined, parted, rows_of, size_of
from modelnet_p2p.payload import Value
from modelnet_p2p.records import MAX_MANIFEST_BYTES, MalformedRecord, Spec
from modelnet_p2p.records.fields import blob, digest, integer, named, numbers, several, text, token
from modelnet_p2p.records.kinds import MAX_EXITS, MAX_LANGUAGES, MAX_TAGS
from modelnet_p2p.records.manifest import MAX_METRICS, MAX_SPECS

log = logging.getLogger(__name__)

T = TypeVar("T")
Emit = Callable[[Value], Awaitable[None]]

METHODS = frozenset({"invoke", "stream"})  # of a model: all that a caller can name
SYNC_SLOTS = 1  # most models are not written for two calls at once
MAX_SLOTS = 64  # each is a stream and a task in the worker
JOINED_BYTES = 1 << 20  # of a step's inputs: to join so few takes no longer than to wake the model's thread
MAX_ROWS = 65_536  # of one step of a model that batches: what more it says is a mistake
MAX_OPTIONS = 16  # of one source: how its publisher wants it, not data
MAX_BODY_BYTES = 512 << 20  # of one input, item or answer: what a stranger's call may make a peer hold
MAX_PLACE_BYTES = 4096  # of a path on this disk
MAX_FAULT_CHARS = 500  # of a stranger's exception: one line for people, not a dump


class Offload(Protocol):
    """Runs a blocking function in the model's thread; returns, even when cancelled, only when it is done."""

    async def __call__(self, step: Callable[[], T], /) -> T: ...


class WorkerOffload(Offload, Protocol):
    """That of a worker process, whose calls may be driven in the model's thread, where no loop runs."""

    async def in_loop(self, awaitable: Awaitable[T], /) -> T:
        """Awaits what a step gave, where coroutines run."""


@dataclass(frozen=True, slots=True)
class Source:
    """What to serve and where: `spec` as the publisher wrote it, with their interpreter, directory and
    environment, so that a model runs in the peer as it ran in the terminal."""

    spec: str
    module: str | None = None
    model: str | None = None  # name[@version]; None: the backend's own
    task: str | None = None
    tags: tuple[str, ...] = ()
    interpreter: str = ""
    cwd: str = ""
    environ: Mapping[str, str] = field(default_factory=dict)
    manifest: bytes | None = None  # sealed by the model's owner, where its publisher is another one
    options: Mapping[str, str] = field(default_factory=dict)  # of its backend, by name
    share_weights: bool = False  # whether others may fetch the files of its digest

    def to_map(self) -> dict[str, Value]:
        others: dict[str, Value] = {} if not self.options else {"options": dict(self.options)}
        if self.share_weights:
            others["share_weights"] = True
        if self.manifest is not None:
            others["manifest"] = base64.b64encode(self.manifest).decode()
        return others | {
            "spec": self.spec,
            "module": self.module,
            "model": self.model,
            "task": self.task,
            "tags": list(self.tags),
            "interpreter": self.interpreter,
            "cwd": self.cwd,
            "environ": dict(self.environ),
        }

    @classmethod
    def from_map(cls, fields: object) -> Source:
        """The source that `to_map` wrote; raises ValueError on anything else."""
        match fields:
            case {
                "spec": str(spec),
                "module": str() | None as module,
                "model": str() | None as model,
                "task": str() | None as task,
                "tags": [*tags],
                "interpreter": str(interpreter),
                "cwd": str(cwd),
                "environ": {**environ},
                **others,
            } if all(isinstance(tag, str) for tag in tags):
                variables = {str(name): str(text) for name, text in environ.items()}
                sealed = others.get("manifest")
                if not isinstance(sealed, str | None):
                    raise ValueError("its owner's seal is not text")
                manifest = None if sealed is None else base64.b64decode(sealed, validate=True)
                options = _options(others.get("options", {}))
                return cls(
                    spec,
                    module,
                    model,
                    task,
                    tuple(tags),
                    interpreter,
                    cwd,
                    variables,
                    manifest,
                    options,
                    share_weights=others.get("share_weights") is True,
                )
        raise ValueError("not the description of a model's source")


def _options(wire: object) -> dict[str, str]:
    if not isinstance(wire, Mapping) or len(wire) > MAX_OPTIONS:
        raise ValueError(f"its options are not a map of at most {MAX_OPTIONS}")
    if not all(isinstance(part, str) for pair in wire.items() for part in pair):
        raise ValueError("an option of it is not text")
    return dict(wire)


def checked_options(wire: object) -> dict[str, str]:
    """A source's options, as somebody who publishes gives them; raises LocalError (bad-input)."""
    try:
        return _options(wire)
    except ValueError as error:
        raise LocalError(Code.BAD_INPUT, f"cannot publish that: {error}") from error


@dataclass(frozen=True, slots=True)
class Description:
    """What a backend knows of its model once it is loaded; becomes the offer."""

    name: str
    task: str
    framework: str
    version: str = ""
    precision: str = ""
    inputs: tuple[Spec, ...] = ()
    outputs: tuple[Spec, ...] = ()
    parameters: int | None = None
    context_length: int | None = None  # tokens
    languages: tuple[str, ...] = ()  # ISO 639-1
    tags: tuple[str, ...] = ()  # beside the publisher's, as many as an offer has room for
    digest: bytes | None = None  # 32 bytes
    files: str = (
        ""  # the file or directory that the digest is of (`node/weights/hashing.py`); not in the offer
    )
    licence: str = ""
    metrics: Mapping[str, int] = field(default_factory=dict)  # millionths
    family: str = ""
    exits: tuple[int, ...] = ()  # layers after which it can stop early
    manifest_envelope: bytes | None = None  # sealed by the owner, where that is not the provider
    streams: bool = False  # it gives items, not one value
    slots: int = SYNC_SLOTS  # calls at once
    idempotent: bool = False  # asking twice does no harm: a lost call may be made again elsewhere
    size_bytes: int | None = None  # of its weights, as they lie in its files
    latency_us: int | None = None  # of one small call, the median of a warm-up run on the provider's machine
    batches: int = 1  # most rows, of several calls together, that it takes in one step; 1: one call a step
    deterministic: bool = False  # the same input gives the same answer, to the bit, whoever serves its digest

    @property
    def places(self) -> int:
        """Calls that are let in at once: of a model that batches a step full, and the next one beside it."""
        return max(self.slots, min(MAX_SLOTS, 2 * self.batches)) if self.batches > 1 else self.slots

    def to_map(self) -> dict[str, Value]:
        return {
            "name": self.name,
            "task": self.task,
            "framework": self.framework,
            "version": self.version,
            "precision": self.precision,
            "inputs": [spec.to_map() for spec in self.inputs],
            "outputs": [spec.to_map() for spec in self.outputs],
            "parameters": self.parameters,
            "context_length": self.context_length,
            "languages": list(self.languages),
            "tags": list(self.tags),
            "digest": self.digest,
            "files": self.files,
            "licence": self.licence,
            "metrics": dict(self.metrics),
            "family": self.family,
            "exits": list(self.exits),
            "manifest_envelope": self.manifest_envelope,
            "streams": self.streams,
            "slots": self.slots,
            "idempotent": self.idempotent,
            "size_bytes": self.size_bytes,
            "latency_us": self.latency_us,
            "batches": self.batches,
            "deterministic": self.deterministic,
        }

    @classmethod
    def from_map(cls, fields: object) -> Description:
        """What a worker told of its model, of this or of another version of ours: fields that are missing
        are at their defaults, unknown ones are dropped. Raises ValueError on anything else."""
        if not isinstance(fields, dict) or not {"name", "task", "framework"} <= fields.keys():
            raise ValueError("not the description of a model")
        values: dict[str, Any] = {}  # Any: the table makes the types right
        for name, decode in _DECODERS.items():
            if name in fields:
                try:
                    values[name] = decode(fields[name])
                except MalformedRecord as error:
                    raise ValueError(f"the {name} of its description: {error.message}") from error
        return cls(**values)


def _or(empty: object, decode: Callable[[object], object]) -> Callable[[object], object]:
    return lambda wire: empty if wire == empty else decode(wire)


def _flag(wire: object) -> bool:
    if not isinstance(wire, bool):
        raise MalformedRecord("neither true nor false")
    return wire


# A worker runs a stranger's code: nothing is taken from it that an offer could not carry. What the publisher
# may still replace, and what is compared with the owner's seal, is only bounded here.
_DECODERS: Mapping[str, Callable[[object], object]] = {
    "name": text(200),
    "task": text(200),
    "framework": _or("", token(32)),
    "version": text(MAX_VERSION_BYTES),
    "precision": _or("", token(32)),
    "inputs": several(Spec.from_map, MAX_SPECS),
    "outputs": several(Spec.from_map, MAX_SPECS),
    "parameters": _or(None, integer()),
    "context_length": _or(None, integer()),
    "languages": several(token(16), MAX_LANGUAGES),
    "tags": several(named(check_tag), MAX_TAGS),
    "digest": _or(None, digest),
    "files": text(MAX_PLACE_BYTES),
    "licence": text(64),
    "metrics": numbers(MAX_METRICS, 32),
    "family": text(80),
    "exits": several(integer(), MAX_EXITS),
    "manifest_envelope": _or(None, blob(1, MAX_MANIFEST_BYTES)),
    "streams": _flag,
    "slots": integer(1, MAX_SLOTS),
    "idempotent": _flag,
    "size_bytes": _or(None, integer()),
    "latency_us": _or(None, integer()),
    "batches": integer(1, MAX_ROWS),
    "deterministic": _flag,
}


class Backend(ABC):
    """One kind of model. The host calls `load` once, then `invoke` or `stream`, then `close`."""

    waits = True  # False: `invoke` returns without waiting for anything, so nothing can interrupt it
    options: ClassVar[frozenset[str]] = frozenset()  # of a source, that it knows

    def __init__(self, source: Source, offload: Offload) -> None:
        self.source = source
        self.offload = offload

    @classmethod
    @abstractmethod
    def claims(cls, spec: str) -> bool:
        """Whether this backend serves such a source; looks at the text alone."""

    @abstractmethod
    async def load(self) -> None:
        """Make the model ready; raises LocalError that names the file or module in trouble."""

    @abstractmethod
    def describe(self) -> Description:
        """Of a loaded model."""

    @property
    def blocks(self) -> bool:
        """Of a loaded model: whether `invoke` and `stream` await nothing but `offload` and its `in_loop`.

        Then calls of it run in the model's thread from their first byte to their last, one after the other.
        """
        return False

    @abstractmethod
    async def invoke(self, value: Value, params: Mapping[str, Value]) -> Value:
        """One answer. Raises LocalError (bad-input) for the caller's mistake, anything for the model's."""

    def rows(self, value: Value, params: Mapping[str, Value]) -> Rows | None:
        """What a call brings to a step that it may share; None: it runs alone. Quick, and asked only of a
        model whose `batches` are more than 1; by default a tensor, a list or a map of tensors (`rows_of`)."""
        return rows_of(value, params)

    async def invoke_many(
        self, calls: Sequence[tuple[Value, Mapping[str, Value]]]
    ) -> list[Value | LocalError]:
        """The answers to several calls in one step of the model, in their order: an answer, or what was wrong
        with that call alone.

        They are two or more, all with a `rows` of the same kind, together no more than `batches` of them, and
        their params are equal. It awaits what `invoke` may await. Where it raises, the calls are made again
        in smaller parts, down to one by one with `invoke`: so a bad input fails alone, and a model that
        batches must not mind being asked again. By default the inputs are joined, `invoke` is asked once and
        its answer is cut at the same rows.
        """
        values, counts = [], []
        for value, params in calls:
            found = self.rows(value, params)
            if found is None:
                raise TypeError("a call that shares no step came to one")
            values.append(value)
            counts.append(found.count)
        if size_of(values) <= JOINED_BYTES:
            together = joined(values)
        else:
            together = await self.offload(lambda: joined(values))
        return parted(await self.invoke(together, calls[0][1]), counts)

    def stream(self, value: Value, params: Mapping[str, Value]) -> AsyncGenerator[Value, None]:
        """Items, for a model whose description says `streams`."""
        raise LocalError(Code.UNKNOWN_METHOD, f"{self.source.spec} gives one answer, not a stream")

    async def close(self) -> None:
        """Let go of what `load` took."""
        return None


def check_options(backend: type[Backend], source: Source) -> None:
    """Raises LocalError (bad-input) for an option of the source that this kind of model does not have."""
    unknown = sorted(source.options.keys() - backend.options)
    if unknown:
        known = ", ".join(f"--{name}" for name in sorted(backend.options)) or "none"
        words = f"{source.spec[:200]} is no model that takes --{unknown[0][:40]}"
        raise LocalError(Code.BAD_INPUT, words, hint=f"of its own options it has {known}")


def unknown_method(method: str, known: Iterable[str] = METHODS) -> LocalError:
    """What to tell a caller who names a method that is not among `known`."""
    return LocalError(
        Code.UNKNOWN_METHOD, f"no method {method[:64]!r}", hint=f"one of {', '.join(sorted(known))}"
    )


_END = object()


async def run_method(
    backend: Backend, streams: bool, method: str, value: Value, params: Mapping[str, Value], emit: Emit
) -> Value:
    """Run one call: a streaming model's items are emitted and None returned, whichever the method;
    another model's one answer is returned, or for `stream` emitted.

    Raises LocalError: the model's own ones, and `model-error` for whatever else leaves the model.
    Leaving early closes the model's generator.
    """
    if not streams:
        output = await guarded(backend.invoke(value, params))
        if method == "invoke":
            return output
        await emit(output)
        return None
    items = backend.stream(value, params)
    try:
        while (item := await guarded(anext(items, _END))) is not _END:
            await emit(item)
    finally:
        await guarded(items.aclose())
    return None


async def guarded(step: Awaitable[T]) -> T:
    """One step of a stranger's model, inside of the guard."""
    with guard(Code.MODEL_ERROR, "the model raised "):
        return await step


@contextmanager
def guard(code: Code, prefix: str, hint: str = "", level: int = logging.ERROR) -> Iterator[None]:
    """The one guard around a stranger's code: what it raises, `sys.exit` included, is logged (a line, at
    `level`; its traceback at `info`) and becomes a LocalError of that code, whose message is `prefix` and
    what a traceback ends with. Typed errors pass."""
    try:
        yield
    except ModelnetError:
        raise
    except (Exception, SystemExit) as error:
        words = last_line(error)
        log.log(level, "%s%s%s", prefix, words, _where(error))
        log.info("its traceback", exc_info=error)
        raise LocalError(code, f"{prefix}{words}", hint=hint) from error


def last_line(error: BaseException) -> str:
    """What a traceback ends with: the exception's type and text, on one bounded line."""
    text = "".join(traceback.format_exception_only(error)).strip() or type(error).__name__
    if isinstance(error, SyntaxError):  # whose lines begin with the place and the code
        file = os.path.basename(error.filename or "")
        text = f"{text.splitlines()[-1]} ({file}, line {error.lineno})"
    return " ".join(text.split())[:MAX_FAULT_CHARS]


def _where(error: BaseException) -> str:
    """` (file.py:7)`: where the exception was raised, empty if nobody knows."""
    if isinstance(error, SyntaxError):
        return ""  # its words say so already
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    return f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
