"""Who a peer is: an Ed25519 key, and the libp2p peer id that is made of it.

Ed25519 keys are short, so libp2p puts the whole public key into the id (an identity multihash of
its protobuf). A peer id therefore verifies signatures without any look-up.

Source: https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md
"""

from __future__ import annotations

from functools import cached_property

import base58
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from modelnet_p2p.errors import Code, LocalError

SEED_BYTES = 32
SIGNATURE_BYTES = 64
# protobuf PublicKey {1: Type = Ed25519 (1), 2: Data = 32 bytes}
PUBLIC_KEY_HEADER = bytes.fromhex("08011220")
PUBLIC_KEY_BYTES = len(PUBLIC_KEY_HEADER) + 32
# multihash: identity (0x00), length 36
_ID_HEADER = bytes([0x00, PUBLIC_KEY_BYTES])
PEER_ID_BYTES = len(_ID_HEADER) + PUBLIC_KEY_BYTES


class PeerId(bytes):
    """A peer's id as its raw multihash bytes; `str()` gives base58 (`12D3Koo…`).

    Any multihash of 2 to 64 bytes is accepted, for stock libp2p nodes may have RSA ids; only
    Ed25519 ids have a `public_key` and can sign records.
    """

    def __new__(cls, raw: bytes) -> PeerId:
        if not 2 <= len(raw) <= 64:
            raise ValueError(f"a peer id has 2 to 64 bytes, not {len(raw)}")
        return super().__new__(cls, raw)

    @classmethod
    def parse(cls, text: str) -> PeerId:
        """The id written as base58; raises LocalError (bad-input) otherwise."""
        if not isinstance(text, str):
            raise LocalError(Code.BAD_INPUT, f"a peer id is a string, not {type(text).__name__}")
        try:
            if not 2 <= len(text) <= 100:
                raise ValueError("its length is wrong")
            raw = base58.b58decode(text)
            if len(raw) < 2 or raw[1] != len(raw) - 2:  # multihash: function, length, digest
                raise ValueError("it ends too early, or is no id at all")
            return cls(raw)
        except ValueError as error:
            raise LocalError(Code.BAD_INPUT, f"{text[:100]!r} is not a peer id: {error}") from error

    @classmethod
    def of_key(cls, public_key: bytes) -> PeerId:
        """The id of a raw 32-byte Ed25519 public key."""
        return cls(_ID_HEADER + PUBLIC_KEY_HEADER + public_key)

    @cached_property
    def text(self) -> str:
        return base58.b58encode(bytes(self)).decode()

    @property
    def short(self) -> str:
        """The last eight characters, for logs: the first ones are the same for all Ed25519 ids."""
        return self.text[-8:]

    @property
    def public_key(self) -> bytes | None:
        """The raw 32-byte Ed25519 key in this id, None for an id of another kind."""
        if len(self) == PEER_ID_BYTES and self.startswith(_ID_HEADER + PUBLIC_KEY_HEADER):
            return bytes(self[-32:])
        return None

    def verify(self, message: bytes, signature: bytes) -> bool:
        """Whether this peer signed `message` (64-byte Ed25519 signature)."""
        key = self.public_key
        if key is None or len(signature) != SIGNATURE_BYTES:
            return False
        try:
            VerifyKey(key).verify(message, signature)
        except BadSignatureError:
            return False
        return True

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"PeerId({self.text})"


class KeyPair:
    """A peer's or an owner's Ed25519 key; made from a 32-byte seed that the caller keeps secret."""

    __slots__ = ("_key", "id", "seed")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"an Ed25519 seed has {SEED_BYTES} bytes, not {len(seed)}")
        self.seed = bytes(seed)
        self._key = SigningKey(self.seed)
        self.id = PeerId.of_key(bytes(self._key.verify_key))

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature of `message`."""
        return self._key.sign(message).signature

    def __repr__(self) -> str:
        return f"KeyPair({self.id})"
