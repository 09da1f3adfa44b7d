"""multistream-select 1.0: which protocol two sides speak on a fresh channel, as pure functions.

Messages are `uvarint length + text + newline`. Whoever opens sends the header and its proposal at
once, and may send its first data behind them without waiting when it knows that the other side
speaks the protocol; the answers then ride in front of the other side's first data.

Source: https://github.com/multiformats/multistream-select
"""

from __future__ import annotations

from modelnet_p2p.errors import Code, RemoteError
from modelnet_p2p.identity import PeerId

HEADER = "/multistream/1.0.0"
NOT_AVAILABLE = "na"
MAX_MESSAGE = 127  # bytes with the newline: one byte of length; no id in use comes near it
MAX_PROPOSALS = 8  # before the far side must have hit one of our protocols


class BadNegotiation(RemoteError):
    """The far side does not speak multistream-select as it should."""

    def __init__(self, peer: PeerId | None, why: str) -> None:
        who = f"peer {peer}" if peer else "the far side"
        super().__init__(Code.UNREACHABLE, f"{who} negotiates badly: {why}", peer=str(peer) if peer else None)


def message(text: str) -> bytes:
    """One message; ValueError if a text is too long for it."""
    body = text.encode() + b"\n"
    if len(body) > MAX_MESSAGE:
        raise ValueError(f"a protocol id has at most {MAX_MESSAGE - 1} bytes, not {len(body) - 1}")
    return bytes([len(body)]) + body


def proposal(protocol: str) -> bytes:
    """What the opener sends: the header and its protocol."""
    return message(HEADER) + message(protocol)


def missing(received: bytes | bytearray, messages: int) -> int:
    """How many more bytes are certainly needed until `received` holds that many messages; 0 = whole.

    Reading never more than this leaves the data behind the messages to its reader.
    """
    at = 0
    for _ in range(messages):
        if at >= len(received):
            return at + 1 - len(received)
        length = received[at]
        if not 1 <= length <= MAX_MESSAGE:
            raise BadNegotiation(None, f"a message of {length} bytes or more")
        at += 1 + length
        if at > len(received):
            return at - len(received)
    return 0


def texts(received: bytes | bytearray) -> list[str]:
    """The texts of whole messages, checked with `missing` before."""
    found, at = [], 0
    while at < len(received):
        end = at + 1 + received[at]
        body = bytes(received[at + 1 : end])
        if not body.endswith(b"\n"):
            raise BadNegotiation(None, "a message without its newline")
        found.append(body[:-1].decode("utf-8", "replace"))
        at = end
    return found


def check_answers(received: bytes | bytearray, protocol: str, peer: PeerId) -> None:
    """Raise unless the two answers to `proposal(protocol)` accept it."""
    header, answer = texts(received)
    if header != HEADER:
        raise BadNegotiation(peer, "not with multistream 1.0")
    if answer == NOT_AVAILABLE:
        raise RemoteError(Code.UNKNOWN_METHOD, f"peer {peer} does not speak {protocol}", peer=str(peer))
    if answer != protocol:
        raise BadNegotiation(peer, f"asked for {protocol}, it answered something else")
