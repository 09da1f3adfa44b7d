"""Positions, prefixes, and keys that are ground to lie in a wanted bucket."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelnet_p2p.dht.keyspace import BITS, common_prefix, is_provider_key, key_near, position


def test_positions_are_sha256_and_prefixes_count_leading_bits() -> None:
    assert position(b"abc") == int(hashlib.sha256(b"abc").hexdigest(), 16)
    top = 1 << (BITS - 1)
    assert [common_prefix(*pair) for pair in ((0, 0), (0, 1), (0, top), (top, top | 2))] == [256, 255, 0, 254]
    assert is_provider_key(b"\x12\x20" + bytes(32))
    assert not is_provider_key(bytes(34))
    assert not is_provider_key(b"\x12\x20" + bytes(31))


@given(place=st.integers(0, 2**BITS - 1), prefix=st.integers(0, 8), seed=st.binary(max_size=8))
def test_a_ground_key_shares_exactly_the_bits_asked_for(place: int, prefix: int, seed: bytes) -> None:
    key = key_near(place, prefix, seed)
    assert is_provider_key(key)
    assert common_prefix(position(key), place) == prefix
    assert key_near(place, prefix, seed) == key


@pytest.mark.parametrize("prefix", [-1, 17])
def test_what_would_take_too_long_to_grind_is_an_error(prefix: int) -> None:
    with pytest.raises(ValueError, match="cannot be ground"):
        key_near(0, prefix, b"")
