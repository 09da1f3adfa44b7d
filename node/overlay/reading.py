"""One key's records as their holders tell them: all in turns, so that nobody who tells much hides the others.

One that tells thousands of records, or a dozen false addresses of somebody else's provider, fills its own
turns and no more.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

import trio

from modelnet_p2p.dht.walks import MAX_MERGED, Collect
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact, Message
from modelnet_p2p.node.overlay.driver import Overlay
from modelnet_p2p.records import Sealed

MAX_ADDRS = 16  # of one provider: as many as one dial tries


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
            revocations=overlay.server.revocations,
        )
        self._me = overlay.me
        self._told: Counter[PeerId] = Counter()  # records that each holder has told so far
        self._places: dict[bytes, int] = {}
        self._addrs: defaultdict[PeerId, dict[bytes, int]] = defaultdict(dict)

    def on_local(self, sealeds: Iterable[Sealed], contacts: Iterable[Contact]) -> None:
        sealeds, contacts = list(sealeds), list(contacts)
        super().on_local(sealeds, contacts)
        self._note(self._me, [sealed.envelope for sealed in sealeds], contacts)

    def on_reply(self, peer: PeerId, reply: Message, now: float) -> None:
        super().on_reply(peer, reply, now)
        self._note(peer, reply.records or (), reply.providers)

    @property
    def in_turns(self) -> list[Sealed]:
        """The live records: the first of every holder, then the second of every holder, and so on."""
        return sorted(self.records, key=lambda sealed: self._places.get(sealed.envelope, MAX_MERGED))

    def addresses(self, provider: PeerId) -> tuple[bytes, ...]:
        """Where this provider is said to be, the first address of every teller first."""
        places = self._addrs.get(provider, {})
        return tuple(sorted(places, key=places.__getitem__))[:MAX_ADDRS]

    def _note(self, holder: PeerId, envelopes: Iterable[bytes], contacts: Iterable[Contact]) -> None:
        for envelope in envelopes:
            place = self._told[holder]
            self._told[holder] += 1
            if envelope in self._places or len(self._places) < MAX_MERGED:
                self._places[envelope] = min(place, self._places.get(envelope, place))
        for contact in contacts:
            if contact.id not in self._addrs and len(self._addrs) >= MAX_MERGED:
                continue
            places = self._addrs[contact.id]
            for place, addr in enumerate(contact.addrs[:MAX_ADDRS]):
                places[addr] = min(place, places.get(addr, place))
