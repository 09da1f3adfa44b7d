"""What peers say of models, signed: manifests, offers, cards and tombstones; and of a key that is no more.

`seal_…` makes them, `admit` is the one check that they pass wherever they arrive, `newest` merges.
"""

from modelnet_p2p.records.kinds import (
    MAX_MANIFEST_BYTES,
    MAX_TAGS,
    Card,
    Identity,
    OfferRecord,
    Tombstone,
)
from modelnet_p2p.records.manifest import Manifest, Spec
from modelnet_p2p.records.merge import MAX_SEQ, newest, next_seq
from modelnet_p2p.records.revocation import (
    MAX_REASON_BYTES,
    Record,
    Revocation,
    revocation_identity,
    revocation_keys,
)
from modelnet_p2p.records.seal import (
    card_of,
    cards_of,
    cards_of_all,
    seal_manifest,
    seal_offer,
    seal_revocation,
    seal_tombstone,
    tombstone_of,
)
from modelnet_p2p.records.sealed import (
    CARD_TYPE,
    CLOCK_SKEW_US,
    MANIFEST_TYPE,
    MAX_CARD_BYTES,
    MAX_LIFETIME_US,
    MAX_RECORD_BYTES,
    MAX_REVOCATION_BYTES,
    MAX_TOMBSTONE_BYTES,
    OFFER_TYPE,
    REVOCATION_TYPE,
    TOMBSTONE_TYPE,
    Sealed,
    admit,
    kept_until,
    open_manifest,
    open_revocation,
    seals,
)
from modelnet_p2p.refusals import BadRecord, MalformedRecord, Refusal

MAX_LIFETIME = MAX_LIFETIME_US / 1_000_000
"""The longest lifetime of a record, in seconds."""

__all__ = [
    "CARD_TYPE",
    "CLOCK_SKEW_US",
    "MANIFEST_TYPE",
    "MAX_CARD_BYTES",
    "MAX_LIFETIME",
    "MAX_LIFETIME_US",
    "MAX_MANIFEST_BYTES",
    "MAX_REASON_BYTES",
    "MAX_RECORD_BYTES",
    "MAX_REVOCATION_BYTES",
    "MAX_SEQ",
    "MAX_TAGS",
    "MAX_TOMBSTONE_BYTES",
    "OFFER_TYPE",
    "REVOCATION_TYPE",
    "TOMBSTONE_TYPE",
    "BadRecord",
    "Card",
    "Identity",
    "MalformedRecord",
    "Manifest",
    "OfferRecord",
    "Record",
    "Refusal",
    "Revocation",
    "Sealed",
    "Spec",
    "Tombstone",
    "admit",
    "card_of",
    "cards_of",
    "cards_of_all",
    "kept_until",
    "newest",
    "next_seq",
    "open_manifest",
    "open_revocation",
    "revocation_identity",
    "revocation_keys",
    "seal_manifest",
    "seal_offer",
    "seal_revocation",
    "seal_tombstone",
    "seals",
    "tombstone_of",
]
