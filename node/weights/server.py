"""Gives the weights that this peer shares to whoever asks: listings and pieces, from the files to the socket.

Calls come first. Pieces go out one at a time to each peer and to a few peers at once, and while models here
are at work each piece is followed by a pause as long as it took. What a file holds is not hashed again for
each puller, who does that himself; but a file that is no longer the one that was hashed is not given out.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio

from modelnet_p2p.artifact import Piece
from modelnet_p2p.errors import ModelnetError
from modelnet_p2p.identity import PeerId
from modelnet_p2p.node.transport.contract import Stream
from modelnet_p2p.node.weights.hashing import Mark, OnDisk
from modelnet_p2p.pieces import Ask, Asks, BadPieces, Kind, Status, answer_head
from modelnet_p2p.tuning import Tuning

log = logging.getLogger(__name__)

MAX_STREAMS = 64  # of all pullers: each keeps a file open
MAX_STREAMS_PER_PEER = 4
MAX_SENDING = 4  # pieces on their way, and in memory, at the same time: the rest is for calls
IDLE_SECONDS = 60.0  # between two asks of a stream
SLICE_BYTES = 64 << 10  # handed over within the time that a reader has for it: 2 KB/s at least


class _Gone(Exception):
    """A file is not the one that was hashed, or cannot be read."""


@dataclass(slots=True)
class _Puller:
    """One peer that pulls: how many streams it has, and its turn."""

    streams: int = 0
    turn: trio.Lock = field(default_factory=trio.Lock)  # its streams send one after the other


class WeightServer:
    """The handler of the weights protocol for one peer."""

    def __init__(self, tuning: Tuning, busy: Callable[[], bool]) -> None:
        """`busy` tells whether models of this peer are at work just now."""
        self._stall = tuning.stall_timeout
        self._body = tuning.frame_body_timeout
        self._busy = busy
        self._shared: dict[bytes, tuple[OnDisk, int]] = {}  # and how many models share it
        self._pullers: dict[PeerId, _Puller] = {}
        self._sending = trio.CapacityLimiter(MAX_SENDING)

    def share(self, found: OnDisk) -> None:
        """Give these files to whoever asks; once for each model that they are of."""
        _, count = self._shared.get(found.root, (found, 0))
        self._shared[found.root] = (found, count + 1)

    def unshare(self, root: bytes) -> None:
        """One model less whose files they are."""
        found, count = self._shared.pop(root)
        if count > 1:
            self._shared[root] = (found, count - 1)

    def shared(self, root: bytes) -> OnDisk | None:
        """The files of that digest, if they are given out here."""
        found, _ = self._shared.get(root, (None, 0))
        return found

    @property
    def streams(self) -> int:
        """Of all pullers, now."""
        return sum(puller.streams for puller in self._pullers.values())

    async def handle(self, stream: Stream) -> None:
        """Answer asks until the far side ends the stream; the transport guards this handler."""
        puller = self._pullers.setdefault(stream.peer, _Puller())
        puller.streams += 1
        try:
            if self.streams > MAX_STREAMS or puller.streams > MAX_STREAMS_PER_PEER:
                await self._say(stream, Status.BUSY, "too many streams are open already")
                return
            with _Files() as files:
                await self._answer_all(stream, puller, files)
        except BadPieces as error:
            log.info("weights stream of %s cut off: %s", stream.peer.short, error)
            await stream.reset()
        except trio.TooSlowError:
            log.info("weights stream of %s cut off: it neither asks nor reads", stream.peer.short)
            await stream.reset()
        except ModelnetError as error:
            log.debug("weights stream of %s ended: %s", stream.peer.short, error.message)
        finally:
            puller.streams -= 1
            if not puller.streams:
                del self._pullers[stream.peer]

    async def _answer_all(self, stream: Stream, puller: _Puller, files: _Files) -> None:
        asks = Asks()
        while True:
            with trio.fail_after(self._body if asks.inside else IDLE_SECONDS):
                count = await stream.receive_into(asks.buffer())
            if not count and not asks.inside:
                return
            ask = asks.received(count)
            if ask is None:
                continue
            async with puller.turn, self._sending:
                started = trio.current_time()
                await self._answer(stream, ask, files)
                took = trio.current_time() - started
            if self._busy():
                await trio.sleep(min(took, 1.0))

    async def _answer(self, stream: Stream, ask: Ask, files: _Files) -> None:
        found = self.shared(ask.root)
        if found is None:
            await self._say(stream, Status.NOT_FOUND, "these weights are not shared here")
        elif ask.kind is Kind.LISTING:
            await self._send(stream, found.listing)
        elif ask.index >= len(found.artifact.pieces):
            await self._say(stream, Status.NOT_FOUND, f"there is no piece {ask.index}")
        else:
            piece = found.artifact.pieces[ask.index]
            try:
                data = await trio.to_thread.run_sync(files.read, found, piece)
            except _Gone as error:
                log.warning("%s: %s is shared no longer", error, found.root.hex()[:8])
                await self._say(stream, Status.GONE, "its files have changed")
                return
            await self._send(stream, data)

    async def _send(self, stream: Stream, body: bytes | memoryview) -> None:
        """An answer with that body. A reader that makes no progress raises trio.TooSlowError."""
        view, head = memoryview(body), answer_head(Status.HERE, len(body))
        for at in range(0, len(view) or 1, SLICE_BYTES):
            with trio.fail_after(self._stall):
                await stream.send([head, view[at : at + SLICE_BYTES]])
            head = b""

    async def _say(self, stream: Stream, status: Status, words: str) -> None:
        body = words.encode()
        with trio.fail_after(self._stall):
            await stream.send([answer_head(status, len(body)), body])


class _Files:
    """One stream's place in the files: the one read last stays open."""

    def __init__(self) -> None:
        self._place: Path | None = None
        self._descriptor = -1

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        if self._place is not None:
            os.close(self._descriptor)
            self._place = None

    def read(self, found: OnDisk, piece: Piece) -> bytes:
        """The bytes of a piece; raises _Gone."""
        place = found.places[piece.path]
        try:
            if place != self._place:
                self._close()
                self._descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                self._place = place
            if Mark.of(os.fstat(self._descriptor)) != found.marks[piece.path]:
                raise _Gone(f"{place} has changed")
            data = os.pread(self._descriptor, piece.size, piece.offset)
        except OSError as error:
            raise _Gone(f"cannot read {place}: {error.strerror}") from error
        if len(data) != piece.size:
            raise _Gone(f"{place} was cut off")
        return data
