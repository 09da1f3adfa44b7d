"""A network on py-libp2p's Noise and yamux: the second implementation that ours is held against.

    async with open_libp2p(key, tuning=TEST, network="public", stack=STOCK) as network: ...

Dialling, identify and the connection table are ours in it; handshake, seals, frames and windows are not. What
a stock program does with its own host is another matter, see `stock.host`.
"""

from __future__ import annotations

from typing import Any, cast

from modelnet_p2p.node.transport.libp2p_network import Stack
from stock.connection import MAX_OUTBOUND, Connection
from stock.upgrade import Upgrader

__all__ = ["MAX_OUTBOUND", "STOCK"]

# `Any`: they keep the interface of ours without being of its classes
STOCK = Stack(upgrader=cast(Any, Upgrader), connection=cast(Any, Connection))
