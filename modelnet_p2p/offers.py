"""What `find` returns: an offer as its provider signed it, and what is known of that provider now."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from modelnet_p2p.attributes import MILLIONTHS
from modelnet_p2p.identity import PeerId
from modelnet_p2p.names import ModelUri, digest_text
from modelnet_p2p.records import OfferRecord, Spec


class State(StrEnum):
    """What is known of a provider's life."""

    ALIVE = "alive"  # it answered, or a watcher heard it
    UNKNOWN = "unknown"  # nobody asked yet
    SUSPECT = "suspect"  # it did not answer: may be slow, may be gone
    DEAD = "dead"  # suspected long enough


@lru_cache(maxsize=1024)  # each call of an offer names it
def _uri(name: str, version: str, owner: PeerId, digest: bytes | None, provider: PeerId) -> str:
    return str(ModelUri(name, version, owner, digest, provider))


@dataclass(frozen=True, slots=True)
class Offer:
    """One provider's offer; both its seals were checked. Addresses are text multiaddrs."""

    record: OfferRecord
    envelope: bytes
    addrs: tuple[str, ...] = ()
    state: State = State.UNKNOWN
    rtt_ms: float | None = None
    load: float | None = None  # 0 idle, 1 full, as the provider says

    @property
    def model(self) -> str:
        """`name`, or `name@version`."""
        version = self.record.version
        return f"{self.record.name}@{version}" if version else self.record.name

    @property
    def uri(self) -> str:
        """The model URI that names exactly this offer: owner, digest and provider in it."""
        record = self.record
        return _uri(record.name, record.version, record.owner, record.digest, record.provider)

    @property
    def task(self) -> str:
        return self.record.task

    @property
    def provider(self) -> str:
        return str(self.record.provider)

    @property
    def owner(self) -> str:
        return str(self.record.owner)

    @property
    def digest(self) -> str | None:
        """`sha256:<hex>`, None for a callable or a URL."""
        return digest_text(self.record.digest) if self.record.digest else None

    @property
    def framework(self) -> str:
        return self.record.framework

    @property
    def seq(self) -> int:
        return self.record.seq

    @property
    def expires_unix(self) -> int:
        """Whole seconds, rounded down."""
        return self.record.expires_us // 1_000_000

    @property
    def inputs(self) -> tuple[Spec, ...]:
        return self.record.inputs

    @property
    def outputs(self) -> tuple[Spec, ...]:
        return self.record.outputs

    @property
    def price(self) -> dict[str, float]:
        """By its name, in whole units of it; empty: it asks for nothing."""
        return {unit: number / MILLIONTHS for unit, number in self.record.price.items()}

    def facts(self) -> dict[str, object]:
        """What a search may ask for beside, by its name in `find --json`, as far as the offer says it."""
        record = self.record
        told: dict[str, object] = {
            "precision": record.precision,
            "parameters": record.parameters,
            "context_length": record.context_length,
            "languages": list(record.languages),
            "tags": list(record.tags),
            "licence": record.manifest.licence,
            "family": record.family,
            "gives": list(record.gives),
            "tier": record.tier,
            "price": self.price,
        }
        return {name: value for name, value in told.items() if value not in (None, "", [], {})}

    def to_map(self) -> dict[str, object]:
        """A line of `find --json`."""
        return {
            "model": self.model,
            "uri": self.uri,
            "task": self.task,
            "provider": self.provider,
            "owner": self.owner,
            "addrs": list(self.addrs),
            "digest": self.digest,
            "framework": self.framework,
            "seq": self.seq,
            "expires_unix": self.expires_unix,
            "state": self.state.value,
            "rtt_ms": self.rtt_ms,
            "load": self.load,
            "inputs": [spec.to_map() for spec in self.inputs],
            "outputs": [spec.to_map() for spec in self.outputs],
            **self.facts(),
        }
