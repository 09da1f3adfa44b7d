"""Manifests, offers, cards and tombstones: what is sealed is admitted, merged and kept as it came."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelnet_p2p.canonical import pack, unpack
from modelnet_p2p.envelope import open_envelope, seal
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.names import Keys, provider_key
from modelnet_p2p.records import (
    CARD_TYPE,
    CLOCK_SKEW_US,
    MAX_CARD_BYTES,
    MAX_LIFETIME_US,
    MAX_RECORD_BYTES,
    MAX_SEQ,
    MAX_TAGS,
    MAX_TOMBSTONE_BYTES,
    BadRecord,
    Card,
    Identity,
    Manifest,
    OfferRecord,
    Refusal,
    Sealed,
    Spec,
    Tombstone,
    admit,
    card_of,
    newest,
    next_seq,
    open_manifest,
    seal_manifest,
    seal_offer,
    seal_tombstone,
    tombstone_of,
)
from modelnet_p2p.records.kinds import MAX_GIVES, MAX_LANGUAGES, MAX_MARKS
from modelnet_p2p.records.manifest import MAX_SPECS
from modelnet_p2p.records.summary import WORDS, marks, rules_out


def test_carol_admits_what_bob_sealed_and_reads_every_field(
    offer: OfferRecord, sealed: Sealed, now_us: int
) -> None:
    admitted = admit(sealed.envelope, network="public", now_us=now_us)
    assert admitted == sealed
    assert admitted.record == offer
    assert admitted.identity == Identity(offer.provider, offer.owner, "acme/sentiment", "2", "")
    assert (admitted.seq, admitted.expires_us, admitted.is_tombstone) == (offer.seq, offer.expires_us, False)
    assert len(sealed.envelope) <= MAX_RECORD_BYTES


def test_the_manifest_inside_is_its_owners(offer: OfferRecord, manifest: Manifest, alice: KeyPair) -> None:
    assert open_manifest(offer.manifest_envelope) == manifest
    assert offer.owner == alice.id
    assert (offer.name, offer.version, offer.task, offer.digest) == (
        manifest.name,
        manifest.version,
        manifest.task,
        manifest.digest,
    )


def test_fields_of_a_later_version_survive(
    manifest: Manifest, alice: KeyPair, sealed_with: Callable[..., Sealed]
) -> None:
    extra = {"zz": {"nested": [1, None, "x"]}, "aa": b"\x00"}
    assert open_manifest(seal_manifest(replace(manifest, extra=extra), alice)).extra == extra
    record = sealed_with(extra=extra).record
    assert record.extra == extra
    assert record.to_payload() == sealed_with(extra=extra).record.to_payload()


def test_an_extra_field_cannot_pose_as_a_known_one(sealed_with: Callable[..., Sealed]) -> None:
    with pytest.raises(LocalError, match="seq"):
        sealed_with(extra={"seq": 9})


def test_fields_at_their_defaults_are_left_out(bob: KeyPair, now_us: int) -> None:
    """Bob serves a model of his own: he is its owner too."""
    manifest = Manifest(bob.id, "echo", "x-test/echo", 1_900_000_000)
    envelope = seal_manifest(manifest, bob)
    small = seal_offer(OfferRecord(bob.id, "public", manifest, envelope, 1, now_us, now_us + 1), bob)
    keys = set(unpack(open_envelope(small.envelope, max_bytes=4096).payload))
    assert keys == {"provider", "network", "manifest", "seq", "issued", "expires"}
    assert small.identity == Identity(bob.id, bob.id, "echo", "", "")
    assert provider_key(Keys("public").model("echo")) in small.keys
    assert len(small.keys) == 2  # no digest, and its owner is its provider


def test_where_each_record_may_lie(sealed: Sealed, cards: list[Sealed], bob: KeyPair, now_us: int) -> None:
    keys = Keys("public")
    model, digest, peer = keys.model("acme/sentiment"), keys.digest(bytes(range(32))), keys.peer(bob.id)
    task, fast, small = keys.task("text-classification"), keys.tag("fast"), keys.tag("small")
    owner = keys.owner(sealed.identity.owner)
    tombstone = seal_tombstone(tombstone_of(sealed, seq=sealed.seq, now_us=now_us), bob)
    assert sealed.keys == set(map(provider_key, (model, digest, peer, owner)))
    assert [card.keys for card in cards] == [{provider_key(name)} for name in (task, fast, small)]
    assert tombstone.keys == set(map(provider_key, (model, digest, peer, owner, task, fast, small)))
    for record in (sealed, tombstone, *cards):
        for key in record.keys:
            assert admit(record.envelope, network="public", now_us=now_us, key=key) == record


def test_a_card_is_its_offer_in_short(sealed: Sealed, cards: list[Sealed], offer: OfferRecord) -> None:
    for card, tag in zip(cards, ("", "fast", "small"), strict=True):
        assert isinstance(card.record, Card)
        assert card.identity == sealed.identity
        assert (card.seq, card.expires_us) == (sealed.seq, sealed.expires_us)
        assert card.record.tag == tag
        assert card.record.offer_sha256 == sealed.sha256
        assert (card.record.digest, card.record.framework) == (offer.digest, "torch")
        assert len(card.envelope) <= MAX_CARD_BYTES


def test_a_card_holds_the_longest_name_and_tag_beside_usual_fields(
    manifest: Manifest, alice: KeyPair, bob: KeyPair, offer: OfferRecord
) -> None:
    long = replace(manifest, name="a" * 80, version="12.10", task="automatic-speech-recognition")
    envelope = seal_manifest(long, alice)
    sealed = seal_offer(replace(offer, manifest=long, manifest_envelope=envelope, tags=("t" * 32,)), bob)
    assert len(card_of(sealed, bob, "t" * 32).envelope) <= MAX_CARD_BYTES


def test_a_card_sums_its_offer_up_where_its_names_leave_room(
    manifest: Manifest, alice: KeyPair, bob: KeyPair, offer: OfferRecord, sealed: Sealed
) -> None:
    card = card_of(sealed, bob).record
    assert isinstance(card, Card)
    assert (card.parameters, card.context_length, card.cost) == (22_713_216, 512, (12, 12))
    said = {
        **{"tag": ("fast", "small"), "language": ("en", "de"), "licence": ("apache-2.0",)},
        **{
            "precision": ("float32",),
            "tier": ("edge",),
            "access": ("token",),
            "gives": ("answer", "hidden:5"),
        },
        **{"family": ("acme/sentiment-family",), "input": ("text",), "output": ("tensor", "float32", "json")},
    }
    assert set(said) == set(WORDS)
    assert card.marks is not None
    assert len(card.marks) == sum(map(len, said.values()))
    for attribute, words in said.items():
        assert not any(rules_out(card, attribute, word) for word in words)
        assert rules_out(card, attribute, "another")
    assert len(card_of(sealed, bob).envelope) - len(card_of(sealed, bob, summed_up=False).envelope) < 60

    long = replace(manifest, name="a" * 80, version="12.10", task="automatic-speech-recognition")
    wordy = replace(offer, manifest=long, manifest_envelope=seal_manifest(long, alice), tags=("t" * 32,))
    languages = tuple(f"l{number}" for number in range(MAX_LANGUAGES))
    full = card_of(seal_offer(replace(wordy, languages=languages), bob), bob).record
    assert isinstance(full, Card)
    assert full.marks is None
    assert (full.parameters, full.cost) == (None, (0, 0))
    assert not rules_out(full, "language", "another")


@pytest.mark.parametrize(
    ("field", "says"),
    [
        ({"w": b""}, "not 1 to 128 marks"),
        ({"w": bytes(3)}, "cut off"),
        ({"w": b"\0\1\0\1"}, "ascending"),
        ({"w": b"\0\2\0\1"}, "ascending"),
        ({"w": [1]}, "not 1 to 128 marks"),
        ({"a": -1}, "parameters"),
        ({"c": "many"}, "context_length"),
        ({"x": [2, 1]}, "above the highest"),
        ({"x": [0, 0]}, "at its default"),
        ({"x": 0}, "lowest and a highest"),
    ],
)
def test_a_summary_that_is_none(
    sealed: Sealed, bob: KeyPair, now_us: int, field: dict[str, object], says: str
) -> None:
    plain = card_of(sealed, bob, summed_up=False)
    wire = {**unpack(open_envelope(plain.envelope, max_bytes=512).payload), **field}
    with pytest.raises(BadRecord, match=says) as caught:
        admit(seal(CARD_TYPE, pack(wire), bob), network="public", now_us=now_us)
    assert caught.value.refusal is Refusal.MALFORMED


def test_the_fullest_offers_words_all_have_marks(offer: OfferRecord, sealed: Sealed) -> None:
    """One more kind of word, and the bound of what a card may hold has to grow."""
    dtypes = [f"d{number}" for number in range(MAX_SPECS)]
    full = replace(
        offer,
        languages=tuple(f"{number:03}-x" for number in range(MAX_LANGUAGES)),
        tags=tuple(f"t{number}" for number in range(MAX_TAGS)),
        gives=tuple(f"g{number}" for number in range(MAX_GIVES)),
        inputs=tuple(Spec(dtype, "tensor", dtype) for dtype in dtypes),
        outputs=tuple(Spec(dtype, "tensor", dtype) for dtype in dtypes),
    )
    words = [word for read in WORDS.values() for word in read(full)]
    assert len(words) == 125 <= MAX_MARKS
    assert len(marks(full, sealed.sha256)) <= len(words)


def test_a_card_that_cannot_hold_its_names_says_so(
    manifest: Manifest, alice: KeyPair, bob: KeyPair, offer: OfferRecord
) -> None:
    long = replace(manifest, name="a" * 80, version="1" * 32, task="t" * 64)
    envelope = seal_manifest(long, alice)
    sealed = seal_offer(
        replace(offer, manifest=long, manifest_envelope=envelope, network="n" * 64, framework="f" * 32), bob
    )
    with pytest.raises(LocalError, match="cannot be sealed") as caught:
        card_of(sealed, bob)
    assert caught.value.code is Code.TOO_LARGE
    assert caught.value.hint


def test_a_card_for_a_tag_that_the_offer_has_not(sealed: Sealed, bob: KeyPair) -> None:
    with pytest.raises(LocalError, match="huge"):
        card_of(sealed, bob, "huge")


def test_the_fullest_tombstone_fits(alice: KeyPair, bob: KeyPair, now_us: int) -> None:
    fullest = Tombstone(
        provider=bob.id,
        network="n" * 64,
        owner=alice.id,
        name="a" * 80,
        task="t" * 64,
        seq=MAX_SEQ,
        issued_us=now_us,
        expires_us=now_us + MAX_LIFETIME_US + CLOCK_SKEW_US,
        version="1" * 32,
        part="100000-999999",
        tags=tuple(f"{number}{'t' * 31}" for number in range(8)),
        digest=bytes(32),
    )
    assert len(seal_tombstone(fullest, bob).envelope) <= MAX_TOMBSTONE_BYTES


def test_a_tombstone_outlives_its_offer_by_the_skew(sealed: Sealed, bob: KeyPair, now_us: int) -> None:
    """A peer whose clock is behind still takes the offer for good; then the tombstone must be there."""
    tombstone = seal_tombstone(tombstone_of(sealed, seq=sealed.seq + 1, now_us=now_us), bob)
    assert tombstone.expires_us == sealed.expires_us + CLOCK_SKEW_US
    late = sealed.expires_us + CLOCK_SKEW_US - 1
    with pytest.raises(BadRecord):
        admit(sealed.envelope, network="public", now_us=late)
    assert admit(tombstone.envelope, network="public", now_us=late).is_tombstone


def test_the_longest_lived_offer_can_be_taken_back_at_once(
    sealed_with: Callable[..., Sealed], bob: KeyPair, now_us: int
) -> None:
    longest = sealed_with(expires_us=now_us + MAX_LIFETIME_US)
    assert seal_tombstone(tombstone_of(longest, seq=longest.seq + 1, now_us=now_us), bob)
    with pytest.raises(LocalError):
        sealed_with(expires_us=now_us + MAX_LIFETIME_US + 1)


def test_the_edges_of_a_records_time(sealed: Sealed, cards: list[Sealed], now_us: int) -> None:
    for record in (sealed, cards[0]):
        assert admit(record.envelope, network="public", now_us=sealed.expires_us - 1) == record
        with pytest.raises(BadRecord) as caught:
            admit(record.envelope, network="public", now_us=sealed.expires_us)
        assert caught.value.refusal is Refusal.EXPIRED
    assert admit(sealed.envelope, network="public", now_us=now_us - CLOCK_SKEW_US) == sealed
    with pytest.raises(BadRecord) as caught:
        admit(sealed.envelope, network="public", now_us=now_us - CLOCK_SKEW_US - 1)
    assert caught.value.refusal is Refusal.EXPIRED


@pytest.mark.parametrize(
    "changes",
    [
        {"seq": 2**64 - 1},
        {"seq": -1},
        {"network": ""},
        {"part": "5-3"},
        {"part": "05-7"},
        {"part": "all"},
        {"tags": ("Fast",)},
        {"tags": ("fast", "fast")},
        {"tags": tuple("abcdefghi")},
        {"inputs": (Spec("x", "tensor", "float32", (-1,)),)},
        {"inputs": (Spec("x", "tensor", "float32", (2**63,)),)},
        {"inputs": (Spec("x", "image"),)},  # type: ignore[arg-type]
        {"outputs": tuple(Spec(str(number), "json") for number in range(9))},
        {"framework": "x" * 33},
        {"framework": "a\nb"},
        {"family": "bell \a"},
        {"limits": {"x": 2**60}},
        {"limits": {str(number): 1 for number in range(17)}},
        {"parameters": 1.5},
        {"parameters": True},
        {"manifest_envelope": b""},
    ],
)
def test_what_a_holder_would_refuse_is_never_signed(
    sealed_with: Callable[..., Sealed], changes: dict[str, object]
) -> None:
    with pytest.raises(LocalError) as caught:
        sealed_with(**changes)
    assert caught.value.code is Code.BAD_INPUT


@pytest.mark.parametrize("size", [3300, 5000])
def test_an_offer_that_grows_too_long_is_refused_at_home(
    sealed_with: Callable[..., Sealed], size: int
) -> None:
    with pytest.raises(LocalError) as caught:
        sealed_with(extra={"blob": bytes(size)})
    assert caught.value.code is Code.TOO_LARGE


def test_bob_cannot_seal_in_anothers_name(
    offer: OfferRecord, manifest: Manifest, mallory: KeyPair, bob: KeyPair
) -> None:
    with pytest.raises(LocalError, match="not by its provider"):
        seal_offer(offer, mallory)
    with pytest.raises(LocalError, match="not by its owner"):
        seal_manifest(manifest, bob)
    with pytest.raises(LocalError, match="not the one in its seal"):
        seal_offer(replace(offer, manifest=replace(manifest, licence="MIT")), bob)


# --- merging ---


def _versions(sealed_with: Callable[..., Sealed], bob: KeyPair, now_us: int) -> list[Sealed]:
    first, second = sealed_with(seq=10), sealed_with(seq=11)
    return [
        first,
        second,
        seal_tombstone(tombstone_of(first, seq=10, now_us=now_us), bob),
        seal_tombstone(tombstone_of(first, seq=11, now_us=now_us), bob),
        sealed_with(seq=12),
    ]


def test_the_table_of_the_merge_rule(sealed_with: Callable[..., Sealed], bob: KeyPair, now_us: int) -> None:
    ten, eleven, grave_ten, grave_eleven, twelve = _versions(sealed_with, bob, now_us)
    other_ten = sealed_with(seq=10, tier="cloud")
    assert newest(None, ten) is ten
    assert newest(ten, eleven) is eleven
    assert newest(eleven, ten) is eleven
    assert newest(ten, grave_ten) is grave_ten
    assert newest(grave_ten, ten) is grave_ten
    assert newest(grave_ten, eleven) is eleven
    assert newest(eleven, grave_ten) is eleven
    assert newest(eleven, grave_eleven) is grave_eleven
    assert newest(grave_eleven, twelve) is twelve
    assert newest(ten, other_ten) is ten, "equal sequence: what is there stays"


def test_copies_merge_to_the_same_in_any_order(
    sealed_with: Callable[..., Sealed], bob: KeyPair, now_us: int
) -> None:
    for order in permutations(_versions(sealed_with, bob, now_us)[:4]):
        held: Sealed | None = None
        for arrived in order:
            held = newest(held, arrived)
        assert held is not None
        assert (held.seq, held.is_tombstone) == (11, True)


def test_different_things_are_not_merged(sealed: Sealed, sealed_with: Callable[..., Sealed]) -> None:
    with pytest.raises(ValueError, match="identities"):
        newest(sealed, sealed_with(part="0-5"))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, MAX_SEQ - 1), st.integers(0, MAX_SEQ))
def test_sequence_numbers_only_grow(stored: int, now_us: int) -> None:
    following = next_seq(stored, now_us)
    assert following > stored
    assert following >= now_us // 1000
    assert following <= MAX_SEQ


def test_sequence_numbers_end() -> None:
    with pytest.raises(LocalError) as caught:
        next_seq(MAX_SEQ, 0)
    assert caught.value.code is Code.BAD_STATE
