"""From a raw socket to an authenticated, encrypted, multiplexed connection.

py-libp2p's Noise and yamux do the work, without its host and swarm: those end as a whole when any
one task of theirs fails, wait fixed times, and blacklist and dial on their own account. Only
`/noise` and `/yamux/1.0.0` are offered; there is no plaintext and no older muxer to fall back to.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol

from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.peer.id import ID
from libp2p.security.noise.transport import Transport as Noise

from modelnet_p2p.errors import Code, RemoteError
from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.node.transport import negotiation
from modelnet_p2p.node.transport.muxer import Muxer
from modelnet_p2p.node.transport.negotiation import BadNegotiation
from modelnet_p2p.node.transport.wire_socket import WireSocket

NOISE = "/noise"
YAMUX = "/yamux/1.0.0"

log = logging.getLogger(__name__)


def quiet_libp2p() -> None:
    """Keep py-libp2p's loggers off stderr: it reports every stranger's mistake as an error of ours."""
    logger = logging.getLogger("libp2p")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())
    logger.propagate = False
    logger.setLevel(logging.CRITICAL)


class HandshakeFailed(RemoteError):
    """The far side did not complete the handshake, or is not whom we wanted."""

    def __init__(self, peer: PeerId | None, why: str) -> None:
        super().__init__(Code.UNREACHABLE, why, peer=str(peer) if peer else None)


class Channel(Protocol):
    """What negotiation needs: a raw socket has it, and py-libp2p's secured one."""

    def read(self, n: int | None = None) -> Awaitable[bytes]: ...

    def write(self, data: bytes) -> Awaitable[None]: ...


@dataclass(frozen=True, slots=True)
class Upgraded:
    """A connection whose far side has proved to be `peer`; nothing runs on it yet."""

    peer: PeerId
    wire: WireSocket
    muxer: Muxer


class Upgrader:
    """My key, ready for handshakes."""

    def __init__(self, key: KeyPair) -> None:
        quiet_libp2p()
        # the X25519 key is fresh in each process; the identity key signs it inside the handshake
        self._noise = Noise(create_new_key_pair(key.seed), create_noise_key_pair().private_key)

    async def upgrade(self, wire: WireSocket, expect: PeerId | None) -> Upgraded:
        """Run the handshakes; raises HandshakeFailed. `expect` is whom we dialled, None if they did.

        The caller bounds it in time, and closes the socket when it fails.
        """
        try:
            return await self._upgrade(wire, expect)
        except RemoteError as error:
            raise HandshakeFailed(expect, error.message) from error
        except Exception as error:  # a stranger's bytes make py-libp2p raise anything
            why = str(error) or type(error).__name__
            log.debug("handshake-failed remote=%s:%d cause=%s", *wire.remote, why, exc_info=error)
            raise HandshakeFailed(expect, f"the handshake failed: {why[:200]}") from error

    async def _upgrade(self, wire: WireSocket, expect: PeerId | None) -> Upgraded:
        if expect is not None:
            await _propose(wire, NOISE, expect)
            secured = await self._noise.secure_outbound(wire, ID(bytes(expect)))
            peer = PeerId(secured.get_remote_peer().to_bytes())
            if peer != expect:
                raise HandshakeFailed(expect, f"peer {peer} answered instead")
            await _propose(secured, YAMUX, peer)
        else:
            await _accept(wire, NOISE)
            secured = await self._noise.secure_inbound(wire)
            peer = PeerId(secured.get_remote_peer().to_bytes())
            await _accept(secured, YAMUX)
        return Upgraded(peer, wire, Muxer(secured, wire, peer))


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
