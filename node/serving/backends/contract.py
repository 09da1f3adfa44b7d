"""What a model is to a peer: a backend that loads what somebody published, says what it is, and runs it.

A backend neither knows the network nor picks an event loop. Small built-in ones run inside the peer
(trio), all others in a worker process (asyncio, which most model code expects); whatever blocks
goes through the `Offload` that its host hands in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import ClassVar, Protocol, TypeVar

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.rows import Rows, joined, parted, rows_of, size_of
from modelnet_p2p.node.serving.description import Description
from modelnet_p2p.node.serving.guarding import guarded
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.payload import Value

T = TypeVar("T")
Emit = Callable[[Value], Awaitable[None]]

METHODS = frozenset({"invoke", "stream"})  # of a model: all that a caller can name
JOINED_BYTES = 1 << 20  # of a step's inputs: to join so few takes no longer than to wake the model's thread
MAX_BODY_BYTES = 512 << 20  # of one input, item or answer: what a stranger's call may make a peer hold

__all__ = [  # all that a backend is written with
    "JOINED_BYTES",
    "MAX_BODY_BYTES",
    "METHODS",
    "Backend",
    "Description",
    "Emit",
    "Offload",
    "Source",
    "WorkerOffload",
    "check_options",
    "run_method",
    "unknown_method",
]


class Offload(Protocol):
    """Runs a blocking function in the model's thread; returns, even when cancelled, only when it is done."""

    async def __call__(self, step: Callable[[], T], /) -> T: ...


class WorkerOffload(Offload, Protocol):
    """That of a worker process, whose calls may be driven in the model's thread, where no loop runs."""

    async def in_loop(self, awaitable: Awaitable[T], /) -> T:
        """Awaits what a step gave, where coroutines run."""


class Backend(ABC):
    """One kind of model. The host calls `load` once, then `invoke` or `stream`, then `close`."""

    waits = True  # False: `invoke` returns without waiting for anything, so nothing can interrupt it
    options: ClassVar[frozenset[str]] = frozenset()  # of a source, that it knows
    takes_module: ClassVar[bool] = False  # whether a source may name a module beside its file

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
    if source.module is not None and not backend.takes_module:
        raise no_module(source)
    unknown = sorted(source.options.keys() - backend.options)
    if unknown:
        known = ", ".join(f"--{name}" for name in sorted(backend.options)) or "none"
        words = f"{source.spec[:200]} is no model that takes --{unknown[0][:40]}"
        raise LocalError(Code.BAD_INPUT, words, hint=f"of its own options it has {known}")


def no_module(source: Source) -> LocalError:
    """What to tell a publisher who names a module for a model that has no use for it."""
    words = f"{source.spec[:200]} is no model that takes --module"
    return LocalError(Code.BAD_INPUT, words, hint="it is for the weights in a .safetensors file")


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
