"""What a publisher says of price, tier, languages and licence: what is taken, and what is refused and how."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.callable import told_words
from modelnet_p2p.node.serving.terms import Terms, prices


def given(price: Any = None, tier: Any = None, languages: Any = (), licence: Any = None) -> Terms:
    return Terms.given(price, tier, languages, licence)


@pytest.mark.parametrize(
    ("amount", "millionths"),
    [
        ("0.002", 2000),
        (0.002, 2000),
        (Decimal("0.000001"), 1),
        (1e-6, 1),
        (3, 3_000_000),
        ("0", 0),
        (12.5, 12_500_000),
        (9_007_199_254, 9_007_199_254_000_000),
    ],
)
def test_an_amount_is_kept_in_millionths(amount: object, millionths: int) -> None:
    assert given({"usd_per_call": amount}).price == {"usd_per_call": millionths}


@pytest.mark.parametrize(
    "amount",
    [
        "cheap",
        "",
        "-1",
        -0.5,
        "0.0000001",
        1e-7,
        "1e3",
        "9007199255",
        float("nan"),
        float("inf"),
        True,
        None,
        "٣",
    ],
)
def test_an_amount_that_would_be_rounded_or_is_none(amount: object) -> None:
    with pytest.raises(LocalError, match="--price usd_per_call=") as caught:
        given({"usd_per_call": amount})
    assert (caught.value.code, caught.value.hint) == (
        Code.BAD_INPUT,
        "such as --price usd_per_call=0.002",
    )


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"price": {"": "1"}}, "--price ''"),
        ({"price": {"x" * 33: "1"}}, "at most 32 letters"),
        ({"price": {f"p{number}": "1" for number in range(17)}}, "room for 16 --price"),
        ({"tier": "moon"}, "--tier 'moon' is none of device, edge, cloud"),
        ({"languages": ["German"]}, "--language 'German'"),
        ({"languages": ["de-" + "abcdefgh-" * 2 + "x"]}, "--language"),
        ({"languages": [f"{a}{b}" for a in "abcdef" for b in "abcdef"]}, "room for 32 --language"),
        ({"licence": ""}, "--licence ''"),
        ({"licence": "x" * 65}, "--licence"),
        ({"licence": "MIT\n"}, "--licence"),
    ],
)
def test_what_a_record_cannot_hold_names_its_option(said: dict[str, Any], words: str) -> None:
    with pytest.raises(LocalError) as caught:
        given(**said)
    assert caught.value.code is Code.BAD_INPUT
    assert words in caught.value.message


def test_options_become_a_map_of_amounts() -> None:
    assert prices(["usd_per_call=0.002", "eur_per_1k_tokens=0.1"]) == {
        "usd_per_call": "0.002",
        "eur_per_1k_tokens": "0.1",
    }
    for wrong, words in ((["0.002"], "is not NAME=AMOUNT"), (["a=1", "a=2"], "given twice")):
        with pytest.raises(LocalError, match=words) as caught:
            prices(wrong)
        assert caught.value.hint == "such as --price usd_per_call=0.002"


def test_terms_survive_their_map_and_say_nothing_where_there_is_nothing() -> None:
    said = given({"usd_per_call": 0.002}, "edge", ["de", "pt-BR", "de"], "Apache-2.0 OR MIT")
    assert said.languages == ("de", "pt-BR")
    assert Terms.from_map(said.to_map()) == said
    assert Terms().to_map() == {}
    broken: list[object] = [[], {"price": {"a": 0.5}}, {"tier": 1}, {"languages": "de"}, {"licence": None}]
    for nonsense in broken:
        with pytest.raises(ValueError, match="terms"):
            Terms.from_map(nonsense)


class Speaker:
    languages = ("de", "en", "de")
    licence = "MIT"


def test_a_class_says_its_languages_and_its_licence() -> None:
    assert told_words("m:Speaker", Speaker) == (("de", "en"), "MIT", ())
    assert told_words("m:f", test_options_become_a_map_of_amounts, Speaker()) == (("de", "en"), "MIT", ())
    assert told_words("m:f", object()) == ((), "", ())


def test_attributes_that_mean_something_else_are_left_out() -> None:
    class Library:
        languages: Any = ("German", {})
        licence: Any = "x" * 65

    languages, licence, [first, second] = told_words("m:Library", Library)
    assert (languages, licence) == ((), "")
    assert first.startswith("m:Library says languages = ('German', {}): left out")
    assert second.startswith("m:Library says licence = 'xxx")
    Library.languages, Library.licence = {"en": "English"}, lambda: "a method"
    assert told_words("m:Library", Library) == ((), "", ())
