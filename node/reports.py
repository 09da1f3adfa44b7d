"""What a peer tells of itself, of other peers and of records, as the maps that commands print."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path

from modelnet_p2p.errors import Code, LocalError, RemoteError
from modelnet_p2p.identity import PeerId
from modelnet_p2p.names import digest_text
from modelnet_p2p.node.overlay.driver import Overlay
from modelnet_p2p.node.overlay.finder import Finder
from modelnet_p2p.node.transport.addresses import split_p2p
from modelnet_p2p.offers import Offer, State
from modelnet_p2p.records import Refusal, Spec


def rss_bytes() -> int:
    """Resident memory of this process; 0 where the kernel does not tell."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0


def refused(overlay: Overlay, finder: Finder) -> dict[str, int]:
    """How many records were refused for each reason, sent to me or read by me."""
    counts = {reason.value: overlay.server.refused[reason] for reason in Refusal}
    for reason, number in finder.refused.items():
        counts[reason] = counts.get(reason, 0) + number
    return counts


def known_peers(overlay: Overlay, finder: Finder) -> list[dict[str, object]]:
    """A line for each peer that is connected or in the routing table."""
    connected = overlay.network.connected()

    def line(peer: PeerId) -> dict[str, object]:
        vital = finder.vital(peer)
        state = vital.state if vital else State.ALIVE if peer in connected else State.UNKNOWN
        return {
            "peer": peer.text,
            "addrs": list(overlay.known_addrs(peer)),
            "connected": peer in connected,
            "rtt_ms": vital.rtt_ms if vital else None,
            "state": state.value,
        }

    return [line(peer) for peer in sorted({contact.id for contact in overlay.table} | connected)]


async def ping(target: str, count: int, overlay: Overlay, finder: Finder) -> dict[str, object]:
    """`count` round trips to a peer id or a multiaddr; raises RemoteError when there is no answer."""
    if target.startswith("/"):
        peer, addr = split_p2p(target)
        if peer is None:
            raise LocalError(Code.BAD_INPUT, f"{target} does not end in /p2p/ID")
        addrs: Sequence[str] = (addr,)
    else:
        peer = PeerId.parse(target)
        addrs = await overlay.find_peer(peer)
    trips: list[float] = []
    for _ in range(count):
        vital = await finder.ping(peer, addrs)
        if vital.rtt_ms is not None:
            trips.append(vital.rtt_ms)
    if not trips:
        where = ", ".join(addrs) or "no known address"
        raise RemoteError(Code.UNREACHABLE, f"peer {peer} does not answer at {where}", peer=peer.text)
    return {"peer": peer.text, "ok": len(trips) == count, "rtt_ms": trips}


def shown(offer: Offer) -> dict[str, object]:
    """A line of `show`: the record for people beside the very bytes that were signed."""
    return {
        "model": offer.model,
        "provider": offer.provider,
        "verified": True,  # nothing unverified gets this far: `find` has checked both seals
        "envelope": base64.b64encode(offer.envelope).decode(),
        "record": plain(offer.record),
    }


def plain(value: object) -> object:
    """A record's fields as JSON values: ids in base58, digests as `sha256:…`, other bytes in base64."""
    match value:
        case Spec():
            return value.to_map()
        case PeerId():
            return value.text
        case bytes() if len(value) == 32:
            return digest_text(value)
        case bytes():
            return base64.b64encode(value).decode()
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return value
