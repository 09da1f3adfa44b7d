"""What a loaded model turned out to be, as its backend tells it; the offer is made of that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from modelnet_p2p.names import MAX_VERSION_BYTES, check_tag
from modelnet_p2p.payload import Value
from modelnet_p2p.records import MAX_MANIFEST_BYTES, MalformedRecord, Spec
from modelnet_p2p.records.fields import blob, digest, integer, named, numbers, several, text, token
from modelnet_p2p.records.kinds import MAX_EXITS, MAX_LANGUAGES, MAX_TAGS
from modelnet_p2p.records.manifest import MAX_METRICS, MAX_SPECS

SYNC_SLOTS = 1  # most models are not written for two calls at once
MAX_SLOTS = 64  # each is a stream and a task in the worker
MAX_ROWS = 65_536  # of one step of a model that batches: what more it says is a mistake
MAX_PLACE_BYTES = 4096  # of a path on this disk
MAX_NOTES = 8  # lines for its publisher
MAX_NOTE_BYTES = 400  # of each


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
    notes: tuple[str, ...] = ()  # what its publisher should know of it; not in the offer

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
            "notes": list(self.notes),
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


def as_note(line: str, end: str = "") -> str:
    """`line` as one of a description's notes: on one line, and cut so that `end` has room behind it."""
    printable = "".join(char if char.isprintable() else " " for char in line)
    return printable.encode()[: MAX_NOTE_BYTES - len(end.encode())].decode(errors="ignore") + end


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
    "notes": several(text(MAX_NOTE_BYTES), MAX_NOTES),
}
