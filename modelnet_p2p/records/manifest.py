"""Specs and manifests: what goes into a model and comes out, and what the model is.

A *manifest* is the owner's word: name, version, digest, task, licence. It travels sealed, inside
the offers of whoever serves the model, and says nothing of place or time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, cast

from modelnet_p2p import names
from modelnet_p2p.canonical import pack, unpack
from modelnet_p2p.identity import PeerId
from modelnet_p2p.records.fields import (
    MAX_SAFE_INT,
    Field,
    Fields,
    digest,
    integer,
    named,
    numbers,
    signer,
    text,
    token,
)
from modelnet_p2p.refusals import MalformedRecord

MAX_METRICS = 16
MAX_DIMENSIONS = 8  # batch, time, height, width, channels and room for three more
MAX_SPECS = 8  # inputs, or outputs, of one model
MICROSECONDS = 1_000_000

Kind = Literal["tensor", "text", "json"]
_KINDS = ("tensor", "text", "json")


@dataclass(frozen=True, slots=True)
class Spec:
    """One input or output. `dtype` and `shape` are None where they are free or make no sense;
    a dimension is None where it is free."""

    name: str
    kind: Kind
    dtype: str | None = None
    shape: tuple[int | None, ...] | None = None

    def to_map(self) -> dict[str, object]:
        """The contract's SPEC object."""
        shape = None if self.shape is None else list(self.shape)
        return {"name": self.name, "kind": self.kind, "dtype": self.dtype, "shape": shape}

    @classmethod
    def from_map(cls, wire: object) -> Self:
        """The spec of such an object (unknown keys are dropped); raises MalformedRecord."""
        if not isinstance(wire, dict):
            raise MalformedRecord("a spec is not a map")
        kind, dtype, shape = wire.get("kind"), wire.get("dtype"), wire.get("shape")
        if kind not in _KINDS:
            raise MalformedRecord(f"a spec's kind is not one of {', '.join(_KINDS)}")
        if shape is not None:
            if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
                raise MalformedRecord(f"a shape is not a list of at most {MAX_DIMENSIONS} dimensions")
            for size in shape:
                if size is not None:
                    _SIZE(size)
            shape = tuple(shape)
        name = _SPEC_NAME(wire.get("name"))
        return cls(name, cast(Kind, kind), None if dtype is None else _DTYPE(dtype), shape)


_SPEC_NAME = text(48)
_DTYPE = token(16)
_SIZE = integer()


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the model is, in its owner's words. `metrics` are in millionths (accuracy 0.97 = 970000)."""

    owner: PeerId
    name: str
    task: str
    issued_unix: int  # whole seconds; the wire has microseconds
    version: str = ""
    licence: str = ""  # an SPDX expression
    digest: bytes | None = None  # 32 bytes
    metrics: Mapping[str, int] = field(default_factory=dict)
    extra: Mapping[str, object] = field(default_factory=dict)

    def to_payload(self) -> bytes:
        """The canonical msgpack that the owner signs; raises MalformedRecord."""
        return pack(_FIELDS.to_wire(self))

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        values: dict[str, Any] = _FIELDS.from_wire(unpack(payload))  # Any: the table made the types right
        return cls(**values)


def _seconds(wire: object) -> int:
    microseconds = integer()(wire)
    if microseconds % MICROSECONDS:
        raise MalformedRecord("not whole seconds, in microseconds")
    return microseconds // MICROSECONDS


def _microseconds(value: object) -> int:
    return integer(0, MAX_SAFE_INT // MICROSECONDS)(value) * MICROSECONDS


_FIELDS = Fields(
    Field("owner", "owner", signer),
    Field("name", "name", named(names.check_model_name)),
    Field("version", "version", named(names.check_version), ""),
    Field("task", "task", named(names.check_task)),
    Field("licence", "licence", text(64), ""),
    Field("digest", "digest", digest, None),
    Field("issued", "issued_unix", _seconds, encode=_microseconds),
    Field("metrics", "metrics", numbers(MAX_METRICS, 32), {}),
)
