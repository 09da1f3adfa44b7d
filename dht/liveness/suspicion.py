"""How long silence lasts before it is a death: Lifeguard's two ideas, each a small machine.

A suspicion ripens slowly while one watcher stands alone with it and quickly once others confirm it; and a
watcher that was itself late or wrong doubts itself first, and takes longer over everything.

Source: Das, Gupta, Motivala: SWIM (2002); Dadgar, Phillips, Currey: Lifeguard (2018).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from modelnet_p2p.identity import PeerId

MAX_DOUBT = 4  # a watcher takes at most five times as long: beyond that it is of no use
CALM_BEATS = 5.0  # without a mishap this long, one step of self-doubt is forgiven


@dataclass(frozen=True, slots=True)
class Tempo:
    """All times follow from the seconds between two beats. With 2 s a death is found after 6 s of silence,
    and a freeze of 3 s, which is at most 5 s of silence, is none."""

    beat: float

    @property
    def missed(self) -> float:
        """Silence after which others are asked: one beat is missing, and half of the time to the next."""
        return 1.5 * self.beat

    @property
    def probe(self) -> float:
        """How long they have to bring a sign of life: two round trips around the earth, with 2 s."""
        return 0.5 * self.beat

    @property
    def ripe_soonest(self) -> float:
        """A suspicion that a quorum shares: time for the suspect to refute it with its next beat."""
        return self.beat

    @property
    def ripe_latest(self) -> float:
        """One that nobody shares; alone it proves nothing, however ripe."""
        return 5 * self.beat


class Suspicion:
    """One watcher's doubt about one peer, from `since` on; `wanted` others make it ripen soonest."""

    def __init__(self, tempo: Tempo, since: float, wanted: int, shared_by: Iterable[PeerId] = ()) -> None:
        self._tempo = tempo
        self._since = since
        self._wanted = max(1, wanted)
        self._shared_by = set(shared_by)

    def confirm(self, watcher: PeerId) -> None:
        """`watcher` suspects the same peer; it counts once."""
        self._shared_by.add(watcher)

    def ripe_at(self, slowness: float) -> float:
        """When it becomes a verdict, for a watcher that takes `slowness` times as long."""
        shared = min(1.0, math.log1p(len(self._shared_by)) / math.log1p(self._wanted))
        latest, soonest = self._tempo.ripe_latest, self._tempo.ripe_soonest
        return self._since + slowness * (latest - shared * (latest - soonest))


class Health:
    """How far a watcher may trust itself: it was late, or suspected a peer that lived."""

    def __init__(self, tempo: Tempo, now: float) -> None:
        self._calm = CALM_BEATS * tempo.beat
        self._since = now
        self.doubt = 0

    @property
    def slowness(self) -> float:
        return 1.0 + self.doubt

    def worsen(self, now: float) -> None:
        self.doubt = min(MAX_DOUBT, self.doubt + 1)
        self._since = now

    def pass_time(self, now: float) -> None:
        while self.doubt and now - self._since >= self._calm:
            self.doubt -= 1
            self._since += self._calm
