"""In which order a reader takes what several holders told of one key: all in turns.

Each record stands where the holder that names it earliest put it, so that one that tells thousands of
records, or a dozen false addresses of somebody else's provider, fills its own turns and no more. And
providers of one IP network take turns among themselves: a holder's order is fair to networks too, but who
sends to each holder in another order comes first with another of his thousand at each. Where a provider
is remains its own claim; a false one wins a turn for somebody who cannot be called.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, defaultdict
from collections.abc import Iterable

from modelnet_p2p.dht.walks.collecting import MAX_MERGED
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact
from modelnet_p2p.records import Sealed

MAX_ADDRS = 16  # of one provider: as many as one dial tries
MAX_TOLD_ADDRS = 64  # of one provider, by all tellers together: an honest one has a few, the rest are lies
MAX_NETWORKS = 4  # that one provider may be in: it has an address of each family, and liars add some
_IP4, _IP6 = 0x04, 0x29  # codes at the beginning of a binary multiaddr
_IP4_GROUP, _IP6_GROUP = 3, 6  # bytes of a /24 and of a /48


class Turns:
    """What the holders of one key have told so far."""

    def __init__(self) -> None:
        self._told: Counter[PeerId] = Counter()  # records that each holder has told
        self._places: dict[bytes, int] = {}
        self._addrs: defaultdict[PeerId, dict[bytes, int]] = defaultdict(dict)

    def on_told(self, holder: PeerId, envelopes: Iterable[bytes], contacts: Iterable[Contact]) -> None:
        """What one answer of `holder` said, in its order."""
        for place, envelope in enumerate(envelopes, start=self._told[holder]):
            known = self._places.get(envelope)
            if place < known if known is not None else len(self._places) < MAX_MERGED:
                self._places[envelope] = place
            self._told[holder] = place + 1
        for contact in contacts:
            if contact.id not in self._addrs and len(self._addrs) >= MAX_MERGED:
                continue
            places = self._addrs[contact.id]
            for place, addr in enumerate(contact.addrs[:MAX_ADDRS]):
                if addr in places or len(places) < MAX_TOLD_ADDRS:
                    places[addr] = min(place, places.get(addr, place))

    def take(self, other: Turns, most: int) -> None:
        """What was told of another key, whose records belong to this one too; at most so many in all."""
        for envelope, place in other._places.items():
            if envelope in self._places or len(self._places) < most:
                self._places[envelope] = min(place, self._places.get(envelope, place))
        for provider, addrs in other._addrs.items():
            if provider in self._addrs or len(self._addrs) < most:
                known = self._addrs[provider]
                for addr, place in addrs.items():
                    known[addr] = min(place, known.get(addr, place))

    def of(self, sealeds: Iterable[Sealed]) -> list[Sealed]:
        """The first of every holder and network, then the second, and so on."""
        counts: Counter[bytes] = Counter()
        turns: list[tuple[int, Sealed]] = []
        for sealed in sorted(sealeds, key=lambda one: self._places.get(one.envelope, MAX_MERGED)):
            networks = self._networks(sealed.identity.provider)
            turns.append((min(counts[network] for network in networks), sealed))
            counts.update(networks)
        return [sealed for _, sealed in sorted(turns, key=lambda turn: turn[0])]

    def addresses(self, provider: PeerId) -> tuple[bytes, ...]:
        """Where this provider is said to be, the first address of every teller first."""
        places = self._addrs.get(provider, {})
        return tuple(sorted(places, key=places.__getitem__))[:MAX_ADDRS]

    def _networks(self, provider: PeerId) -> list[bytes]:
        """All that it is said to be in, so that no false address takes its turn; by itself if in none."""
        found = (network(addr) for addr in self.addresses(provider))
        return list(dict.fromkeys(one for one in found if one))[:MAX_NETWORKS] or [bytes(provider)]


def network(addr: bytes) -> bytes | None:
    """The public /24 or /48 that a binary multiaddr begins with; None for any other."""
    if len(addr) > 4 and addr[0] == _IP4:
        ip, size = addr[1:5], _IP4_GROUP
    elif len(addr) > 16 and addr[0] == _IP6:
        ip, size = addr[1:17], _IP6_GROUP
    else:
        return None
    return ip[:size] if ipaddress.ip_address(ip).is_global else None
