"""Who watches over whom in a world: beats, suspicions and obituaries of all peers, on the simulator's clock.

Beaters, watchers, obituaries and tidings are the product's own machines; what `node/overlay/watching.py` and
`node/overlay/telling.py` do around them is done here in virtual time, by the same bounds: watchers are chosen
by a walk to the key of one's name, and further walks find the holders of the dead one's keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Protocol

from modelnet_p2p.beats import (
    MAX_WATCHERS,
    Ask,
    Beat,
    Heard,
    Message,
    Obituary,
    Probe,
    Roster,
    Verdict,
    Watch,
)
from modelnet_p2p.dht.liveness.beating import Beater
from modelnet_p2p.dht.liveness.obituaries import Obituaries
from modelnet_p2p.dht.liveness.tidings import Errand, Tidings
from modelnet_p2p.dht.liveness.watcher import Announce, Effect, Tell, Watcher
from modelnet_p2p.dht.simulator import Node, Simulator
from modelnet_p2p.identity import PeerId
from modelnet_p2p.names import Keys, provider_key
from modelnet_p2p.node.overlay.watching import CHOOSE_BEATS

AROUND_BYTES = 70  # Noise (18), muxer (12), TCP and IP (40) around a message
SEALED_BYTES = 188  # a beat as it is framed; tests/sim/test_vigil.py holds all of these against real ones
VERDICT_BYTES = 256
RESET_BYTES = 40  # a bare TCP segment, with which the machine of a killed process ends a connection
CHOOSING, TELLING = "choose watchers", "find holders"  # the walks that liveness takes
SOON = 0.001  # seconds: a machine that is due now is polled, but never without end at one instant


class Watching(Protocol):
    """The side of a peer that watches over others: a Watcher, or somebody who lies."""

    due: float

    @property
    def wards(self) -> Mapping[PeerId, object]: ...
    def on_message(self, sender: PeerId, message: Message, now: float) -> list[Effect]: ...
    def on_lost(self, peer: PeerId, now: float) -> list[Effect]: ...
    def poll(self, now: float) -> list[Effect]: ...


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
    """Bytes of a message on the wire, within 3 %: sealing each would cost more than all the rest."""
    match message:
        case Watch(roster, keys):
            return AROUND_BYTES + 186 + 40 * len(roster.watchers) + 36 * len(keys) + 14
        case Beat():
            return AROUND_BYTES + SEALED_BYTES
        case Verdict():
            return AROUND_BYTES + VERDICT_BYTES
        case Obituary(roster, verdicts):
            return AROUND_BYTES + 200 + 40 * len(roster.watchers) + 233 * len(verdicts)
        case Heard():
            return AROUND_BYTES + 51
        case Probe():
            return AROUND_BYTES + 62
        case Ask(subjects):
            return AROUND_BYTES + 22 + 40 * len(subjects)


KINDS = ("watch", "beat", "heard", "probe", "verdict", "obituary", "ask")
PURPOSES = (*KINDS, CHOOSING, TELLING)  # all that liveness sends


@dataclass(slots=True, eq=False)
class Post:
    """One peer's part in it: everybody may watch and hold, who serves beats as well."""

    node: Node
    watcher: Watching
    obituaries: Obituaries = field(default_factory=Obituaries)
    beater: Beater | None = None
    keys: tuple[bytes, ...] = ()  # that it has records under
    chosen_at: float = float("-inf")  # when its watchers were
    choosing: bool = False
    due: float = float("inf")  # when the watcher is polled next
    tidings: Tidings = field(init=False)

    @property
    def id(self) -> PeerId:
        return self.node.id


class Vigil:
    """The liveness of a world, and what it found: who was buried and revived when, by each watcher."""

    def __init__(self, sim: Simulator, rng: Random) -> None:
        self.sim = sim
        self.rng = rng
        self.beat = sim.tuning.beat
        self.posts: dict[PeerId, Post] = {}
        self.mute: set[tuple[PeerId, PeerId]] = set()  # who cannot send to whom
        self.buried: dict[PeerId, list[float]] = {}  # when a watcher held the proof that somebody is dead
        self.revived: dict[PeerId, list[float]] = {}
        self.mistaken: Counter[tuple[PeerId, int]] = Counter()  # ... of whom, who lived, in which incarnation
        self._names = Keys(sim.network)

    def post(self, node: Node) -> Post:
        """Where that peer stands; watchers wake with their first ward."""
        post = self.posts.get(node.id)
        if post is None:
            pen, rng = Pen(node.id, lambda: self.sim.now_us), self.rng
            watcher = Watcher(node.id, pen, self.beat, lambda n, k: rng.sample(range(n), k), self.sim.now)
            post = self.posts[node.id] = Post(node, watcher)
            post.tidings = Tidings(partial(self.send, post))
        return post

    def begin(self, node: Node, keys: Sequence[bytes], watchers: Sequence[PeerId] = ()) -> None:
        """That peer serves: at some time of the next beat it begins to beat, and looks for watchers.

        One that has some already is as in a town that has run for long: it chose them some time ago.
        """

        def start() -> None:
            if not node.alive or self.sim.postponed(node, start):
                return
            post, now = self.post(node), self.sim.now
            post.keys = tuple(sorted(keys))
            post.beater = Beater(
                node.id, Pen(node.id, lambda: self.sim.now_us), self.beat, self.sim.now_us, now
            )
            if watchers:
                post.chosen_at = now - self.rng.random() * self.sim.tuning.table_refresh
                self.do(post, post.beater.on_watchers(watchers, post.keys, now))
            self._tick_beater(post, post.beater)

        self.sim.after(self.rng.random() * self.beat, start)

    def name_key(self, node: Node) -> bytes:
        """The key of a peer's name: the peers closest to it watch over that one."""
        return provider_key(self._names.peer(node.id))

    def watchers_of(self, node: Node) -> tuple[PeerId, ...]:
        beater = self.post(node).beater
        return beater.watchers if beater else ()

    def do(self, post: Post, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case Tell(peer, message):
                    self.send(post, peer, message)
                case Announce(keys, message):
                    self._announce(post, keys, message)

    def send(self, post: Post, peer: PeerId, message: Message, *, reply: bool = False) -> bool:
        """Always True: there are lines enough."""
        sim, here, there = self.sim, post.node, self.sim.nodes[peer]
        if not there.alive and peer not in here.connected and post.beater is not None:
            beater = post.beater
            sim.after(sim.tuning.dial_timeout, lambda: beater.on_lost(peer))
        kind = type(message).__name__.lower()
        if (here.id, peer) not in self.mute:
            sim.carry(
                here, there, size(message), kind, lambda: self._arrive(there, here.id, message), reply=reply
            )
        return True

    def break_off(self, node: Node) -> None:
        """All connections of a peer that was killed break: its machine runs on, and says so to the others."""
        node.refuses = True
        for peer in list(node.connected):
            self._reset(node, self.sim.nodes[peer])

    def _reset(self, gone: Node, other: Node) -> None:
        self.sim.carry(gone, other, RESET_BYTES, "reset", lambda: self._on_lost(other, gone))

    def _on_lost(self, node: Node, gone: Node) -> None:
        self.sim.disconnect(node, gone)
        post = self.post(node)
        if post.beater is not None:
            post.beater.on_lost(gone.id)
        self.do(post, post.watcher.on_lost(gone.id, self.sim.now))
        self.schedule(post)

    # --- what the machines want, and when ---

    def _arrive(self, node: Node, sender: PeerId, message: Message) -> None:
        post, now = self.post(node), self.sim.now
        match message:
            case Obituary():
                post.obituaries.add(message, self.sim.now_us)
            case Beat():
                post.obituaries.refute(message)
        if post.beater is not None:
            self.do(post, post.beater.on_message(sender, message, now))
        if not post.watcher.wards:  # it slept, for there was nothing that it could have been late for
            post.watcher.due = now + SOON
        self.do(post, post.watcher.on_message(sender, message, now))
        self.schedule(post)

    def schedule(self, post: Post) -> None:
        """Poll the watcher when it is due, which may be sooner than it was; without a ward it may sleep."""
        if not post.watcher.wards:
            return
        due = max(post.watcher.due, self.sim.now + SOON)
        if due < post.due:
            post.due = due
            self.sim.after(due - self.sim.now, lambda: self._tick_watcher(post, due))

    def _tick_watcher(self, post: Post, due: float) -> None:
        if post.due != due or not post.node.alive:
            return  # it was polled sooner
        if self.sim.postponed(post.node, lambda: self._tick_watcher(post, due)):
            return
        post.due = float("inf")
        self.do(post, post.watcher.poll(self.sim.now))
        self.schedule(post)

    def _tick_beater(self, post: Post, beater: Beater) -> None:
        if not post.node.alive or self.sim.postponed(post.node, lambda: self._tick_beater(post, beater)):
            return
        self.do(post, beater.poll(self.sim.now))
        self._consider(post, beater)
        self.sim.after(max(SOON, beater.due - self.sim.now), lambda: self._tick_beater(post, beater))

    # --- whom it asks to watch ---

    def _consider(self, post: Post, beater: Beater) -> None:
        """Choose watchers where none are, where one fell silent, and now and then."""
        now = self.sim.now
        waited = now - post.chosen_at
        lacking = beater.silent(now) or len(beater.watchers) < MAX_WATCHERS
        soon = lacking and (waited >= CHOOSE_BEATS * self.beat or not beater.watchers)
        if post.choosing or not (waited >= self.sim.tuning.table_refresh or soon):
            return
        post.chosen_at, post.choosing = now, True

        def chosen(closest: Sequence[PeerId]) -> None:
            post.choosing = False
            self.do(post, beater.on_watchers(closest[:MAX_WATCHERS], post.keys, self.sim.now))

        self._walk(post, self.name_key(post.node), CHOOSING, chosen)

    def _walk(
        self,
        post: Post,
        key: bytes,
        purpose: str,
        then: Callable[[Sequence[PeerId]], None],
        on_ours: Callable[[PeerId], None] | None = None,
    ) -> None:
        """`then` gets the peers closest to `key` who answered."""
        walk = self.sim.closest_walk(post.node, key, on_ours)
        self.sim.start(post.node, walk, purpose, lambda _: then(walk.closest_ours))

    # --- who is told of a death ---

    def _announce(self, post: Post, keys: Sequence[bytes], message: Obituary | Beat) -> None:
        subject, now = message.subject, self.sim.now
        if isinstance(message, Beat):
            if post.obituaries.refute(message):
                self.revived.setdefault(subject, []).append(now)
            post.tidings.on_refuted(message)
            return
        if post.obituaries.add(message, self.sim.now_us):
            self.buried.setdefault(subject, []).append(now)
            if self.sim.nodes[subject].alive:
                self.mistaken[subject, message.incarnation] += 1
        node = post.node
        near = {
            key: [seed.id for seed in self.sim.seeds(node, key) if seed.id in node.connected] for key in keys
        }
        post.tidings.on_death(message, near, node.region)
        self._set_out(post)

    def _set_out(self, post: Post) -> None:
        while (errand := post.tidings.poll(post.node.region)) is not None:
            self._walk_on(post, errand)

    def _walk_on(self, post: Post, errand: Errand) -> None:
        def on_ours(peer: PeerId) -> None:
            post.tidings.on_answer(errand, peer)
            self._set_out(post)

        def over(closest: Sequence[PeerId]) -> None:
            post.tidings.on_end(errand, closest)
            self._set_out(post)

        self._walk(post, errand.key, TELLING, over, on_ours)
