"""Whose manifest goes into an offer, and whose does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.node.hosting import remarks
from modelnet_p2p.node.serving.description import Description
from modelnet_p2p.node.serving.drafting import draft_offer
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.node.serving.terms import Terms
from modelnet_p2p.records import Manifest, OfferRecord, seal_manifest

ALICE = KeyPair(b"a" * 32)
CAROL = KeyPair(b"c" * 32)
UPPER = Description("acme/upper", "x-acme/shout", "python", version="2", digest=bytes(32), licence="MIT")


def draft(
    description: Description, terms: Terms | None = None, tags: tuple[str, ...] = ("loud",)
) -> OfferRecord:
    said = terms or Terms()
    return draft_offer(description, tags, said, key=ALICE, network="public", seq=1, now_unix=1_700_000_000)


def carols(**changed: object) -> bytes:
    """Her seal for `UPPER`, but for what is changed."""
    manifest = Manifest(
        CAROL.id, UPPER.name, UPPER.task, 1_600_000_000, version=UPPER.version, digest=UPPER.digest
    )
    return seal_manifest(replace(manifest, **changed), CAROL)  # type: ignore[arg-type] # real fields


def test_a_model_without_a_seal_is_its_providers() -> None:
    offer = draft(UPPER)
    assert offer.owner == offer.provider == ALICE.id
    assert offer.manifest.licence == "MIT"


def test_an_owners_seal_goes_into_the_offer() -> None:
    offer = draft(replace(UPPER, manifest_envelope=carols()))
    assert (offer.owner, offer.provider) == (CAROL.id, ALICE.id)


@pytest.mark.parametrize(
    ("field", "value"),
    [("name", "acme/lower"), ("version", "3"), ("task", "x-acme/whisper"), ("digest", bytes([1]) * 32)],
)
def test_a_seal_for_another_model_is_refused(field: str, value: object) -> None:
    with pytest.raises(LocalError, match=f"for another {field}") as caught:
        draft(replace(UPPER, manifest_envelope=carols(**{field: value})))
    assert caught.value.code is Code.BAD_INPUT


def test_who_names_a_sealed_model_otherwise_is_told_what_the_seal_is_for() -> None:
    with pytest.raises(LocalError, match=r"for acme/own@\S+, not acme/upper") as caught:
        draft(replace(UPPER, manifest_envelope=carols(name="acme/own")))
    assert "leave --model away" in caught.value.hint
    with pytest.raises(LocalError, match=f"sha256:{'01' * 32}, not "):
        draft(replace(UPPER, manifest_envelope=carols(digest=bytes([1]) * 32)))


@pytest.mark.parametrize("envelope", [b"x", carols()[:-1], bytes(1536)])
def test_a_broken_seal_is_refused(envelope: bytes) -> None:
    with pytest.raises(LocalError, match="the owner's seal of acme/upper is not sound") as caught:
        draft(replace(UPPER, manifest_envelope=envelope))
    assert caught.value.code is Code.BAD_INPUT


def test_a_task_that_a_file_mistypes_is_published_with_a_note() -> None:
    assert remarks(UPPER, Source("upper.onnx"), None)["notes"] == []
    notes = remarks(replace(UPPER, task="text-generatoin"), Source("upper.onnx"), None)["notes"]
    assert "did you mean text-generation?" in str(notes)
    sealed = Source("upper.onnx", task="text-generatoin")  # so its owner's seal says
    assert remarks(UPPER, sealed, None)["notes"] == []


@pytest.mark.parametrize("said", [False, True])
def test_the_model_says_whether_asking_twice_does_no_harm(said: bool) -> None:
    assert draft(replace(UPPER, idempotent=said)).idempotent is said


def test_a_models_own_tags_come_after_its_publishers() -> None:
    assert draft(replace(UPPER, tags=("tiny", "loud"))).tags == ("loud", "tiny")
    many = tuple(f"tag-{number}" for number in range(8))
    assert draft(replace(UPPER, tags=many)).tags == ("loud", *many[:7])


def test_a_publisher_says_what_the_model_cannot_know() -> None:
    offer = draft(UPPER, Terms({"usd_per_call": 2000}, "edge"))
    assert (offer.price, offer.tier, offer.access) == ({"usd_per_call": 2000}, "edge", "open")
    assert (draft(UPPER).price, draft(UPPER).tier) == ({}, "")


def test_what_the_publisher_says_comes_before_the_models_own() -> None:
    told = replace(UPPER, languages=("en", "fr"))
    offer = draft(told, Terms(languages=("de", "fr"), licence="Apache-2.0"))
    assert offer.languages == ("de", "fr", "en")
    assert offer.manifest.licence == "Apache-2.0"
    many = tuple(f"{a}{b}" for a in "abcd" for b in "abcdefgh")
    assert draft(replace(UPPER, languages=many), Terms(languages=("zz",))).languages == ("zz", *many[:31])


def test_an_owners_licence_is_not_the_publishers_to_change() -> None:
    sealed = replace(UPPER, manifest_envelope=carols(licence="MIT"))
    assert draft(sealed, Terms(licence="MIT")).owner == CAROL.id
    with pytest.raises(LocalError, match="for another licence"):
        draft(sealed, Terms(licence="GPL-3.0-only"))


def test_too_many_tags_are_counted() -> None:
    with pytest.raises(LocalError, match="9 tags: an offer has room for 8 --tag"):
        draft(UPPER, tags=tuple(f"tag-{number}" for number in range(9)))


@pytest.mark.parametrize("said", [False, True])
def test_the_model_says_whether_it_repeats_itself(said: bool) -> None:
    assert draft(replace(UPPER, deterministic=said)).deterministic is said


def test_what_is_known_in_figures_stands_among_the_limits() -> None:
    assert draft(UPPER).limits == {}
    known = replace(UPPER, size_bytes=4096, latency_us=900, batches=32)
    assert draft(known).limits == {"size_bytes": 4096, "latency_us": 900, "batch_rows": 32}
