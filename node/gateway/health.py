"""/healthz, /readyz and /metrics: for those who watch the gateway."""

from __future__ import annotations

from modelnet_p2p.node.gateway.calling import Gateway
from modelnet_p2p.node.gateway.gauges import CONTENT_TYPE
from modelnet_p2p.node.gateway.http import Http


async def healthz(gateway: Gateway, http: Http) -> None:
    """GET /healthz: the process answers."""
    await http.say({"status": "ok"})


async def readyz(gateway: Gateway, http: Http) -> None:
    """GET /readyz: it has brought back what it served before, and there is somebody to ask."""
    peer = gateway.peer
    restored = peer.restored.is_set()
    status = await peer.status()
    reaches = bool(status["connections"]) or bool(status["models"])
    ready = restored and reaches and not gateway.leaving
    await http.say(
        {
            "status": "ready" if ready else "not ready",
            "restored": restored,
            "connected": bool(status["connections"]),
        },
        200 if ready else 503,
    )


async def metrics(gateway: Gateway, http: Http) -> None:
    """GET /metrics"""
    await http.respond(200, await gateway.gauges.page(gateway.peer), CONTENT_TYPE)
