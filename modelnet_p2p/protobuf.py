"""Protobuf without a schema: the fields of a message, and where in a file they lie.

For files of gigabytes of which a few messages matter: what is of no interest is stepped over, never read.

Source: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

_VARINT, _LENGTH = 0, 2  # wire types
_FIXED = {1: 8, 5: 4}
_MOST = 10  # bytes of a varint

# The bytes from a place to another one; fewer where the file ends.
Read = Callable[[int, int], bytes]


class BadProtobuf(ValueError):
    """The bytes are no messages of protobuf, or more of them than are looked at."""


class Messages:
    """The messages of one file."""

    def __init__(self, read: Read, most_fields: int) -> None:
        """`most_fields` of all messages together are looked at."""
        self._read = read
        self._left = most_fields

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int | tuple[int, int]]]:
        """The number of each field of the message that lies there, and its value: a number, or from where to
        where it is. Those of a fixed length are stepped over. Raises BadProtobuf."""
        at = start
        while at < end:
            self._left -= 1
            if self._left < 0:
                raise BadProtobuf("it has too many parts")
            tag, at = self.varint(at, end)
            wire = tag & 7
            if wire == _VARINT:
                value, at = self.varint(at, end)
                yield tag >> 3, value
            elif wire == _LENGTH:
                length, at = self.varint(at, end)
                if length > end - at:
                    raise BadProtobuf("a part of it is cut off")
                yield tag >> 3, (at, at + length)
                at += length
            elif wire in _FIXED:
                at += _FIXED[wire]
            else:
                raise BadProtobuf("it is not protobuf")
        if at != end:
            raise BadProtobuf("a part of it is cut off")

    def varint(self, at: int, end: int) -> tuple[int, int]:
        """The number that lies there, and where what follows begins; raises BadProtobuf."""
        data = self._read(at, min(at + _MOST, end))
        if data and data[0] < 0x80:  # most are as short as that
            return data[0], at + 1
        value = 0
        for count, byte in enumerate(data):
            value |= (byte & 0x7F) << 7 * count
            if byte < 0x80:
                return value, at + count + 1
        raise BadProtobuf("it is not protobuf")
