"""Watchers who lie: of everybody whom they watch over they say, again and again, that it is dead.

They never pass a sign of life on, tell each subject that it is doubted, and send the holders an obituary that
they made up from their own word alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from modelnet_p2p.beats import Beat, Heard, Message, Obituary, Roster, Verdict, Watch
from modelnet_p2p.dht.liveness import Announce, Effect, Tell, Watcher
from modelnet_p2p.dht.simulator import Node
from modelnet_p2p.identity import PeerId
from simulation.vigil import Post, Vigil


@dataclass(slots=True)
class Victim:
    """One whom it lies about: who watches over it, who holds its records, and its newest incarnation."""

    roster: Roster
    keys: tuple[bytes, ...]
    incarnation: int = 0
    forged: bool = False  # the holders were told


@dataclass(slots=True, eq=False)
class FalseWitness:
    """Takes the place of a Watcher."""

    post: Post
    vigil: Vigil
    wards: dict[PeerId, Victim] = field(default_factory=dict)
    due: float = 0.0
    lies: int = 0

    def on_message(self, sender: PeerId, message: Message, now: float) -> list[Effect]:
        match message:
            case Watch(roster, keys) if roster.subject == sender:
                if self.post.id in roster.watchers:
                    self.wards[sender] = Victim(roster, keys)
                else:
                    self.wards.pop(sender, None)
            case Beat(subject, incarnation, seq) if (victim := self.wards.get(subject)) is not None:
                victim.incarnation = max(victim.incarnation, incarnation)
                return [Tell(subject, Heard(incarnation, seq, doubted=True))]
        return []

    def on_lost(self, peer: PeerId, now: float) -> list[Effect]:
        return []

    def poll(self, now: float) -> list[Effect]:
        self.due = now + self.vigil.beat
        effects: list[Effect] = []
        for subject, victim in self.wards.items():
            at_us = self.vigil.sim.now_us
            lie = Verdict(self.post.id, subject, victim.incarnation, dead=True, at_us=at_us)
            others = [peer for peer in victim.roster.watchers if peer != self.post.id]
            effects += [Tell(peer, lie) for peer in others]
            self.lies += len(others)
            if victim.incarnation and not victim.forged:
                victim.forged = True
                effects.append(Announce(victim.keys, Obituary(victim.roster, (lie,) * victim.roster.quorum)))
        return effects


def witnesses(vigil: Vigil, among: Sequence[Node]) -> list[FalseWitness]:
    """As many as can lie without two of them watching over the same peer; each that it does is lied about."""
    found: list[FalseWitness] = []
    lied_about: set[PeerId] = set()
    for node in among:
        post = vigil.post(node)
        watcher = post.watcher
        if not isinstance(watcher, Watcher) or not watcher.wards or lied_about & set(watcher.wards):
            continue
        lied_about |= set(watcher.wards)
        wards = {
            subject: Victim(ward.roster, ward.keys, ward.incarnation)
            for subject, ward in watcher.wards.items()
        }
        post.watcher = witness = FalseWitness(post, vigil, wards, due=vigil.sim.now)
        vigil.schedule(post)
        found.append(witness)
    return found
