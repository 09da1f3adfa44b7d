"""The kad message: libp2p's, with extension fields that stock nodes skip.

Field 64 carries sealed records, 65 the cursor of the next page, 66 why a record was refused, 68 that
the records are copies. Each reply of ours has field 64, even empty, which marks a peer as ours. Stock
peers' habits are met with patience (too many addresses, ids of other key types, a `/p2p` behind an address),
broken bytes with `BadMessage`.

Source: https://github.com/libp2p/specs/blob/master/kad-dht/README.md#rpc-messages
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from google.protobuf.message import DecodeError

from modelnet_p2p.envelope import uvarint
from modelnet_p2p.identity import PeerId
from modelnet_p2p.pb.kad_pb2 import KadMessage, KadPeer, KadRecord

MAX_MESSAGE_BYTES = 64 * 1024  # of what we send: one page of records; js takes extensions up to 60 KB
MAX_ACCEPTED_BYTES = 1024 * 1024  # of what we take: a stock peer may list hundreds of providers
MAX_FIELDS = 8192  # of one message, in a long one those of its peers too: bounds what the decoder allocates
MAX_PEERS = 256  # taken of each list; k is 20, a stock peer's providers may be more
MAX_ADDRS = 16  # taken of each peer
MAX_ADDR_BYTES = 256
MAX_KEY_BYTES = 512  # ours have 34 to about 140; stock nodes' /ipns and /pk keys fit too
MAX_VALUE_BYTES = 64 * 1024
MAX_CURSOR_BYTES = 256
MAX_REFUSED_BYTES = 64

_P2P = b"\xa5\x03"  # the code of /p2p in a binary multiaddr, 421 as a uvarint
_PEERS = (8 << 3 | 2, 9 << 3 | 2)  # the tags of closerPeers and providerPeers
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


@dataclass(frozen=True, slots=True)
class Contact:
    """A peer and where it may be dialled: binary multiaddrs without `/p2p/<id>` at their end."""

    id: PeerId
    addrs: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Value:
    """The record of a PUT_VALUE, or of a GET_VALUE's reply."""

    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Message:
    """A request or a reply. `records` is None where the extension is absent, as from a stock peer,
    and empty where one of ours has none. `cursor` names the next page, empty: there is none.
    `refused` in a reply to ADD_PROVIDER says why the record was not stored, empty: it was. `cached`
    says that the records are copies, which a reader hands over with ADD_PROVIDER and a reply may tell."""

    kind: Kind
    key: bytes = b""
    closer: tuple[Contact, ...] = ()
    providers: tuple[Contact, ...] = ()
    value: Value | None = None
    records: tuple[bytes, ...] | None = None
    cursor: bytes = b""
    refused: str = ""
    cached: bool = False


def encode(message: Message) -> bytes:
    """The protobuf, without a length before it; raises BadMessage past MAX_MESSAGE_BYTES."""
    wire = KadMessage(
        type=message.kind.value,
        key=message.key,
        closer_peers=map(_peer, message.closer),
        provider_peers=map(_peer, message.providers),
        cursor=message.cursor,
        refused=message.refused,
        cached=message.cached,
    )
    if message.value is not None:
        wire.record.CopyFrom(KadRecord(key=message.value.key, value=message.value.value))
    if message.records is not None:
        wire.records.extend(message.records or (b"",))
    data = wire.SerializeToString(deterministic=True)
    if len(data) > MAX_MESSAGE_BYTES:
        raise BadMessage(f"{len(data)} bytes to send, more than {MAX_MESSAGE_BYTES}")
    return data


def decode(data: bytes) -> Message:
    """The message in `data`; raises BadMessage, and nothing else."""
    if len(data) > MAX_ACCEPTED_BYTES:
        raise BadMessage(f"{len(data)} bytes, more than {MAX_ACCEPTED_BYTES}")
    # up to 64 KiB the outer level is enough: what peers can blow up stays below a megabyte
    _count_fields(data, 0, len(data), MAX_FIELDS, len(data) > MAX_MESSAGE_BYTES)
    wire = KadMessage()
    try:
        wire.ParseFromString(data)
    except DecodeError as error:
        raise BadMessage("not a kad message's protobuf") from error
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
        _contacts(wire.closer_peers),
        _contacts(wire.provider_peers),
        _value(wire),
        tuple(record for record in wire.records if record) if wire.records else None,
        wire.cursor,
        wire.refused,
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


def _peer(contact: Contact) -> KadPeer:
    return KadPeer(id=bytes(contact.id), addrs=contact.addrs[:MAX_ADDRS])


def _contacts(peers: Iterable[KadPeer]) -> tuple[Contact, ...]:
    """Those with a sound id: one bad contact does not take its neighbours down."""
    found: list[Contact] = []
    for peer in peers:
        if len(found) == MAX_PEERS:
            break
        if 2 <= len(peer.id) <= 64:
            found.append(Contact(PeerId(peer.id), _addresses(peer)))
    return tuple(found)


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


def _count_fields(data: bytes, at: int, end: int, left: int, within: bool) -> int:
    """Walks the fields between `at` and `end`, `within` peers too, and gives how many of `left` remain.

    The decoder turns a megabyte of empty peers, or of empty addresses, into fifteen to fifty.
    """
    while at < end:
        left -= 1
        if left < 0:
            raise BadMessage(f"more than {MAX_FIELDS} fields")
        tag, at = _varint(data, at)
        match tag & 7:
            case 0:
                _, at = _varint(data, at)
            case 1:
                at += 8
            case 2:
                size, at = _varint(data, at)
                if within and tag in _PEERS and at + size <= end:
                    left = _count_fields(data, at, at + size, left, False)
                at += size
            case 5:
                at += 4
            case wire_type:
                raise BadMessage(f"wire type {wire_type}")
    if at != end:
        raise BadMessage("cut short")
    return left


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    for byte in data[at : at + 10]:
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return number, at
        shift += 7
    raise BadMessage("a varint without an end")
