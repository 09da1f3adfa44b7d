"""multistream-select as two machines: agreement in any pieces, refusals counted, nothing lost behind it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelnet_p2p.errors import Code, RemoteError
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.node.transport.negotiation import (
    HEADER,
    MAX_PROPOSALS,
    NOT_AVAILABLE,
    BadNegotiation,
    message,
    proposal,
)
from modelnet_p2p.node.transport.wire.selection import Accepting, Proposing

BOB = KeyPair(b"b" * 32).id


@given(st.integers(1, 60), st.binary(max_size=20), st.binary(max_size=20))
def test_both_agree_in_any_pieces_and_hand_on_what_follows(size: int, there: bytes, back: bytes) -> None:
    alice, bob = Proposing("/noise", BOB), Accepting("/noise")
    sent, answer = alice.start() + there, bob.start()
    behind = b""
    for at in range(0, len(sent), size):
        if bob.agreed:
            behind += sent[at : at + size]
        else:
            answer += bob.receive(sent[at : at + size])
    assert bob.rest + behind == there
    assert answer == proposal("/noise")
    assert alice.receive(answer + back) == b""
    assert (alice.agreed, alice.rest) == (True, back)


def test_the_listener_says_no_until_it_is_asked_for_its_protocol() -> None:
    bob = Accepting("/noise")
    assert bob.receive(message(HEADER) + message("/tls/1.0.0")) == message(HEADER) + message(NOT_AVAILABLE)
    assert bob.receive(message("/plaintext/2.0.0")) == message(NOT_AVAILABLE)
    assert not bob.agreed
    assert bob.receive(message("/noise") + b"more") == message("/noise")
    assert (bob.agreed, bob.rest) == (True, b"more")


def test_the_listener_does_not_listen_for_ever() -> None:
    bob = Accepting("/noise")
    bob.receive(message(HEADER) + message("/x") * (MAX_PROPOSALS - 1))
    with pytest.raises(BadNegotiation, match="never asked for /noise"):
        bob.receive(message("/x"))


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (message(HEADER) + message(NOT_AVAILABLE), Code.UNKNOWN_METHOD),
        (message(HEADER) + message("/other"), Code.UNREACHABLE),
        (message("/noise") * 2, Code.UNREACHABLE),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10, Code.UNREACHABLE),
        (b"\xff\xff", Code.UNREACHABLE),
    ],
)
def test_what_the_dialler_does_not_take_for_a_yes(answer: bytes, code: Code) -> None:
    with pytest.raises(RemoteError) as caught:
        Proposing("/noise", BOB).receive(answer)
    assert caught.value.code is code


@given(st.lists(st.binary(max_size=150), max_size=6))
def test_no_bytes_break_either_side(pieces: list[bytes]) -> None:
    for side in (Proposing("/noise", BOB), Accepting("/noise")):
        try:
            for piece in pieces:
                if not side.agreed:
                    side.receive(piece)
        except RemoteError:
            pass  # the one error that leaves it
