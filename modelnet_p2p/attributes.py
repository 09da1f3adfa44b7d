"""What a search may ask of a record: each attribute's name, and what a record of any kind says of it.

An offer says all of it; a card and a tombstone say less, and leave the rest open (None): what they cannot
rule out is decided by the offer that they stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from modelnet_p2p.names import digest_text
from modelnet_p2p.records import Card, OfferRecord, Record, Spec

MILLIONTHS = 1_000_000


class Kind(Enum):
    """How an attribute's values are compared."""

    WORD = "a word"  # letters in either case
    EXACT = "an id"  # letters as they stand
    COUNT = "a number"  # whole numbers: 7B, 1.5M, 4096
    MONEY = "an amount"  # kept in millionths


# the words, or the least and the greatest number that a record has; None: this kind of record does not say
Words = tuple[str, ...]
Numbers = tuple[int, int] | tuple[()]


@dataclass(frozen=True, slots=True)
class Attribute:
    """One of them; exactly one of `words` and `numbers` is there, as its kind wants."""

    name: str
    kind: Kind
    words: Callable[[Record], Words | None] | None = None
    numbers: Callable[[Record], Numbers | None] | None = None
    example: str = ""

    @property
    def counts(self) -> bool:
        return self.numbers is not None


def _one(text: str) -> Words:
    return (text,) if text else ()


def _offers(read: Callable[[OfferRecord], Words]) -> Callable[[Record], Words | None]:
    return lambda record: read(record) if isinstance(record, OfferRecord) else None


def _number(read: Callable[[OfferRecord], int | None]) -> Callable[[Record], Numbers | None]:
    def numbers(record: Record) -> Numbers | None:
        if not isinstance(record, OfferRecord):
            return None
        value = read(record)
        return () if value is None else (value, value)

    return numbers


def _models(record: Record) -> Words:
    return (record.name, f"{record.name}@{record.version}") if record.version else (record.name,)


def _tags(record: Record) -> Words | None:
    # a card has the one tag under which it lies
    return (_one(record.tag) or None) if isinstance(record, Card) else record.tags


def _digests(record: Record) -> Words:
    return _one(digest_text(record.digest) if record.digest else "")


def _frameworks(record: Record) -> Words | None:
    return _one(record.framework) if isinstance(record, OfferRecord | Card) else None


def _languages(record: OfferRecord) -> Words:
    """`de-AT` is `de`, too."""
    shorter = (language.partition("-")[0] for language in record.languages)
    return tuple(dict.fromkeys([*record.languages, *shorter]))


def _specs(specs: tuple[Spec, ...]) -> Words:
    return tuple(word for spec in specs for word in (spec.kind, spec.dtype) if word)


def _cost(record: Record) -> Numbers | None:
    """In millionths, whatever the unit; what asks no price costs nothing."""
    if not isinstance(record, OfferRecord):
        return None
    prices = record.price.values() or (0,)
    return min(prices), max(prices)


_ALL = (
    Attribute("task", Kind.WORD, lambda record: (record.task,), example="task:text-generation"),
    Attribute("model", Kind.WORD, _models, example="model:acme/*"),
    Attribute("version", Kind.EXACT, lambda record: _one(record.version), example="version:2"),
    Attribute("tag", Kind.WORD, _tags, example="tag:fast"),
    Attribute("owner", Kind.EXACT, lambda record: (record.owner.text,), example="owner:12D3…"),
    Attribute("provider", Kind.EXACT, lambda record: (record.provider.text,), example="provider:12D3…"),
    Attribute("digest", Kind.WORD, _digests, example="digest:sha256:…"),
    Attribute("framework", Kind.WORD, _frameworks, example="framework:torch"),
    Attribute("language", Kind.WORD, _offers(_languages), example="language:de"),
    Attribute("licence", Kind.WORD, _offers(lambda o: _one(o.manifest.licence)), example="licence:apache*"),
    Attribute("precision", Kind.WORD, _offers(lambda o: _one(o.precision)), example="precision:int8"),
    Attribute("tier", Kind.WORD, _offers(lambda o: _one(o.tier)), example="tier:edge"),
    Attribute("access", Kind.WORD, _offers(lambda o: _one(o.access)), example="access:open"),
    Attribute("family", Kind.WORD, _offers(lambda o: _one(o.family)), example="family:acme/*"),
    Attribute("gives", Kind.WORD, _offers(lambda o: o.gives), example="gives:items"),
    Attribute("input", Kind.WORD, _offers(lambda o: _specs(o.inputs)), example="input:text"),
    Attribute("output", Kind.WORD, _offers(lambda o: _specs(o.outputs)), example="output:tensor"),
    Attribute("parameters", Kind.COUNT, numbers=_number(lambda o: o.parameters), example="parameters:1B..7B"),
    Attribute("context", Kind.COUNT, numbers=_number(lambda o: o.context_length), example="context>=4096"),
    Attribute("cost", Kind.MONEY, numbers=_cost, example="cost<=0.01"),
)
ATTRIBUTES: Mapping[str, Attribute] = {attribute.name: attribute for attribute in _ALL}
SYNONYMS: Mapping[str, str] = {
    "context_length": "context",
    "lang": "language",
    "languages": "language",
    "license": "licence",
    "params": "parameters",
    "price": "cost",
    "size": "parameters",
    "tags": "tag",
}
