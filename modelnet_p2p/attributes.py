"""What a search may ask of a record: each attribute's name, and what a record of any kind says of it.

An offer says all of it; a card and a tombstone say less, and leave the rest open (None): what they cannot
rule out (a card by its summary) is decided by the offer that they stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from modelnet_p2p.names import digest_text
from modelnet_p2p.records import Card, OfferRecord, Record, summary
from modelnet_p2p.records.summary import Words

MILLIONTHS = 1_000_000


class Kind(Enum):
    """How an attribute's values are compared."""

    WORD = "a word"  # letters in either case
    EXACT = "an id"  # letters as they stand
    COUNT = "a number"  # whole numbers: 7B, 1.5M, 4096
    MONEY = "an amount"  # kept in millionths


# the words, or the least and the greatest number that a record has; None: this kind of record does not say
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


def _summed_up(name: str, example: str) -> Attribute:
    """One whose words an offer says; a card has them in its summary, which can only rule out."""
    read = summary.WORDS[name]

    def words(record: Record) -> Words | None:
        return read(record) if isinstance(record, OfferRecord) else None

    return Attribute(name, Kind.WORD, words, example=example)


def _telling(record: Record) -> OfferRecord | Card | None:
    """The record, if it is one that says its numbers."""
    if isinstance(record, Card):
        return None if record.marks is None else record
    return record if isinstance(record, OfferRecord) else None


def _number(read: Callable[[OfferRecord | Card], int | None]) -> Callable[[Record], Numbers | None]:
    def numbers(record: Record) -> Numbers | None:
        telling = _telling(record)
        if telling is None:
            return None
        value = read(telling)
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


def _cost(record: Record) -> Numbers | None:
    telling = _telling(record)
    if telling is None:
        return None
    return telling.cost if isinstance(telling, Card) else summary.cost(telling)


_ALL = (
    Attribute("task", Kind.WORD, lambda record: (record.task,), example="task:text-generation"),
    Attribute("model", Kind.WORD, _models, example="model:acme/*"),
    Attribute("version", Kind.EXACT, lambda record: _one(record.version), example="version:2"),
    Attribute("tag", Kind.WORD, _tags, example="tag:fast"),
    Attribute("owner", Kind.EXACT, lambda record: (record.owner.text,), example="owner:12D3…"),
    Attribute("provider", Kind.EXACT, lambda record: (record.provider.text,), example="provider:12D3…"),
    Attribute("digest", Kind.WORD, _digests, example="digest:sha256:…"),
    Attribute("framework", Kind.WORD, _frameworks, example="framework:torch"),
    _summed_up("language", "language:de"),
    _summed_up("licence", "licence:apache*"),
    _summed_up("precision", "precision:int8"),
    _summed_up("tier", "tier:edge"),
    _summed_up("access", "access:open"),
    _summed_up("family", "family:acme/*"),
    _summed_up("gives", "gives:items"),
    _summed_up("input", "input:text"),
    _summed_up("output", "output:tensor"),
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
