"""How many connections there may be, counted before any costs are incurred.

A place is taken when a socket is accepted or a dial begins, so that handshakes count too; it gets its
peer's name once the handshake has proved it. Strangers that dial us may not fill the house: the last
quarter is kept for connections that we open ourselves.
"""

from __future__ import annotations

from collections import Counter

from modelnet_p2p.identity import PeerId

OUTBOUND_SHARE = 0.25  # of all places, kept for our own dials: a flooded peer must still reach others


class Place:
    """One connection's place; give it back with `leave`."""

    __slots__ = ("_gate", "_peer")

    def __init__(self, gate: Gate) -> None:
        self._gate: Gate | None = gate
        self._peer: PeerId | None = None

    def name(self, peer: PeerId) -> bool:
        """Tell whose connection it is; False if that peer has too many already."""
        if self._gate is None or self._peer is not None:
            raise ValueError("a place is named once, while it is taken")
        if self._gate.per_peer[peer] >= self._gate.max_per_peer:
            return False
        self._gate.per_peer[peer] += 1
        self._peer = peer
        return True

    def leave(self) -> None:
        """Give the place back; idempotent."""
        gate, self._gate = self._gate, None
        if gate is None:
            return
        gate.taken -= 1
        if self._peer is not None:
            gate.per_peer[self._peer] -= 1
            if not gate.per_peer[self._peer]:
                del gate.per_peer[self._peer]


class Gate:
    """Counts places; `refused` tells how many were asked for in vain."""

    __slots__ = ("max_connections", "max_inbound", "max_per_peer", "per_peer", "refused", "taken")

    def __init__(self, max_connections: int, max_per_peer: int) -> None:
        self.max_connections = max_connections
        self.max_inbound = max_connections - int(max_connections * OUTBOUND_SHARE)
        self.max_per_peer = max_per_peer
        self.taken = 0
        self.per_peer: Counter[PeerId] = Counter()
        self.refused = 0

    def enter(self, *, inbound: bool) -> Place | None:
        """A place, or None if the house is full."""
        if self.taken >= (self.max_inbound if inbound else self.max_connections):
            self.refused += 1
            return None
        self.taken += 1
        return Place(self)
