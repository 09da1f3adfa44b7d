"""The people of the stories: alice, bob and carol, who publish, hold and read."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.kad import Contact
from modelnet_p2p.names import Keys, provider_key
from modelnet_p2p.records import (
    Manifest,
    OfferRecord,
    Sealed,
    card_of,
    seal_manifest,
    seal_offer,
    seal_tombstone,
    tombstone_of,
)

# the scripts are no package: their folder is put on the path, as they do themselves
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

NOW_US = 1_700_000_000_000_000
HOUR_US = 3600 * 1_000_000


@dataclass
class Person:
    """A peer with a key; makes records that are valid at NOW_US."""

    name: str
    key: KeyPair = field(init=False)

    def __post_init__(self) -> None:
        self.key = KeyPair(self.name.encode().ljust(32, b"."))

    @property
    def id(self) -> PeerId:
        return self.key.id

    @property
    def contact(self) -> Contact:
        return Contact(self.id, (b"\x04" + self.name.encode()[:4].ljust(4, b"."),))

    def offer(
        self,
        model: str = "acme/sentiment",
        seq: int = 1,
        *,
        task: str = "text-classification",
        **more: object,
    ) -> Sealed:
        manifest = Manifest(
            owner=self.id,
            name=model,
            version="",
            task=task,
            licence="mit",
            digest=None,
            issued_unix=1_699_999_000,
        )
        record = OfferRecord(
            provider=self.id,
            network="public",
            manifest=manifest,
            manifest_envelope=seal_manifest(manifest, self.key),
            seq=seq,
            issued_us=NOW_US - 1_000_000,
            expires_us=NOW_US + 2 * HOUR_US,
            **more,  # type: ignore[arg-type]  # a test's own words
        )
        return seal_offer(record, self.key)

    def card(
        self, model: str = "acme/sentiment", seq: int = 1, *, task: str = "text-classification"
    ) -> Sealed:
        return card_of(self.offer(model, seq, task=task), self.key)

    def tombstone(self, model: str = "acme/sentiment", seq: int = 1) -> Sealed:
        return seal_tombstone(tombstone_of(self.offer(model), seq=seq, now_us=NOW_US), self.key)


@pytest.fixture(scope="session")
def person() -> Callable[[str], Person]:
    return Person


@pytest.fixture(scope="session")
def alice() -> Person:
    return Person("alice")


@pytest.fixture(scope="session")
def bob() -> Person:
    return Person("bob")


@pytest.fixture(scope="session")
def carol() -> Person:
    return Person("carol")


@pytest.fixture(scope="session")
def now_us() -> int:
    return NOW_US


@pytest.fixture(scope="session")
def model_key() -> bytes:
    """Where offers of acme/sentiment lie."""
    return provider_key(Keys("public").model("acme/sentiment"))


@pytest.fixture(scope="session")
def task_key() -> bytes:
    """Where cards of text-classification lie."""
    return provider_key(Keys("public").task("text-classification"))
