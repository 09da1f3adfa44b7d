"""Asks other peers, one request at a time: the other half of `answering`.

A request goes out on the stream that is open to its peer, or dials it first, and ends in exactly one way: an
answer, or a silence of some kind. What follows for the table, for patience and for the connections that are
kept is told here, once for all walks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import trio

from modelnet_p2p.dht.pacing import Pacing
from modelnet_p2p.dht.table.routing import RoutingTable
from modelnet_p2p.dht.table.warmth import Warmth
from modelnet_p2p.dht.walks.patience import Patience
from modelnet_p2p.errors import Code, LocalError, RemoteError
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import BadMessage, Contact, Message
from modelnet_p2p.node.overlay.channel import KadChannel
from modelnet_p2p.node.overlay.course import Silence, Tell
from modelnet_p2p.node.transport.addresses import texts
from modelnet_p2p.node.transport.contract import ConnectionLost, Network, StreamReset
from modelnet_p2p.tuning import Tuning

log = logging.getLogger(__name__)


class Asking:
    """The asking half of one peer's overlay.

    `on_returned` is called with each peer that answers though the table had given it up.
    """

    def __init__(
        self,
        network: Network,
        table: RoutingTable,
        warmth: Warmth,
        tuning: Tuning,
        protocol: str,
        on_returned: Callable[[PeerId], None],
        nursery: trio.Nursery,
    ) -> None:
        self.patience = Patience(tuning.patience, tuning.request_timeout)
        self._network = network
        self._table = table
        self._warmth = warmth
        self._tuning = tuning
        self._protocol = protocol
        self._on_returned = on_returned
        self._nursery = nursery
        self._pacing = Pacing()
        self._channels: dict[PeerId, KadChannel] = {}
        self._ours: set[PeerId] = set()  # of those that are connected

    def send(self, contact: Contact, message: Message, tell: Tell | None) -> None:
        """Send this in the background; `tell` gets the answer, or why there is none (None: it has none)."""
        if tell is None or not self._post(contact, message, tell):
            self._nursery.start_soon(self._ask, contact, message, tell)

    def is_ours(self, peer: PeerId) -> bool:
        """Whether `peer` has answered on this connection as one of ours does, or speaks what only ours do."""
        channel = self._channels.get(peer)
        answered_so = None if channel is None else channel.ours
        return peer in self._ours if answered_so is None else answered_so

    def asked_too_much(self, since: float) -> str:
        """Who has asked us to slow down since then, in words; empty if nobody has."""
        peers = self._pacing.complaining(since)
        if not peers:
            return ""
        who = f"{peers[-1].short} asks" if len(peers) == 1 else f"{len(peers)} peers ask"
        return f"{who} us to slow down"

    def on_ours(self, peer: PeerId) -> None:
        """`peer` says that it speaks what only ours do."""
        if peer in self._network.connected():  # who left meanwhile is forgotten already
            self._ours.add(peer)

    def on_gone(self, peer: PeerId) -> None:
        """The last connection to `peer` is gone."""
        self._channels.pop(peer, None)
        self._ours.discard(peer)

    def _post(self, contact: Contact, message: Message, tell: Tell) -> bool:
        """Ask without a task of its own, where a stream to this peer is open; False where that cannot be."""
        channel = self._channels.get(contact.id)
        if channel is None:
            return False
        started = trio.current_time()
        self._warmth.on_used(contact.id, started)

        def settled(outcome: Message | RemoteError) -> None:
            match outcome:
                case Message():
                    self._on_answer(contact.id, started)
                    tell(contact.id, outcome)
                case StreamReset() | ConnectionLost():  # an old stream may die of its own: once more
                    self._nursery.start_soon(self._ask, contact, message, tell)
                case error:
                    tell(contact.id, self._on_no_answer(contact.id, error))

        return channel.post(message, self._tuning.request_timeout, settled)

    async def _ask(self, contact: Contact, message: Message, tell: Tell | None) -> None:
        peer, timeout = contact.id, self._tuning.request_timeout
        reply: Message | Silence = Silence.FAILED
        started = asked = trio.current_time()
        try:
            channel = self._channels.get(peer)
            if channel is None:
                await self._network.connect(peer, texts(contact.addrs))
                channel = self._channel(peer)
            asked = trio.current_time()
            self._warmth.on_used(peer, asked)
            if tell is not None:
                reply = await channel.request(message, timeout, partial(tell, peer, Silence.HELD))
                self._on_answer(peer, started)
            else:
                await channel.notify(message, timeout)
        except RemoteError as error:
            reply = self._on_no_answer(peer, error)
            if reply is Silence.BUSY:  # it may have been so at once: who is told so asks again
                await trio.sleep_until(asked + self._tuning.patience)
        except BadMessage as error:  # our fault, and not the peer's
            log.error("a message for %s cannot be sent: %s", peer.short, error)
        except LocalError as error:  # an address that this machine cannot dial
            log.debug("cannot dial %s: %s", peer.short, error.message)
        if tell is not None:
            tell(peer, reply)

    def _channel(self, peer: PeerId) -> KadChannel:
        channel = self._channels.get(peer)
        if channel is None:
            channel = KadChannel(self._network, peer, self._protocol, self._pacing, self._nursery)
            if peer in self._network.connected():  # who left meanwhile is forgotten already
                self._channels[peer] = channel
        return channel

    def _on_answer(self, peer: PeerId, started: float) -> None:
        now = trio.current_time()
        if peer not in self._pacing:  # else it is we who wait
            self.patience.on_round_trip(now - started)
        self._warmth.on_used(peer, now)
        if not self._table.answered(peer, now):
            self._on_returned(peer)

    def _on_no_answer(self, peer: PeerId, error: RemoteError) -> Silence:
        log.debug("%s did not answer a DHT request: %s", peer.short, error.message)
        if error.code is Code.BUSY:  # it is we who have too much open, or ask too much of it
            return Silence.BUSY
        self._ours.discard(peer)  # it may only speak like one of ours: next time it is asked first
        self._table.failed(peer, trio.current_time())
        return Silence.FAILED
