"""Golden vectors: bytes that must never change, and those that another language wrote.

`python tests/values/test_vectors.py` writes our own again, after a change that was meant.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from modelnet_p2p.canonical import pack
from modelnet_p2p.envelope import seal
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.kad import Contact, Framer, Kind, Message, Value, encode, frame
from modelnet_p2p.names import Keys, provider_key
from modelnet_p2p.records import (
    Manifest,
    OfferRecord,
    Revocation,
    Spec,
    admit,
    card_of,
    cards_of,
    cards_of_all,
    open_manifest,
    seal_manifest,
    seal_offer,
    seal_revocation,
    seal_tombstone,
    tombstone_of,
)
from samples import model_of

FOLDER = Path(__file__).parent / "vectors"
JS = Path(__file__).parents[1] / "interop" / "make_vector.mjs"
NOW_US = 1_900_000_000_000_000
ALICE = KeyPair(b"alice".ljust(32, b"."))
BOB = KeyPair(b"bob".ljust(32, b"."))
ADDRESS = bytes.fromhex("047f000001060fa1")  # /ip4/127.0.0.1/tcp/4001

MANIFEST = Manifest(
    owner=ALICE.id,
    name="acme/sentiment",
    version="2",
    task="text-classification",
    licence="Apache-2.0",
    digest=bytes(range(32)),
    issued_unix=1_890_000_000,
    metrics={"accuracy": 973_000, "loss": -12},
)
SMALL = OfferRecord(
    provider=BOB.id,
    network="public",
    manifest=MANIFEST,
    manifest_envelope=seal_manifest(MANIFEST, ALICE),
    seq=1_900_000_000_000,
    issued_us=NOW_US,
    expires_us=NOW_US + 7_200_000_000,
    framework="torch",
    inputs=(Spec("text", "text"),),
    outputs=(Spec("scores", "tensor", "float32", (None, 2)),),
    tags=("fast",),
    extra={"x-müsli": "é", "x-\U0001f600": [-33, 255, 65_536, 2**40], "x-\uffee": True},
)
FULL = replace(
    SMALL,
    precision="float32",
    parameters=22_713_216,
    context_length=512,
    languages=("en", "de"),
    tags=("fast", "small"),
    gives=("answer", "hidden:5"),
    part="0-5",
    family="acme/sentiment-family",
    exits=(3, 5),
    tier="edge",
    access="token",
    limits={"max_body_bytes": 1 << 20},
    price={"usd_per_call": 12},
    extra={},
)
END = Revocation(BOB.id, NOW_US, "stolen on the train — lückenlos", ALICE.id)


def vectors() -> dict[str, dict[str, object]]:
    """Everything by file name; bytes as hex."""
    values = {
        "a": [None, True, False],
        "b": b"\x00",
        "é": "ü",
        "n": [0, 127, 128, 2**64 - 1, -1, -33, -(2**63)],
    }
    small, full = seal_offer(SMALL, BOB), seal_offer(FULL, BOB)
    withdrawn = seal_tombstone(tombstone_of(full, seq=full.seq + 1, now_us=NOW_US), BOB)
    key = provider_key(Keys("public").model("acme/sentiment"))
    bob = Contact(BOB.id, (ADDRESS,))
    messages = {
        "find_node": Message(Kind.FIND_NODE, BOB.id),
        "find_node_reply": Message(Kind.FIND_NODE, BOB.id, closer=(bob,), records=()),
        "add_provider": Message(Kind.ADD_PROVIDER, key, providers=(bob,), records=(small.envelope,)),
        "add_provider_refused": Message(Kind.ADD_PROVIDER, key, records=(), refused="stale"),
        "get_providers_reply": Message(
            Kind.GET_PROVIDERS, key, (bob,), (bob,), records=(small.envelope,), cursor=b"next"
        ),
        "put_value": Message(Kind.PUT_VALUE, b"k", value=Value(b"k", b"v")),
        "ping": Message(Kind.PING),
    }
    return {
        "envelope": {
            "seed": ALICE.seed.hex(),
            "peer": str(ALICE.id),
            "payload_type": "/modelnet/test/1",
            "payload": pack(values).hex(),
            "envelope": seal(b"/modelnet/test/1", pack(values), ALICE).hex(),
        },
        "manifest": {"seed": ALICE.seed.hex(), "envelope": SMALL.manifest_envelope.hex()},
        "offer": {
            "seed": BOB.seed.hex(),
            "now_us": NOW_US,
            "small": small.envelope.hex(),
            "full": full.envelope.hex(),
        },
        "card": {
            "seed": BOB.seed.hex(),
            "cards": [
                card_of(full, BOB, tag, summed_up=False).envelope.hex() for tag in ("", "fast", "small")
            ],
            "summed_up": [card.envelope.hex() for card in cards_of(full, BOB)],
        },
        "tombstone": {"seed": BOB.seed.hex(), "envelope": withdrawn.envelope.hex()},
        "revocation": {"seed": BOB.seed.hex(), "envelope": seal_revocation(END, BOB).envelope.hex()},
        "kad": {name: frame(message).hex() for name, message in messages.items()},
    }


@pytest.mark.parametrize("name", ["envelope", "manifest", "offer", "card", "tombstone", "revocation", "kad"])
def test_our_bytes_have_not_changed(name: str) -> None:
    assert json.loads((FOLDER / f"{name}.json").read_text()) == vectors()[name]


@pytest.fixture
def javascript() -> dict[str, str]:
    vector: dict[str, str] = json.loads((FOLDER / "js.json").read_text())
    return vector


def test_another_language_writes_the_same_bytes(javascript: dict[str, str]) -> None:
    """Ed25519 signatures are deterministic: the same record, sealed anywhere, is the same bytes."""
    offer = seal_offer(SMALL, BOB)
    assert javascript["manifest"] == SMALL.manifest_envelope.hex()
    assert javascript["offer"] == offer.envelope.hex()
    assert javascript["card"] == card_of(offer, BOB, "fast", summed_up=False).envelope.hex()
    assert javascript["card_summed_up"] == card_of(offer, BOB, "fast").envelope.hex()
    models = [seal_offer(model_of(BOB, number), BOB) for number in range(3)]
    for number, [card] in enumerate(cards_of_all(models, BOB)):
        assert javascript[f"card_{number + 1}_of_3"] == card.envelope.hex()
    assert javascript["card_1_of_1"] == card_of(models[0], BOB).envelope.hex()
    tombstone = seal_tombstone(tombstone_of(offer, seq=offer.seq + 1, now_us=NOW_US), BOB)
    assert javascript["tombstone"] == tombstone.envelope.hex()
    assert javascript["revocation"] == seal_revocation(END, BOB).envelope.hex()


def test_what_another_language_wrote_is_admitted(javascript: dict[str, str]) -> None:
    assert open_manifest(bytes.fromhex(javascript["manifest"])) == MANIFEST
    together = ["card_1_of_1", *(f"card_{number}_of_3" for number in (1, 2, 3))]
    for name in ("offer", "card", "card_summed_up", *together, "tombstone", "revocation"):
        admitted = admit(bytes.fromhex(javascript[name]), network="public", now_us=NOW_US)
        assert admitted.record.provider == BOB.id
    (message,) = Framer().feed(bytes.fromhex(javascript["add_provider"]))
    assert message.kind is Kind.ADD_PROVIDER
    assert message.key == bytes.fromhex(javascript["key"])
    assert message.providers == (Contact(BOB.id, (ADDRESS,)),)
    assert message.records is not None
    admit(message.records[0], network="public", now_us=NOW_US, key=message.key)
    assert encode(message) == bytes.fromhex(javascript["add_provider"])[2:]


@pytest.mark.js
def test_node_still_writes_the_committed_vector(javascript: dict[str, str]) -> None:
    node = shutil.which("node")
    if node is None:
        if os.environ.get("MODELNET_REQUIRE_JS") == "1":
            pytest.fail("node is missing, and MODELNET_REQUIRE_JS=1")
        pytest.skip("node is missing")
    made = subprocess.run([node, str(JS)], check=True, capture_output=True, timeout=60)
    assert json.loads(made.stdout) == javascript


if __name__ == "__main__":
    for name, content in vectors().items():
        (FOLDER / f"{name}.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
