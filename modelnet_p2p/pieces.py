"""The protocol by which weights travel: 40 bytes ask for a listing or a piece, 8 and a body answer.

Bytes in, events out; no sockets here. A stream carries any number of asks, answered in their order, several
of them in flight. Nothing is announced or negotiated: whoever knows a digest can check what comes, and what
a listing or a piece may weigh is known before it is asked for. So an answer's body is received where it
stays, without a copy.

    ask      kind (1 listing, 2 piece) | 3 zero bytes | number of the piece, u32 | digest, 32 bytes
    answer   status (0: here it is)    | 3 zero bytes | length, u32              | body

Numbers are big endian. An answer with another status has up to 200 bytes of words for people instead.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass
from enum import IntEnum
from typing import Self

from modelnet_p2p.errors import Code

MAX_ASKS = 16  # in flight on one stream: of pieces of 1 MiB enough for 1 Gbit/s at 130 ms
MAX_WORDS_BYTES = 200
_ASK = struct.Struct(">B3xI32s")
_HEAD = struct.Struct(">B3xI")
ASK_BYTES = _ASK.size
HEAD_BYTES = _HEAD.size


class BadPieces(ValueError):
    """The far side's bytes are not this protocol's; the message says why, in one line."""


class Kind(IntEnum):
    LISTING = 1
    PIECE = 2


class Status(IntEnum):
    """How an ask is answered; whatever is not HERE has words in its body."""

    HERE = 0
    NOT_FOUND = 1  # this peer does not share that digest, or the piece's number is none
    BUSY = 2  # ask again later, or another peer
    FORBIDDEN = 3  # not you
    GONE = 4  # its files have changed, or cannot be read any more


CODES = {
    Status.NOT_FOUND: Code.NOT_FOUND,
    Status.BUSY: Code.BUSY,
    Status.FORBIDDEN: Code.FORBIDDEN,
    Status.GONE: Code.BAD_STATE,
}


@dataclass(frozen=True, slots=True)
class Ask:
    """One wish: the listing of a digest, or one piece by its number."""

    kind: Kind
    root: bytes  # 32 bytes
    index: int = 0

    def encode(self) -> bytes:
        return _ASK.pack(self.kind, self.index, self.root)

    @classmethod
    def decode(cls, data: bytes | bytearray | memoryview) -> Self:
        """Raises BadPieces for 40 bytes that are no ask."""
        kind, index, root = _ASK.unpack(data)
        try:
            ask = cls(Kind(kind), root, index)
        except ValueError:
            raise BadPieces(f"an ask of the unknown kind {kind}") from None
        if ask.encode() != data or (ask.kind is Kind.LISTING and index):
            raise BadPieces("an ask has something where zeros belong")
        return ask


def answer_head(status: Status, length: int) -> bytes:
    """What comes before an answer's body."""
    return _HEAD.pack(status, length)


class Asks:
    """The holder's side: bytes become asks."""

    def __init__(self) -> None:
        self._data = bytearray(ASK_BYTES)
        self._filled = 0

    @property
    def inside(self) -> bool:
        """Whether an ask has begun and is not whole."""
        return self._filled > 0

    def buffer(self) -> memoryview:
        """Where the next bytes are to be received."""
        return memoryview(self._data)[self._filled :]

    def received(self, count: int) -> Ask | None:
        """`count` bytes have come; the ask that they complete, if any. Raises BadPieces; 0 is the end."""
        if not count:
            raise BadPieces("the stream ended inside of an ask")
        self._filled += count
        if self._filled < ASK_BYTES:
            return None
        self._filled = 0
        return Ask.decode(self._data)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came for `ask`: the bytes themselves, unchecked, or words with the reason why not."""

    ask: Ask
    status: Status
    body: memoryview

    @property
    def words(self) -> str:
        return bytes(self.body).decode(errors="replace")


class Answers:
    """The puller's side: what was asked, and bytes that become its answers."""

    def __init__(self) -> None:
        self._asked: deque[tuple[Ask, int, bool]] = deque()
        self._head = memoryview(bytearray(HEAD_BYTES))
        self._status = Status.HERE
        self._body: memoryview | None = None  # None: the head is not whole
        self._filled = 0

    @property
    def in_flight(self) -> int:
        """Asks without an answer."""
        return len(self._asked)

    def ask(self, ask: Ask, limit: int, *, exact: bool = True) -> bytes:
        """The bytes to send. Its answer may have `limit` bytes, and must where that is `exact`."""
        if len(self._asked) >= MAX_ASKS:
            raise ValueError(f"{MAX_ASKS} asks are in flight already")
        self._asked.append((ask, limit, exact))
        return ask.encode()

    def buffer(self) -> memoryview:
        """Where the next bytes are to be received; never empty."""
        return (self._head if self._body is None else self._body)[self._filled :]

    def received(self, count: int) -> Answer | None:
        """`count` bytes have come; the answer that they complete, if any. Raises BadPieces; 0 is the end."""
        if not count:
            raise BadPieces("the stream ended before all asks were answered")
        if not self._asked:
            raise BadPieces("an answer to nothing that was asked")
        self._filled += count
        if self._body is None:
            if self._filled < HEAD_BYTES:
                return None
            self._begin_body()
        assert self._body is not None
        if self._filled < len(self._body):
            return None
        ask, _, _ = self._asked.popleft()
        answer = Answer(ask, self._status, self._body)
        self._body, self._filled = None, 0
        return answer

    def _begin_body(self) -> None:
        status, length = _HEAD.unpack(self._head)
        if _HEAD.pack(status, length) != self._head:
            raise BadPieces("an answer has something where zeros belong")
        _, limit, exact = self._asked[0]
        try:
            self._status = Status(status)
        except ValueError:
            raise BadPieces(f"an answer of the unknown status {status}") from None
        if self._status is not Status.HERE:
            limit, exact = MAX_WORDS_BYTES, False
        if length > limit or (exact and length != limit):
            raise BadPieces(f"an answer of {length} bytes where {limit} were asked for")
        self._body, self._filled = memoryview(bytearray(length)), 0
