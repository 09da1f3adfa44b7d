"""Alice owns a model, Bob serves it, Carol reads, Mallory lies. Keys, times and records are fixed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from modelnet_p2p.identity import KeyPair
from modelnet_p2p.records import Manifest, OfferRecord, Sealed, cards_of, seal_offer
from samples import NOW_US, key, manifest_of, offer_of


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
    return NOW_US


@pytest.fixture(scope="session")
def manifest(alice: KeyPair) -> Manifest:
    return manifest_of(alice)


@pytest.fixture(scope="session")
def offer(alice: KeyPair, bob: KeyPair, manifest: Manifest, now_us: int) -> OfferRecord:
    """Bob's offer of Alice's model, every field but `part` away from its default."""
    return offer_of(bob, alice, manifest, now_us)


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
