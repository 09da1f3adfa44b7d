"""The keys that this peer has heard to be revoked, with the proofs: bounded, and no flood washes one out.

Keys cost nothing, so anybody can revoke thousands of his own. What is merely told therefore lies in the
store, under the bounds of the key where it was told; remembered here is what has *met* something: a record
that this peer held, was sent or read, or a key that the person here relies on. Each is booked on whom it came
by; where there is no room, the largest account gives way, and its newest entry first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from modelnet_p2p.identity import PeerId
from modelnet_p2p.records import Record, Revocation, Sealed

MAX_REMEMBERED = 4096  # some 2 KiB each; ten real ones a day fill it in a year
MAX_NEWS = 1024  # not looked at yet: a driver looks after each request
PINNED = None  # the account of what the person here relies on: it never gives way
READ = "read"  # the account of what was met in others' answers
PRIVATE = ""  # ... of what came from private addresses, which have no group


@dataclass(frozen=True, slots=True)
class Remembered:
    sealed: Sealed  # of a Revocation
    account: str | None


class Revocations:
    """What is remembered. It is final: what a key said first of its own end stands."""

    def __init__(self, most: int = MAX_REMEMBERED) -> None:
        self._most = most
        self._known: dict[PeerId, Remembered] = {}  # oldest first
        self._accounts: Counter[str] = Counter()
        self._news: dict[PeerId, None] = {}

    def __len__(self) -> int:
        return len(self._known)

    def of(self, key: PeerId) -> Sealed | None:
        """The proof that `key` was revoked, if it is remembered."""
        found = self._known.get(key)
        return found.sealed if found else None

    def account_of(self, key: PeerId) -> str | None:
        """On whom it is booked; raises KeyError if it is not remembered."""
        return self._known[key].account

    def condemning(self, record: Record) -> Sealed | None:
        """The proof against a record: its provider's key was revoked, or the one that owns its model."""
        if isinstance(record, Revocation):
            return None
        return self.of(record.provider) or self.of(record.owner)

    def remember(self, sealed: Sealed, account: str | None) -> bool:
        """Whether it is remembered from now on (or was already). PINNED raises what was booked elsewhere."""
        key = sealed.record.provider
        known = self._known.get(key)
        if known is not None:
            if account is PINNED and known.account is not PINNED:
                self._accounts[known.account] -= 1
                self._known[key] = Remembered(known.sealed, PINNED)
                self._tell(key)
            return True
        if len(self._known) >= self._most and not self._make_room(account):
            return False
        self._known[key] = Remembered(sealed, account)
        if account is not PINNED:
            self._accounts[account] += 1
        self._tell(key)
        return True

    def take_news(self) -> list[PeerId]:
        """The keys of which something was remembered or let go since the last call."""
        news = list(self._news)
        self._news.clear()
        return news

    def _make_room(self, account: str | None) -> bool:
        """Drop the newest entry of the largest account, unless it is the newcomer's own."""
        largest, count = max(self._accounts.items(), key=lambda item: item[1], default=("", 0))
        mine = 0 if account is PINNED else self._accounts[account] + 1
        if count <= mine:
            return False
        newest = next(key for key in reversed(self._known) if self._known[key].account == largest)
        del self._known[newest]
        self._accounts[largest] -= 1
        self._tell(newest)
        return True

    def _tell(self, key: PeerId) -> None:
        if key in self._news or len(self._news) < MAX_NEWS:
            self._news[key] = None


def revoked_by(sealeds: Iterable[Sealed]) -> dict[PeerId, Sealed]:
    """The revocations among these, by the key that each revokes."""
    return {sealed.record.provider: sealed for sealed in sealeds if isinstance(sealed.record, Revocation)}
