"""Signing what this peer says: manifests, offers, their cards and tombstones, and the end of a key.

Everything is opened again by the readers' own check before it is handed out: what a holder would
refuse is never sent, and the two sides cannot drift apart.
"""

from __future__ import annotations

from dataclasses import replace

from modelnet_p2p.envelope import seal
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.records.kinds import Card, OfferRecord, Tombstone
from modelnet_p2p.records.manifest import Manifest
from modelnet_p2p.records.merge import MAX_SEQ
from modelnet_p2p.records.revocation import Record, Revocation
from modelnet_p2p.records.sealed import (
    CLOCK_SKEW_US,
    MANIFEST_TYPE,
    PAYLOAD_TYPES,
    Sealed,
    admit,
    open_manifest,
)
from modelnet_p2p.records.summary import cost, marks
from modelnet_p2p.refusals import BadRecord, Refusal


def seal_manifest(manifest: Manifest, key: KeyPair) -> bytes:
    """The owner's seal; raises LocalError (bad-input, too-large) if a reader would refuse it."""
    try:
        envelope = seal(MANIFEST_TYPE, manifest.to_payload(), key)
        open_manifest(envelope)
    except BadRecord as error:
        raise _unsealable(f"the manifest of {manifest.name}", error) from error
    return envelope


def seal_offer(offer: OfferRecord, key: KeyPair) -> Sealed:
    """Sealed by its provider; raises LocalError (bad-input, too-large) if a holder would refuse it.

    `offer.manifest` must be what `offer.manifest_envelope` holds.
    """
    sealed = _seal(offer, key, offer.issued_us)
    if sealed.record != offer:
        raise LocalError(Code.BAD_INPUT, f"the manifest of {offer.name} is not the one in its seal")
    return sealed


def card_of(offer: Sealed, key: KeyPair, tag: str = "", *, summed_up: bool = True) -> Sealed:
    """The card of a sealed offer, for its task's key or for that tag's; with a summary of the offer, but
    where its names leave no room for one."""
    record = _offer(offer)
    if tag and tag not in record.tags:
        raise LocalError(Code.BAD_INPUT, f"{record.name} is not offered under the tag {tag!r}")
    card = Card(
        provider=record.provider,
        network=record.network,
        owner=record.owner,
        name=record.name,
        version=record.version,
        task=record.task,
        tag=tag,
        part=record.part,
        digest=record.digest,
        framework=record.framework,
        seq=record.seq,
        expires_us=record.expires_us,
        offer_sha256=offer.sha256,
    )
    if summed_up:
        full = _seal_summed_up(card, record, key)
        if full is not None:
            return full
    return _seal(card, key, record.issued_us)


def _seal_summed_up(card: Card, offer: OfferRecord, key: KeyPair) -> Sealed | None:
    full = replace(
        card,
        marks=marks(offer, card.offer_sha256),
        parameters=offer.parameters,
        context_length=offer.context_length,
        cost=cost(offer),
    )
    try:
        return _seal(full, key, offer.issued_us)
    except LocalError as error:
        if error.code is Code.TOO_LARGE:
            return None
        raise


def cards_of(offer: Sealed, key: KeyPair) -> list[Sealed]:
    """One card for the task, then one for each tag."""
    return [card_of(offer, key, tag) for tag in ("", *_offer(offer).tags)]


def seal_tombstone(tombstone: Tombstone, key: KeyPair) -> Sealed:
    """Sealed by the provider that takes its offer back."""
    return _seal(tombstone, key, tombstone.issued_us)


def seal_revocation(revocation: Revocation, key: KeyPair) -> Sealed:
    """Sealed by the key that it revokes, for good; raises LocalError (bad-input, too-large)."""
    return _seal(revocation, key, revocation.issued_us)


def tombstone_of(offer: Sealed, *, seq: int, now_us: int) -> Tombstone:
    """What takes `offer` back, to be sealed: it outlives the offer by the clock skew allowed."""
    record = _offer(offer)
    return Tombstone(
        provider=record.provider,
        network=record.network,
        owner=record.owner,
        name=record.name,
        version=record.version,
        part=record.part,
        task=record.task,
        tags=record.tags,
        digest=record.digest,
        seq=seq,
        issued_us=now_us,
        expires_us=max(record.expires_us, now_us) + CLOCK_SKEW_US,
    )


def _offer(sealed: Sealed) -> OfferRecord:
    if not isinstance(sealed.record, OfferRecord):
        raise TypeError(f"an offer is wanted, not a {type(sealed.record).__name__}")
    return sealed.record


def _seal(record: Record, key: KeyPair, now_us: int) -> Sealed:
    if record.seq > MAX_SEQ:
        raise LocalError(Code.BAD_INPUT, f"sequence {record.seq} is past the last one, {MAX_SEQ}")
    try:
        envelope = seal(PAYLOAD_TYPES[type(record)], record.to_payload(), key)
        return admit(envelope, network=record.network, now_us=now_us)
    except BadRecord as error:
        what = f"the {type(record).__name__} of {record.name or record.provider}"
        raise _unsealable(what, error) from error


def _unsealable(what: str, error: BadRecord) -> LocalError:
    code = Code.TOO_LARGE if error.refusal is Refusal.OVERSIZED else Code.BAD_INPUT
    hint = "shorten names, version, tags, specs or the reason" if code is Code.TOO_LARGE else ""
    return LocalError(code, f"{what} cannot be sealed: {error.message}", hint=hint)
