"""MODULE:NAME: any Python function, generator or class, sync or async, served as it is.

The caller's input is its one positional argument, the parameters are its keywords. The name comes
from the publisher alone; nothing that a caller sends is ever resolved to code. An attribute
`idempotent = True`, of the function, the class or its method, says that a lost call may be made again;
`batches = 32` that it takes rows, and up to 32 of them at once, whoever they are of: see `rows`; `slots = 64`
that an async one answers so many calls at once, in place of 8 (its publisher may choose otherwise);
`languages = ("de", "en")` and `licence = "MIT"` go into its offer.
A torch module, or a class of one, is served as those with weights in a file are.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import replace
from enum import Enum, auto
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.contract import Backend, Description, WorkerOffload
from modelnet_p2p.node.serving.backends.rows import Rows
from modelnet_p2p.node.serving.backends.tensor_model import QUANTISE
from modelnet_p2p.node.serving.description import MAX_ROWS, MAX_SLOTS, SYNC_SLOTS, as_note
from modelnet_p2p.node.serving.guarding import guard
from modelnet_p2p.node.serving.source import SAMPLE, SLOTS, check_no_slots, slots_of
from modelnet_p2p.node.serving.terms import is_language, is_licence
from modelnet_p2p.payload import Value
from modelnet_p2p.records import Spec
from modelnet_p2p.records.kinds import MAX_LANGUAGES
from modelnet_p2p.tensor import DTYPES

if TYPE_CHECKING:
    from modelnet_p2p.node.serving.backends.torch_serving import TorchServing

TASK = "x-modelnet/function"
ASYNC_SLOTS = 8  # an async model waits for something else most of the time
ONE_BY_ONE = "it answers one call at a time, for only async functions, generators and classes wait meanwhile"

_DOTTED = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
_SPEC = re.compile(rf"({_DOTTED}):({_DOTTED})", re.ASCII)
_END = object()
_WORDS = ("languages", "licence")


class Kind(Enum):
    """How a target is called."""

    FUNCTION = auto()
    GENERATOR = auto()
    COROUTINE = auto()
    ASYNC_GENERATOR = auto()

    @classmethod
    def of(cls, target: Callable[..., object]) -> Kind:
        if inspect.isasyncgenfunction(target):
            return cls.ASYNC_GENERATOR
        if inspect.iscoroutinefunction(target):
            return cls.COROUTINE
        return cls.GENERATOR if inspect.isgeneratorfunction(target) else cls.FUNCTION


class Words(NamedTuple):
    """What a function or class says of itself for people who search; `notes`: what of it stands in vain."""

    languages: tuple[str, ...] = ()
    licence: str = ""
    notes: tuple[str, ...] = ()


class CallableBackend(Backend):
    """Runs in a worker process. Import and constructor run in the thread that the calls run in."""

    options: ClassVar[frozenset[str]] = frozenset({SAMPLE, QUANTISE, SLOTS})
    offload: WorkerOffload
    _serving: TorchServing | None = None  # where it is a torch module
    _target: Callable[..., Any]  # Any: a stranger's code; what it gives is checked when it is encoded
    _owner: object  # the instance, where a class was named
    _kind: Kind
    _signature: inspect.Signature | None
    _takes_input_alone: bool  # as most are called: that is not looked up for each call
    _idempotent: bool
    _batches: int
    _slots: int
    _words: Words
    _description: Description  # of a torch module

    @classmethod
    def claims(cls, spec: str) -> bool:
        return not spec.startswith("builtin:") and _SPEC.fullmatch(spec) is not None

    async def load(self) -> None:
        found = await self.offload(lambda: resolve(self.source.spec, self.source.cwd))
        if is_module(found) and not hasattr(found, "invoke"):
            await self.offload(lambda: self._load_module(found))
            return
        if others := self.source.options.keys() - {SLOTS}:
            words = f"{self.source.spec} is no torch module: it takes no --{min(others)}"
            raise LocalError(Code.BAD_INPUT, words)
        if inspect.isclass(found):
            self._owner = await self.offload(lambda: construct(found, self.source.spec))
            self._target = _entry(self._owner, self.source.spec)
        else:
            self._owner = None
            self._target = _entry(found, self.source.spec)
        self._kind = Kind.of(self._target)
        try:
            self._signature = inspect.signature(self._target)
        except ValueError:  # some functions written in C do not tell theirs
            self._signature = None
        self._takes_input_alone = self._signature is None or _binds(self._signature)
        # `is True`: it is a word of ours only as a flag, not as somebody's method of that name
        self._idempotent = any(getattr(part, "idempotent", None) is True for part in (found, self._target))
        self._batches = self._told_batches(found)
        self._slots = self._told_slots(found)
        self._words = told_words(self.source.spec, found, self._target)

    def _load_module(self, found: Any) -> None:  # Any: torch is not imported for its types
        from modelnet_p2p.node.serving.backends.torch_loading import serve

        check_no_slots(self.source, ONE_BY_ONE)
        module: Any = construct(found, self.source.spec) if inspect.isclass(found) else found
        self._serving, told = serve(module, self, self.source.spec)
        words = told_words(self.source.spec, module)
        self._description = replace(
            told,
            name=self._name,
            digest=None,  # its code is part of what it is
            languages=words.languages,
            licence=words.licence,
            notes=(*told.notes, *words.notes),
        )

    @property
    def _name(self) -> str:
        name = self.source.spec.rpartition(":")[2].rpartition(".")[2].lower().strip("_")
        return name or "function"

    def _told(self, found: object, name: str, default: int) -> int:
        told = (getattr(part, name, None) for part in (found, self._target))
        return next((number for number in told if type(number) is int), default)  # not somebody's method

    def _told_slots(self, found: object) -> int:
        if self._kind not in (Kind.COROUTINE, Kind.ASYNC_GENERATOR):  # one thread runs it, one call at a time
            check_no_slots(self.source, ONE_BY_ONE)
            return SYNC_SLOTS
        slots = self._told(found, "slots", ASYNC_SLOTS)
        if not 1 <= slots <= MAX_SLOTS:
            words = f"{self.source.spec} says slots = {slots}: a model answers 1 to {MAX_SLOTS} calls at once"
            raise LocalError(Code.BAD_INPUT, words)
        return slots_of(self.source, slots, MAX_SLOTS)

    def _told_batches(self, found: object) -> int:
        rows = self._told(found, "batches", 1)
        if not 1 <= rows <= MAX_ROWS:
            words = f"{self.source.spec} says batches = {rows}: a step takes 1 to {MAX_ROWS} rows"
            raise LocalError(Code.BAD_INPUT, words)
        if rows > 1 and self._kind in (Kind.GENERATOR, Kind.ASYNC_GENERATOR):
            words = f"{self.source.spec} says batches = {rows}, and gives its answer in items"
            raise LocalError(Code.BAD_INPUT, words, hint="only what returns one answer can take batches")
        return rows

    def describe(self) -> Description:
        if self._serving is not None:
            return self._description
        inputs, outputs = _specs(self._signature) if self._signature else ((), ())
        return Description(
            name=self._name,
            task=TASK,
            framework="python",
            inputs=inputs,
            outputs=outputs,
            streams=self._kind in (Kind.GENERATOR, Kind.ASYNC_GENERATOR),
            slots=self._slots,
            idempotent=self._idempotent,
            batches=self._batches,
            languages=self._words.languages,
            licence=self._words.licence,
            notes=self._words.notes,
        )

    @property
    def blocks(self) -> bool:
        return self._serving is not None or self._kind in (Kind.FUNCTION, Kind.GENERATOR)

    async def invoke(self, value: Value, params: Mapping[str, Value]) -> Value:
        if (serving := self._serving) is not None:
            serving.check(value, params)
            return await self.offload(lambda: serving.run(value, params))
        if params or not self._takes_input_alone:
            check_keywords(self.source.spec, self._signature, value, params)
        if self._kind is Kind.COROUTINE:
            return await self._target(value, **params)
        output = await self.offload(_steady(lambda: self._target(value, **params)))
        if inspect.isawaitable(output):  # a wrapper around an async one
            return await self.offload.in_loop(output)
        return output

    def rows(self, value: Value, params: Mapping[str, Value]) -> Rows | None:
        return super().rows(value, params) if self._serving is None else self._serving.rows(value, params)

    async def stream(self, value: Value, params: Mapping[str, Value]) -> AsyncGenerator[Value, None]:
        if params or not self._takes_input_alone:
            check_keywords(self.source.spec, self._signature, value, params)
        if self._kind is Kind.ASYNC_GENERATOR:
            items = self._target(value, **params)
            try:
                async for item in items:
                    yield item
            finally:
                await items.aclose()
            return
        generator = self._target(value, **params)
        try:
            while (item := await self.offload(_next(generator))) is not _END:
                yield item
        finally:
            await self.offload(generator.close)

    async def close(self) -> None:
        """Calls the instance's own `close`, if it has one without arguments."""
        close = None if self._serving else getattr(self._owner, "close", None)
        if inspect.iscoroutinefunction(close):
            await close()
        elif callable(close):
            await self.offload(close)


def told_words(spec: str, *parts: object) -> Words:
    """The attributes `languages` and `licence` of the first of `parts` that has them. They may be somebody's
    own, of other things: what a record cannot hold is left out, with a note."""
    told = {name: next((getattr(p, name) for p in parts if hasattr(p, name)), None) for name in _WORDS}
    languages, licence = told["languages"], told["licence"]
    codes = tuple(languages) if isinstance(languages, list | tuple) else ()
    notes = []
    if not (all(map(is_language, codes)) and len(codes) <= MAX_LANGUAGES):
        words = f'a tuple of at most {MAX_LANGUAGES} codes such as ("de", "pt-BR")'
        notes.append(
            as_note(f"{spec} says languages = {languages!r}"[:200], f": left out, for it is not {words}")
        )
        codes = ()
    if isinstance(licence, str) and not is_licence(licence):
        notes.append(
            as_note(f"{spec} says licence = {licence!r}"[:200], ": left out, for it is no licence's id")
        )
        licence = ""
    return Words(tuple(dict.fromkeys(codes)), licence if isinstance(licence, str) else "", tuple(notes))


def is_module(found: object) -> bool:
    """Whether it is a torch module, or a class of one. Where torch was not imported nothing is."""
    torch = sys.modules.get("torch")
    module = getattr(getattr(torch, "nn", None), "Module", None)
    if not isinstance(module, type):
        return False
    return issubclass(found, module) if isinstance(found, type) else isinstance(found, module)


def _binds(signature: inspect.Signature) -> bool:
    """Whether it may be called with one positional argument."""
    try:
        signature.bind(None)
    except TypeError:
        return False
    return True


def check_keywords(
    spec: str, signature: inspect.Signature | None, value: Value, params: Mapping[str, Value]
) -> None:
    """A caller's wrong keyword is the caller's mistake, told apart from the model's own TypeError."""
    if signature is None:
        return
    try:
        signature.bind(value, **params)
    except TypeError as error:
        raise LocalError(
            Code.BAD_INPUT,
            f"{spec} does not take these parameters: {error}",
            hint=f"it is called as {spec.rpartition(':')[2]}{signature}"[:500],
        ) from error


def _steady(step: Callable[[], Value]) -> Callable[[], Value]:
    """`step`, whose StopIteration becomes a RuntimeError: a future cannot carry the former and hangs."""

    def run() -> Value:
        try:
            return step()
        except StopIteration as error:
            raise RuntimeError("StopIteration left the model") from error

    return run


def _next(generator: Iterator[Value]) -> Callable[[], Value]:
    return lambda: next(generator, _END)


def resolve(spec: str, cwd: str) -> object:
    """The object that MODULE:NAME names; raises LocalError (bad-input) that says what went wrong."""
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise LocalError(Code.BAD_INPUT, f"{spec[:80]!r} is not MODULE:NAME")
    module, path = match.groups()
    trouble = f"cannot import {path} from module {module} in {cwd or '.'}: "
    if not _exists(module):
        words = f"{trouble}No module named {module!r}"
        raise LocalError(
            Code.BAD_INPUT, words, hint="publish from the directory that holds it, or install it"
        )
    with guard(Code.BAD_INPUT, trouble, f"see it whole with: python -c 'import {module}'"):
        found: object = import_module(module)
    for name in path.split("."):
        if not hasattr(found, name):
            words = f"{trouble}it has no {name!r}"
            raise LocalError(Code.BAD_INPUT, words, hint=f"it has {_names(found)}")
        found = getattr(found, name)
    return found


def _exists(module: str) -> bool:
    """Whether the import system knows the top of that module's name; nothing of it is run."""
    return module.partition(".")[0] in sys.modules or find_spec(module.partition(".")[0]) is not None


def _names(found: object) -> str:
    """The callables that could have been meant, some of them."""
    names = [name for name, value in vars(found).items() if callable(value) and not name.startswith("_")]
    return ", ".join(names[:8]) or "nothing that can be called"


def construct(cls: Callable[..., object], spec: str, fields: Mapping[str, object] | None = None) -> object:
    """An instance of a published class; raises LocalError (bad-input) with what its constructor raised."""
    with guard(Code.BAD_INPUT, f"cannot make an instance of {spec}: "):
        return cls(**(fields or {}))


def _entry(found: object, spec: str) -> Callable[..., Any]:
    """What is called: `.invoke` of an object that has it, else the object itself."""
    if inspect.isroutine(found):
        return cast(Callable[..., Any], found)
    entry = getattr(found, "invoke", None)
    if not callable(entry):
        if not callable(found):
            raise LocalError(
                Code.BAD_INPUT,
                f"{spec} is neither callable nor has a method `invoke`: {type(found).__name__}",
            )
        # the bound method tells what the object would hide: whether it is async, whether it streams
        entry = found if hasattr(found, "func") else found.__call__
    return cast(Callable[..., Any], entry)


_STREAM = re.compile(r"(?:\w+\.)*(?:Async)?(?:Iterator|Iterable|Generator)\[(.*)\]", re.DOTALL)
_HEAD = re.compile(r"(?:\w+\.)*(\w+)")
_DTYPE = re.compile(r"(?:dtype|NDArray)\[(?:\w+\.)*(\w+)")
_TENSORS = frozenset({"ndarray", "NDArray"})
_JSON = frozenset(
    {"dict", "list", "tuple", "int", "float", "bool", "Mapping", "Sequence", "Dict", "List", "Tuple", "Any"}
)


def _specs(signature: inspect.Signature) -> tuple[tuple[Spec, ...], tuple[Spec, ...]]:
    """Inputs and outputs as far as the annotations tell; they are read as text, never evaluated."""
    first = next(iter(signature.parameters.values()), None)
    inputs = _spec(first.name, first.annotation) if first else ()
    return inputs, _spec("output", signature.return_annotation)


def _spec(name: str, annotation: object) -> tuple[Spec, ...]:
    if annotation is inspect.Signature.empty:
        return ()
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    if stream := _STREAM.match(text):
        text = stream[1]
    head = _HEAD.match(text)
    match head and head[1]:
        case "str":
            return (Spec(name[:48], "text"),)
        case kind if kind in _TENSORS:
            dtype = _DTYPE.search(text)
            return (Spec(name[:48], "tensor", dtype[1] if dtype and dtype[1] in DTYPES else None),)
        case kind if kind in _JSON:
            return (Spec(name[:48], "json"),)
    return ()


def spec_of(function: Callable[..., object]) -> str:
    """`MODULE:NAME` of an importable function or class; the worker imports it by that name."""
    module = getattr(function, "__module__", None)
    name = getattr(function, "__qualname__", "")
    if not module or module == "__main__" or not name.isidentifier():
        raise LocalError(
            Code.BAD_INPUT,
            f"{function!r} cannot be imported by a worker process",
            hint="put it at the top level of a module of its own, and publish 'MODULE:NAME'",
        )
    return f"{module}:{name}"
