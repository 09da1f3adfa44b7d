"""A world-wide network of AI models with no centre: the public face, imported lazily.

`import modelnet_p2p` costs milliseconds: `Peer` and its friends, which stand on trio and numpy, are
imported when they are first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from modelnet_p2p.errors import LocalError, NotFound, RemoteError
    from modelnet_p2p.node.peer import Peer
    from modelnet_p2p.node.swarm.aio import AsyncSwarm
    from modelnet_p2p.node.swarm.sync import Swarm
    from modelnet_p2p.offers import Offer

_HOMES = {
    "AsyncSwarm": "modelnet_p2p.node.swarm.aio",
    "LocalError": "modelnet_p2p.errors",
    "NotFound": "modelnet_p2p.errors",
    "Offer": "modelnet_p2p.offers",
    "Peer": "modelnet_p2p.node.peer",
    "RemoteError": "modelnet_p2p.errors",
    "Swarm": "modelnet_p2p.node.swarm.sync",
}

__all__ = ["AsyncSwarm", "LocalError", "NotFound", "Offer", "Peer", "RemoteError", "Swarm", "__version__"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
