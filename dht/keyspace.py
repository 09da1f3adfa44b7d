"""Where keys and peers lie: 256-bit positions, and the xor distance between them.

The libp2p Kademlia space: a position is sha256 of the bytes that travel (a peer's raw id, a provider
key's multihash, a value key), read as a big-endian number, so that an adversary cannot choose his
place without grinding keys.

Source: Maymounkov, Mazières: Kademlia (2002); https://github.com/libp2p/specs/tree/master/kad-dht
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

BITS = 256
PROVIDER_KEY_HEADER = b"\x12\x20"  # multihash: sha2-256, 32 bytes
PROVIDER_KEY_BYTES = 34
# A wanted prefix costs 2^bits hashes to find: 16 bits are some 50 ms, and at k = 20 they tell the
# buckets of a million peers apart.
MAX_GROUND_BITS = 16


@lru_cache(maxsize=65_536)  # 10 MiB when full; walks ask for the same few hundred peers again and again
def position(key: bytes) -> int:
    """The place of a key, or of a peer's raw id, in the space."""
    return int.from_bytes(hashlib.sha256(key).digest())


def common_prefix(left: int, right: int) -> int:
    """How many leading bits two positions share; BITS when they are equal."""
    return BITS - (left ^ right).bit_length()


def is_provider_key(key: bytes) -> bool:
    return len(key) == PROVIDER_KEY_BYTES and key.startswith(PROVIDER_KEY_HEADER)


def key_near(place: int, prefix: int, seed: bytes) -> bytes:
    """A key that shares exactly `prefix` leading bits with `place`, at most MAX_GROUND_BITS.

    FIND_NODE carries a key and not a position, so one is ground, in the form of a provider key, which
    every stock node reads. The same seed finds the same key; a fresh seed explores elsewhere.
    """
    if not 0 <= prefix <= MAX_GROUND_BITS:
        raise ValueError(f"a prefix of {prefix} bits cannot be ground")
    # 32 times the expected number of tries: missing it has a chance of e^-32
    for count in range(32 << (prefix + 1)):
        key = PROVIDER_KEY_HEADER + hashlib.sha256(seed + count.to_bytes(4)).digest()
        if common_prefix(int.from_bytes(hashlib.sha256(key).digest()), place) == prefix:
            return key
    raise ValueError("no key was found: take another seed")
