"""The kad message: libp2p's, with five extension fields that stock nodes skip.

Field 64 carries sealed records, 65 the cursor of the next page, 66 why something was refused, 67 when to
ask again, 68 that the records are copies. Each request and reply of ours has field 64, even empty, which
marks a peer as ours. Stock peers' habits are met with patience (too many addresses, ids of other key types,
a `/p2p` behind an address), broken bytes with `BadMessage`.

Source: https://github.com/libp2p/specs/blob/master/kad-dht/README.md#rpc-messages
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple

from google.protobuf.message import DecodeError

from modelnet_p2p.envelope import uvarint
from modelnet_p2p.identity import PeerId
from modelnet_p2p.pb.kad_pb2 import KadMessage, KadPeer, KadRecord

MAX_MESSAGE_BYTES = 64 * 1024  # of what we send: one page of records; js takes extensions up to 60 KB
MAX_ACCEPTED_BYTES = 1024 * 1024  # of what we take: a stock peer may list hundreds of providers
MAX_FIELDS = 8192  # peers and records of one message, in a long one all fields: bounds what is made of it
MAX_PEERS = 256  # taken of each list; k is 20, a stock peer's providers may be more
MAX_ADDRS = 16  # taken of each peer
MAX_ADDR_BYTES = 256
MAX_KEY_BYTES = 512  # ours have 34 to about 140; stock nodes' /ipns and /pk keys fit too
MAX_VALUE_BYTES = 64 * 1024
MAX_RECORDS_ADDED = 128  # in one ADD_PROVIDER, as many as one peer may have under a key: 10 ms to check
MAX_CURSOR_BYTES = 256
MAX_REFUSED_BYTES = 64
SLOW_DOWN = "slow-down"  # in `refused`: you ask too fast; `retry_ms` says when to ask this again

CACHED_CONTACTS = 2048  # in either direction: replies repeat the same few hundred peers, 30 in each
CACHED_BYTES = 512  # of one that is remembered: two megabytes are all that strangers can make us keep

_P2P = b"\xa5\x03"  # the code of /p2p in a binary multiaddr, 421 as a uvarint
_PEERS = 8 << 3 | 2, 9 << 3 | 2  # the tags of closerPeers and providerPeers
_LENGTH_BYTES = 3  # of a uvarint up to MAX_ACCEPTED_BYTES


class BadMessage(ValueError):
    """Bytes that are no kad message, or one past its bounds."""


class Kind(IntEnum):
    """The wire's numbers; a message without a type is a PUT_VALUE."""

    PUT_VALUE = 0
    GET_VALUE = 1
    ADD_PROVIDER = 2
    GET_PROVIDERS = 3
    FIND_NODE = 4
    PING = 5


# Contacts and messages are tuples, for each request hashes, compares or makes a hundred of them.


class Contact(NamedTuple):
    """A peer and where it may be dialled: binary multiaddrs without `/p2p/<id>` at their end."""

    id: PeerId
    addrs: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Value:
    """The record of a PUT_VALUE, or of a GET_VALUE's reply."""

    key: bytes
    value: bytes


class Message(NamedTuple):
    """A request or a reply. `records` is None where the extension is absent, as from a stock peer,
    and empty where one of ours has none. `cursor` names the next page, empty: there is none.
    `refused` in a reply says why a record was not stored, or that the sender asks too fast (SLOW_DOWN, with
    the milliseconds until the same may be asked again in `retry_ms`); empty: all is well. In a reply to
    GET_PROVIDERS "split" says that more lie in the key's shards. `cached` says that the records are copies,
    which a reader hands over with ADD_PROVIDER and a reply may tell."""

    kind: Kind
    key: bytes = b""
    closer: tuple[Contact, ...] = ()
    providers: tuple[Contact, ...] = ()
    value: Value | None = None
    records: tuple[bytes, ...] | None = None
    cursor: bytes = b""
    refused: str = ""
    retry_ms: int = 0
    cached: bool = False


def encode(message: Message) -> bytes:
    """The protobuf, without a length before it; raises BadMessage past MAX_MESSAGE_BYTES."""
    records, value = message.records, message.value
    data = KadMessage(
        type=message.kind.value,
        key=message.key,
        record=None if value is None else KadRecord(key=value.key, value=value.value),
        closer_peers=map(_encoded, message.closer),
        provider_peers=map(_encoded, message.providers),
        records=records if records is None else records or (b"",),
        cursor=message.cursor,
        refused=message.refused,
        retry_ms=message.retry_ms,
        cached=message.cached,
    ).SerializeToString(deterministic=True)
    if len(data) > MAX_MESSAGE_BYTES:
        raise BadMessage(f"{len(data)} bytes to send, more than {MAX_MESSAGE_BYTES}")
    return data


def decode(data: bytes) -> Message:
    """The message in `data`; raises BadMessage, and nothing else."""
    if len(data) > MAX_ACCEPTED_BYTES:
        raise BadMessage(f"{len(data)} bytes, more than {MAX_ACCEPTED_BYTES}")
    if len(data) > MAX_MESSAGE_BYTES:
        _count_fields(data, MAX_FIELDS, _PEERS)
    wire = KadMessage()
    try:
        wire.ParseFromString(data)
    except DecodeError as error:
        raise BadMessage("not a kad message's protobuf") from error
    closer, providers, records = wire.closer_peers, wire.provider_peers, wire.records
    if len(closer) + len(providers) + len(records) > MAX_FIELDS:
        raise BadMessage(f"more than {MAX_FIELDS} fields")
    try:
        kind = Kind(wire.type)
    except ValueError as error:
        raise BadMessage(f"type {wire.type}") from error
    for what, size, limit in (
        ("a key", len(wire.key), MAX_KEY_BYTES),
        ("a cursor", len(wire.cursor), MAX_CURSOR_BYTES),
        ("a refusal", len(wire.refused), MAX_REFUSED_BYTES),
    ):
        if size > limit:
            raise BadMessage(f"{what} of {size} bytes, more than {limit}")
    return Message(
        kind,
        wire.key,
        _contacts(closer),
        _contacts(providers),
        _value(wire),
        tuple(filter(None, records)) if records else None,
        wire.cursor,
        wire.refused,
        wire.retry_ms,
        wire.cached,
    )


def frame(message: Message) -> bytes:
    """The message as it goes on a stream: its length as a uvarint, then its bytes."""
    data = encode(message)
    return uvarint(len(data)) + data


class Framer:
    """Cuts a stream into messages. After BadMessage the stream is lost: every call raises it again."""

    def __init__(self, max_bytes: int = MAX_ACCEPTED_BYTES) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()  # at most one unfinished message: max_bytes and its length
        self._broken = ""

    def feed(self, data: bytes | bytearray | memoryview) -> list[Message]:
        """The messages that `data` completes, in order.

        Raises BadMessage; messages before the bad one in the same `data` are then lost with it.
        """
        if self._broken:
            raise BadMessage(self._broken)
        self._buffer += data
        messages: list[Message] = []
        start = 0
        try:
            while (found := self._next(start)) is not None:
                begin, start = found
                messages.append(decode(bytes(self._buffer[begin:start])))
        except BadMessage as error:
            self._broken = str(error)
            self._buffer.clear()
            raise
        del self._buffer[:start]
        return messages

    @property
    def pending(self) -> int:
        """Bytes of an unfinished message, its length included."""
        return len(self._buffer)

    def _next(self, start: int) -> tuple[int, int] | None:
        """Where the message whose length stands at `start` begins and ends, None if it is not all there."""
        length = shift = 0
        for at in range(start, min(start + _LENGTH_BYTES, len(self._buffer))):
            byte = self._buffer[at]
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte & 0x80:
                continue
            if length > self._max_bytes or (byte == 0 and at > start):
                raise BadMessage(f"a length of {length} bytes, more than {self._max_bytes} or not minimal")
            end = at + 1 + length
            return (at + 1, end) if end <= len(self._buffer) else None
        if shift == 7 * _LENGTH_BYTES:
            raise BadMessage(f"a length of more than {_LENGTH_BYTES} bytes")
        return None


@lru_cache(CACHED_CONTACTS)
def _encoded(contact: Contact) -> bytes:
    """Its protobuf."""
    return KadPeer(id=bytes(contact.id), addrs=contact.addrs[:MAX_ADDRS]).SerializeToString()


def _contacts(peers: Iterable[bytes]) -> tuple[Contact, ...]:
    """Those with a sound id: one bad contact does not take its neighbours down."""
    found: list[Contact] = []
    for data in peers:
        if len(found) == MAX_PEERS:
            break
        contact = _known(data) if len(data) <= CACHED_BYTES else _contact(data)
        if contact is not None:
            found.append(contact)
    return tuple(found)


def _contact(data: bytes) -> Contact | None:
    """The contact in a peer's protobuf, None if its id is not sound; raises BadMessage."""
    peer = KadPeer()
    try:
        peer.ParseFromString(data)
    except DecodeError as error:
        raise BadMessage("not a peer's protobuf") from error
    return Contact(PeerId(peer.id), _addresses(peer)) if 2 <= len(peer.id) <= 64 else None


_known = lru_cache(CACHED_CONTACTS)(_contact)  # the same bytes are the same contact


def _addresses(peer: KadPeer) -> tuple[bytes, ...]:
    suffix = _P2P + bytes([len(peer.id)]) + peer.id
    stripped = (addr.removesuffix(suffix) for addr in peer.addrs[:MAX_ADDRS])
    return tuple(addr for addr in stripped if 0 < len(addr) <= MAX_ADDR_BYTES)


def _value(wire: KadMessage) -> Value | None:
    if not wire.HasField("record"):
        return None
    record = wire.record
    if record.key != wire.key:
        raise BadMessage("the record's key is not the message's")
    if len(record.value) > MAX_VALUE_BYTES:
        raise BadMessage(f"a value of {len(record.value)} bytes, more than {MAX_VALUE_BYTES}")
    return Value(record.key, record.value)


def _count_fields(data: bytes, left: int, within: Container[int] = ()) -> int:
    """How many of `left` fields remain after those of a message, and after those of its parts whose tags are
    `within`; raises BadMessage where there are more.

    For long ones, before they are decoded: the decoder turns a megabyte of empty peers, or of empty
    addresses, into fifteen to fifty. Up to 64 KiB what it makes of them stays about a megabyte.
    """
    at = 0
    while at < len(data):
        left -= 1
        if left < 0:
            raise BadMessage(f"more than {MAX_FIELDS} fields")
        tag, begin = _varint(data, at)
        at = _behind(data, at)
        if tag in within:
            _, begin = _varint(data, begin)
            left = _count_fields(data[begin:at], left)
    return left


def _behind(data: bytes, at: int) -> int:
    """Where the field that begins at `at` ends; raises BadMessage."""
    tag, at = _varint(data, at)
    match tag & 7:
        case 0:
            return _varint(data, at)[1]
        case 1:
            return at + 8
        case 2:
            size, at = _varint(data, at)
            return at + size
        case 5:
            return at + 4
        case wire_type:
            raise BadMessage(f"wire type {wire_type}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    if at < len(data) and data[at] < 0x80:  # as nearly all are
        return data[at], at + 1
    number = shift = 0
    for byte in data[at : at + 10]:
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return number, at
        shift += 7
    raise BadMessage("a varint without an end")
