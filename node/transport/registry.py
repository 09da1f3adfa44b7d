"""What both networks keep in the same way: handlers, callbacks, peers' addresses and what to dial.

Serving a stream lives here too, with the one guard around what handlers may raise.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import trio

from modelnet_p2p.errors import ModelnetError
from modelnet_p2p.identity import PeerId
from modelnet_p2p.node.transport.addresses import split_p2p
from modelnet_p2p.node.transport.contract import LINGER, Handler, PeerCallback, Stream

MAX_KNOWN_PEERS = 2048  # whose addresses are remembered for a later dial; some 200 bytes each
MAX_KNOWN_ADDRS = 16  # of one peer
MAX_DIALLED = 16  # addresses in one dial; more would make us a tool for scanning others' ports

log = logging.getLogger(__name__)


class Handlers:
    """Which protocol is answered by whom."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}

    def add(self, protocol: str, handler: Handler) -> None:
        if protocol in self._handlers:
            raise ValueError(f"{protocol} has a handler already")
        self._handlers[protocol] = handler

    def __contains__(self, protocol: str) -> bool:
        return protocol in self._handlers

    def protocols(self) -> frozenset[str]:
        return frozenset(self._handlers)

    async def serve(self, stream: Stream) -> None:
        """Run the handler of the stream's protocol; whatever it raises ends that stream only."""
        try:
            await self._handlers[stream.protocol](stream)
            await stream.finish()
            await _linger(stream)
        except* ModelnetError as errors:  # in groups too: a handler may have tasks of its own
            cause = errors.exceptions[0]
            log.debug("stream-ended peer=%s protocol=%s cause=%s", stream.peer.short, stream.protocol, cause)
        except* Exception:
            log.exception("handler-failed peer=%s protocol=%s", stream.peer.short, stream.protocol)
        finally:
            await stream.reset()  # nothing happens if both sides have ended


async def _linger(stream: Stream) -> None:
    """Give the far side time to end as well, so that a reset takes nothing from it."""
    scratch = memoryview(bytearray(4096))
    with trio.move_on_after(LINGER):
        try:
            while await stream.receive_into(scratch):
                pass  # the handler has had enough; what still comes is for nobody
        except (trio.ClosedResourceError, trio.BusyResourceError):
            pass  # the handler has reset it, or left its own task reading


class Callbacks:
    """Who wants to know of peers that come and go."""

    def __init__(self) -> None:
        self.connected: list[PeerCallback] = []
        self.disconnected: list[PeerCallback] = []

    def tell_connected(self, peer: PeerId) -> None:
        for callback in self.connected:
            callback(peer)

    def tell_disconnected(self, peer: PeerId) -> None:
        for callback in self.disconnected:
            callback(peer)


class AddressBook:
    """Addresses, without `/p2p/…`, of the peers that were told or dialled last."""

    def __init__(self) -> None:
        self._peers: OrderedDict[PeerId, tuple[str, ...]] = OrderedDict()

    def learn(self, peer: PeerId, addrs: Iterable[str]) -> None:
        """Put these in front of those known."""
        merged = tuple(dict.fromkeys((*addrs, *self._peers.get(peer, ()))))
        if merged:
            self._peers[peer] = merged[:MAX_KNOWN_ADDRS]
            self._peers.move_to_end(peer)
        while len(self._peers) > MAX_KNOWN_PEERS:
            self._peers.popitem(last=False)

    def of(self, peer: PeerId) -> tuple[str, ...]:
        return self._peers.get(peer, ())


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to dial, and where."""

    peer: PeerId
    addrs: tuple[str, ...]  # without /p2p/…

    @classmethod
    def of(cls, peer: PeerId, addrs: Sequence[str]) -> Target:
        """The usable ones of `addrs`: whole, and not another peer's; raises LocalError on garbage."""
        found: dict[str, None] = {}
        for text in addrs:
            owner, addr = split_p2p(text)
            if addr and owner in (None, peer):
                found[addr] = None
        return cls(peer, tuple(found)[:MAX_DIALLED])
