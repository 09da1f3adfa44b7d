"""What somebody publishes: a model's source, as they named it, and as it is kept and sent to its worker."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.terms import Terms
from modelnet_p2p.payload import Value

MAX_OPTIONS = 16  # of one source: how its publisher wants it, not data
SLOTS = "slots"  # the option of those kinds of models that leave it to their publisher: calls at once
SAMPLE = "sample"  # the option of those that are tried on an input: a file that holds one


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
    terms: Terms = field(default_factory=Terms)  # of the offer; the model itself is the same under others
    notes: tuple[str, ...] = ()  # what its publisher should know of it; told once, and not kept

    @property
    def shown(self) -> str:
        """What its callers may hear of it, which is not where it lies on its publisher's machine."""
        return self.model or PurePath(self.spec).name

    @property
    def told(self) -> str:
        """As its publisher wrote it, but for what only describes it."""
        module = [] if self.module is None else [f"--module {self.module}"]
        options = [f"--{name} {text}" for name, text in sorted(self.options.items())]
        return " ".join([self.spec, *module, *options, *(["--share-weights"] if self.share_weights else ())])

    def told_beside(self, other: Source) -> str:
        """The same, with its directory where the two are told apart by that."""
        return f"{self.told} of {self.cwd}" if self._is_near and self.cwd != other.cwd else self.told

    def is_like(self, other: Source) -> bool:
        """Whether it names the same thing, which may have changed meanwhile."""
        return self._meant == other._meant

    @property
    def _is_near(self) -> bool:
        """Whether its directory matters."""
        far = "://" in self.spec or self.spec.startswith("builtin:")
        return not (far or PurePath(self.spec).is_absolute())

    @property
    def _meant(self) -> tuple[object, ...]:
        options = {name: text for name, text in self.options.items() if name not in (SLOTS, SAMPLE)}
        return self.spec, self.module, options, self.cwd if self._is_near else ""

    def to_map(self) -> dict[str, Value]:
        others: dict[str, Value] = {} if not self.options else {"options": dict(self.options)}
        if self.share_weights:
            others["share_weights"] = True
        if terms := self.terms.to_map():
            others["terms"] = terms
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
                    terms=Terms.from_map(others.get("terms", {})),
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


def slots_of(source: Source, default: int, most: int) -> int:
    """How many calls at once the publisher wants, `default` if they do not say; LocalError (bad-input)."""
    wanted = source.options.get(SLOTS)
    if wanted is None:
        return default
    if not (wanted.isascii() and wanted.isdecimal() and 1 <= int(wanted[:9]) <= most):
        raise LocalError(Code.BAD_INPUT, f"slots={wanted[:20]}: calls at once, 1 to {most}")
    return int(wanted)


def check_no_slots(source: Source, why: str) -> None:
    """Raises LocalError (bad-input) where calls at once are given for a model that leaves no choice."""
    if SLOTS in source.options:
        raise LocalError(Code.BAD_INPUT, f"{source.spec[:200]} takes no --{SLOTS}: {why}")
