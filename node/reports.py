"""What a peer tells of itself and of records, as the maps that commands print."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path

from modelnet_p2p.identity import PeerId
from modelnet_p2p.names import digest_text
from modelnet_p2p.offers import Offer
from modelnet_p2p.records import Spec


def rss_bytes() -> int:
    """Resident memory of this process; 0 where the kernel does not tell."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0


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
