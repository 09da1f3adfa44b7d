"""Server-sent events: bytes in, events out.

The format of https://html.spec.whatwg.org/multipage/server-sent-events.html as far as these servers use it:
lines end with LF, CRLF or CR, a line that begins with a colon is a comment, `data:` lines up to an empty line
are one event. Older llama-servers write `error: {…}` for what went wrong, which is told apart here, too. No
line and no event may grow beyond a bound: the sender is a stranger.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelnet_p2p.errors import Code, LocalError

MAX_EVENT_BYTES = 1 << 20  # a chunk is some hundred bytes; one with a whole tool call some thousand


@dataclass(frozen=True, slots=True)
class Event:
    """The data of one event; `is_error` if the sender says that it tells of a failure."""

    data: bytes
    is_error: bool = False


class Events:
    """The parser of one answer."""

    def __init__(self, limit: int = MAX_EVENT_BYTES) -> None:
        self._limit = limit
        self._rest = b""  # of a line whose end has not come
        self._skip_lf = False  # the last byte was a CR: an LF right behind it belongs to it
        self._data: list[bytes] = []
        self._size = 0  # of those
        self._error = False
        self._begun = False  # past the byte order mark that may come first

    def feed(self, data: bytes) -> list[Event]:
        """The events that these bytes complete; raises LocalError (too-large)."""
        if not self._begun and data:
            self._begun, data = True, data.removeprefix(b"\xef\xbb\xbf")
        if self._skip_lf and data:
            data, self._skip_lf = data.removeprefix(b"\n"), False
        if b"\r" in data:
            self._skip_lf = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        found = [event for line in lines if (event := self._on_line(line)) is not None]
        if len(self._rest) + self._size > self._limit:
            raise self._too_large()
        return found

    def close(self) -> list[Event]:
        """What an answer that ends without an empty line has left; nothing of a line that was cut off."""
        rest, self._rest = self._rest.rstrip(), b""
        lines = [rest, b""] if rest.endswith((b"}", b"]")) else []
        return [event for line in lines if (event := self._on_line(line)) is not None]

    def _on_line(self, line: bytes) -> Event | None:
        if not line:
            return self._end()
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data" or name == b"error":
            self._error = self._error or name == b"error"
            self._size += len(value) + 1  # an empty one takes room, too
            if self._size > self._limit:
                raise self._too_large()
            self._data.append(value)
        elif name == b"event":
            self._error = self._error or value.strip() == b"error"
        return None

    def _end(self) -> Event | None:
        event = Event(b"\n".join(self._data), self._error) if self._data else None
        self._data, self._size, self._error = [], 0, False
        return event

    def _too_large(self) -> LocalError:
        words = f"the server behind this model sent an event of more than {self._limit >> 10} KiB"
        return LocalError(Code.MODEL_ERROR, words)
