"""What a peer and its worker tell each other beside the calls: notes of a fixed size on the control socket.

A note is kind u32, number u32, size u64, little-endian. Some carry one descriptor, which travels beside the
bytes of its note; descriptors arrive in the order of the notes that carry them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

NOTE = struct.Struct("<IIQ")


class NoteKind(IntEnum):
    """Who says it, and what `number` and `size` are."""

    STREAM = 1  # peer: a descriptor, a new stream of calls
    MEMORY = 2  # peer: a descriptor, the memory `number` of `size` bytes, which later messages name
    FORGET = 3  # peer: the memory `number` will not be named again
    GRANT = 4  # peer: to the request `number` belongs the memory `size`; 0: there is none to be had
    FREED = 5  # worker: nothing there looks at the memory `number` any more, which a call had brought
    WORN = 6  # worker: the same, but a process that the model forked may; it must not be used again


CARRIES = frozenset({NoteKind.STREAM, NoteKind.MEMORY})
FROM_PEER = frozenset({NoteKind.STREAM, NoteKind.MEMORY, NoteKind.FORGET, NoteKind.GRANT})
FROM_WORKER = frozenset({NoteKind.FREED, NoteKind.WORN})


class BadNote(ValueError):
    """Bytes that are no note, or a note that nobody may send now."""


@dataclass(frozen=True, slots=True)
class Note:
    kind: NoteKind
    number: int = 0
    size: int = 0

    def pack(self) -> bytes:
        return NOTE.pack(self.kind, self.number, self.size)


class Notes:
    """Takes bytes as they come and gives whole notes; never holds more than one that is not whole."""

    def __init__(self, expected: frozenset[NoteKind]) -> None:
        self._expected = expected
        self._held = b""

    def receive(self, data: bytes) -> Iterator[Note]:
        """The notes that are now whole; raises BadNote."""
        data = self._held + data
        whole = len(data) - len(data) % NOTE.size
        self._held = data[whole:]
        for word, number, size in NOTE.iter_unpack(data[:whole]):
            if word not in self._expected:
                raise BadNote(f"a note of unknown kind 0x{word:08x}")
            yield Note(NoteKind(word), number, size)
