"""The fields of a record as a table: what each is called on the wire and what it may hold.

A record class and its table say everything; encoding and decoding are the same two functions for
all of them. A field at its default is left out, and refused when it is there all the same: so each
record has one encoding. Keys that the table does not know are kept in `extra` and written again.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Protocol

from modelnet_p2p.errors import LocalError
from modelnet_p2p.identity import PeerId
from modelnet_p2p.refusals import MalformedRecord

MAX_SAFE_INT = 2**53 - 1  # what every language, JavaScript too, holds exactly
DIGEST_BYTES = 32
MARK_BYTES = 2  # by which a card says that its offer has some word

_TOKEN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:/+ -]*[A-Za-z0-9+])?", re.ASCII)
_LAYERS = re.compile(r"(0|[1-9][0-9]{0,5})-(0|[1-9][0-9]{0,5})", re.ASCII)


class Need(Enum):
    """In place of a default: the field must be there."""

    REQUIRED = 0


REQUIRED = Need.REQUIRED


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its key on the wire, its attribute, how its wire value becomes ours, its default."""

    key: str
    attribute: str
    decode: Callable[[object], object]
    default: object = REQUIRED
    encode: Callable[[object], object] | None = None  # where `plain` is not enough


class HasExtra(Protocol):
    @property
    def extra(self) -> Mapping[str, object]: ...


class Fields:
    """All fields of one kind of record."""

    def __init__(self, *fields: Field) -> None:
        self._by_key = {field.key: field for field in fields}
        self._readers = {field.key: (field.attribute, field.decode, field.default) for field in fields}
        self._required = [field.attribute for field in fields if field.default is REQUIRED]
        self._defaults = {field.attribute: field.default for field in fields if field.default is not REQUIRED}

    def to_wire(self, record: HasExtra) -> dict[str, object]:
        """The map that is packed and signed: all fields but those at their defaults, and `extra`."""
        wire: dict[str, object] = {}
        for key, field in self._by_key.items():
            value = getattr(record, field.attribute)
            if value != field.default:
                wire[key] = field.encode(value) if field.encode else plain(value)
        for key, value in record.extra.items():
            if key in self._by_key:
                raise MalformedRecord(f"{key!r} is a field of its own, not an extra one")
            wire[key] = value
        return wire

    def from_wire(self, wire: Mapping[str, object]) -> dict[str, object]:
        """The attributes of a record, `extra` among them; raises MalformedRecord."""
        values, extra = self._defaults.copy(), dict[str, object]()
        for key, written in wire.items():
            if key not in self._readers:
                extra[key] = written
                continue
            attribute, decode, default = self._readers[key]
            try:
                value = decode(written)
            except MalformedRecord as error:
                raise MalformedRecord(f"{attribute}: {error.message}") from error
            if value == default:
                raise MalformedRecord(f"{attribute} is written though it is at its default")
            values[attribute] = value
        if len(values) < len(self._readers):
            missing = next(attribute for attribute in self._required if attribute not in values)
            raise MalformedRecord(f"{missing} is missing")
        values["extra"] = extra
        return values


def plain(value: object) -> object:
    """A field's value as msgpack takes it."""
    match value:
        case PeerId():
            return bytes(value)
        case tuple():
            return [plain(item) for item in value]
        case Mapping():
            return dict(value)
    return value


# --- decoders: a wire value in, ours out, MalformedRecord otherwise ---


def text(limit: int) -> Callable[[object], str]:
    """Printable text of at most `limit` bytes."""

    def decode(wire: object) -> str:
        if not isinstance(wire, str) or not wire.isprintable() or len(wire.encode()) > limit:
            raise MalformedRecord(f"not printable text of at most {limit} bytes")
        return wire

    return decode


def token(limit: int) -> Callable[[object], str]:
    """A short word for machines, such as `torch`, `hidden:11` or `cpu+gpu`."""

    def decode(wire: object) -> str:
        if not isinstance(wire, str) or len(wire) > limit or not _TOKEN.fullmatch(wire):
            raise MalformedRecord(f"not a word of at most {limit} letters, digits and '._:/+ -'")
        return wire

    return decode


def named(check: Callable[[str], str]) -> Callable[[object], str]:
    """What one of `names.check_…` lets pass."""

    def decode(wire: object) -> str:
        if not isinstance(wire, str):
            raise MalformedRecord("not text")
        try:
            return check(wire)
        except LocalError as error:
            raise MalformedRecord(error.message) from error

    return decode


def integer(low: int = 0, high: int = MAX_SAFE_INT) -> Callable[[object], int]:
    def decode(wire: object) -> int:
        if not isinstance(wire, int) or isinstance(wire, bool) or not low <= wire <= high:
            raise MalformedRecord(f"not an integer of {low} to {high}")
        return wire

    return decode


def blob(low: int, high: int) -> Callable[[object], bytes]:
    def decode(wire: object) -> bytes:
        if not isinstance(wire, bytes) or not low <= len(wire) <= high:
            raise MalformedRecord(f"not {low} to {high} bytes")
        return wire

    return decode


digest = blob(DIGEST_BYTES, DIGEST_BYTES)


def signer(wire: object) -> PeerId:
    """The id of a peer that can sign: one with an Ed25519 key in it."""
    return _signer(wire if isinstance(wire, bytes) else b"")


@lru_cache(1024)  # a hundred records of one provider name the same
def _signer(wire: bytes) -> PeerId:
    peer = PeerId(wire) if 2 <= len(wire) <= 64 else None
    if peer is None or peer.public_key is None:
        raise MalformedRecord("not the id of an Ed25519 peer")
    return peer


def layers(wire: object) -> str:
    """A layer range `first-last`, both counted from 0 and included."""
    match = _LAYERS.fullmatch(wire) if isinstance(wire, str) else None
    if match is None or int(match[1]) > int(match[2]):
        raise MalformedRecord("not a layer range such as 0-11")
    return match[0]


def several(item: Callable[[object], object], limit: int) -> Callable[[object], tuple[object, ...]]:
    """At most `limit` items, none twice."""

    def decode(wire: object) -> tuple[object, ...]:
        if not isinstance(wire, list) or len(wire) > limit:
            raise MalformedRecord(f"not a list of at most {limit}")
        items = tuple(map(item, wire))
        if len(set(items)) != len(items):
            raise MalformedRecord("one item is there twice")
        return items

    return decode


def numbers(limit: int, width: int) -> Callable[[object], dict[str, int]]:
    """At most `limit` integers by name, each name a word of at most `width` bytes."""
    name = token(width)
    number = integer(-MAX_SAFE_INT)

    def decode(wire: object) -> dict[str, int]:
        if not isinstance(wire, dict) or len(wire) > limit:
            raise MalformedRecord(f"not a map of at most {limit}")
        return {name(key): number(value) for key, value in wire.items()}

    return decode


def marks(limit: int) -> Callable[[object], tuple[int, ...]]:
    """At most `limit` numbers of two bytes, big-endian and ascending, in one piece."""

    def decode(wire: object) -> tuple[int, ...]:
        if not isinstance(wire, bytes) or not MARK_BYTES <= len(wire) <= limit * MARK_BYTES:
            raise MalformedRecord(f"not 1 to {limit} marks of {MARK_BYTES} bytes")
        if len(wire) % MARK_BYTES:
            raise MalformedRecord("its last mark is cut off")
        found = struct.unpack(f">{len(wire) // MARK_BYTES}H", wire)
        if list(found) != sorted(set(found)):
            raise MalformedRecord("its marks are not in ascending order")
        return found

    return decode


def mark_bytes(value: object) -> bytes:
    assert isinstance(value, tuple)
    return struct.pack(f">{len(value)}H", *value)


def span(wire: object) -> tuple[int, int]:
    """The lowest and the highest of some numbers."""
    if not isinstance(wire, list) or len(wire) != 2:
        raise MalformedRecord("not a lowest and a highest number")
    number = integer(-MAX_SAFE_INT)
    low, high = number(wire[0]), number(wire[1])
    if low > high:
        raise MalformedRecord("the lowest number is above the highest")
    return low, high
