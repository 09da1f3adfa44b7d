"""Why a record is refused, as one closed list, and the one error that says so.

The reasons are told apart because they mean different things to whoever runs a peer: `forged` is an
attack, `expired` is a clock, `malformed` is another version, `stale` is ordinary.
"""

from __future__ import annotations

from enum import StrEnum


class Refusal(StrEnum):
    """The strings are the keys of `refused` in `status`, and field 66 of a kad reply."""

    FORGED = "forged"  # the signature does not fit the bytes (or is of another domain)
    UNSIGNED = "unsigned"  # no signature or no public key in the envelope
    EXPIRED = "expired"  # not valid now: over, or issued in the future
    FOREIGN_KEY = "foreign_key"  # of another network, or sent under a key where it does not belong
    WRONG_OWNER = "wrong_owner"  # soundly signed, but not by the provider or owner that it names
    OVERSIZED = "oversized"  # longer than its kind may be
    MALFORMED = "malformed"  # not canonical, a field missing, out of bounds or of the wrong type
    REVOKED = "revoked"  # sound, but sealed by a key that has been revoked
    STALE = "stale"  # sound, but not newer than what is already held


class BadRecord(ValueError):
    """A record that nobody may store, return or believe. `message` is one line for the log."""

    def __init__(self, refusal: Refusal, message: str) -> None:
        super().__init__(f"{refusal}: {message}")
        self.refusal = refusal
        self.message = message


class MalformedRecord(BadRecord):
    """Bytes that are not canonical, or fields that break the record's own rules."""

    def __init__(self, message: str) -> None:
        super().__init__(Refusal.MALFORMED, message)
