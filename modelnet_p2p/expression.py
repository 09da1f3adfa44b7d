"""A search with and, or, not, words and ranges: whom it means, under which keys they lie, and why.

A record may leave a question open (a card can rule a licence out, and never in), so a test has three ends:
yes, no, and None for "perhaps". What an offer does not say, it does not have: `parameters<=7B` leaves out
whoever tells no size, and `not parameters<=7B` takes them in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from modelnet_p2p.attributes import ATTRIBUTES, MILLIONTHS, Kind
from modelnet_p2p.records import Card, Record, summary

MAX_KEYS = 16  # that one search walks to: each is a walk of its own
WILD = "*"  # any characters, or none
INDEXED = ("digest", "model", "provider", "owner", "task", "tag")  # by how few records share such a key
_UNITS = (("B", 10**9), ("M", 10**6))  # of large round numbers
_FEW_WORDS = 4  # of a record that a reason quotes


class Index(NamedTuple):
    """A key of the DHT by what it is for: a kind of INDEXED, and the name under it."""

    kind: str
    name: str

    @property
    def holds_cards(self) -> bool:
        """Whether cards lie there, and not offers."""
        return self.kind in ("task", "tag")

    @property
    def rank(self) -> int:
        return INDEXED.index(self.kind)


@dataclass(frozen=True, slots=True)
class Word:
    """An attribute has this value; `*` in it stands for anything. In lower case but for ids."""

    attribute: str
    pattern: str

    def __str__(self) -> str:
        quote = '"' if any(char in " ()<>=!'" for char in self.pattern) else ""
        quote = "'" if '"' in self.pattern else quote
        return f"{self.attribute}:{quote}{self.pattern}{quote}"

    def test(self, record: Record) -> bool | None:
        words = self._said(record)
        if words and ATTRIBUTES[self.attribute].kind is Kind.WORD:
            words = tuple(word.lower() for word in words)
        if words and any(fits(self.pattern, word) for word in words):
            return True
        # a card names one of its offer's tags
        perhaps = words is None or (self.attribute == "tag" and isinstance(record, Card))
        return None if perhaps and not self._ruled_out(record) else False

    def keys(self) -> Keys | None:
        """The keys under which all that match lie."""
        if WILD in self.pattern or self.attribute not in INDEXED:
            return None
        if self.attribute == "owner":
            return keys_of_owner(self.pattern)
        name = self.pattern.partition("@")[0] if self.attribute == "model" else self.pattern
        return frozenset([Index(self.attribute, name)])

    def said(self, record: Record) -> str:
        """What the record has there, where the question alone does not tell."""
        words = self._said(record) or ()
        if self.pattern in words:
            return ""
        more = " …" if len(words) > _FEW_WORDS else ""
        return ", ".join(words[:_FEW_WORDS]) + more or "not said"

    def _ruled_out(self, record: Record) -> bool:
        """Whether the summary of a card says so; of what a star stands for it says nothing."""
        if not isinstance(record, Card) or WILD in self.pattern:
            return False
        return summary.rules_out(record, self.attribute, self.pattern)

    def _said(self, record: Record) -> tuple[str, ...] | None:
        read = ATTRIBUTES[self.attribute].words
        return read(record) if read else ()


@dataclass(frozen=True, slots=True)
class Range:
    """A number lies between two others, both included; None is open. An amount is in millionths."""

    attribute: str
    low: int | None
    high: int | None
    typed: str = field(default="", compare=False)  # as somebody wrote it

    def __str__(self) -> str:
        if self.typed:
            return self.typed
        if self.low is not None and self.low == self.high:
            return f"{self.attribute}:{self._text(self.low)}"
        if self.low is None or self.high is None:
            end = f"<={self._text(self.high)}" if self.low is None else f">={self._text(self.low)}"
            return self.attribute + end
        return f"{self.attribute}:{self._text(self.low)}..{self._text(self.high)}"

    def test(self, record: Record) -> bool | None:
        said = self._said(record)
        if said is None:
            return None
        if not said:
            return False
        least, most = said
        return (self.low is None or self.low <= least) and (self.high is None or most <= self.high)

    def keys(self) -> None:
        """No key is for numbers."""

    def said(self, record: Record) -> str:
        said = self._said(record)
        return " to ".join(dict.fromkeys(map(self._text, said))) if said else "not said"

    def _said(self, record: Record) -> tuple[int, int] | tuple[()] | None:
        read = ATTRIBUTES[self.attribute].numbers
        return read(record) if read else ()

    def _text(self, number: int | None) -> str:
        if number is None:
            return ""
        if ATTRIBUTES[self.attribute].kind is not Kind.MONEY:
            unit, size = next(
                ((unit, size) for unit, size in _UNITS if number and number % size == 0), ("", 1)
            )
            return f"{number // size}{unit}"
        whole, rest = divmod(number, MILLIONTHS)
        return f"{whole}.{rest:06}".rstrip("0").rstrip(".")


@dataclass(frozen=True, slots=True)
class Not:
    part: Expression

    def __str__(self) -> str:
        return f"not {_inner(self.part)}"

    def test(self, record: Record) -> bool | None:
        found = self.part.test(record)
        return None if found is None else not found


@dataclass(frozen=True, slots=True)
class All:
    """Each of at least two parts."""

    parts: tuple[Expression, ...]

    def __str__(self) -> str:
        return " and ".join(map(_inner, self.parts))

    def test(self, record: Record) -> bool | None:
        found = {part.test(record) for part in self.parts}
        return False if False in found else None if None in found else True


@dataclass(frozen=True, slots=True)
class AnyOf:
    """One of at least two parts, or more of them."""

    parts: tuple[Expression, ...]

    def __str__(self) -> str:
        return " or ".join(map(_inner, self.parts))

    def test(self, record: Record) -> bool | None:
        found = {part.test(record) for part in self.parts}
        return True if True in found else None if None in found else False


Expression = Word | Range | Not | All | AnyOf
Keys = frozenset[Index]


def _inner(part: Expression) -> str:
    return f"({part})" if isinstance(part, All | AnyOf) else str(part)


def fits(pattern: str, text: str) -> bool:
    """Whether `text` is `pattern`, whose stars stand for anything. No regular expression: the time is linear
    in the one and the other, whoever wrote them."""
    head, *pieces = pattern.split(WILD)
    if not pieces:
        return text == head
    *middle, tail = pieces
    if len(text) < len(head) + len(tail) or not text.startswith(head) or not text.endswith(tail):
        return False
    at, end = len(head), len(text) - len(tail)
    for piece in middle:
        found = text.find(piece, at, end)
        if found < 0:
            return False
        at = found + len(piece)
    return True


def keys_of_owner(owner: str) -> Keys:
    """Others' offers of its models lie under the one, its own under the other."""
    return frozenset([Index("owner", owner), Index("provider", owner)])


def keys_of(expression: Expression) -> Keys | None:
    """Keys under which every record that can match lies, the most exact ones; None if there are none."""
    return _cover(expression, negated=False)


def best(choices: Iterable[Keys | None]) -> Keys | None:
    """The one to walk: the exactest of those that are few enough."""
    found = [keys for keys in choices if keys is not None]
    return min(found, key=_cost, default=None)


def _cost(keys: Keys) -> tuple[bool, int, int, list[Index]]:
    # the last only so that the choice is the same each time
    return len(keys) > MAX_KEYS, max(key.rank for key in keys), len(keys), sorted(keys)


def _cover(expression: Expression, *, negated: bool) -> Keys | None:
    match expression:
        case Not(part):
            return _cover(part, negated=not negated)
        case All(parts) | AnyOf(parts):
            choices = [_cover(part, negated=negated) for part in parts]
            # "not (a and b)" is "not a or not b"
            if isinstance(expression, All) != negated:
                return best(choices)
            return _union(choices)
        case Word() | Range():
            return None if negated else expression.keys()


def _union(choices: Sequence[Keys | None]) -> Keys | None:
    together: set[Index] = set()
    for keys in choices:
        if keys is None:
            return None
        together |= keys
    return frozenset(together)


def uncovered(expression: Expression) -> Expression:
    """The part that lets records in from anywhere, of an expression that has no keys."""
    match expression:
        case AnyOf(parts):
            return next((uncovered(part) for part in parts if keys_of(part) is None), expression)
        case _:
            return expression


def starred_places(expression: Expression) -> list[Word]:
    """What would say where to look, were there no star in it, in the order of the text."""
    words = (Word(attribute, pattern) for attribute, pattern in wanted_words(expression))
    return [word for word in words if word.attribute in INDEXED and WILD in word.pattern]


def wanted_words(expression: Expression) -> Iterator[tuple[str, str]]:
    """Attribute and value of each word that is asked for, and not ruled out, in the order of the text."""
    match expression:
        case Word(attribute, pattern):
            yield attribute, pattern
        case All(parts) | AnyOf(parts):
            for part in parts:
                yield from wanted_words(part)


def reasons(expression: Expression, record: Record) -> list[str]:
    """Why `record` is meant: each part that made it so, with what the record says where that is another."""
    if not expression.test(record):
        return []
    match expression:
        case All(parts) | AnyOf(parts):
            return list(dict.fromkeys(line for part in parts for line in reasons(part, record)))
        case Not(Word() | Range() as part):
            return [f"not {part} ({part.said(record)})"]
        case Not():
            return [str(expression)]
        case Word() | Range():
            said = expression.said(record)
            return [f"{expression} ({said})" if said else str(expression)]


def failing(expression: Expression, record: Record) -> str:
    """The part because of which `record` is not meant, as short as it can be said."""
    match expression:
        case All(parts):
            return next((failing(part, record) for part in parts if part.test(record) is False), "")
        case _:
            return str(expression)
