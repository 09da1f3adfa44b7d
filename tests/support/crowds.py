"""A model whose every slot and place is taken, without a caller of flesh."""

from __future__ import annotations

from modelnet_p2p.node.peer import Peer


def fill(peer: Peer, model: str) -> None:
    """By callers who stay: whoever comes now is told that it is busy."""
    served = peer.parts.models.get(model)
    assert served is not None
    tickets = iter(range(-1, -1000, -1))
    while served.load < 1:
        ticket = next(tickets)
        served._admission.enter(ticket, f"caller {ticket}")
