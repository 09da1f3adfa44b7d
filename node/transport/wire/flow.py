"""One yamux stream as its two ends see it: what may be sent, what has arrived, how it ended.

A `Flow` counts and holds bytes; frames are the session's business. Received bytes go straight to where a
waiting reader wants them, and only without one are they kept. What is sent stays in its owner's memory until
the session takes it, frame by frame.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from modelnet_p2p.node.transport.wire.windows import FIRST_WINDOW

JOINED_BYTES = 16 * 1024  # small pieces that arrived are kept together: one byte alone would cost sixty


def _nobody() -> None:
    return None


class Flow:
    """Made by the session, which writes its fields; its owner writes `target` and those that are its own."""

    __slots__ = (
        "answered",
        "at_rest",
        "broken",
        "chunks",
        "copied",
        "credit",
        "ended",
        "filled",
        "finished",
        "given_up",
        "held",
        "id",
        "inbound",
        "on_news",
        "on_room",
        "parts",
        "queued",
        "ready",
        "said_at",
        "send_window",
        "target",
        "unsaid",
        "window",
    )

    def __init__(self, id: int, *, inbound: bool, now: float) -> None:
        self.id = id
        self.inbound = inbound  # the far side opened it
        # --- receiving
        self.window = FIRST_WINDOW  # what the far side may have on the way and unread
        self.credit = FIRST_WINDOW  # what it may still send before it is told more
        self.unsaid = 0  # consumed, and not yet told to it
        self.said_at = now  # when it was told last
        self.chunks: deque[bytearray | memoryview] = deque()  # arrived, in order, `held` bytes in all
        self.held = 0
        self.target: memoryview | None = None  # where a waiting reader wants what arrives
        self.filled = 0
        self.ended = False  # the far side has sent all
        # --- sending
        self.send_window = FIRST_WINDOW
        self.parts: list[memoryview] = []  # still to be sent, the next one last; `queued` bytes in all
        self.queued = 0
        self.copied = 0  # memory that queued copies take: those whose sender does not wait
        self.ready = False  # waits in the session's round
        self.answered = False  # something was ever to be sent
        self.finished = False  # our side has ended: nothing is queued any more
        # --- both
        self.broken = False  # the far side has given up
        self.given_up = False  # we have
        self.at_rest = False  # its owner would not mind to learn late that the far side has vanished
        # --- the owner's: called at the end of a step of the session's, when there is news
        self.on_news: Callable[[], None] = _nobody  # to receive: bytes, the end, a reset
        self.on_room: Callable[[], None] = _nobody  # to send: all was taken, or nothing ever will be

    @property
    def over(self) -> bool:
        """Whether nothing more will come or go, but for what is held."""
        return self.broken or self.given_up or (self.ended and self.finished and not self.queued)

    # --- receiving -----------------------------------------------------------------------------

    def deliver(self, data: memoryview) -> int:
        """Keep `data`, which is valid only now; returns how many bytes went to a waiting reader."""
        target = self.target
        taken = 0
        if target is not None:
            filled = self.filled
            taken = min(len(target) - filled, len(data))
            target[filled : filled + taken] = data[:taken]
            self.filled = filled + taken
        if taken < len(data):
            self._keep(data[taken:])
        return taken

    def _keep(self, data: memoryview) -> None:
        chunks = self.chunks
        last = chunks[-1] if chunks else None
        if isinstance(last, bytearray) and len(last) < JOINED_BYTES:
            last += data
        else:
            chunks.append(bytearray(data))
        self.held += len(data)

    def take(self, buffer: memoryview) -> int:
        """Move held bytes into `buffer`; returns how many, 0 only if none are held."""
        chunks, room, at = self.chunks, len(buffer), 0
        while chunks and at < room:
            chunk = chunks[0]
            n = min(len(chunk), room - at)
            buffer[at : at + n] = chunk[:n]
            at += n
            if n == len(chunk):
                chunks.popleft()
            else:
                chunks[0] = memoryview(chunk)[n:]
        self.held -= at
        return at

    # --- sending -------------------------------------------------------------------------------

    def put(self, parts: Sequence[bytes | memoryview]) -> None:
        """Queue parts, which must stay as they are until `queued` is 0."""
        views = [part if isinstance(part, memoryview) else memoryview(part) for part in parts if len(part)]
        self.answered = True
        self.queued += sum(len(view) for view in views)
        views.reverse()
        self.parts[:0] = views

    def fill(self, out: memoryview, at: int, size: int) -> int:
        """Copy the next `size` queued bytes into `out` from `at` on; returns where they end."""
        parts, end = self.parts, at + size
        while at < end:
            part = parts.pop()
            n = len(part)
            if n > end - at:
                n = end - at
                parts.append(part[n:])
                part = part[:n]
            out[at : at + n] = part
            at += n
        self.queued -= size
        self.send_window -= size
        return at

    def drop_queue(self) -> None:
        self.parts.clear()
        self.queued = 0
