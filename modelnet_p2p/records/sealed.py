"""A sealed record, and `admit`: the one check that every record passes at every hop.

Whoever stores a record and whoever reads one call the same function, and it trusts nobody: neither
the holder that sent the record, nor the provider that signed it beyond what the signature proves.
The received bytes are the record: they are kept, forwarded and hashed, never encoded again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from modelnet_p2p import envelope as envelopes
from modelnet_p2p.names import MAX_SHARD_DEPTH, provider_key, shard_key, shard_prefix
from modelnet_p2p.records.kinds import (
    MAX_MANIFEST_BYTES,
    Card,
    Identity,
    OfferRecord,
    Tombstone,
)
from modelnet_p2p.records.manifest import Manifest
from modelnet_p2p.records.revocation import Record, Revocation
from modelnet_p2p.refusals import BadRecord, MalformedRecord, Refusal

MANIFEST_TYPE = b"/modelnet/manifest/1"
OFFER_TYPE = b"/modelnet/offer/1"
CARD_TYPE = b"/modelnet/card/1"
TOMBSTONE_TYPE = b"/modelnet/tombstone/1"
REVOCATION_TYPE = b"/modelnet/revocation/1"

MAX_RECORD_BYTES = 4096  # 15 of them still fit one 64 KiB reply
MAX_CARD_BYTES = 512  # 120 of them do; of those sealed together, whose paths are not counted, 100
MAX_TOMBSTONE_BYTES = 1024  # full names and eight tags; must fit where it replaces a card
MAX_REVOCATION_BYTES = 512  # must fit where it stands in for a card; its own fields take 400
MAX_LIFETIME_US = 24 * 3600 * 1_000_000  # a dead provider's offer lingers no longer than a day
CLOCK_SKEW_US = 300 * 1_000_000  # how far clocks of sound peers may differ

PAYLOAD_TYPES: dict[type[Record], bytes] = {
    OfferRecord: OFFER_TYPE,
    Card: CARD_TYPE,
    Tombstone: TOMBSTONE_TYPE,
    Revocation: REVOCATION_TYPE,
}
_LIMITS = {
    OFFER_TYPE: MAX_RECORD_BYTES,
    CARD_TYPE: MAX_CARD_BYTES,
    TOMBSTONE_TYPE: MAX_TOMBSTONE_BYTES,
    REVOCATION_TYPE: MAX_REVOCATION_BYTES,
}


@dataclass(frozen=True, slots=True, eq=False)
class Sealed:
    """A record that was checked (or made here), with the bytes that were signed."""

    envelope: bytes
    record: Record
    identity: Identity = field(init=False, repr=False)  # the record's: holders ask for it again and again

    def __post_init__(self) -> None:
        object.__setattr__(self, "identity", self.record.identity)

    @property
    def seq(self) -> int:
        return self.record.seq

    @property
    def expires_us(self) -> int:
        return self.record.expires_us

    @property
    def is_tombstone(self) -> bool:
        """Whether it takes something back instead of offering it."""
        return isinstance(self.record, Tombstone | Revocation)

    @property
    def keys(self) -> frozenset[bytes]:
        """The provider keys (multihashes) at which it may lie."""
        return frozenset(map(provider_key, self.record.key_names()))

    def belongs_under(self, key: bytes) -> bool:
        """Whether it may lie at this provider key: one of its own, or its provider's shard of one."""
        own = self.keys
        if key in own:
            return True
        provider = self.identity.provider
        prefixes = [shard_prefix(provider, depth + 1) for depth in range(MAX_SHARD_DEPTH)]
        return any(key == shard_key(one, prefix) for one in own for prefix in prefixes)

    @property
    def sha256(self) -> bytes:
        """By which a card names its offer."""
        return hashlib.sha256(self.envelope).digest()

    def __eq__(self, other: object) -> bool:
        return self.envelope == other.envelope if isinstance(other, Sealed) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.envelope)


def admit(
    envelope: bytes,
    *,
    network: str,
    now_us: int,
    key: bytes | None = None,
    roots: envelopes.Roots | None = None,
) -> Sealed:
    """The record in `envelope` if it may be believed now; raises BadRecord, and nothing else.

    `network` is the one that this peer belongs to, `now_us` unix microseconds, `key` the multihash
    under which the record was sent; who admits several that came together keeps the signed `roots` of
    those that were sealed together. In this order: length, the provider's signature over the
    received bytes, form, signer, the owner's seal, network, time, key. A revocation is of every network
    and may lie under every key. Whether the keys of the seals were revoked, who knows of revocations
    asks next (`dht/holding/revocations.py`).
    """
    sealed = _open(envelope, roots)
    record = sealed.record
    if isinstance(record, Revocation):
        if record.issued_us > now_us + CLOCK_SKEW_US:
            raise _from_the_future(record.issued_us, now_us)
        return kept_until(sealed, now_us + MAX_LIFETIME_US)
    if record.network != network:
        raise BadRecord(Refusal.FOREIGN_KEY, "of another network")
    _check_time(record, now_us)
    if key is not None and not sealed.belongs_under(key):
        raise BadRecord(Refusal.FOREIGN_KEY, "sent under a key where it does not belong")
    return sealed


def seals(message: Iterable[bytes]) -> int:
    """How many signatures are checked to admit these envelopes of one message: an offer has two, and cards
    that were sealed together have one (where they lie, a few more)."""
    alone, shared = 0, set[bytes]()
    for envelope in message:
        parts = envelopes.by_place(envelope)
        if parts is not None and parts.path:
            shared.add(parts.signature)
        else:
            alone += 1 if parts is not None and parts.payload_type != OFFER_TYPE else 2
    return alone + len(shared)


def open_revocation(envelope: bytes) -> Sealed:
    """The revocation in `envelope`, whatever the time is; raises BadRecord."""
    sealed = _open(envelope)
    if not isinstance(sealed.record, Revocation):
        raise MalformedRecord("not a revocation")
    return sealed


def kept_until(revocation: Sealed, until_us: int) -> Sealed:
    """The same revocation, to lie under a key until then."""
    assert isinstance(revocation.record, Revocation)
    return replace(revocation, record=replace(revocation.record, kept_until_us=until_us))


def open_manifest(envelope: bytes) -> Manifest:
    """The manifest in an owner's envelope; raises BadRecord."""
    opened = envelopes.open_envelope(envelope, max_bytes=MAX_MANIFEST_BYTES)
    if opened.payload_type != MANIFEST_TYPE:
        raise MalformedRecord("not a manifest")
    manifest = Manifest.from_payload(opened.payload)
    if manifest.owner != opened.signer:
        raise BadRecord(Refusal.WRONG_OWNER, f"a manifest signed by {opened.signer.short}, not by its owner")
    return manifest


def _open(envelope: bytes, roots: envelopes.Roots | None = None) -> Sealed:
    """What holds of a record always and everywhere."""
    opened = envelopes.open_envelope(envelope, max_bytes=MAX_RECORD_BYTES, roots=roots or envelopes.Roots())
    limit = _LIMITS.get(opened.payload_type)
    if limit is None:
        raise MalformedRecord(f"no kind of record: {opened.payload_type[:32]!r}")
    if opened.path and opened.payload_type != CARD_TYPE:
        raise MalformedRecord("only cards are sealed together")
    if len(envelope) - opened.path_bytes > limit:
        raise BadRecord(Refusal.OVERSIZED, f"{len(envelope)} bytes, more than {limit}")
    record = _decode(opened)
    if record.provider != opened.signer:
        whom = "the key that it revokes" if isinstance(record, Revocation) else "its provider"
        raise BadRecord(Refusal.WRONG_OWNER, f"signed by {opened.signer.short}, not by {whom}")
    return Sealed(bytes(envelope), record)


def _decode(opened: envelopes.Opened) -> Record:
    if opened.payload_type == OFFER_TYPE:
        return OfferRecord.from_payload(opened.payload, open_manifest)
    if opened.payload_type == CARD_TYPE:
        return Card.from_payload(opened.payload)
    if opened.payload_type == REVOCATION_TYPE:
        return Revocation.from_payload(opened.payload)
    return Tombstone.from_payload(opened.payload)


def _check_time(record: OfferRecord | Card | Tombstone, now_us: int) -> None:
    if record.expires_us <= now_us:
        raise BadRecord(Refusal.EXPIRED, f"over since {(now_us - record.expires_us) // 1_000_000} s")
    # a card leaves the time of issue to its offer
    issued_us = max(0, record.expires_us - MAX_LIFETIME_US) if isinstance(record, Card) else record.issued_us
    if issued_us > now_us + CLOCK_SKEW_US:
        raise _from_the_future(issued_us, now_us)
    longest = MAX_LIFETIME_US + (CLOCK_SKEW_US if isinstance(record, Tombstone) else 0)
    if not 0 < record.expires_us - issued_us <= longest:
        raise MalformedRecord("its lifetime is not within a day")


def _from_the_future(issued_us: int, now_us: int) -> BadRecord:
    return BadRecord(Refusal.EXPIRED, f"issued {(issued_us - now_us) // 1_000_000} s in the future")
