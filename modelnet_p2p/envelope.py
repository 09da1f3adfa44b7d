"""libp2p's signed envelope (RFC 0002) in the domain `modelnet-record`: who signed these bytes.

Any libp2p implementation can make and verify one. The protobuf itself must be the canonical one
(fields in order, none twice, none unknown): what is outside the signature cannot be varied, so one
signature belongs to one string of bytes and its hash names it.

Source: https://github.com/libp2p/specs/blob/master/RFC/0002-signed-envelopes.md
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from google.protobuf.message import DecodeError

from modelnet_p2p.identity import SIGNATURE_BYTES, KeyPair, PeerId
from modelnet_p2p.pb.envelope_pb2 import Ed25519, Envelope, PublicKey
from modelnet_p2p.refusals import BadRecord, MalformedRecord, Refusal

DOMAIN = b"modelnet-record"
MAX_PAYLOAD_TYPE_BYTES = 64  # ours have at most 22


# a canonical envelope: a key of 36 bytes, Ed25519 and its 32 bytes; a type; a payload; 64 bytes of signature
_KEY_FOLLOWS, _SIGNATURE_FOLLOWS = b"\x0a\x24\x08\x01\x12\x20", b"\x2a\x40"
_TYPE_TAG, _PAYLOAD_TAG = 0x12, b"\x1a"
_KEY_END = len(_KEY_FOLLOWS) + 32


class Parts(NamedTuple):
    """The fields of an envelope whose form was found sound."""

    key: bytes
    payload_type: bytes
    payload: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Opened:
    """What an envelope holds, once its signature was found sound."""

    signer: PeerId
    payload_type: bytes
    payload: bytes


def uvarint(number: int) -> bytes:
    """An unsigned integer as protobuf and multiformats write it, shortest form."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def signed_bytes(payload_type: bytes, payload: bytes) -> bytes:
    """What the signature covers: domain, payload type and payload, each behind its length."""
    return _in_domain(payload_type) + uvarint(len(payload)) + payload


@lru_cache(16)
def _in_domain(payload_type: bytes) -> bytes:
    return b"".join(uvarint(len(part)) + part for part in (DOMAIN, payload_type))


def seal(payload_type: bytes, payload: bytes, key: KeyPair) -> bytes:
    """`payload` in an envelope signed by `key`."""
    public_key = bytes(key.id)[-32:]
    return _encode(public_key, payload_type, payload, key.sign(signed_bytes(payload_type, payload)))


def open_envelope(data: bytes, *, max_bytes: int) -> Opened:
    """Checks length, form and signature, in this order; raises BadRecord, and nothing else."""
    if len(data) > max_bytes:
        raise BadRecord(Refusal.OVERSIZED, f"{len(data)} bytes, more than {max_bytes}")
    key, payload_type, payload, signature = _by_place(data) or _parse(data)
    signer = PeerId.of_key(key)
    if not signer.verify(signed_bytes(payload_type, payload), signature):
        raise BadRecord(Refusal.FORGED, f"the signature is not {signer.short}'s over these bytes")
    return Opened(signer, payload_type, payload)


def _by_place(data: bytes) -> Parts | None:
    """The parts of a canonical envelope up to 16 KiB, by where they stand; None where it may be no such one,
    and `_parse` says why. As fast again as to decode it and to encode it for comparison.
    """
    end = len(data) - SIGNATURE_BYTES
    too_short = end < _KEY_END + 4
    if too_short or not data.startswith(_KEY_FOLLOWS) or data[end - 2 : end] != _SIGNATURE_FOLLOWS:
        return None
    kind, size = data[_KEY_END : _KEY_END + 2]
    at = _KEY_END + 2 + size
    length = end - 2 - at - 2  # of the payload, behind its tag and a length of one byte
    length -= length > 0x7F  # or of two
    payload = data[end - 2 - length : end - 2]
    if kind != _TYPE_TAG or not 0 < size <= MAX_PAYLOAD_TYPE_BYTES or length < 1:
        return None
    if data[at : end - 2 - length] != _PAYLOAD_TAG + uvarint(length):
        return None
    return Parts(data[len(_KEY_FOLLOWS) : _KEY_END], data[_KEY_END + 2 : at], payload, data[end:])


def _parse(data: bytes) -> Parts:
    envelope = Envelope()
    try:
        envelope.ParseFromString(data)
    except DecodeError as error:
        raise MalformedRecord("not an envelope's protobuf") from error
    key = envelope.public_key
    if not envelope.signature or not key.data:
        raise BadRecord(Refusal.UNSIGNED, "no signature" if key.data else "no public key")
    if key.type != Ed25519 or len(key.data) != 32:
        raise MalformedRecord("its public key is not an Ed25519 key")
    if len(envelope.signature) != SIGNATURE_BYTES:
        raise BadRecord(Refusal.FORGED, f"a signature of {len(envelope.signature)} bytes")
    if not 0 < len(envelope.payload_type) <= MAX_PAYLOAD_TYPE_BYTES:
        raise MalformedRecord("its payload type is missing or too long")
    if _encode(key.data, envelope.payload_type, envelope.payload, envelope.signature) != data:
        raise MalformedRecord("its protobuf is not the canonical one")
    return Parts(key.data, envelope.payload_type, envelope.payload, envelope.signature)


def _encode(public_key: bytes, payload_type: bytes, payload: bytes, signature: bytes) -> bytes:
    return Envelope(
        public_key=PublicKey(type=Ed25519, data=public_key),
        payload_type=payload_type,
        payload=payload,
        signature=signature,
    ).SerializeToString(deterministic=True)
