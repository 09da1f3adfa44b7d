"""Noise's transport phase: a stream of sealed messages, sealed and opened in place of copies.

A message on the wire is its length (u16, big-endian), its ciphertext and a tag of 16 bytes. Whoever drives
this owns the memory: one buffer to receive into and one for what was opened serve all connections of a
thread, for nothing is kept here but the piece of a message that has not arrived whole.

Source: https://github.com/libp2p/specs/blob/master/noise/README.md, "Wire Format".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

TAG_BYTES = 16
LENGTH_BYTES = 2
MAX_SEALED = 65535  # what its length can say
MAX_PLAIN = MAX_SEALED - TAG_BYTES
MAX_WIRE = LENGTH_BYTES + MAX_SEALED
_NONCE = struct.Struct("<4xQ")  # ChaChaPoly's in Noise; 2**64 messages are never reached


class BrokenSeal(ValueError):
    """The bytes are none that the far side sealed: somebody changed them, or it lost count."""


class Sealer:
    """Seals what we send; `key` has 32 bytes."""

    __slots__ = ("_encrypt_into", "_sealed")

    def __init__(self, key: bytes) -> None:
        self._encrypt_into = ChaCha20Poly1305(key).encrypt_into
        self._sealed = 0

    def seal_into(self, plain: memoryview, out: memoryview, at: int) -> int:
        """Write one message of at most `MAX_PLAIN` bytes into `out` from `at` on; returns where it ends."""
        size = len(plain) + TAG_BYTES
        start = at + LENGTH_BYTES
        end = start + size
        out[at] = size >> 8
        out[at + 1] = size & 0xFF
        self._encrypt_into(_NONCE.pack(self._sealed), plain, None, out[start:end])
        self._sealed += 1
        return end


class Opener:
    """Opens what arrives; `rest` are bytes that came behind the handshake.

    start = opener.begin(room)               # room: MAX_WIRE bytes more than one receive brings
    n = ...receive into room[start:]...
    for plain in opener.open(room, start + n, scratch): ...   # each is valid until the next
    """

    __slots__ = ("_decrypt_into", "_opened", "_piece")

    def __init__(self, key: bytes, rest: bytes = b"") -> None:
        self._decrypt_into = ChaCha20Poly1305(key).decrypt_into
        self._opened = 0
        self._piece = rest

    @property
    def inside(self) -> bool:
        """Whether a message has begun to arrive and is not complete."""
        return bool(self._piece)

    def begin(self, room: memoryview) -> int:
        """Put what is kept to the front of `room`; what is received goes behind it."""
        room[: len(self._piece)] = self._piece
        return len(self._piece)

    def open(self, room: memoryview, end: int, scratch: memoryview) -> Iterator[memoryview]:
        """The messages in the first `end` bytes of `room`, each opened into `scratch`; to be exhausted.

        Raises BrokenSeal, after which the connection is of no more use.
        """
        at = 0
        while end - at >= LENGTH_BYTES:
            size = room[at] << 8 | room[at + 1]
            after = at + LENGTH_BYTES + size
            if after > end:
                break
            if size < TAG_BYTES:
                raise BrokenSeal(f"a sealed message of {size} bytes")
            plain = scratch[: size - TAG_BYTES]
            try:
                self._decrypt_into(_NONCE.pack(self._opened), room[at + LENGTH_BYTES : after], None, plain)
            except InvalidTag:
                raise BrokenSeal("a message that its sender did not seal so") from None
            self._opened += 1
            at = after
            yield plain
        self._piece = bytes(room[at:end])
