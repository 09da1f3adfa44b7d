"""The language of searches: text in, an `Expression` out, or one line that says what is wrong where.

    task:text-generation and (language:de or language:fr) and parameters<=7B and not licence:gpl*

    expression = part { "or" part }          part = unit { ["and"] unit }
    unit       = "not" unit | "(" expression ")" | name operator value | word
    operator   = ":" | "=" | "!=" | "<" | "<=" | ">" | ">="

A value is a word, `"quoted"` where it has spaces, or `low..high` for numbers, either of which may be missing.
A word alone is a task, a model or a tag of this name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from difflib import get_close_matches

from modelnet_p2p.attributes import ATTRIBUTES, MILLIONTHS, SYNONYMS, Attribute, Kind
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.expression import WILD, All, AnyOf, Expression, Not, Range, Word
from modelnet_p2p.identity import PeerId
from modelnet_p2p.names import check_model_name, check_tag, check_task, check_version, parse_digest

MAX_CHARS = 1024  # of a search: what a person types, with room for a program's lists
MAX_TERMS = 64  # each is tested on every record that is read
MAX_DEPTH = 16  # of brackets and nots: far below what Python's own stack takes
MAX_NUMBER = 2**53 - 1  # the largest that a record can say

_SPACE = re.compile(r"\s*")
_WORD = re.compile(r"""[^\s()"'<>=!:]+""")
_OPERATOR = re.compile(r"\s*(<=|>=|!=|[:=<>])\s*")
_VALUE = re.compile(r""""([^"]*)"|'([^']*)'|([^\s()"'<>=!]+)""")
_NUMBER = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)([kmgbt]?)", re.ASCII | re.IGNORECASE)
_FACTORS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9, "t": 10**12}
_JOINTS = ("and", "or", "not")
_ATTRIBUTES_HINT = f"a search knows {', '.join(ATTRIBUTES)}"


def parse_search(text: str) -> Expression:
    """The expression that `text` says; raises LocalError (bad-input)."""
    if len(text) > MAX_CHARS:
        raise LocalError(Code.BAD_INPUT, f"a search has at most {MAX_CHARS} characters, not {len(text)}")
    return _Parser(text).whole()


@dataclass(slots=True)
class _Parser:
    """Descends once, from left to right; `at` is the character that comes next."""

    text: str
    at: int = 0
    depth: int = 0
    terms: int = 0

    def whole(self) -> Expression:
        found = self._any()
        if self._peek():
            raise self._wrong("a bracket is closed that was not opened", self.at)
        return found

    def _any(self) -> Expression:
        parts = [self._all()]
        while self._take("or"):
            parts.append(self._all())
        return AnyOf(tuple(parts)) if len(parts) > 1 else parts[0]

    def _all(self) -> Expression:
        parts = [self._unit()]
        while self._take("and") or not (self._peek() in ("", ")") or self._sees("or")):
            parts.append(self._unit())
        return All(tuple(parts)) if len(parts) > 1 else parts[0]

    def _unit(self) -> Expression:
        begin = self._skip()
        if self._take("not"):
            with_not = self._deeper(self._unit, begin)
            return Not(with_not)
        if self._peek() == "(":
            self.at += 1
            inside = self._deeper(self._any, begin)
            if self._peek() != ")":
                raise self._wrong("the bracket opened here is not closed", begin)
            self.at += 1
            return inside
        return self._term()

    def _deeper(self, parse: Callable[[], Expression], begin: int) -> Expression:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self._wrong(f"brackets and nots stand more than {MAX_DEPTH} deep", begin)
        found = parse()
        self.depth -= 1
        return found

    def _term(self) -> Expression:
        begin = self._skip()
        self.terms += 1
        if self.terms > MAX_TERMS:
            raise self._wrong(f"more than {MAX_TERMS} conditions", begin)
        name = _WORD.match(self.text, begin)
        if name is None or any(self._sees(joint) for joint in _JOINTS):
            found = self.text[begin : begin + 10] or "the end"
            raise self._wrong(f"a condition such as task:text-generation is missing before {found!r}", begin)
        self.at = name.end()
        operator = _OPERATOR.match(self.text, self.at)
        if operator is None:
            return self._alone(name[0], begin)
        self.at = operator.end()
        attribute = self._attribute(name[0], begin)
        value = _VALUE.match(self.text, self.at)
        if value is None:
            raise self._wrong(
                f"{attribute.name}{operator[1]} has no value", self.at, f"such as {attribute.example}"
            )
        self.at = value.end()
        words = next(group for group in value.groups() if group is not None)
        try:
            return _condition(attribute, operator[1], words.strip())
        except LocalError as error:
            raise self._wrong(error.message, begin, error.hint or f"such as {attribute.example}") from error

    def _attribute(self, name: str, begin: int) -> Attribute:
        known = name.lower()
        attribute = ATTRIBUTES.get(SYNONYMS.get(known, known))
        if attribute is None:
            meant = get_close_matches(known, [*ATTRIBUTES, *SYNONYMS], 1)
            hint = f"did you mean {meant[0]}? " if meant else ""
            raise self._wrong(f"no record has a {name[:40]!r}", begin, hint + _ATTRIBUTES_HINT)
        return attribute

    def _alone(self, text: str, begin: int) -> Expression:
        """A word without an attribute: whatever of that name there is."""
        found: list[Expression] = []
        for name in ("task", "model", "tag"):
            try:
                found.append(_condition(ATTRIBUTES[name], ":", text))
            except LocalError:  # no such name can exist
                continue
        if not found:
            raise self._wrong(f"{text[:40]!r} is no name of a task, a model or a tag", begin)
        return AnyOf(tuple(found)) if len(found) > 1 else found[0]

    # --- reading on ---

    def _skip(self) -> int:
        space = _SPACE.match(self.text, self.at)
        self.at = space.end() if space else self.at
        return self.at

    def _peek(self) -> str:
        return self.text[self._skip() : self.at + 1]

    def _sees(self, joint: str) -> bool:
        found = _WORD.match(self.text, self._skip())
        # `not:x` would be an attribute, and is told as one that does not exist
        return found is not None and found[0].lower() == joint and not _OPERATOR.match(self.text, found.end())

    def _take(self, joint: str) -> bool:
        if not self._sees(joint):
            return False
        self.at += len(joint)
        return True

    def _wrong(self, what: str, at: int, hint: str = "") -> LocalError:
        where = f"in the search, at character {at + 1}"
        return LocalError(
            Code.BAD_INPUT,
            f"{where}: {what}",
            hint=hint or "modelnet-peer find 'task:text-generation and not licence:gpl*'",
        )


def _condition(attribute: Attribute, operator: str, value: str) -> Expression:
    if attribute.counts:
        found: Expression = _range(attribute, operator, value)
    elif operator in (":", "=", "!="):
        found = Word(attribute.name, _pattern(attribute, value))
    else:
        raise LocalError(Code.BAD_INPUT, f"{attribute.name} is a word: it is not more or less than another")
    return Not(found) if operator == "!=" else found


def _pattern(attribute: Attribute, value: str) -> str:
    """The value in the one form in which it is compared; raises LocalError where no record can have it."""
    value = value.lower() if attribute.kind is Kind.WORD else value
    if not value or not value.isprintable():
        raise LocalError(Code.BAD_INPUT, f"{attribute.name} has no value")
    if WILD in value:
        return value
    match attribute.name:
        case "task":
            check_task(value)
        case "model":
            name, at, version = value.removeprefix("modelnet:").partition("@")
            check_model_name(name)
            check_version(version)
            return name + at * bool(version) + version
        case "tag":
            check_tag(value)
        case "digest":
            parse_digest(value)
        case "owner" | "provider":
            return PeerId.parse(value).text
    return value


def _range(attribute: Attribute, operator: str, value: str) -> Range:
    low, high = _ends(attribute, operator, value)
    operator = ":" if operator in ("=", "!=") else operator
    return Range(attribute.name, low, high, f"{attribute.name}{operator}{value}")


def _ends(attribute: Attribute, operator: str, value: str) -> tuple[int | None, int | None]:
    low: int | None
    high: int | None
    if operator in (":", "=", "!="):
        first, between, last = value.partition("..")
        low = _number(attribute, first) if first or not between else None
        high = (_number(attribute, last) if last else None) if between else low
        if low is not None and high is not None and low > high:
            raise LocalError(Code.BAD_INPUT, f"{value} ends below where it begins")
        if low is None and high is None:
            raise LocalError(Code.BAD_INPUT, f"{attribute.name} has no value")
        return low, high
    number = _number(attribute, value)
    if operator == "<" and number == 0:
        raise LocalError(Code.BAD_INPUT, f"no {attribute.name} is below 0")
    match operator:
        case "<=":
            return None, number
        case "<":
            return None, number - 1
        case ">=":
            return number, None
        case _:
            return number + 1, None


def _number(attribute: Attribute, text: str) -> int:
    """The whole number that records hold: `7B` is 7 000 000 000, an amount is in millionths."""
    found = _NUMBER.fullmatch(text)
    if found is None:
        raise LocalError(Code.BAD_INPUT, f"{text[:40]!r} is not a number such as 4096, 1.5M or 7B")
    scale = MILLIONTHS if attribute.kind is Kind.MONEY else 1
    number = Decimal(found[1]) * _FACTORS[found[2].lower()] * scale
    if number != int(number):
        raise LocalError(Code.BAD_INPUT, f"{text} has more digits than {attribute.name} can have")
    return min(int(number), MAX_NUMBER)
