"""What the two ends of a call say to each other, as values.

A caller sends one `Call`, and if that left its input open, `Item`s and an `End`; the answerer sends any
number of `Item`s and then exactly one `Result` or `Fault`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from modelnet_p2p.errors import Code, ModelnetError, RemoteError
from modelnet_p2p.payload import Value

Extra: TypeAlias = Mapping[str, object]
"""Fields of a head that this version does not know, kept as they came."""

MAX_FAULT_CHARS = 2048  # of a fault's message and of its hint: a fault must always fit its head


@dataclass(frozen=True, slots=True)
class Hop:
    """What one peer did for an answer. `us` are microseconds; bytes are of frames, with their heads; `wire`
    is the compact form of tensors that its caller asked for."""

    provider: str
    digest: str | None
    bytes_in: int
    bytes_out: int
    us: int
    wire: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """Asks for one method of one model.

    `target` is a model's name, a URI, or a name the answerer knows; `deadline_us` is relative to the
    moment of sending; `key` makes a repeated call recognisable; `session` and `position` place it in a
    conversation, `upstream` names the one peer that may push to it; `auth` is a credential. With
    `open_input` the caller's items follow. `wire` is the compact form (see payload.WIRES) in which tensors
    of this call may travel both ways, or empty.
    """

    target: str
    value: Value = None
    method: str = "invoke"
    params: Mapping[str, Value] = field(default_factory=dict)
    deadline_us: int | None = None
    key: str = ""
    session: str = ""
    upstream: str = ""
    position: int | None = None
    trace: tuple[Hop, ...] = ()
    auth: bytes = b""
    open_input: bool = False
    extra: Extra = field(default_factory=dict)
    wire: str = ""


@dataclass(frozen=True, slots=True)
class Item:
    """One value of a stream, in either direction. `wire` is the form of the compact tensors in it: empty
    where there are none, else that of the call."""

    value: Value
    extra: Extra = field(default_factory=dict)
    wire: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """The caller's items are all sent."""

    extra: Extra = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """The answer, or None where items were; ends the call. `digest` is the model's, `sha256:…`; `wire` as
    of an Item."""

    value: Value = None
    digest: str | None = None
    provider: str = ""
    queue_us: int = 0
    model_us: int = 0
    trace: tuple[Hop, ...] = ()
    extra: Extra = field(default_factory=dict)
    wire: str = ""


@dataclass(frozen=True, slots=True)
class Fault:
    """The answerer could not or would not; ends the call. `instead` is the id of a peer that it believes to
    offer the same: to be found and checked as any other."""

    code: Code
    message: str = ""
    retryable: bool = False
    hint: str = ""
    extra: Extra = field(default_factory=dict)
    instead: str = ""

    @classmethod
    def of(cls, error: ModelnetError) -> Fault:
        """`error` as it is told to the other side."""
        return cls(error.code, error.message, error.retryable, error.hint, instead=error.instead)

    def error(self, peer: str | None) -> RemoteError:
        """This fault as what the caller of `peer` meets."""
        return RemoteError(
            self.code,
            self.message,
            hint=self.hint,
            retryable=self.retryable,
            peer=peer,
            instead=self.instead,
        )


Event: TypeAlias = Call | Item | End | Result | Fault
