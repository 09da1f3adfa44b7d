"""Being watched over: the beats of one peer, and its answer to those who doubt that it lives."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Protocol

from modelnet_p2p.beats import Beat, Heard, Message, Probe, Roster, Watch
from modelnet_p2p.dht.liveness.watcher import ACK_EVERY, Effect, Tell
from modelnet_p2p.identity import PeerId

SILENT_ACKS = 2.5  # of them missing, a watcher is taken for gone: 20 s with a beat of 2 s


class Crier(Protocol):
    """Seals what this peer says of itself: `beats.Seals`."""

    def roster(self, seq: int, watchers: tuple[PeerId, ...]) -> Roster: ...
    def beat(self, incarnation: int, seq: int) -> Beat: ...


class Beater:
    """Sends beats to the watchers that `on_watchers` names; without any it is silent.

    `epoch` starts both counters, and must be higher than in any earlier life of this peer: unix microseconds.
    """

    def __init__(self, me: PeerId, crier: Crier, beat: float, epoch: int, now: float) -> None:
        self.me = me
        self.incarnation = epoch
        self.due = now
        self._crier = crier
        self._beat = beat
        self._seq = 0
        self._roster_seq = epoch
        self._watch: Watch | None = None
        self._answered: dict[PeerId, float] = {}  # when each watcher was last heard of, or chosen
        self._doubted = False
        self._last: Beat | None = None
        self._said_at = now - beat

    @property
    def watchers(self) -> tuple[PeerId, ...]:
        return self._watch.roster.watchers if self._watch else ()

    def silent(self, now: float) -> set[PeerId]:
        """Watchers who seem to be gone."""
        patience = SILENT_ACKS * ACK_EVERY * self._beat
        return {peer for peer, at in self._answered.items() if now - at > patience}

    def on_watchers(
        self, watchers: Sequence[PeerId], keys: Collection[bytes], now: float, signed_us: int = 0
    ) -> list[Effect]:
        """These watch over me from now on, and tell the holders of `keys`; the former ones are let go.

        `signed_us` is when my newest record was signed, in unix microseconds: the roster must not be older.
        """
        chosen, kept, former, last = tuple(watchers), tuple(keys), self.watchers, self._watch
        if last is not None and last.roster.seq < signed_us:
            last = None
        if last is not None and (former, last.keys) == (chosen, kept):
            return []
        if last is None or set(chosen) != set(former):
            self._roster_seq = max(self._roster_seq + 1, signed_us)
            roster = self._crier.roster(self._roster_seq, chosen)
        else:
            roster = last.roster
        self._watch = Watch(roster, kept)
        silent = self.silent(now)
        self._answered = {peer: now if peer in silent else self._answered.get(peer, now) for peer in chosen}
        return [Tell(peer, self._watch) for peer in dict.fromkeys((*chosen, *former))]

    def on_lost(self, peer: PeerId) -> None:
        """The connection to `peer` is gone, or could not be made."""
        if peer in self._answered:
            self._answered[peer] = -math.inf

    def on_message(self, sender: PeerId, message: Message, now: float) -> list[Effect]:
        """A watcher's answer, or somebody's question whether I live."""
        match message:
            case Heard(incarnation, _, doubted) if sender in self._answered:
                self._answered[sender] = now
                # once for each beat: a watcher that cries wolf costs nothing
                self._doubted |= doubted and incarnation == self.incarnation
            case Probe(subject) if subject == self.me:
                return [Tell(sender, self._say(now))]
        return []

    def poll(self, now: float) -> list[Effect]:
        """The beats, when they are due."""
        if now < self.due:
            return []
        self.due = now + self._beat
        if not self.watchers:
            return []
        assert self._watch is not None
        beat = self._say(now, fresh=True)
        effects: list[Effect] = []
        for peer in self.watchers:
            # it may have been started anew, and forgotten me
            forgot = now - self._answered[peer] > 1.5 * ACK_EVERY * self._beat
            if forgot and self._seq % ACK_EVERY == 0:
                effects.append(Tell(peer, self._watch))
            effects.append(Tell(peer, beat))
        return effects

    def _say(self, now: float, *, fresh: bool = False) -> Beat:
        """A new beat; whoever asks too often gets the last one again."""
        if self._last is None or fresh or now - self._said_at > self._beat / 8:
            self.incarnation += self._doubted
            self._doubted = False
            self._seq += 1
            self._said_at = now
            self._last = self._crier.beat(self.incarnation, self._seq)
        return self._last
