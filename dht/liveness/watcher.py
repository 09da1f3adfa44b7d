"""Watching over other peers: who of them lives, found out together with the others who watch over the same.

Each peer that serves names five watchers and sends them beats. A watcher that misses one has two others
fetch a sign of life before it suspects; it tells the others of a suspicion, and of a verdict when that is
ripe. Verdicts of more than half of them are an obituary, which goes to the holders of the dead one's keys.
Whoever is wrongly suspected hears of it with its next beat, and refutes it with a higher incarnation.

A watcher's own word never counts for more than one: it cannot make an obituary alone, nor hide one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol

from modelnet_p2p.beats import Beat, Heard, Message, Obituary, Probe, Roster, Verdict, Watch
from modelnet_p2p.dht.liveness.suspicion import Health, Suspicion, Tempo
from modelnet_p2p.identity import PeerId

MAX_WARDS = 1024  # peers that one watcher takes on; an honest network asks five of each on average
ACK_EVERY = 4  # beats: so often a peer hears that its watcher is still there
HELPERS = 2  # watchers that fetch a sign of life: one may be gone itself
TELLERS = 2  # of those who found the death; both tell all holders, for one may be gone by then
FORGET_BEATS = 300.0  # a dead ward is remembered so long, should it refute its death after all


class Phase(Enum):
    """What a watcher thinks of a ward. A beat that is newer than all before brings any back to HEARD."""

    HEARD = 0  # from the start; left when a beat is missing, or its connection was lost
    PROBING = 1  # others were asked for a sign of life; left when their time is over
    SUSPECT = 2  # none came, and the other watchers know; left when the suspicion is ripe
    DEAD = 3  # my verdict is out; with a quorum of them the holders are told


@dataclass(frozen=True, slots=True)
class Tell:
    """Send this to that peer; nothing more is heard of it."""

    peer: PeerId
    message: Message


@dataclass(frozen=True, slots=True)
class Announce:
    """Take this for true, and tell it to the holders of these keys."""

    keys: tuple[bytes, ...]
    message: Obituary | Beat


Effect = Tell | Announce


class Judge(Protocol):
    """Seals this watcher's verdicts: `beats.Seals`."""

    def verdict(self, subject: PeerId, incarnation: int, dead: bool) -> Verdict: ...


@dataclass(slots=True)
class _Ward:
    """One peer that I watch over."""

    roster: Roster
    keys: tuple[bytes, ...]
    heard: float  # when its last beat came
    beat: Beat | None = None
    phase: Phase = Phase.HEARD
    until: float = 0.0  # when this phase is over; HEARD follows from `heard`
    suspicion: Suspicion | None = None
    verdicts: dict[PeerId, Verdict] = field(default_factory=dict)  # of its watchers, mine too
    askers: dict[PeerId, None] = field(default_factory=dict)  # watchers who want its next beat, in order
    obituary: Obituary | None = None
    tells: bool = False  # it is I who told its holders of the obituary, and tell them of its refutation

    @property
    def incarnation(self) -> int:
        return self.beat.incarnation if self.beat else 0

    def doubters(self) -> list[PeerId]:
        """Whose verdicts it has not refuted."""
        return [who for who, verdict in self.verdicts.items() if verdict.incarnation >= self.incarnation]


class Watcher:
    """All that one peer does as a watcher. Times are monotonic seconds.

    Whatever happens goes in by `on_…`; `poll` at `due`, and what comes out of either is to be done.
    `choose(n, k)` draws k different numbers below n.
    """

    def __init__(
        self, me: PeerId, judge: Judge, beat: float, choose: Callable[[int, int], Sequence[int]], now: float
    ) -> None:
        self.me = me
        self.tempo = Tempo(beat)
        self.health = Health(self.tempo, now)
        self.wards: dict[PeerId, _Ward] = {}
        self.due = now + self.tempo.probe
        self._judge = judge
        self._choose = choose

    def phase(self, subject: PeerId) -> Phase | None:
        """What I think of `subject`; None if I do not watch over it."""
        ward = self.wards.get(subject)
        return ward.phase if ward else None

    # --- what happens ---

    def on_message(self, sender: PeerId, message: Message, now: float) -> list[Effect]:
        """What a peer sent; whatever it has no right to say is ignored."""
        self._wake(now)
        match message:
            case Watch(roster, keys):
                return self._on_watch(sender, roster, keys, now)
            case Beat():
                return self._on_beat(sender, message, now)
            case Verdict():
                return self._on_verdict(sender, message, now)
            case Probe(subject):
                return self._on_probe(sender, subject)
        return []

    def on_lost(self, peer: PeerId, now: float) -> list[Effect]:
        """The connection to `peer` is gone: a hint that saves the wait for its next beat."""
        self._wake(now)
        ward = self.wards.get(peer)
        if ward is None or ward.phase is not Phase.HEARD:
            return []
        effects = self._probe(peer, ward, now)
        self.due = min(self.due, ward.until)
        return effects

    def poll(self, now: float) -> list[Effect]:
        """What is to be done now; sets `due`."""
        self._wake(now)
        self.health.pass_time(now)
        effects: list[Effect] = []
        for subject, ward in list(self.wards.items()):
            if self._over_at(ward) <= now:
                effects += self._advance(subject, ward, now)
        # often enough to notice how late I am, while it matters to anybody
        soonest = min(map(self._over_at, self.wards.values()), default=math.inf)
        self.due = max(now, min(soonest, now + self.tempo.probe)) if self.wards else math.inf
        return effects

    # --- the steps of it ---

    def _wake(self, now: float) -> None:
        """Had I stood still, the silence was mine: everybody gets that time again."""
        late = now - self.due
        if late <= self.tempo.probe:
            return
        self.health.worsen(now)
        for ward in self.wards.values():
            ward.heard += late
            ward.until += late
        self.due = now

    def _over_at(self, ward: _Ward) -> float:
        if ward.phase is Phase.HEARD:
            return ward.heard + self.tempo.missed * self.health.slowness
        return ward.until

    def _advance(self, subject: PeerId, ward: _Ward, now: float) -> list[Effect]:
        """The phase of `ward` is over without a beat."""
        match ward.phase:
            case Phase.HEARD:
                return self._probe(subject, ward, now)
            case Phase.PROBING:
                return self._suspect(subject, ward, now)
            case Phase.SUSPECT:
                return self._bury(subject, ward, now)
            case Phase.DEAD:
                del self.wards[subject]
        return []

    def _probe(self, subject: PeerId, ward: _Ward, now: float) -> list[Effect]:
        ward.phase = Phase.PROBING
        ward.until = now + self.tempo.probe * self.health.slowness
        others = self._others(ward)
        helpers = [others[at] for at in self._choose(len(others), min(HELPERS, len(others)))]
        return [Tell(peer, Probe(subject)) for peer in (subject, *helpers)]

    def _suspect(self, subject: PeerId, ward: _Ward, now: float) -> list[Effect]:
        ward.phase = Phase.SUSPECT
        ward.suspicion = Suspicion(self.tempo, now, ward.roster.quorum - 1, ward.doubters())
        ward.until = ward.suspicion.ripe_at(self.health.slowness)
        return self._judge_it(subject, ward, dead=False)

    def _bury(self, subject: PeerId, ward: _Ward, now: float) -> list[Effect]:
        ward.phase = Phase.DEAD
        ward.until = now + FORGET_BEATS * self.tempo.beat
        return self._judge_it(subject, ward, dead=True) + self._conclude(ward)

    def _judge_it(self, subject: PeerId, ward: _Ward, *, dead: bool) -> list[Effect]:
        verdict = self._judge.verdict(subject, ward.incarnation, dead)
        ward.verdicts[self.me] = verdict
        return [Tell(peer, verdict) for peer in self._others(ward)]

    def _conclude(self, ward: _Ward) -> list[Effect]:
        """The obituary, once as many as it takes have found the ward dead, me among them."""
        mine = ward.verdicts.get(self.me)
        if ward.phase is not Phase.DEAD or ward.obituary is not None or mine is None:
            return []
        signed = [
            verdict
            for watcher in ward.roster.watchers
            if (verdict := ward.verdicts.get(watcher)) is not None
            and verdict.dead
            and verdict.incarnation == mine.incarnation
        ]
        if len(signed) < ward.roster.quorum:
            return []
        ward.obituary = Obituary(ward.roster, tuple(signed[: ward.roster.quorum]))
        ward.tells = self.me in [verdict.watcher for verdict in signed[:TELLERS]]
        return [Announce(ward.keys if ward.tells else (), ward.obituary)]

    def _others(self, ward: _Ward) -> list[PeerId]:
        return [peer for peer in ward.roster.watchers if peer != self.me]

    # --- messages ---

    def _on_watch(self, sender: PeerId, roster: Roster, keys: tuple[bytes, ...], now: float) -> list[Effect]:
        ward = self.wards.get(sender)
        if (
            roster.subject != sender
            or sender == self.me
            or (ward is not None and roster.seq < ward.roster.seq)
        ):
            return []
        if self.me not in roster.watchers:
            self.wards.pop(sender, None)
        elif ward is not None:
            ward.roster, ward.keys = roster, keys
            ward.verdicts = {who: v for who, v in ward.verdicts.items() if who in roster.watchers}
        elif len(self.wards) < MAX_WARDS:
            self.wards[sender] = _Ward(roster, keys, now)
            self.due = min(self.due, now + self.tempo.probe)
        return []

    def _on_beat(self, sender: PeerId, beat: Beat, now: float) -> list[Effect]:
        ward = self.wards.get(beat.subject)
        if ward is None or (ward.beat is not None and beat.place <= ward.beat.place):
            return []
        effects: list[Effect] = [Tell(asker, beat) for asker in ward.askers if asker != sender]
        ward.askers.clear()
        if ward.phase in (Phase.SUSPECT, Phase.DEAD):
            self.health.worsen(now)  # it was I who was wrong
        ward.beat, ward.heard = beat, now
        ward.phase, ward.suspicion = Phase.HEARD, None
        for watcher in set(ward.verdicts).difference(ward.doubters()):
            del ward.verdicts[watcher]
        if ward.obituary is not None and beat.incarnation > ward.obituary.incarnation:
            ward.obituary = None
            effects.append(Announce(ward.keys if ward.tells else (), beat))
        doubted = bool(ward.verdicts)
        if sender == beat.subject and (doubted or beat.seq % ACK_EVERY == 0):
            effects.append(Tell(sender, Heard(beat.incarnation, beat.seq, doubted)))
        return effects

    def _on_verdict(self, sender: PeerId, verdict: Verdict, now: float) -> list[Effect]:
        ward = self.wards.get(verdict.subject)
        if ward is None or sender != verdict.watcher or sender not in self._others(ward):
            return []
        if verdict.incarnation < ward.incarnation:
            return [Tell(sender, ward.beat)] if ward.beat else []
        before = ward.verdicts.get(sender)
        if before is None or (before.incarnation, before.dead) < (verdict.incarnation, verdict.dead):
            ward.verdicts[sender] = verdict
        if ward.phase is Phase.HEARD and ward.beat and now - ward.heard < self.tempo.missed:
            return [Tell(sender, ward.beat)]  # it may be the one that is missing there
        if ward.suspicion is not None and ward.phase is Phase.SUSPECT:
            ward.suspicion.confirm(sender)
            ward.until = ward.suspicion.ripe_at(self.health.slowness)
            self.due = min(self.due, max(now, ward.until))
        return self._conclude(ward)

    def _on_probe(self, sender: PeerId, subject: PeerId) -> list[Effect]:
        ward = self.wards.get(subject)
        if ward is None or sender not in self._others(ward):
            return []
        ward.askers[sender] = None
        return [Tell(subject, Probe(subject))]
