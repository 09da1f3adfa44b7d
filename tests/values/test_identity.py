"""Peer ids as people type them."""

from __future__ import annotations

import pytest

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.identity import KeyPair, PeerId


def test_an_id_survives_being_written_and_read() -> None:
    alice = KeyPair(bytes(32)).id
    assert PeerId.parse(str(alice)) == alice


@pytest.mark.parametrize(
    "text", ["", "x", "foo", "shout", "0OIl", "12D3Koo…", str(KeyPair(bytes(32)).id)[:-3]]
)
def test_what_is_no_id_is_bad_input(text: str) -> None:
    with pytest.raises(LocalError) as caught:
        PeerId.parse(text)
    assert caught.value.code is Code.BAD_INPUT
