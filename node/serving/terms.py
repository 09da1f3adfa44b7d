"""What a publisher says of an offer beside what the model tells of itself: price, tier, languages, licence.

A search asks for these by the same words. Amounts are given in whole units and kept in millionths, as records
hold them: what would have to be rounded is refused, for a price that became nothing would be a gift.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from modelnet_p2p.attributes import MILLIONTHS
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.payload import Value
from modelnet_p2p.records import MalformedRecord
from modelnet_p2p.records.fields import MAX_SAFE_INT, numbers, several, text, token
from modelnet_p2p.records.kinds import MAX_LANGUAGES, MAX_NUMBERS
from modelnet_p2p.tiers import TIERS

MAX_LANGUAGE_BYTES = 16
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[A-Za-z0-9]{2,8})*", re.ASCII)
_AMOUNT = re.compile(r"[0-9]{1,10}(?:\.[0-9]{1,6})?", re.ASCII)
_PRICE = "such as --price usd_per_call=0.002"
_PRICES = numbers(MAX_NUMBERS, 32)
_UNIT = token(32)
_LANGUAGES = several(token(MAX_LANGUAGE_BYTES), MAX_LANGUAGES)
_LICENCE = text(64)


@dataclass(frozen=True, slots=True)
class Terms:
    """Empty where the publisher says nothing."""

    price: Mapping[str, int] = field(default_factory=dict)  # millionths by unit, as `usd_per_call`
    tier: str = ""
    languages: tuple[str, ...] = ()
    licence: str = ""

    @classmethod
    def given(
        cls,
        price: Mapping[str, object] | None,
        tier: str | None,
        languages: Sequence[str],
        licence: str | None,
    ) -> Terms:
        """What somebody who publishes gives; raises LocalError (bad-input)."""
        price = price or {}
        if len(price) > MAX_NUMBERS:
            words = f"{len(price)} prices: an offer has room for {MAX_NUMBERS} --price"
            raise LocalError(Code.BAD_INPUT, words)
        if tier is not None and tier not in TIERS:
            words = f"--tier {tier[:40]!r} is none of {', '.join(TIERS)}"
            raise LocalError(Code.BAD_INPUT, words, hint="such as --tier edge")
        codes = tuple(dict.fromkeys(languages))
        if len(codes) > MAX_LANGUAGES:
            words = f"{len(codes)} languages: an offer has room for {MAX_LANGUAGES} --language"
            raise LocalError(Code.BAD_INPUT, words)
        for code in codes:
            if not is_language(code):
                words = f"--language {code[:40]!r} is not the code of a language"
                raise LocalError(Code.BAD_INPUT, words, hint="such as --language de, or pt-BR")
        if licence is not None and not is_licence(licence):
            words = f"--licence {licence[:80]!r} is not a licence's id of 1 to 64 printable bytes"
            raise LocalError(Code.BAD_INPUT, words, hint="such as --licence Apache-2.0")
        amounts = {_unit(unit): _millionths(unit, amount) for unit, amount in price.items()}
        return cls(amounts, tier or "", codes, licence or "")

    def to_map(self) -> dict[str, Value]:
        """What is said, and nothing else."""
        told: dict[str, Value] = {
            "price": dict(self.price),
            "tier": self.tier,
            "languages": list(self.languages),
            "licence": self.licence,
        }
        return {name: value for name, value in told.items() if value}

    @classmethod
    def from_map(cls, fields: object) -> Terms:
        """What `to_map` wrote; raises ValueError on anything else."""
        if not isinstance(fields, Mapping):
            raise ValueError("its publisher's terms are not a map")
        try:
            return cls(
                _PRICES(fields.get("price", {})),
                _UNIT(fields["tier"]) if "tier" in fields else "",
                tuple(map(str, _LANGUAGES(fields.get("languages", [])))),
                _LICENCE(fields.get("licence", "")),
            )
        except MalformedRecord as error:
            raise ValueError(f"its publisher's terms: {error.message}") from error


def is_language(code: object) -> bool:
    """Whether it is the code of a language (ISO 639), perhaps with that of a country or a script."""
    return isinstance(code, str) and len(code) <= MAX_LANGUAGE_BYTES and _LANGUAGE.fullmatch(code) is not None


def is_licence(name: object) -> bool:
    """Whether a record can hold it as one."""
    try:
        return bool(_LICENCE(name).strip())
    except MalformedRecord:
        return False


def prices(options: Sequence[str]) -> dict[str, str]:
    """The values of `--price`, each `NAME=AMOUNT`, as a map; raises LocalError (bad-input)."""
    found: dict[str, str] = {}
    for option in options:
        unit, said, amount = option.partition("=")
        if not said:
            raise LocalError(Code.BAD_INPUT, f"--price {option[:80]!r} is not NAME=AMOUNT", hint=_PRICE)
        if unit in found:
            raise LocalError(Code.BAD_INPUT, f"--price {unit[:40]} is given twice", hint=_PRICE)
        found[unit] = amount
    return found


def _unit(name: object) -> str:
    try:
        return _UNIT(name)
    except MalformedRecord as error:
        words = f"--price {str(name)[:40]!r}: its name is {error.message}"
        raise LocalError(Code.BAD_INPUT, words, hint=_PRICE) from error


def _millionths(unit: str, amount: object) -> int:
    is_number = isinstance(amount, int | float | Decimal) and not isinstance(amount, bool)
    said = f"{Decimal(str(amount)):f}" if is_number else str(amount)
    if (is_number or isinstance(amount, str)) and _AMOUNT.fullmatch(said):
        number = int(Decimal(said) * MILLIONTHS)
        if number <= MAX_SAFE_INT:
            return number
    words = (
        f"--price {unit[:40]}={said[:40]}: an amount is 0 or more, below {MAX_SAFE_INT // MILLIONTHS:,}, with"
        " at most six digits behind the point"
    )
    raise LocalError(Code.BAD_INPUT, words, hint=_PRICE)
