"""Which of two records about the same thing stands, and what sequence number comes next.

Holders and readers merge alike: the newest sequence wins, a tombstone wins a tie, otherwise what is
there stays. So copies that meet in any order end the same (but for two different offers that their
own provider signed with one sequence number: then each holder keeps the first it saw).
"""

from __future__ import annotations

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.records.fields import MAX_SAFE_INT
from modelnet_p2p.records.sealed import Sealed

MAX_SEQ = MAX_SAFE_INT  # in milliseconds, the year 287,396


def newest(stored: Sealed | None, arrived: Sealed) -> Sealed:
    """The one that stands; the two must have the same identity."""
    if stored is None:
        return arrived
    if stored.identity != arrived.identity:
        raise ValueError("records of different identities are not merged")
    return arrived if _rank(arrived) > _rank(stored) else stored


def _rank(sealed: Sealed) -> tuple[int, bool]:
    return sealed.seq, sealed.is_tombstone


def next_seq(stored: int, now_us: int) -> int:
    """The sequence number after `stored`: unix milliseconds, so that it grows even where the stored
    one was lost; raises LocalError (bad-state) at the end of the numbers."""
    if stored >= MAX_SEQ:
        raise LocalError(Code.BAD_STATE, f"the stored sequence number, {stored}, is the last one")
    return max(stored + 1, now_us // 1000)
