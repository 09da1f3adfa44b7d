"""What a check finds: one line for a person, with what is wrong, why it is thought so, and what to type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from modelnet_p2p.errors import Code, ModelnetError


class State(StrEnum):
    """How a check ended."""

    OK = "ok"
    NOTE = "note"  # nothing is broken, but it may not be what was meant
    FAILED = "failed"
    SKIPPED = "skipped"  # what it needs is missing, which another line says


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `doctor`. `text` says what was found, `hint` what to type next."""

    check: str
    state: State
    text: str
    why: str = ""
    hint: str = ""
    code: Code | None = None  # of what failed

    def to_map(self) -> dict[str, object]:
        return {
            "check": self.check,
            "state": self.state.value,
            "text": self.text,
            "why": self.why,
            "hint": self.hint,
            "code": self.code.value if self.code else None,
        }


Tell = Callable[[Finding], None]


def ok(check: str, text: str, why: str = "") -> Finding:
    return Finding(check, State.OK, text, why)


def note(check: str, text: str, *, why: str = "", hint: str = "") -> Finding:
    return Finding(check, State.NOTE, text, why, hint)


def skipped(check: str, why: str) -> Finding:
    return Finding(check, State.SKIPPED, "not checked", why)


def failed(check: str, text: str, *, why: str = "", hint: str = "", code: Code = Code.BAD_STATE) -> Finding:
    return Finding(check, State.FAILED, text, why, hint, code)


def failed_with(check: str, error: ModelnetError, *, why: str = "", hint: str = "") -> Finding:
    """A failure that this library has words for already."""
    return failed(check, error.message, why=why, hint=error.hint or hint, code=error.code)
