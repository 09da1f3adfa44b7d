"""What a peer tells of itself, of other peers and of records, as the maps that commands print."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import trio

import modelnet_p2p
from modelnet_p2p.errors import Code, LocalError, RemoteError
from modelnet_p2p.identity import PeerId
from modelnet_p2p.names import digest_text
from modelnet_p2p.node.overlay.driver import Overlay
from modelnet_p2p.node.overlay.finder import Finder
from modelnet_p2p.node.serving.policy.recent import Pace
from modelnet_p2p.node.transport.addresses import split_p2p
from modelnet_p2p.offers import Offer, State
from modelnet_p2p.records import Card, OfferRecord, Record, Refusal, Spec

if TYPE_CHECKING:
    from modelnet_p2p.node.assembly import Parts

MAX_NAMES_READ = 4096  # of the records kept for others: read at once, and in milliseconds


def status(parts: Parts, gateway: str | None) -> dict[str, object]:
    """The contract's `status` object; its control socket is the daemon's."""
    return {
        "peer": parts.peer_id.text,
        "addrs": list(parts.network.addrs),
        "version": modelnet_p2p.__version__,
        "network": parts.network_name,
        "uptime_s": trio.current_time() - parts.started,
        "control": None,
        "gateway": gateway,
        "connections": len(parts.network.connected()),
        "table": len(parts.overlay.table),
        "network_size": _network_size(parts.overlay),
        "records": len(parts.overlay.server.store),
        "rss_bytes": rss_bytes(),
        "models": [*parts.hosting.lines(), *parts.upstreams.lines()],
        "ended": list(parts.hosting.ended.values()),
        "refused": refused(parts.overlay, parts.finder),
        "clock": parts.clocks.to_map(),
        **parts.hosting.pace().to_map(),
    }


def _network_size(overlay: Overlay) -> int | None:
    """About how many peers there are, me among them; None while nobody else is known."""
    others = overlay.density.peers
    return None if others is None else round(others) + 1


def idle_line(name: str, state: str) -> dict[str, object]:
    """The line in `status` of a model that is not served now."""
    none: dict[str, object] = {"seq": None, "in_flight": 0, "queued": 0, "calls": 0, "faults": 0}
    return {"model": name, "state": state, **none, **Pace().to_map(), "failing": 0, "failed_with": None}


def published_line(draft: OfferRecord) -> dict[str, object]:
    """What is said of an offer when it is published, or would be."""
    offer = Offer(draft, b"")
    return {
        "model": offer.model,
        "uri": offer.uri,
        "provider": offer.provider,
        "owner": offer.owner,
        "digest": offer.digest,
        "task": offer.task,
        "licence": draft.manifest.licence,
        "seq": draft.seq,
        "tier": draft.tier,
        "price": offer.price,
        "tags": list(draft.tags),
        **_details(draft),
    }


def _details(draft: OfferRecord) -> dict[str, object]:
    """What inspection and a warm-up run told of the model."""
    return {
        "framework": draft.framework,
        "precision": draft.precision,
        "parameters": draft.parameters,
        "context_length": draft.context_length,
        "languages": list(draft.languages),
        "inputs": [spec.to_map() for spec in draft.inputs],
        "outputs": [spec.to_map() for spec in draft.outputs],
        "gives": list(draft.gives),
        "limits": dict(draft.limits),
        "metrics": dict(draft.manifest.metrics),
    }


def known_models(parts: Parts) -> list[str]:
    """Names of models, mine first, then those of the records that I keep for others."""
    kept = (s.identity.name for _, s in parts.overlay.server.store.records() if s.identity.name)
    return [*dict.fromkeys([*parts.hosting.names(), *islice(kept, MAX_NAMES_READ)])]


def known_tasks(parts: Parts) -> list[str]:
    """Names of tasks, of the records that I keep for others."""
    kept = (s.record.task for _, s in parts.overlay.server.store.records() if s.identity.name)
    return list(dict.fromkeys(islice(kept, MAX_NAMES_READ)))


def known_tags(parts: Parts) -> list[str]:
    """Tags of my own offers, then of the records that I keep for others."""
    kept = (sealed for _, sealed in parts.overlay.server.store.records() if not sealed.is_tombstone)
    records = (sealed.record for sealed in (*parts.publisher.offers(), *islice(kept, MAX_NAMES_READ)))
    return list(dict.fromkeys(tag for record in records for tag in _tags(record)))


def _tags(record: Record) -> Sequence[str]:
    match record:
        case OfferRecord():
            return record.tags
        case Card() if record.tag:
            return (record.tag,)
    return ()


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
