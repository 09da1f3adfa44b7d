"""One signature over many records: that of the root of a tree of hashes, whose leaves the records are.

Who seals a hundred cards at once signs once. Each of them carries its path, the hashes that lead from it to
the root, and so stands alone: it can be checked, kept and passed on without the others. Whoever is handed
many together checks the signature of their root once, and hashes the rest, for a tenth of the time.

A pair is hashed in ascending order, so that a path needs no directions; who is odd goes up a level as it is.
Hashes have 128 bits: to find another record for one is as hard as to forge an Ed25519 signature. Its signer
alone could look for two records of one hash, and can sign both anyway.

Source: https://www.rfc-editor.org/rfc/rfc9162#section-2.1 (Merkle trees of certificate transparency)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

HASH_BYTES = 16
MAX_DEPTH = 7  # 128 leaves: as many as one request may bring
MAX_LEAVES = 1 << MAX_DEPTH
MAX_PATH_BYTES = MAX_DEPTH * HASH_BYTES

_LEAF, _PAIR = b"\x00", b"\x01"  # a leaf cannot be taken for a pair


def leaf_hash(statement: bytes) -> bytes:
    """Of one leaf: what its own signature would cover."""
    return hashlib.sha256(_LEAF + statement).digest()[:HASH_BYTES]


def above(place: bytes) -> bytes:
    """One level up from a place in a tree: a hash, and behind it the path from there, the hashes beside it.

    The root alone has no path.
    """
    return _pair(place[:HASH_BYTES], place[HASH_BYTES : 2 * HASH_BYTES]) + place[2 * HASH_BYTES :]


def grow(leaves: Sequence[bytes]) -> tuple[bytes, list[bytes]]:
    """The root of the tree of 1 to MAX_LEAVES leaves, and the path of each."""
    paths = [b""] * len(leaves)
    level = [(node, [at]) for at, node in enumerate(leaves)]  # each with the leaves below it
    while len(level) > 1:
        above = []
        for (left, below_left), (right, below_right) in zip(level[::2], level[1::2], strict=False):
            for at in below_left:
                paths[at] += right
            for at in below_right:
                paths[at] += left
            above.append((_pair(left, right), below_left + below_right))
        level = above + level[2 * len(above) :]
    return level[0][0], paths


def _pair(one: bytes, other: bytes) -> bytes:
    return hashlib.sha256(_PAIR + (one + other if one < other else other + one)).digest()[:HASH_BYTES]
