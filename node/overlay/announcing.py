"""What a peer tells its holders of its own records, and how that went: for whoever waits, and in words."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from modelnet_p2p.dht.walks.storing import Stored
from modelnet_p2p.errors import Code, RemoteError
from modelnet_p2p.records import Identity, Refusal, Revocation, Sealed


@dataclass(frozen=True, slots=True)
class Published:
    """How a publish or a withdrawal went; the holders are those of the key that fewest acknowledged."""

    sealed: Sealed
    asked: int
    stored: int


@dataclass(slots=True, eq=False)
class Announcement:
    """One record of mine, or what takes one back, that is told to its holders; and how that went."""

    sealed: Sealed
    under: Mapping[bytes, Sealed]  # by key: itself, or its card
    expires_us: int | None = None  # when there is nothing left to tell; None: never, it is signed anew
    ended: trio.Event = field(default_factory=trio.Event)
    outcome: Published | RemoteError | None = None

    @property
    def withdraws(self) -> bool:
        return self.expires_us is not None

    def end(self, outcome: Published | RemoteError) -> None:
        self.outcome = outcome
        self.ended.set()


class Reports:
    """Of the stores of several records, by key."""

    def __init__(self) -> None:
        self._of: dict[tuple[bytes, Identity], Stored] = {}
        self._unheard: set[tuple[bytes, Identity]] = set()

    def add(self, key: bytes, announcement: Announcement, report: Stored) -> None:
        """That of the newest store of this record under this key."""
        at = key, announcement.sealed.identity
        if report.silent and not report.asked:  # nobody was told, for those who are known were silent
            self._unheard.add(at)
        self._of[at] = report

    def kept(self, key: bytes, announcement: Announcement) -> bool:
        """Whether its holders promised to; whom I gave up for silent just now, I was not alone with."""
        at = key, announcement.sealed.identity
        report = self._of.get(at)
        return report is not None and report.promised and not (report.alone and at in self._unheard)

    def missing(self, announcements: Iterable[Announcement]) -> list[tuple[bytes, Sequence[Announcement]]]:
        """What is not kept yet, by key: together, but each by itself where some holder refused something, for
        it does not say which."""
        found = defaultdict[tuple[bytes, Announcement | None], list[Announcement]](list)
        for one in announcements:
            for key in one.under:
                report = self._of.get((key, one.sealed.identity))
                if not self.kept(key, one):
                    found[key, one if report is not None and report.refused else None].append(one)
        return [(key, some) for (key, _), some in found.items()]

    def promised(self, announcement: Announcement) -> bool:
        """Whether it is kept under all of its keys."""
        return all(self.kept(key, announcement) for key in announcement.under)

    def alone(self, announcement: Announcement) -> Iterator[bytes]:
        """Those of its keys that were stored on nobody, for nobody was there."""
        return (key for key in announcement.under if self._of[key, announcement.sealed.identity].alone)

    def outcome(self, announcement: Announcement, because: str) -> Published | RemoteError:
        """`because` says why some holders did not take it, if that is known."""
        sealed = announcement.sealed
        reports = [(key, self._of[key, sealed.identity]) for key in announcement.under]
        key, weakest = min(reports, key=lambda one: (self.kept(one[0], announcement), one[1].stored))
        if not self.kept(key, announcement):
            return _untold(sealed, weakest, because, withdrawn=announcement.withdraws)
        return Published(sealed, weakest.asked, weakest.stored)


def _untold(sealed: Sealed, weakest: Stored, because: str, *, withdrawn: bool) -> RemoteError:
    """No majority of those holders heard of it; `because` some of them asked to slow down, if they did."""
    about, what = sealed.identity.name, "it is withdrawn here" if withdrawn else "it stays published"
    if isinstance(sealed.record, Revocation):
        about, what = f"the end of {sealed.record.revoked}", "it is kept"
    elif withdrawn:
        about = f"the withdrawal of {about}"
    reasons = ", ".join(sorted(weakest.refused)) or "no answer"
    words = f"only {weakest.stored} of {weakest.asked} holders keep the record of {about} ({reasons})"
    if not weakest.asked:
        words = f"nobody else was told of {about} yet: no peer that is known here answered"
    words += f"; {because}" if because else ""
    hint = f"{what}, and the holders are told again in the background"
    if (
        2 * weakest.refused[Refusal.EXPIRED] > weakest.asked
    ):  # it was signed just now, and is told only while valid
        wrong = "is probably wrong" if weakest.asked > 1 else "or that holder's is wrong"
        words += f": this machine's clock {wrong}"
        hint = f"date -u, and set it; modelnet-peer doctor compares it with others'; {hint}"
    return RemoteError(Code.UNREACHABLE, words, hint=hint)
