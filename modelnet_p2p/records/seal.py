"""Signing what this peer says: manifests, offers, their cards and tombstones, and the end of a key.

Everything is opened again by the readers' own check before it is handed out: what a holder would
refuse is never sent, and the two sides cannot drift apart.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

from modelnet_p2p.envelope import Roots, seal, seal_jointly, sealed_bytes
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.records.kinds import Card, OfferRecord, Tombstone
from modelnet_p2p.records.manifest import Manifest
from modelnet_p2p.records.merge import MAX_SEQ
from modelnet_p2p.records.revocation import Record, Revocation
from modelnet_p2p.records.sealed import (
    CARD_TYPE,
    CLOCK_SKEW_US,
    MANIFEST_TYPE,
    MAX_CARD_BYTES,
    PAYLOAD_TYPES,
    Sealed,
    admit,
    open_manifest,
)
from modelnet_p2p.records.summary import cost, marks
from modelnet_p2p.refusals import BadRecord, Refusal


class _Draft(NamedTuple):
    """A record as it will be signed."""

    record: Record
    payload: bytes
    now_us: int

    @classmethod
    def of(cls, record: Record, now_us: int) -> _Draft:
        """To be sealed then; raises LocalError (bad-input, too-large) where there is no writing it."""
        if record.seq > MAX_SEQ:
            raise LocalError(Code.BAD_INPUT, f"sequence {record.seq} is past the last one, {MAX_SEQ}")
        with _unsealable(_called(record)):
            return cls(record, record.to_payload(), now_us)


def seal_manifest(manifest: Manifest, key: KeyPair) -> bytes:
    """The owner's seal; raises LocalError (bad-input, too-large) if a reader would refuse it."""
    with _unsealable(f"the manifest of {manifest.name}"):
        envelope = seal(MANIFEST_TYPE, manifest.to_payload(), key)
        open_manifest(envelope)
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
    [sealed] = _seal_together([_card(offer, tag, summed_up=summed_up)], key)
    return sealed


def cards_of(offer: Sealed, key: KeyPair) -> list[Sealed]:
    """One card for the task, then one for each tag."""
    return cards_of_all([offer], key)[0]


def cards_of_all(offers: Sequence[Sealed], key: KeyPair) -> list[list[Sealed]]:
    """The cards of each of these offers. Those that lie under one key are sealed together: whoever is sent
    them checks one signature."""
    cards = [[_card(offer, tag) for tag in ("", *_offer(offer).tags)] for offer in offers]
    together: defaultdict[str, dict[tuple[int, int], _Draft]] = defaultdict(dict)
    for row, of_offer in enumerate(cards):
        for column, draft in enumerate(of_offer):
            together[draft.record.key_names()[0]][row, column] = draft
    sealed: dict[tuple[int, int], Sealed] = {}
    for some in together.values():
        sealed |= zip(some, _seal_together(list(some.values()), key), strict=True)
    return [[sealed[row, column] for column in range(len(of_offer))] for row, of_offer in enumerate(cards)]


def _card(offer: Sealed, tag: str, *, summed_up: bool = True) -> _Draft:
    record = _offer(offer)
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
        full = _Draft.of(
            replace(
                card,
                marks=marks(record, card.offer_sha256),
                parameters=record.parameters,
                context_length=record.context_length,
                cost=cost(record),
            ),
            record.issued_us,
        )
        if sealed_bytes(CARD_TYPE, full.payload) <= MAX_CARD_BYTES:
            return full
    return _Draft.of(card, record.issued_us)


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
    [sealed] = _seal_together([_Draft.of(record, now_us)], key)
    return sealed


def _seal_together(drafts: Sequence[_Draft], key: KeyPair) -> list[Sealed]:
    """Each in an envelope of its own, all under one signature."""
    envelopes = seal_jointly([(PAYLOAD_TYPES[type(one.record)], one.payload) for one in drafts], key)
    roots, sealed = Roots(), []
    for (record, _, now_us), envelope in zip(drafts, envelopes, strict=True):
        with _unsealable(_called(record)):
            sealed.append(admit(envelope, network=record.network, now_us=now_us, roots=roots))
    return sealed


@contextmanager
def _unsealable(what: str) -> Iterator[None]:
    """Raises LocalError where a reader would refuse it."""
    try:
        yield
    except BadRecord as error:
        code = Code.TOO_LARGE if error.refusal is Refusal.OVERSIZED else Code.BAD_INPUT
        hint = "shorten names, version, tags, specs or the reason" if code is Code.TOO_LARGE else ""
        raise LocalError(code, f"{what} cannot be sealed: {error.message}", hint=hint) from error


def _called(record: Record) -> str:
    return f"the {type(record).__name__} of {record.name or record.provider}"
