"""The language of searches: what it says, what it means of a record, where it looks, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from modelnet_p2p.attributes import ATTRIBUTES, SYNONYMS
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.expression import MAX_KEYS, Index, Range, fits, keys_of, reasons
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.query import Query
from modelnet_p2p.records import (
    Manifest,
    OfferRecord,
    Sealed,
    Spec,
    card_of,
    cards_of,
    seal_manifest,
    seal_offer,
)
from modelnet_p2p.searching import MAX_CHARS, MAX_DEPTH, MAX_TERMS, parse_search

ALICE = KeyPair(b"alice".ljust(32, b".")).id.text

TRUE = (  # of Bob's offer in conftest.py
    "task:text-classification",
    "model:acme/sentiment",
    "model:acme/sentiment@2",
    "model:acme/* version:2",
    "tag:fast and tag:small",
    "task:text-classification and (language:fr or language:de) and parameters<=7B and not licence:gpl*",
    "not (tag:slow or tag:huge)",
    "not not tag:fast",
    "licence:apache-2.0",
    "license=Apache*",
    "licence!=mit",
    "parameters:20M..23M",
    "parameters >= 22713216 AND parameters < 22713217",
    "params:..1B size:1M..",
    "context:512",
    "cost<=0.000012",
    "cost:0.000012",
    "not cost:0",
    "input:text output:tensor output:float32 output:json",
    "framework:torch precision:float* tier:edge access:token gives:hidden:*",
    'family:"acme/sentiment-family"',
    "digest:sha256:0001*",
    "text-classification",
    "fast",
    "acme/sentiment",
)
FALSE = (
    "tag:slow",
    "not tag:fast",
    "language:fr",
    "tag:fast and tag:slow",
    "parameters<20M",
    "parameters:..1k or parameters:1B..",
    "context>512",
    "cost:0",
    "version:3",
    "model:acme/sentiment@3",
    "not (tag:fast or tag:slow)",
    "family:acme/other",
    "text-generation",
)


@pytest.mark.parametrize("text", TRUE)
def test_what_is_true_of_an_offer(text: str, offer: OfferRecord) -> None:
    found = parse_search(text)
    assert found.test(offer) is True
    assert parse_search(f"not ({text})").test(offer) is False
    assert reasons(found, offer)
    assert parse_search(str(found)) == found


@pytest.mark.parametrize("text", FALSE)
def test_what_is_not_true_of_it(text: str, offer: OfferRecord) -> None:
    found = parse_search(text)
    assert found.test(offer) is False
    assert reasons(found, offer) == []
    assert parse_search(str(found)) == found


def test_what_an_offer_does_not_say_it_does_not_have(offer: OfferRecord) -> None:
    silent = replace(offer, parameters=None, languages=(), price={})
    assert parse_search("parameters<=7B").test(silent) is False
    assert parse_search("not parameters<=7B").test(silent) is True
    assert parse_search("language:en").test(silent) is False
    assert parse_search("cost:0").test(silent) is True  # what asks no price is free


def test_a_language_is_found_in_all_its_countries(offer: OfferRecord) -> None:
    austrian = replace(offer, languages=("de-AT",))
    assert parse_search("language:de").test(austrian) is True
    assert parse_search("language:de-at").test(austrian) is True
    assert parse_search("language:de-DE").test(austrian) is False


def test_a_card_leaves_open_what_it_does_not_say(sealed: Sealed, bob: KeyPair) -> None:
    of_task, of_fast = (card_of(sealed, bob, tag, summed_up=False).record for tag in ("", "fast"))
    for text in ("parameters<=7B", "licence:mit", "tag:huge", "not language:de"):
        assert parse_search(text).test(of_task) is None
    assert parse_search("tag:fast").test(of_fast) is True
    assert parse_search("tag:huge or framework:torch").test(of_task) is True
    assert parse_search("tag:huge and framework:onnx").test(of_task) is False


@pytest.mark.parametrize("text", FALSE)
def test_a_summary_rules_out_all_but_what_may_be_a_word_by_chance(text: str, cards: list[Sealed]) -> None:
    perhaps = text in ("not tag:fast", "not (tag:fast or tag:slow)")  # a mark alone proves no word
    assert parse_search(text).test(cards[0].record) is (None if perhaps else False)


@pytest.mark.parametrize("text", TRUE)
def test_a_summary_rules_nothing_out_that_the_offer_has(text: str, cards: list[Sealed]) -> None:
    for card in cards:
        assert parse_search(text).test(card.record) is not False


def test_of_stars_and_foreign_letters_a_summary_says_nothing(cards: list[Sealed]) -> None:
    for text in ("licence:mit*", 'family:"ümit"'):
        assert parse_search(text).test(cards[0].record) is None
        assert parse_search(f"not {text}").test(cards[0].record) is None


def test_two_words_that_share_a_mark_share_it_in_one_offer_alone(
    sealed_with: Callable[..., Sealed], bob: KeyPair
) -> None:
    """Else every card with a common word would be read for some rare one, for ever."""
    card = card_of(sealed_with(gives=("answer",)), bob).record
    words = (f"w{number}" for number in range(100_000))
    twin = next(word for word in words if parse_search(f"language:{word}").test(card) is None)
    others = [card_of(sealed_with(gives=("answer",), seq=seq), bob).record for seq in range(1, 40)]
    assert sum(parse_search(f"language:{twin}").test(other) is None for other in others) <= 1


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("task:a", {("task", "a")}),
        ("task:a and model:m@2", {("model", "m")}),
        ("task:a or model:m", {("task", "a"), ("model", "m")}),
        ("(tag:x or tag:y) and parameters<1B", {("tag", "x"), ("tag", "y")}),
        ("(tag:x or tag:y) and task:a", {("task", "a")}),
        ("not (not task:a or licence:mit)", {("task", "a")}),
        ("digits", {("task", "digits"), ("model", "digits"), ("tag", "digits")}),
        ("x-acme/greeting", {("task", "x-acme/greeting"), ("model", "x-acme/greeting")}),
        ("task:a or licence:mit", None),
        ("not task:a", None),
        ("model:acme/*", None),
        ("not (task:a and tag:b)", None),
        ("parameters<=7B", None),
        (f"owner:{ALICE}", {("owner", ALICE), ("provider", ALICE)}),
        (f"owner:{ALICE} and task:a", {("owner", ALICE), ("provider", ALICE)}),
        (f"owner:{ALICE} and model:m", {("model", "m")}),
        (f"task:a and not owner:{ALICE}", {("task", "a")}),
    ],
)
def test_where_it_looks(text: str, keys: set[tuple[str, str]] | None) -> None:
    assert keys_of(parse_search(text)) == (None if keys is None else {Index(*key) for key in keys})


def test_flags_and_search_share_the_most_exact_key() -> None:
    query = Query.asked(task="text-generation", where="language:de")
    assert query.indexes() == (Index("task", "text-generation"),)
    query = Query.asked(task="text-generation", where="model:m and language:de")
    assert query.indexes() == (Index("model", "m"),)
    assert not query.finds_cards()


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("licence:mit", "does not say where to look", "'task:text-generation and (licence:mit)'"),
        ("task:a or licence:mit", "its part 'licence:mit' does not say where", "task:text-generation and"),
        ("model:acme/*", "model:acme/* has a star", "'task:text-generation and (model:acme/*)'"),
        ("owner:*", "owner:* has a star: that is no place", "modelnet-peer find task:text-generation"),
        (
            "task:*",
            "each by its whole name, and task:* has a star",
            "modelnet-peer find task:text-generation",
        ),
        ("task:text-* and licence:mit", "task:text-* has", "'task:text-generation and licence:mit'"),
        ("tag:a or tag:b*", "its part 'tag:b*' does not", "'task:text-generation and (tag:a or tag:b*)'"),
        (" or ".join(f"tag:t{n}" for n in range(MAX_KEYS + 1)), f"looks in {MAX_KEYS + 1} places", "fewer"),
    ],
)
def test_a_search_that_nobody_could_answer(text: str, says: str, hint: str) -> None:
    with pytest.raises(LocalError) as caught:
        Query.asked(where=text).indexes()
    assert caught.value.code is Code.BAD_INPUT
    assert says in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("", "at character 1: a condition", "modelnet-peer find"),
        ("task:a and", "at character 11: a condition", "modelnet-peer find"),
        ("task:a or or tag:b", "at character 11: a condition", "modelnet-peer find"),
        ("(task:a", "at character 1: the bracket opened here is not closed", ""),
        ("task:a) and tag:b", "at character 7: a bracket is closed", ""),
        ("task:", "at character 6: task: has no value", "task:text-generation"),
        ("langage:de", "no record has a 'langage'", "did you mean language?"),
        ("nonsense:de", "no record has a 'nonsense'", "a search knows task, model"),
        ("task>a", "task is a word", "task:text-generation"),
        ("task:Ä", "is not a task", "task:text-generation"),
        ("parameters:many", "'many' is not a number such as", "parameters:1B..7B"),
        ("parameters:7B..1B", "ends below where it begins", ""),
        ("parameters:..", "parameters has no value", ""),
        ("parameters<0", "no parameters is below 0", ""),
        ("parameters:1.5", "more digits", ""),
        ("provider:bob", "at character 1", ""),
        ("digest:sha256:12", "is not a digest", "digest:"),
        ("&&", "no name of a task, a model or a tag", ""),
        ('family:"a', "has no value", ""),
        ("x" * (MAX_CHARS + 1), f"at most {MAX_CHARS} characters", ""),
        (" ".join(["tag:a"] * (MAX_TERMS + 1)), f"more than {MAX_TERMS} conditions", ""),
        ("(" * 500 + "a" + ")" * 500, f"more than {MAX_DEPTH} deep", ""),
        ("not " * 200 + "a", f"more than {MAX_DEPTH} deep", ""),
    ],
)
def test_a_mistake_is_told_where_it_is(text: str, says: str, hint: str) -> None:
    with pytest.raises(LocalError) as caught:
        parse_search(text)
    assert caught.value.code is Code.BAD_INPUT
    assert says in caught.value.message
    assert hint in caught.value.hint


def test_reasons_say_what_the_record_has(offer: OfferRecord) -> None:
    found = parse_search("task:text-classification parameters<=7B not licence:gpl* (tag:slow or tag:fa*)")
    assert reasons(found, offer) == [
        "task:text-classification",
        "parameters<=7B (22713216)",
        "not licence:gpl* (Apache-2.0)",
        "tag:fa* (fast, small)",
    ]


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (Range("parameters", None, 7 * 10**9), "parameters<=7B"),
        (Range("parameters", 1_500_000, None), "parameters>=1500000"),
        (Range("context", 4096, 4096), "context:4096"),
        (Range("cost", 0, 10_500), "cost:0..0.0105"),
    ],
)
def test_a_range_is_written_as_one_would_type_it(found: Range, text: str) -> None:
    assert str(found) == text
    assert parse_search(text) == found
    assert str(parse_search("parameters < 1.5B")) == "parameters<1.5B"


def test_every_attribute_has_an_example_that_is_one() -> None:
    assert set(SYNONYMS.values()) <= set(ATTRIBUTES)
    for name, attribute in ATTRIBUTES.items():
        assert (attribute.words is None) != (attribute.numbers is None)
        if "…" not in attribute.example:  # the others are too long to be shown
            assert str(parse_search(attribute.example)).startswith(name)


@given(st.text("ab*", max_size=8), st.text("ab", max_size=8))
def test_stars_stand_for_anything(pattern: str, text: str) -> None:
    def simple(pattern: str, text: str) -> bool:
        if not pattern:
            return not text
        if pattern[0] == "*":
            return any(simple(pattern[1:], text[at:]) for at in range(len(text) + 1))
        return bool(text) and text[0] == pattern[0] and simple(pattern[1:], text[1:])

    assert fits(pattern, text) == simple(pattern, text)


# --- anything at all ---

_ATOMS = st.sampled_from(
    [*(text for text in TRUE + FALSE if " " not in text), "task:text-generation", "tag:a", "licence:mit"]
)
_SEARCHES = st.recursive(
    _ATOMS,
    lambda inner: (
        st.builds("({} and {})".format, inner, inner)
        | st.builds("({} or {})".format, inner, inner)
        | st.builds("not {}".format, inner)
    ),
    max_leaves=10,
)
_PIECES = (
    *("and", "or", "not", "(", ")", "task", "parameters", ":", "<=", "!=", "..", "7B", '"', "'", "*"),
    *("a", "@", "\x00", "É", "İ", " "),
)
_SOUP = st.lists(st.sampled_from(_PIECES), max_size=30).map("".join)


@settings(max_examples=300, deadline=None)
@given(_SEARCHES)
def test_whoever_is_meant_lies_where_it_looks(text: str) -> None:
    assume(text.count("not ") + text.count("(") < MAX_DEPTH)
    search = parse_search(text)
    keys = keys_of(search)
    for sealed, cards in _PEOPLE:
        meant = search.test(sealed.record)
        assert meant is not None
        if meant and keys is not None:
            lies = {("model", sealed.record.name), ("task", sealed.record.task)}
            assert isinstance(sealed.record, OfferRecord)
            lies |= {("tag", tag) for tag in sealed.record.tags}
            assert keys & {Index(*place) for place in lies}
        # a card says no more than its offer does
        assert all(search.test(card.record) in (meant, None) for card in cards)
    assert parse_search(str(search)) == search


@settings(max_examples=1000, deadline=None)
@given(_SOUP | st.text(max_size=60))
def test_any_text_is_a_search_or_one_line_of_complaint(text: str) -> None:
    try:
        found = parse_search(text)
    except LocalError as error:
        complaint = error
    else:
        assert parse_search(str(found)) == found
        return
    assert complaint.code is Code.BAD_INPUT
    assert complaint.hint


def _people() -> list[tuple[Sealed, list[Sealed]]]:
    """A few offers with their cards, unlike each other."""
    key = KeyPair(b"somebody".ljust(32, b"."))
    made = []
    said: dict[str, Any]  # fields of an offer, by name
    for name, task, tags, said in (
        ("acme/sentiment", "text-classification", ("fast", "small"), {"parameters": 22_713_216}),
        ("acme/chat", "text-generation", ("a",), {"languages": ("de-AT", "fr"), "context_length": 512}),
        ("fast", "image-classification", (), {"tier": "edge", "price": {"usd_per_call": 12, "eur": -1}}),
        ("acme/x", "text-classification", ("a",), {"inputs": (Spec("x", "tensor", "float32"),)}),
        ("acme/y", "text-classification", (), {"precision": "float32", "gives": ("hidden:5",)}),
    ):
        manifest = Manifest(owner=key.id, name=name, task=task, issued_unix=1, licence="MIT")
        offer = OfferRecord(
            provider=key.id,
            network="public",
            manifest=manifest,
            manifest_envelope=seal_manifest(manifest, key),
            seq=1,
            issued_us=1_000_000,
            expires_us=2_000_000,
            tags=tags,
            **said,
        )
        sealed = seal_offer(offer, key)
        made.append((sealed, cards_of(sealed, key)))
    return made


_PEOPLE = _people()
