"""libp2p's signed envelope (RFC 0002) in the domain `modelnet-record`: who signed these bytes.

Any libp2p implementation can make and verify one. The protobuf itself must be the canonical one
(fields in order, none twice, none unknown): what is outside the signature cannot be varied, so one
signature belongs to one string of bytes and its hash names it. Several that are sealed at once may share a
signature (`joint.py`): each then carries its path to what was signed.

Source: https://github.com/libp2p/specs/blob/master/RFC/0002-signed-envelopes.md
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from google.protobuf.message import DecodeError

from modelnet_p2p.identity import SIGNATURE_BYTES, KeyPair, PeerId
from modelnet_p2p.joint import HASH_BYTES, MAX_LEAVES, MAX_PATH_BYTES, above, grow, leaf_hash
from modelnet_p2p.pb.envelope_pb2 import Ed25519, Envelope, PublicKey
from modelnet_p2p.refusals import BadRecord, MalformedRecord, Refusal

DOMAIN = b"modelnet-record"
JOINT_TYPE = b"/modelnet/joint/1"  # what a root is signed as
MAX_PAYLOAD_TYPE_BYTES = 64  # ours have at most 22
MAX_TRIED = 4  # roots for one signature: an honest message has the one, a damaged one a few beside it


# a canonical envelope: a key of 36 bytes, Ed25519 and its 32 bytes; a type; a payload; 64 bytes of signature;
# and where it is one of several, its path
_KEY_FOLLOWS, _SIGNATURE_FOLLOWS, _PATH_FOLLOWS = b"\x0a\x24\x08\x01\x12\x20", b"\x2a\x40", b"\x82\x04"
_TYPE_TAG, _PAYLOAD_TAG = 0x12, 0x1A
_KEY_END = len(_KEY_FOLLOWS) + 32
_PATH_HEADER = len(_PATH_FOLLOWS) + 1  # and a length of one byte


class Parts(NamedTuple):
    """The fields of an envelope whose form was found sound."""

    key: bytes
    payload_type: bytes
    payload: bytes
    signature: bytes
    path: bytes = b""


@dataclass(frozen=True, slots=True)
class Opened:
    """What an envelope holds, once its signature was found sound."""

    signer: PeerId
    payload_type: bytes
    payload: bytes
    path: bytes = b""  # to the root that was signed, where it was sealed with others

    @property
    def path_bytes(self) -> int:
        """By which it is longer than if it had been sealed alone."""
        return _PATH_HEADER + len(self.path) if self.path else 0


class Roots:
    """The signed roots that one reader has found sound: each costs it one check, however many lead there.

    Whoever comes to a place from which it came to such a root before climbs no farther: of a hundred cards
    each costs two hashes instead of seven. A signature is of one root, so few are tried for it: else a
    hundred cards with it, none of which leads there, would cost as many checks.
    """

    def __init__(self) -> None:
        self._sound: defaultdict[tuple[PeerId, bytes], set[bytes]] = defaultdict(set)
        self._failed: Counter[tuple[PeerId, bytes]] = Counter()

    def sound(self, signer: PeerId, place: bytes, signature: bytes) -> bool:
        """Whether `signer` has signed the root to which `place` leads, a leaf and its path."""
        seal = signer, signature
        known, climbed = self._sound[seal], list[bytes]()
        while place not in known:
            climbed.append(place)
            if len(place) > HASH_BYTES:
                place = above(place)
            elif self._failed[seal] < MAX_TRIED and signer.verify(signed_bytes(JOINT_TYPE, place), signature):
                break
            else:
                self._failed[seal] = min(self._failed[seal] + 1, MAX_TRIED)
                return False
        known.update(climbed)
        return True


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


def sealed_bytes(payload_type: bytes, payload: bytes) -> int:
    """The length of the envelope that `seal` makes."""
    lengths = len(uvarint(len(payload_type))) + len(uvarint(len(payload)))
    tags = 2 + len(_SIGNATURE_FOLLOWS)
    return _KEY_END + tags + lengths + len(payload_type) + len(payload) + SIGNATURE_BYTES


def seal(payload_type: bytes, payload: bytes, key: KeyPair) -> bytes:
    """`payload` in an envelope signed by `key`."""
    public_key = bytes(key.id)[-32:]
    return _encode(public_key, payload_type, payload, key.sign(signed_bytes(payload_type, payload)))


def seal_jointly(contents: Sequence[tuple[bytes, bytes]], key: KeyPair) -> list[bytes]:
    """Each payload type and payload in an envelope of its own, as many under a signature as a tree holds."""
    public_key = bytes(key.id)[-32:]
    sealed: list[bytes] = []
    for at in range(0, len(contents), MAX_LEAVES):
        some = contents[at : at + MAX_LEAVES]
        if len(some) == 1:  # which needs no tree
            return [*sealed, seal(*some[0], key)]
        root, paths = grow([leaf_hash(signed_bytes(*content)) for content in some])
        signature = key.sign(signed_bytes(JOINT_TYPE, root))
        sealed += [
            _encode(public_key, *content, signature, path) for content, path in zip(some, paths, strict=True)
        ]
    return sealed


def open_envelope(data: bytes, *, max_bytes: int, roots: Roots | None = None) -> Opened:
    """Checks length, form and signature, in this order; raises BadRecord, and nothing else.

    With `roots` it may have been sealed with others, and what they know is not checked again.
    """
    if len(data) > max_bytes:
        raise BadRecord(Refusal.OVERSIZED, f"{len(data)} bytes, more than {max_bytes}")
    key, payload_type, payload, signature, path = by_place(data) or _parse(data)
    signer, statement = _signer(key), signed_bytes(payload_type, payload)
    if not path:
        sound = signer.verify(statement, signature)
    elif roots is None:
        raise MalformedRecord("sealed with others, which must be sealed alone")
    else:
        sound = roots.sound(signer, leaf_hash(statement) + path, signature)
    if not sound:
        raise BadRecord(Refusal.FORGED, f"the signature is not {signer.short}'s over these bytes")
    return Opened(signer, payload_type, payload, path)


_signer = lru_cache(1024)(PeerId.of_key)  # a hundred records of one provider name the same


def by_place(data: bytes) -> Parts | None:
    """The parts of a canonical envelope up to 16 KiB, by where they stand; None where it may be no such one,
    and `_parse` says why. As fast again as to decode it and to encode it for comparison.
    """
    if len(data) < _KEY_END + 4 or not data.startswith(_KEY_FOLLOWS):
        return None
    kind, size = data[_KEY_END : _KEY_END + 2]
    at = _KEY_END + 2 + size
    head = data[at : at + 3]  # of the payload: its tag, and a length of one byte or of two
    if (
        kind != _TYPE_TAG
        or not 0 < size <= MAX_PAYLOAD_TYPE_BYTES
        or len(head) < 3
        or head[0] != _PAYLOAD_TAG
    ):
        return None
    begin, length = at + 2, head[1]
    if length > 0x7F:
        begin, length = at + 3, length & 0x7F | head[2] << 7
        if not 0x7F < length < 1 << 14:
            return None
    end = begin + length
    behind = end + len(_SIGNATURE_FOLLOWS) + SIGNATURE_BYTES
    path = data[behind + _PATH_HEADER :]
    if length < 1 or len(data) < behind or not data.startswith(_SIGNATURE_FOLLOWS, end):
        return None
    if len(data) > behind and not (_is_path(path) and data[behind : -len(path)] == _path_head(path)):
        return None
    key, payload_type = data[len(_KEY_FOLLOWS) : _KEY_END], data[_KEY_END + 2 : at]
    return Parts(key, payload_type, data[begin:end], data[behind - SIGNATURE_BYTES : behind], path)


def _is_path(path: bytes) -> bool:
    return 0 < len(path) <= MAX_PATH_BYTES and len(path) % HASH_BYTES == 0


def _path_head(path: bytes) -> bytes:
    return _PATH_FOLLOWS + bytes([len(path)])


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
    if envelope.path and not _is_path(envelope.path):
        raise MalformedRecord(f"a path of {len(envelope.path)} bytes")
    parts = Parts(key.data, envelope.payload_type, envelope.payload, envelope.signature, envelope.path)
    if _encode(*parts) != data:
        raise MalformedRecord("its protobuf is not the canonical one")
    return parts


def _encode(
    public_key: bytes, payload_type: bytes, payload: bytes, signature: bytes, path: bytes = b""
) -> bytes:
    return Envelope(
        public_key=PublicKey(type=Ed25519, data=public_key),
        payload_type=payload_type,
        payload=payload,
        signature=signature,
        path=path,
    ).SerializeToString(deterministic=True)
