"""What is told to peers that answer nothing: messages to one of them go over one stream, in order.

Whoever cannot take them in time loses them, for old beats are worth nothing. A line is opened by its first
message, to somebody who may have to be found first, and ends by itself when it is not used any more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress

import trio

from modelnet_p2p.beats import Message, frame
from modelnet_p2p.errors import ModelnetError
from modelnet_p2p.identity import PeerId
from modelnet_p2p.node.overlay.driver import Overlay

log = logging.getLogger(__name__)

MAX_LINES = 512  # peers that messages wait for at the same time: the holders of two dozen keys
MAX_WAITING = 16  # messages for one peer: more are as many beats too late
IDLE_BEATS = 5.0  # without a message, then a line ends: a watcher says every fourth that it is there


class Lines:
    """The lines of one peer. `on_lost` hears of whoever could not be reached, or took too long."""

    def __init__(
        self, overlay: Overlay, protocol: str, nursery: trio.Nursery, on_lost: Callable[[PeerId], None]
    ) -> None:
        self._overlay = overlay
        self._protocol = protocol
        self._nursery = nursery
        self._on_lost = on_lost
        self._lines: dict[PeerId, trio.MemorySendChannel[Message]] = {}

    def tell(self, peer: PeerId, message: Message) -> bool:
        """Whether it is on its way."""
        line = self._lines.get(peer)
        if line is None:
            if len(self._lines) >= MAX_LINES:
                log.info("too many peers to tell things at once; %s is left out", peer.short)
                return False
            line, waiting = trio.open_memory_channel[Message](MAX_WAITING)
            try:
                self._nursery.start_soon(self._carry, peer, line, waiting)
            except RuntimeError:  # closed: this peer is leaving, and its handlers end a little later
                log.debug("%s is told nothing more", peer.short)
                return False
            self._lines[peer] = line
        try:
            line.send_nowait(message)
        except trio.WouldBlock:
            log.debug("%s takes no more messages now", peer.short)
            return False
        return True

    async def _carry(
        self,
        peer: PeerId,
        line: trio.MemorySendChannel[Message],
        waiting: trio.MemoryReceiveChannel[Message],
    ) -> None:
        """Send what waits for `peer`, until nothing came for a while or it cannot be reached."""
        overlay = self._overlay
        try:
            with trio.fail_after(overlay.tuning.dial_timeout):
                if peer not in overlay.network.connected():
                    await overlay.network.connect(peer, await overlay.find_peer(peer))
                stream = await overlay.network.open_stream(peer, self._protocol)
            async with stream:
                with suppress(trio.EndOfChannel):
                    while True:
                        with trio.move_on_after(IDLE_BEATS * overlay.tuning.beat) as idle:
                            message = await waiting.receive()
                        if idle.cancelled_caught:
                            self._end(peer, line)
                            continue  # with what came at this very instant
                        with trio.fail_after(overlay.tuning.request_timeout):
                            await stream.send([frame(message)])
                await stream.finish()
        except (ModelnetError, trio.TooSlowError) as error:
            log.debug("cannot tell %s: %s", peer.short, error)
            self._on_lost(peer)
        finally:
            self._end(peer, line)
            waiting.close()

    def _end(self, peer: PeerId, line: trio.MemorySendChannel[Message]) -> None:
        """What is told from now on goes over another."""
        if self._lines.get(peer) is line:
            del self._lines[peer]
        line.close()
