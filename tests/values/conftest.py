"""Alice owns a model, Bob serves it, Carol reads, Mallory lies. Keys, times and records are fixed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from modelnet_p2p.identity import KeyPair
from modelnet_p2p.records import Manifest, OfferRecord, Sealed, Spec, cards_of, seal_manifest, seal_offer

HOUR_US = 3600 * 1_000_000


def key(name: str) -> KeyPair:
    return KeyPair(name.encode().ljust(32, b"."))


@pytest.fixture(scope="session")
def alice() -> KeyPair:
    return key("alice")


@pytest.fixture(scope="session")
def bob() -> KeyPair:
    return key("bob")


@pytest.fixture(scope="session")
def carol() -> KeyPair:
    return key("carol")


@pytest.fixture(scope="session")
def mallory() -> KeyPair:
    return key("mallory")


@pytest.fixture(scope="session")
def now_us() -> int:
    return 1_900_000_000_000_000


@pytest.fixture(scope="session")
def manifest(alice: KeyPair) -> Manifest:
    return Manifest(
        owner=alice.id,
        name="acme/sentiment",
        version="2",
        task="text-classification",
        licence="Apache-2.0",
        digest=bytes(range(32)),
        issued_unix=1_890_000_000,
        metrics={"accuracy": 973_000},
    )


@pytest.fixture(scope="session")
def offer(alice: KeyPair, bob: KeyPair, manifest: Manifest, now_us: int) -> OfferRecord:
    """Bob's offer of Alice's model, every field but `part` away from its default."""
    return OfferRecord(
        provider=bob.id,
        network="public",
        manifest=manifest,
        manifest_envelope=seal_manifest(manifest, alice),
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


@pytest.fixture(scope="session")
def sealed(offer: OfferRecord, bob: KeyPair) -> Sealed:
    return seal_offer(offer, bob)


@pytest.fixture(scope="session")
def cards(sealed: Sealed, bob: KeyPair) -> list[Sealed]:
    return cards_of(sealed, bob)


@pytest.fixture(scope="session")
def sealed_with(offer: OfferRecord, bob: KeyPair) -> Callable[..., Sealed]:
    """Bob's offer with some fields changed, sealed by Bob."""

    def seal(**changes: Any) -> Sealed:  # Any: whatever fields the story changes
        return seal_offer(replace(offer, **changes), bob)

    return seal
