"""What a holder, or a reader, knows of the dead: obituaries, each until it is refuted, or too old.

An obituary proves itself, so it does not matter who brings it. A liar can withhold one, and that costs its
reader a ping; to make one up takes the keys of a quorum of watchers, whom the dead one has named itself.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from modelnet_p2p.beats import Beat, Obituary
from modelnet_p2p.identity import PeerId

MAX_SUBJECTS = 4096  # whose fate is remembered: some 6 MiB
LIFETIME_US = 600_000_000  # then readers ask for themselves again, should nobody be left to refute it
SKEW_US = 300_000_000  # that clocks may be apart, as for records


def is_timely(obituary: Obituary, now_us: int) -> bool:
    """Whether its verdicts are of now, as far as clocks may be apart."""
    return -SKEW_US <= now_us - obituary.at_us <= LIFETIME_US


def covers(obituary: Obituary, issued_us: int) -> bool:
    """Whether a record that its subject issued then, by its own clock, is of before the death.

    Its roster is numbered by that clock, and follows each of its records. The verdicts are of other clocks,
    and show the same of what is older by more than clocks may be apart.
    """
    return issued_us <= max(obituary.roster.seq, obituary.at_us - SKEW_US)


@dataclass(slots=True)
class _Fate:
    """What is known of one peer."""

    roster_seq: int = 0  # of its newest roster: the watchers of an older one judge no more
    alive: int = 0  # the highest incarnation that it refuted a death with
    obituary: Obituary | None = None


class Obituaries:
    """Bounded; who was not heard of for longest is forgotten first."""

    def __init__(self) -> None:
        self._fates: OrderedDict[PeerId, _Fate] = OrderedDict()

    def __len__(self) -> int:
        return len(self._fates)

    def add(self, obituary: Obituary, now_us: int) -> bool:
        """Whether it is believed: proven, of now, by the newest watchers known, and not refuted."""
        if not obituary.proven or not is_timely(obituary, now_us):
            return False
        known = self._fates.get(obituary.subject) or _Fate()
        if obituary.roster.seq < known.roster_seq or obituary.incarnation < known.alive:
            return False
        fate = self._fate(obituary.subject)
        fate.roster_seq = obituary.roster.seq
        fate.obituary = obituary
        return True

    def refute(self, beat: Beat) -> bool:
        """Whether this beat brings somebody back to life here."""
        fate = self._fates.get(beat.subject)
        if fate is None or fate.obituary is None or beat.incarnation <= fate.obituary.incarnation:
            return False
        fate.alive, fate.obituary = beat.incarnation, None
        return True

    def of(self, subject: PeerId, now_us: int, *, issued_us: int = 0) -> Obituary | None:
        """The obituary of `subject`, unless it is too old, or a record issued then shows that it is back."""
        fate = self._fates.get(subject)
        obituary = fate.obituary if fate else None
        if obituary is None or now_us - obituary.at_us > LIFETIME_US or not covers(obituary, issued_us):
            return None
        return obituary

    def _fate(self, subject: PeerId) -> _Fate:
        fate = self._fates.setdefault(subject, _Fate())
        self._fates.move_to_end(subject)
        if len(self._fates) > MAX_SUBJECTS:
            self._fates.popitem(last=False)
        return fate
