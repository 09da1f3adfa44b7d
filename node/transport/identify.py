"""The libp2p identify protocol: what a peer tells of itself on a fresh connection.

Source: https://github.com/libp2p/specs/blob/master/identify/README.md
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from modelnet_p2p import __version__
from modelnet_p2p.envelope import uvarint
from modelnet_p2p.errors import Code, LocalError, RemoteError
from modelnet_p2p.identity import PUBLIC_KEY_HEADER, PeerId
from modelnet_p2p.node.transport.addresses import split_p2p, to_binary, to_text
from modelnet_p2p.node.transport.contract import Stream
from modelnet_p2p.pb.identify_pb2 import Identify

IDENTIFY = "/ipfs/id/1.0.0"
PUSH = "/ipfs/id/push/1.0.0"
AGENT = f"modelnet/{__version__}"
MAX_MESSAGE = 16 * 1024  # bytes; js and go send 1 to 3 KiB, their own limit is 8 KiB a part
LENGTH_BYTES = 3  # of a varint up to that
READ_BYTES = 1024  # at once: ours have 300 bytes
MAX_ADDRESSES = 16  # as many as a contact of the DHT holds
MAX_PROTOCOLS = 256  # a stock node speaks about 20


@dataclass(frozen=True, slots=True)
class Told:
    """What a peer told; unchecked claims, all of them."""

    protocols: frozenset[str]
    addrs: tuple[str, ...]  # without /p2p/…
    agent: str


def encode(me: PeerId, addrs: Iterable[str], protocols: Iterable[str], observed: str) -> bytes:
    """My message, with the length in front; `observed` is the address I see the far side at."""
    key = me.public_key
    message = Identify(
        protocol_version="ipfs/0.1.0",  # what stock nodes expect
        agent_version=AGENT,
        public_key=PUBLIC_KEY_HEADER + key if key else b"",
        listen_addrs=[to_binary(split_p2p(addr)[1]) for addr in addrs],
        observed_addr=to_binary(observed),
        protocols=sorted(protocols),
    ).SerializeToString()
    return uvarint(len(message)) + message


def decode(body: bytes) -> Told:
    """A message without its length; raises ValueError. Addresses of unknown kinds are left out."""
    message = Identify()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise ValueError("not an identify message") from error
    return Told(
        frozenset(message.protocols[:MAX_PROTOCOLS]),
        _addresses(message.listen_addrs),
        message.agent_version[:128],
    )


def _addresses(raws: Sequence[bytes]) -> tuple[str, ...]:
    addrs: list[str] = []
    for raw in raws[:MAX_ADDRESSES]:
        try:
            addr = split_p2p(to_text(raw))[1]
        except LocalError:
            continue  # a transport that we do not know
        if addr and addr not in addrs:
            addrs.append(addr)
    return tuple(addrs)


async def receive(stream: Stream) -> Told:
    """Read one message; raises RemoteError. The caller bounds it in time."""
    data, buffer = bytearray(), memoryview(bytearray(READ_BYTES))
    while (body := _body(stream.peer, data)) is None:
        if not (count := await stream.receive_into(buffer)):
            raise _bad(stream.peer, "cut short" if data else "not a byte")
        data += buffer[:count]
    try:
        return decode(body)
    except ValueError as error:
        raise _bad(stream.peer, str(error)) from error


def _body(peer: PeerId, data: bytearray) -> bytes | None:
    """The message without the length in front, None until all of it has come; raises RemoteError."""
    length = 0
    for at, byte in enumerate(data[:LENGTH_BYTES]):
        length |= (byte & 0x7F) << 7 * at
        if byte < 0x80:
            if length > MAX_MESSAGE:
                raise _bad(peer, f"{length} bytes")
            end = at + 1 + length
            return bytes(data[at + 1 : end]) if len(data) >= end else None
    if len(data) >= LENGTH_BYTES:
        raise _bad(peer, "no sensible length")
    return None


def _bad(peer: PeerId, why: str) -> RemoteError:
    return RemoteError(Code.UNREACHABLE, f"peer {peer} does not identify itself: {why}", peer=str(peer))
