"""Alice owns a model and Bob serves it: fixed keys, times and records for tests and for `scripts/prove`."""

from __future__ import annotations

from hashlib import sha256

from modelnet_p2p.identity import KeyPair
from modelnet_p2p.joint import HASH_BYTES
from modelnet_p2p.records import Manifest, OfferRecord, Revocation, Spec, seal_manifest

HOUR_US = 3600 * 1_000_000
NOW_US = 1_900_000_000_000_000


def key(name: str) -> KeyPair:
    return KeyPair(name.encode().ljust(32, b"."))


def manifest_of(owner: KeyPair) -> Manifest:
    return Manifest(
        owner=owner.id,
        name="acme/sentiment",
        version="2",
        task="text-classification",
        licence="Apache-2.0",
        digest=bytes(range(32)),
        issued_unix=1_890_000_000,
        metrics={"accuracy": 973_000},
    )


def offer_of(provider: KeyPair, owner: KeyPair, manifest: Manifest, now_us: int = NOW_US) -> OfferRecord:
    """An offer of that model, every field but `part` away from its default."""
    return OfferRecord(
        provider=provider.id,
        network="public",
        manifest=manifest,
        manifest_envelope=seal_manifest(manifest, owner),
        seq=1_900_000_000_000,
        issued_us=now_us,
        expires_us=now_us + 2 * HOUR_US,
        framework="torch",
        precision="float32",
        inputs=(Spec("text", "text"),),
        outputs=(Spec("scores", "tensor", "float32", (None, 2)), Spec("labels", "json")),
        parameters=22_713_216,
        context_length=512,
        languages=("en", "de"),
        tags=("fast", "small"),
        gives=("answer", "hidden:5"),
        family="acme/sentiment-family",
        exits=(3, 5),
        tier="edge",
        access="token",
        limits={"max_body_bytes": 1 << 20},
        price={"usd_per_call": 12},
        extra={"x-colour": "blue"},
    )


def own_offer(provider: KeyPair, name: str, task: str, network: str = "public") -> OfferRecord:
    """Of a model of the provider's own, no field but the required ones."""
    manifest = Manifest(provider.id, name, task, NOW_US // 1_000_000)
    return OfferRecord(
        provider=provider.id,
        network=network,
        manifest=manifest,
        manifest_envelope=seal_manifest(manifest, provider),
        seq=1_900_000_000_000,
        issued_us=NOW_US,
        expires_us=NOW_US + 2 * HOUR_US,
    )


def model_of(provider: KeyPair, number: int, task: str = "text-generation") -> OfferRecord:
    """One of many."""
    return own_offer(provider, f"bob/model-{number}", task)


def end_of(revoked: KeyPair, successor: KeyPair, now_us: int = NOW_US) -> Revocation:
    """A revocation, no field at its default."""
    return Revocation(revoked.id, now_us, "stolen", successor.id, extra={"x-colour": "blue"})


def root_of(leaf: bytes, path: bytes) -> bytes:
    """The root to which a path leads: two hashes of 128 bits in ascending order, behind a byte, are one."""
    for at in range(0, len(path), HASH_BYTES):
        leaf = sha256(b"\x01" + b"".join(sorted((leaf, path[at : at + HASH_BYTES])))).digest()[:HASH_BYTES]
    return leaf
