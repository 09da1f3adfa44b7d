"""The three records of a model that peers keep for each other: an offer, its card, and its tombstone.

An *offer* is a provider's word: I serve this model, thus and here. Its *card* is the short form for
keys that many share (a task, a tag). A *tombstone* takes an offer and its cards back. All three
carry the identity by which they are merged: provider, owner, name, version and part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from modelnet_p2p import names
from modelnet_p2p.canonical import pack, unpack
from modelnet_p2p.identity import PeerId
from modelnet_p2p.records.fields import (
    DIGEST_BYTES,
    Field,
    Fields,
    blob,
    digest,
    integer,
    layers,
    mark_bytes,
    marks,
    named,
    numbers,
    several,
    signer,
    span,
    text,
    token,
)
from modelnet_p2p.records.manifest import MAX_SPECS, Manifest, Spec

MAX_MANIFEST_BYTES = 1536  # sealed: leaves an offer more than half of its 4 KiB
MAX_TAGS = 8  # each is a key with a walk and a card of its own
MAX_LANGUAGES = 32
MAX_GIVES = 16
MAX_EXITS = 64
MAX_NUMBERS = 16  # limits, prices
MAX_MARKS = 128  # an offer has at most 125 words that a search may ask for


class Identity(NamedTuple):
    """What merges: of two records with the same identity one replaces the other."""

    provider: PeerId
    owner: PeerId
    name: str
    version: str
    part: str


@dataclass(frozen=True, slots=True)
class OfferRecord:
    """What one peer offers. `manifest` is what `manifest_envelope`, the owner's seal, holds.

    Words whose meaning a later version may extend (`gives`, `tier`, `access`, …) are not closed lists
    here: a holder keeps what it does not understand, and who acts on a word checks it.
    """

    provider: PeerId
    network: str
    manifest: Manifest
    manifest_envelope: bytes
    seq: int
    issued_us: int  # unix, microseconds
    expires_us: int
    framework: str = ""
    precision: str = ""
    inputs: tuple[Spec, ...] = ()
    outputs: tuple[Spec, ...] = ()
    parameters: int | None = None
    context_length: int | None = None  # tokens
    languages: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()  # answer, items, tokens, logits, hidden:<layer>; idempotent, deterministic
    part: str = ""  # layer range "0-11", empty: the whole model
    family: str = ""
    exits: tuple[int, ...] = ()  # layers after which it can stop early
    tier: str = ""  # device, edge, cloud
    access: str = "open"  # open, peers, token
    limits: Mapping[str, int] = field(default_factory=dict)  # by name with unit: size_bytes, latency_us, …
    price: Mapping[str, int] = field(default_factory=dict)  # millionths by unit: usd_per_call, …
    extra: Mapping[str, object] = field(default_factory=dict)

    @property
    def owner(self) -> PeerId:
        return self.manifest.owner

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> str:
        return self.manifest.version

    @property
    def task(self) -> str:
        return self.manifest.task

    @property
    def digest(self) -> bytes | None:
        return self.manifest.digest

    @property
    def idempotent(self) -> bool:
        """Whether its provider says that repeating a call does no harm."""
        return "idempotent" in self.gives

    @property
    def deterministic(self) -> bool:
        """Whether its provider says that the same input gives the same answer, whoever serves its digest."""
        return "deterministic" in self.gives

    @property
    def identity(self) -> Identity:
        return Identity(self.provider, self.owner, self.name, self.version, self.part)

    def key_names(self) -> list[str]:
        """Where the offer itself lies: under its model, its digest if it has one, its provider, its owner."""
        return _offer_keys(self)

    def to_payload(self) -> bytes:
        """The canonical msgpack that the provider signs; raises MalformedRecord."""
        return pack(_OFFER.to_wire(self))

    @classmethod
    def from_payload(cls, payload: bytes, open_manifest: Callable[[bytes], Manifest]) -> Self:
        """The offer in `payload`; `open_manifest` checks the owner's seal and may raise BadRecord."""
        values: dict[str, Any] = _OFFER.from_wire(unpack(payload))  # Any: the table made the types right
        return cls(manifest=open_manifest(values["manifest_envelope"]), **values)


@dataclass(frozen=True, slots=True)
class Card:
    """An offer in at most 512 bytes, for the key of its task (`tag` empty) or of one of its tags.

    The provider alone signs it: its owner is a claim until the offer is read. With `marks` it sums its offer
    up (`records.summary`): what it does not say, the offer does not have. Without them it leaves that open.
    """

    provider: PeerId
    network: str
    owner: PeerId
    name: str
    task: str
    seq: int
    expires_us: int
    offer_sha256: bytes  # of the offer's envelope
    version: str = ""
    tag: str = ""
    part: str = ""
    digest: bytes | None = None
    framework: str = ""
    marks: tuple[int, ...] | None = None  # of the offer's words, ascending
    parameters: int | None = None
    context_length: int | None = None
    cost: tuple[int, int] = (0, 0)  # its lowest and its highest price, in millionths
    extra: Mapping[str, object] = field(default_factory=dict)

    @property
    def identity(self) -> Identity:
        return Identity(self.provider, self.owner, self.name, self.version, self.part)

    def key_names(self) -> list[str]:
        """The one key at which it lies."""
        keys = names.Keys(self.network)
        return [keys.tag(self.tag) if self.tag else keys.task(self.task)]

    def to_payload(self) -> bytes:
        return pack(_CARD.to_wire(self))

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        values: dict[str, Any] = _CARD.from_wire(unpack(payload))  # Any: the table made the types right
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A provider takes an offer back, under all its keys. Lives as long as the offer could be shown
    again by a peer whose clock is behind: until the offer's expiry and the clock skew allowed."""

    provider: PeerId
    network: str
    owner: PeerId
    name: str
    task: str
    seq: int
    issued_us: int
    expires_us: int
    version: str = ""
    part: str = ""
    tags: tuple[str, ...] = ()
    digest: bytes | None = None
    extra: Mapping[str, object] = field(default_factory=dict)

    @property
    def identity(self) -> Identity:
        return Identity(self.provider, self.owner, self.name, self.version, self.part)

    def key_names(self) -> list[str]:
        keys = names.Keys(self.network)
        return [*_offer_keys(self), keys.task(self.task), *(keys.tag(tag) for tag in self.tags)]

    def to_payload(self) -> bytes:
        return pack(_TOMBSTONE.to_wire(self))

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        values: dict[str, Any] = _TOMBSTONE.from_wire(unpack(payload))  # Any: the table made the types right
        return cls(**values)


def _offer_keys(record: OfferRecord | Tombstone) -> list[str]:
    keys = names.Keys(record.network)
    found = [keys.model(record.name), keys.peer(record.provider)]
    if record.digest:
        found.append(keys.digest(record.digest))
    if record.owner != record.provider:  # else whoever looks for the owner finds it under the provider
        found.append(keys.owner(record.owner))
    return found


_TAGS = several(named(names.check_tag), MAX_TAGS)
_SPECS = several(Spec.from_map, MAX_SPECS)
_WORD = token(32)


def _spec_maps(value: object) -> object:
    assert isinstance(value, tuple)
    return [{key: item for key, item in spec.to_map().items() if item is not None} for spec in value]


_OFFER = Fields(
    Field("provider", "provider", signer),
    Field("network", "network", named(names.check_network)),
    Field("manifest", "manifest_envelope", blob(1, MAX_MANIFEST_BYTES)),
    Field("seq", "seq", integer()),
    Field("issued", "issued_us", integer()),
    Field("expires", "expires_us", integer()),
    Field("framework", "framework", _WORD, ""),
    Field("precision", "precision", _WORD, ""),
    Field("inputs", "inputs", _SPECS, (), encode=_spec_maps),
    Field("outputs", "outputs", _SPECS, (), encode=_spec_maps),
    Field("parameters", "parameters", integer(), None),
    Field("context_length", "context_length", integer(), None),
    Field("languages", "languages", several(token(16), MAX_LANGUAGES), ()),
    Field("tags", "tags", _TAGS, ()),
    Field("gives", "gives", several(_WORD, MAX_GIVES), ()),
    Field("part", "part", layers, ""),
    Field("family", "family", text(80), ""),
    Field("exits", "exits", several(integer(), MAX_EXITS), ()),
    Field("tier", "tier", _WORD, ""),
    Field("access", "access", _WORD, "open"),
    Field("limits", "limits", numbers(MAX_NUMBERS, 32), {}),
    Field("price", "price", numbers(MAX_NUMBERS, 32), {}),
)

# One letter a key: with names of full length a card could not hold its 512 bytes otherwise.
_CARD = Fields(
    Field("p", "provider", signer),
    Field("n", "network", named(names.check_network)),
    Field("o", "owner", signer),
    Field("m", "name", named(names.check_model_name)),
    Field("v", "version", named(names.check_version), ""),
    Field("t", "task", named(names.check_task)),
    Field("g", "tag", named(names.check_tag), ""),
    Field("l", "part", layers, ""),
    Field("d", "digest", digest, None),
    Field("f", "framework", _WORD, ""),
    Field("s", "seq", integer()),
    Field("e", "expires_us", integer()),
    Field("h", "offer_sha256", blob(DIGEST_BYTES, DIGEST_BYTES)),
    Field("w", "marks", marks(MAX_MARKS), None, encode=mark_bytes),
    Field("a", "parameters", integer(), None),
    Field("c", "context_length", integer(), None),
    Field("x", "cost", span, (0, 0)),
)

_TOMBSTONE = Fields(
    Field("provider", "provider", signer),
    Field("network", "network", named(names.check_network)),
    Field("owner", "owner", signer),
    Field("name", "name", named(names.check_model_name)),
    Field("version", "version", named(names.check_version), ""),
    Field("part", "part", layers, ""),
    Field("task", "task", named(names.check_task)),
    Field("tags", "tags", _TAGS, ()),
    Field("digest", "digest", digest, None),
    Field("seq", "seq", integer()),
    Field("issued", "issued_us", integer()),
    Field("expires", "expires_us", integer()),
)
