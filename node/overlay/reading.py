"""One key's records as their holders tell them: in turns, so that nobody who tells much hides the others."""

from __future__ import annotations

from collections.abc import Iterable

import trio

from modelnet_p2p.dht.turns import MAX_ADDRS, Turns
from modelnet_p2p.dht.walks import Collect
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact, Message
from modelnet_p2p.node.overlay.driver import Overlay
from modelnet_p2p.records import Sealed

__all__ = ["MAX_ADDRS", "Reading"]


class Reading(Collect):
    """A read that remembers in which place of its holder's answer each record and address stood."""

    # `Collect` merges in the order of arrival: whoever answers first with most would be all that is seen
    def __init__(self, key: bytes, overlay: Overlay, limit: int | None) -> None:
        super().__init__(
            key,
            overlay.seeds(key),
            me=overlay.me,
            network=overlay.name,
            tuning=overlay.tuning,
            now=trio.current_time(),
            now_us=overlay.wall_us(),
            limit=limit,
            patience=overlay.patience.seconds,
        )
        self._me = overlay.me
        self._turns = Turns()

    def on_local(self, sealeds: Iterable[Sealed], contacts: Iterable[Contact]) -> None:
        sealeds, contacts = list(sealeds), list(contacts)
        super().on_local(sealeds, contacts)
        self._turns.on_told(self._me, [sealed.envelope for sealed in sealeds], contacts)

    def on_reply(self, peer: PeerId, reply: Message, now: float) -> None:
        super().on_reply(peer, reply, now)
        self._turns.on_told(peer, reply.records or (), reply.providers)

    @property
    def in_turns(self) -> list[Sealed]:
        """The live records: the first of every holder and network, then the second, and so on."""
        return self._turns.of(self.records)

    def addresses(self, provider: PeerId) -> tuple[bytes, ...]:
        """Where this provider is said to be, the first address of every teller first."""
        return self._turns.addresses(provider)
