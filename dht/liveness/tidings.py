"""Who is told of a death, and when: the holders of the dead one's keys, and whoever was told of a refutation.

A reader needs one holder who knows. So each is told as soon as it is known to be one: at once those whom I am
connected to, then whoever answers the walk to a key from where its holders are expected. The last of them may
be dead too, and waited for for seconds; the walk to the next key does not wait for that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from modelnet_p2p.beats import Beat, Obituary
from modelnet_p2p.dht.keyspace import position
from modelnet_p2p.dht.walks.region import Region
from modelnet_p2p.identity import PeerId

MAX_WALKS = 4  # to holders at the same time, until enough are told: mass death must be no flood of walks
MAX_WAITING_WALKS = 16  # with those that only wait for the last of the dead
MAX_TOLD = 256  # deaths of whom it is remembered who was told, should they be refuted
ENOUGH = 0.25  # of the holders expected: more than a reader asks, of whom two may be silent or lie


@dataclass(slots=True, eq=False)
class _Death:
    """What holders are told, and who was."""

    obituary: Obituary
    told: dict[PeerId, None] = field(default_factory=dict)  # in order
    over: bool = False  # refuted, or proven anew: the others are not told any more


@dataclass(slots=True, eq=False)
class Errand:
    """A walk to a key, for the holders that it meets."""

    key: bytes
    death: _Death
    region: Region | None
    met: int = 0

    @property
    def only_waits(self) -> bool:
        """Whether enough are told: the rest of the walk is waiting, and little work."""
        return self.region is not None and self.met >= ENOUGH * self.region.slots


class Tidings:
    """All that one watcher tells of others' deaths. `tell(peer, message)` says whether it is on its way.

    Each errand that `poll` gives is a walk to be taken; what comes of it goes in by `on_answer` and `on_end`,
    and may make room for the next. `region` is where as many peers are expected as hold what lies at a key,
    None while nobody knows how many peers there are.
    """

    def __init__(self, tell: Callable[[PeerId, Obituary | Beat], bool]) -> None:
        self._tell = tell
        self._deaths: dict[PeerId, _Death] = {}  # by whose they are
        self._untold: deque[tuple[bytes, _Death]] = deque()  # keys that no walk has begun to yet
        self._errands: set[Errand] = set()  # on their way

    def on_death(
        self, obituary: Obituary, near: Mapping[bytes, Iterable[PeerId]], region: Region | None
    ) -> None:
        """`near` each key of the dead one are some whom I am connected to; without keys others tell of it."""
        if not near:
            return
        if (former := self._drop(obituary.subject)) is not None:
            former.over = True
        elif len(self._deaths) >= MAX_TOLD:
            self._drop(next(iter(self._deaths)))  # walks that have begun still tell of it
        death = self._deaths[obituary.subject] = _Death(obituary)
        for key, peers in near.items():
            self._tell_of(death, (peer for peer in peers if _holds(peer, key, region)))
        self._untold.extend((key, death) for key in near)

    def on_refuted(self, beat: Beat) -> None:
        """All who were told hear of it, and they alone: others may hold the keys now than did then."""
        if (death := self._drop(beat.subject)) is not None:
            death.over = True
            for peer in death.told:
                self._tell(peer, beat)

    def poll(self, region: Region | None) -> Errand | None:
        """The next walk to take, if there is one, and room for it."""
        working = sum(not errand.only_waits for errand in self._errands)
        if not self._untold or working >= MAX_WALKS or len(self._errands) >= MAX_WAITING_WALKS:
            return None
        errand = Errand(*self._untold.popleft(), region)
        self._errands.add(errand)
        return errand

    def on_answer(self, errand: Errand, peer: PeerId) -> None:
        """`peer` is one of ours, and answered on that walk."""
        if _holds(peer, errand.key, errand.region):
            errand.met += 1
            self._tell_of(errand.death, (peer,))

    def on_end(self, errand: Errand, closest: Iterable[PeerId]) -> None:
        """That walk is over; `closest` to its key are these, of ours that answered."""
        self._errands.remove(errand)
        self._tell_of(errand.death, closest)

    def _drop(self, subject: PeerId) -> _Death | None:
        """No more walks begin for that death: who dies and returns all the time would else keep those of
        others waiting."""
        death = self._deaths.pop(subject, None)
        if death is not None:
            self._untold = deque(one for one in self._untold if one[1] is not death)
        return death

    def _tell_of(self, death: _Death, peers: Iterable[PeerId]) -> None:
        """Each once; whoever could not be told may be met again."""
        for peer in peers:
            if not death.over and peer not in death.told and self._tell(peer, death.obituary):
                death.told[peer] = None


def _holds(peer: PeerId, key: bytes, region: Region | None) -> bool:
    """Whether `peer` lives where holders of what lies at `key` are expected."""
    return region is not None and position(peer) ^ position(key) < region.radius
