"""What can go wrong, as one closed list of codes and two families of exception.

`LocalError` is the caller's own mistake or this machine's trouble; `RemoteError` came from, or is
about, another peer and names it; `NotFound` is neither: the question was right and nobody has it.
Bytes from the wire become one of these once, where they enter, and nowhere else.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class Code(StrEnum):
    """Every reason for failure that a caller can meet; the strings are the wire's and the CLI's."""

    NOT_FOUND = "not-found"
    AMBIGUOUS = "ambiguous"
    UNREACHABLE = "unreachable"
    DEADLINE = "deadline"
    BUSY = "busy"
    BAD_INPUT = "bad-input"
    UNKNOWN_METHOD = "unknown-method"
    MODEL_ERROR = "model-error"
    TOO_LARGE = "too-large"
    FORBIDDEN = "forbidden"
    CANCELLED = "cancelled"
    UNSAFE = "unsafe"
    BAD_RECORD = "bad-record"
    BAD_STATE = "bad-state"
    IN_USE = "in-use"
    NOT_RUNNING = "not-running"
    SLOW_READER = "slow-reader"
    INTERNAL = "internal"

    @classmethod
    def from_wire(cls, text: object) -> Code:
        """The code that `text` names, `INTERNAL` for one that this version does not know."""
        try:
            return cls(text) if isinstance(text, str) else cls.INTERNAL
        except ValueError:
            return cls.INTERNAL


RETRYABLE = frozenset({Code.BUSY, Code.UNREACHABLE, Code.SLOW_READER})
"""Codes after which the same call may succeed elsewhere or later, unless the sender says otherwise."""


class ModelnetError(Exception):
    """Base of all errors of this library: a code, one line for people, and what to do next.

    `message` is one line that names the cause; `hint` is the next command or step, or empty;
    `retryable` says whether the same call may succeed elsewhere or later; `peer` is the base58 id
    of the peer concerned, or None; `instead` that of a peer which may answer in its place, as it says itself.
    """

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        hint: str = "",
        retryable: bool | None = None,
        peer: str | None = None,
        instead: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.retryable = code in RETRYABLE if retryable is None else retryable
        self.peer = peer
        self.instead = instead

    def __copy__(self) -> Self:
        """The same for another who raises it: as one error is passed on, its traceback grows."""
        copied = type(self).__new__(type(self), *self.args)
        copied.__dict__.update(self.__dict__)
        return copied

    def to_map(self) -> dict[str, object]:
        """The error as the contract's JSON object: code, message, peer, retryable, hint; `instead` if it is
        known."""
        return {
            "code": self.code.value,
            "message": self.message,
            "peer": self.peer,
            "retryable": self.retryable,
            "hint": self.hint,
            **({"instead": self.instead} if self.instead else {}),
        }


class LocalError(ModelnetError):
    """The caller's mistake or this machine's trouble; trying another peer would not help."""


class RemoteError(ModelnetError):
    """Another peer failed, refused, or could not be reached; `peer` names it where it is known."""


class NotFound(ModelnetError):
    """The question was sound and nobody offers it (also: an ambiguous name)."""

    def __init__(self, message: str, *, code: Code = Code.NOT_FOUND, hint: str = "") -> None:
        super().__init__(code, message, hint=hint, retryable=False)
