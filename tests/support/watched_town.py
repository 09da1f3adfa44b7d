"""A town of watchers in virtual time: real machines, delays, freezes and deaths, and what it all costs."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable
from random import Random

from modelnet_p2p.beats import Beat, Message, Obituary, Roster, Verdict, Watch
from modelnet_p2p.dht.beating import Beater
from modelnet_p2p.dht.liveness import Announce, Effect, Watcher
from modelnet_p2p.dht.obituaries import Obituaries
from modelnet_p2p.identity import PeerId

BEAT = 2.0
EPOCH_US = 1_700_000_000_000_000
KEYS = tuple(bytes([number]) * 34 for number in range(12))  # three models at four keys each
AROUND_BYTES = 76  # Noise, muxer, TCP and IP around a message, as in `dht/simulator.py`
SEALED_BYTES = 190  # around a beat or a verdict: measured in tests/values/test_beats.py


def peer_id(number: int) -> PeerId:
    return PeerId.of_key(number.to_bytes(32))


class Pen:
    """Seals nothing: what the machines get was checked where it was decoded."""

    def __init__(self, me: PeerId, clock_us: Callable[[], int]) -> None:
        self.me = me
        self.clock_us = clock_us

    def roster(self, seq: int, watchers: tuple[PeerId, ...]) -> Roster:
        return Roster(self.me, seq, watchers)

    def beat(self, incarnation: int, seq: int) -> Beat:
        return Beat(self.me, incarnation, seq)

    def verdict(self, subject: PeerId, incarnation: int, dead: bool) -> Verdict:
        return Verdict(self.me, subject, incarnation, dead, self.clock_us())


def size(message: Message) -> int:
    match message:
        case Watch(roster, keys):
            return AROUND_BYTES + SEALED_BYTES + 40 * len(roster.watchers) + 36 * len(keys)
        case Beat() | Verdict():
            return AROUND_BYTES + SEALED_BYTES
        case Obituary(roster, verdicts):
            return AROUND_BYTES + SEALED_BYTES * (1 + len(verdicts)) + 40 * len(roster.watchers)
    return AROUND_BYTES + 80


class Town:
    """`count` peers that all serve; each is watched by `watchers` others. One event after another."""

    def __init__(self, count: int, seed: int, *, watchers: int = 5) -> None:
        self.rng = Random(seed)
        self.now = 0.0
        self.ids = [peer_id(number + 1) for number in range(count)]
        self.watchers: dict[PeerId, Watcher] = {}
        self.beaters: dict[PeerId, Beater] = {}
        self.dead: set[PeerId] = set()
        self.cut: set[tuple[PeerId, PeerId]] = set()
        self.thaws: dict[PeerId, float] = {}
        self.obituaries = Obituaries()  # those of all holders
        self.announced: dict[PeerId, list[float]] = defaultdict(list)
        self.revived: dict[PeerId, list[float]] = defaultdict(list)
        self.sent: dict[PeerId, int] = defaultdict(int)
        self.sent_bytes: dict[PeerId, int] = defaultdict(int)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        for me in self.ids:
            self._add(me, watchers)

    def _add(self, me: PeerId, watchers: int) -> None:
        pen, began = Pen(me, self.clock_us), self.rng.random() * BEAT

        def choose(below: int, wanted: int) -> list[int]:
            return self.rng.sample(range(below), wanted)

        def start() -> None:
            self.watchers[me] = Watcher(me, pen, BEAT, choose, self.now)
            self.beaters[me] = Beater(me, pen, BEAT, EPOCH_US, self.now)
            self.tick_watcher(me)
            self.after(BEAT, lambda: self.choose_watchers(me, watchers))
            self.tick_beater(me)

        self.after(began, start)

    def clock_us(self) -> int:
        return EPOCH_US + int(self.now * 1e6)

    def after(self, delay: float, action: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay, self._count, action))

    def run(self, until: float) -> None:
        while self._heap and self._heap[0][0] <= until:
            self.now, _, action = heapq.heappop(self._heap)
            action()
        self.now = until

    # --- peers ---

    def _later(self, me: PeerId, action: Callable[[], None]) -> bool:
        """Whether `me` cannot act now: it is gone, or stands still and does it when it thaws."""
        if me in self.dead:
            return True
        if self.thaws.get(me, 0.0) <= self.now:
            return False
        self.after(self.thaws[me] - self.now, action)
        return True

    def tick_watcher(self, me: PeerId) -> None:
        if not self._later(me, lambda: self.tick_watcher(me)):
            machine = self.watchers[me]
            self.do(me, machine.poll(self.now))
            self.after(max(0.001, machine.due - self.now), lambda: self.tick_watcher(me))

    def tick_beater(self, me: PeerId) -> None:
        if not self._later(me, lambda: self.tick_beater(me)):
            machine = self.beaters[me]
            self.do(me, machine.poll(self.now))
            self.after(max(0.001, machine.due - self.now), lambda: self.tick_beater(me))

    def choose_watchers(self, me: PeerId, wanted: int) -> None:
        """As the driver does now and then: whoever fell silent is replaced."""
        if not self._later(me, lambda: self.choose_watchers(me, wanted)):
            machine = self.beaters[me]
            silent = machine.silent(self.now)
            kept = [peer for peer in machine.watchers if peer not in silent]
            others = [peer for peer in self.ids if peer not in {me, *machine.watchers}]
            kept += self.rng.sample(others, wanted - len(kept))
            self.do(me, machine.on_watchers(kept, KEYS, self.now))
            self.after(2 * BEAT, lambda: self.choose_watchers(me, wanted))

    def do(self, me: PeerId, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Announce):
                self._announce(effect)
            else:
                self.send(me, effect.peer, effect.message)

    def send(self, me: PeerId, peer: PeerId, message: Message) -> None:
        self.sent[me] += 1
        self.sent_bytes[me] += size(message)
        if (me, peer) not in self.cut:
            self.after(self.rng.uniform(0.02, 0.1), lambda: self.arrive(me, peer, message))

    def arrive(self, sender: PeerId, me: PeerId, message: Message) -> None:
        if not self._later(me, lambda: self.arrive(sender, me, message)) and me in self.watchers:
            self.do(me, self.beaters[me].on_message(sender, message, self.now))
            self.do(me, self.watchers[me].on_message(sender, message, self.now))

    def _announce(self, effect: Announce) -> None:
        match effect.message:
            case Obituary() as obituary:
                if self.obituaries.add(obituary, self.clock_us()):
                    self.announced[obituary.subject].append(self.now)
            case Beat() as beat:
                if self.obituaries.refute(beat):
                    self.revived[beat.subject].append(self.now)

    # --- fate ---

    def kill(self, peer: PeerId) -> None:
        self.dead.add(peer)

    def freeze(self, peer: PeerId, seconds: float) -> None:
        self.thaws[peer] = self.now + seconds
