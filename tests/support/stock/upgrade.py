"""From a connected socket to stock yamux, by py-libp2p's own Noise.

Nothing of our handshake, our seals or our frames is in it: what it agrees on with ours is the wire.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import Protocol

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport as Noise

from modelnet_p2p.errors import RemoteError
from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.node.transport import negotiation
from modelnet_p2p.node.transport.negotiation import BadNegotiation
from modelnet_p2p.node.transport.securing import NOISE, YAMUX, HandshakeFailed
from stock.muxer import Muxer
from stock.wire_socket import WireSocket


def quiet_libp2p() -> None:
    """Keep py-libp2p's loggers off stderr: it reports every mistake of the far side as an error of ours."""
    logger = logging.getLogger("libp2p")
    logger.propagate = False
    logger.setLevel(logging.CRITICAL)


class Upgrader:
    """Makes links out of sockets, for one network."""

    def __init__(self, key: KeyPair, max_streams: int) -> None:
        quiet_libp2p()
        self._max_streams = max_streams
        self._noise = Noise(create_new_key_pair(key.seed), create_noise_key_pair().private_key)

    async def watch(self) -> None:
        """Nothing to look after: a vanished host is found by TCP's keep-alives, set on each socket."""

    async def upgrade(self, stream: trio.SocketStream, expect: PeerId | None) -> Muxer:
        """`expect` is whom we dialled, None if they did. Raises HandshakeFailed.

        The caller bounds it in time.
        """
        wire = WireSocket(stream, is_initiator=expect is not None)
        muxer: Muxer | None = None
        try:
            muxer = await self._upgrade(wire, expect)
            return muxer
        except RemoteError as error:
            raise HandshakeFailed(expect, error.message) from error
        except Exception as error:  # the far side's bytes make py-libp2p raise anything
            raise HandshakeFailed(expect, f"the handshake failed: {error!r}") from error
        finally:
            if muxer is None:
                wire.shut()

    async def _upgrade(self, wire: WireSocket, expect: PeerId | None) -> Muxer:
        if expect is not None:
            await _propose(wire, NOISE, expect)
            secured = await self._noise.secure_outbound(wire, ID(bytes(expect)))
            await _propose(secured, YAMUX, expect)
        else:
            await _accept(wire, NOISE)
            secured = await self._noise.secure_inbound(wire)
            await _accept(secured, YAMUX)
        peer = PeerId(secured.get_remote_peer().to_bytes())
        return Muxer(secured, wire, peer, self._max_streams)


class Channel(Protocol):
    """What negotiation needs: the raw socket has it, and py-libp2p's secured one."""

    def read(self, n: int | None = None) -> Awaitable[bytes]: ...

    def write(self, data: bytes) -> Awaitable[None]: ...


async def _messages(channel: Channel, count: int) -> bytearray:
    received = bytearray()
    while need := negotiation.missing(received, count):
        received += await channel.read(need)
    return received


async def _propose(channel: Channel, protocol: str, peer: PeerId) -> None:
    await channel.write(negotiation.proposal(protocol))
    negotiation.check_answers(await _messages(channel, 2), protocol, peer)


async def _accept(channel: Channel, protocol: str) -> None:
    await channel.write(negotiation.message(negotiation.HEADER))
    if negotiation.texts(await _messages(channel, 1)) != [negotiation.HEADER]:
        raise BadNegotiation(None, "not with multistream 1.0")
    for _ in range(negotiation.MAX_PROPOSALS):
        [wanted] = negotiation.texts(await _messages(channel, 1))
        if wanted == protocol:
            await channel.write(negotiation.message(protocol))
            return
        await channel.write(negotiation.message(negotiation.NOT_AVAILABLE))
    raise BadNegotiation(None, f"never asked for {protocol}")
