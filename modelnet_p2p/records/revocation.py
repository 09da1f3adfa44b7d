"""The fourth record: a key takes itself back. From then on nothing that it sealed counts.

It speaks of no model and of no network, it proves itself, and it is final: whoever has it may carry it,
wherever that key's seals lie, and no sequence number comes after it. It names a reason, and the key that its
holder goes on with. That a *thief* may have written both is for whoever reads them to remember: he has the
key, too. So a revocation takes belief away, and gives none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from modelnet_p2p import names
from modelnet_p2p.canonical import pack, unpack
from modelnet_p2p.identity import PeerId
from modelnet_p2p.records.fields import MAX_SAFE_INT, Field, Fields, integer, signer, text
from modelnet_p2p.records.kinds import Card, Identity, OfferRecord, Tombstone
from modelnet_p2p.refusals import MalformedRecord

MAX_REASON_BYTES = 160  # a line for people


@dataclass(frozen=True, slots=True)
class Revocation:
    """`revoked` is no key any more, says `revoked`. Merges with any other of the same key: one is enough."""

    revoked: PeerId
    issued_us: int  # unix, microseconds
    reason: str = ""
    successor: PeerId | None = None  # a claim
    extra: Mapping[str, object] = field(default_factory=dict)
    # not on the wire: until when whoever admitted it keeps it under a key unless he is told again
    kept_until_us: int = field(default=MAX_SAFE_INT, compare=False)

    @property
    def identity(self) -> Identity:
        return revocation_identity(self.revoked)

    @property
    def provider(self) -> PeerId:
        return self.revoked

    @property
    def owner(self) -> PeerId:
        return self.revoked

    @property
    def expires_us(self) -> int:
        return self.kept_until_us

    # of no network, model or task, and before every number: what others ask of any record
    @property
    def network(self) -> str:
        return ""

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def part(self) -> str:
        return ""

    @property
    def task(self) -> str:
        return ""

    @property
    def tags(self) -> tuple[str, ...]:
        return ()

    @property
    def digest(self) -> bytes | None:
        return None

    @property
    def seq(self) -> int:
        return 0

    def key_names(self) -> list[str]:
        """None of its own: it may lie under every key. See `revocation_keys`."""
        return []

    def to_payload(self) -> bytes:
        """The canonical msgpack that the revoked key signs; raises MalformedRecord."""
        return pack(_REVOCATION.to_wire(self))

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        values: dict[str, Any] = _REVOCATION.from_wire(unpack(payload))  # Any: the table made them right
        if values["successor"] == values["revoked"]:
            raise MalformedRecord("a key cannot be its own successor")
        return cls(**values)


Record = OfferRecord | Card | Tombstone | Revocation


def revocation_identity(revoked: PeerId) -> Identity:
    """By which all revocations of one key are the same, and none is a model's record: those have names."""
    return Identity(revoked, revoked, "", "", "")


def revocation_keys(network: str, revoked: PeerId) -> list[str]:
    """Where anybody who asks about a key itself looks, as an owner's and as a provider's."""
    keys = names.Keys(network)
    return [keys.owner(revoked), keys.peer(revoked)]


_REVOCATION = Fields(
    Field("revoked", "revoked", signer),
    Field("issued", "issued_us", integer()),
    Field("reason", "reason", text(MAX_REASON_BYTES), ""),
    Field("successor", "successor", signer, None),
)
