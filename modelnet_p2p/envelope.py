"""libp2p's signed envelope (RFC 0002) in the domain `modelnet-record`: who signed these bytes.

Any libp2p implementation can make and verify one. The protobuf itself must be the canonical one
(fields in order, none twice, none unknown): what is outside the signature cannot be varied, so one
signature belongs to one string of bytes and its hash names it.

Source: https://github.com/libp2p/specs/blob/master/RFC/0002-signed-envelopes.md
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError

from modelnet_p2p.identity import SIGNATURE_BYTES, KeyPair, PeerId
from modelnet_p2p.pb.envelope_pb2 import Ed25519, Envelope, PublicKey
from modelnet_p2p.refusals import BadRecord, MalformedRecord, Refusal

DOMAIN = b"modelnet-record"
MAX_PAYLOAD_TYPE_BYTES = 64  # ours have at most 22


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
    return b"".join(uvarint(len(part)) + part for part in (DOMAIN, payload_type, payload))


def seal(payload_type: bytes, payload: bytes, key: KeyPair) -> bytes:
    """`payload` in an envelope signed by `key`."""
    public_key = bytes(key.id)[-32:]
    return _encode(public_key, payload_type, payload, key.sign(signed_bytes(payload_type, payload)))


def open_envelope(data: bytes, *, max_bytes: int) -> Opened:
    """Checks length, form and signature, in this order; raises BadRecord, and nothing else."""
    if len(data) > max_bytes:
        raise BadRecord(Refusal.OVERSIZED, f"{len(data)} bytes, more than {max_bytes}")
    envelope = _parse(data)
    signer = PeerId.of_key(envelope.public_key.data)
    signed = signed_bytes(envelope.payload_type, envelope.payload)
    if not signer.verify(signed, envelope.signature):
        raise BadRecord(Refusal.FORGED, f"the signature is not {signer.short}'s over these bytes")
    return Opened(signer, envelope.payload_type, envelope.payload)


def _parse(data: bytes) -> Envelope:
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
    return envelope


def _encode(public_key: bytes, payload_type: bytes, payload: bytes, signature: bytes) -> bytes:
    return Envelope(
        public_key=PublicKey(type=Ed25519, data=public_key),
        payload_type=payload_type,
        payload=payload,
        signature=signature,
    ).SerializeToString(deterministic=True)
