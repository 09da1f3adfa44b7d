"""From a raw byte channel to a proven peer, sealed both ways, with yamux agreed on.

The dialler sends its proposal of `/noise` and the first message of the handshake in one go, and the
listener answers both in one go; the handshake names the muxer. So two peers of ours may send on
streams after one round trip, the dialler, and one and a half, the listener. A far side that does not
name its muxers in the handshake is asked over the sealed channel. Only `/noise` and `/yamux/1.0.0`
are offered; there is no plaintext and no older muxer to fall back to.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Protocol

from modelnet_p2p.errors import Code, RemoteError
from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.node.transport.wire.handshake import KEY_BYTES, Handshake, HandshakeError, Secured
from modelnet_p2p.node.transport.wire.sealing import (
    LENGTH_BYTES,
    MAX_PLAIN,
    MAX_WIRE,
    TAG_BYTES,
    BrokenSeal,
    Opener,
    Sealer,
)
from modelnet_p2p.node.transport.wire.selection import Accepting, Proposing

NOISE = "/noise"
YAMUX = "/yamux/1.0.0"


class HandshakeFailed(RemoteError):
    """The far side did not complete the handshake, or is not whom we wanted."""

    def __init__(self, peer: PeerId | None, why: str) -> None:
        super().__init__(Code.UNREACHABLE, why, peer=str(peer) if peer else None)


class Channel(Protocol):
    """What this page needs of a connection."""

    async def read(self) -> bytes:
        """Some bytes, at least one; raises an error of its own at the end."""

    async def write(self, data: bytes) -> None:
        """Send all of it."""


@dataclass(frozen=True, slots=True)
class Established:
    """A sealed connection on which both sides now speak yamux."""

    peer: PeerId
    sealer: Sealer
    opener: Opener
    early: bytes  # what the far side has already sent to the muxer, opened


def new_static_key() -> bytes:
    """A private X25519 key; one may serve all handshakes of a process."""
    return secrets.token_bytes(KEY_BYTES)


async def establish(raw: Channel, key: KeyPair, static: bytes, expect: PeerId | None) -> Established:
    """Run all that comes before the muxer; raises HandshakeFailed. `expect` is whom we dialled, or None.

    What `raw` raises passes through. The caller bounds it in time, and closes `raw` when it fails.
    """
    try:
        secured = await secure(raw, key, static, expect)
        sealed = _Sealed(raw, secured)
        early = sealed.open(secured.rest) if secured.rest else b""
        if not secured.muxer:
            early = await _agree_on_muxer(sealed, secured.peer, dialling=expect is not None, received=early)
    except (HandshakeError, BrokenSeal) as error:
        raise HandshakeFailed(expect, f"the handshake failed: {error}") from error
    except RemoteError as error:  # of the negotiation
        raise HandshakeFailed(expect, error.message) from error
    return Established(secured.peer, sealed.sealer, sealed.opener, early)


async def secure(raw: Channel, key: KeyPair, static: bytes, expect: PeerId | None) -> Secured:
    """Agree on `/noise` and run its handshake; raises HandshakeError and RemoteError."""
    selection = Accepting(NOISE) if expect is None else Proposing(NOISE, expect)
    handshake = Handshake(
        initiator=expect is not None,
        identity=key,
        static=static,
        ephemeral=secrets.token_bytes(KEY_BYTES),
        muxers=(YAMUX,),
        expect=expect,
    )
    outgoing = selection.start() + handshake.start()
    while True:
        if outgoing:
            await raw.write(outgoing)
        if handshake.secured is not None:
            return handshake.secured
        outgoing = _receive(await raw.read(), selection, handshake)


def _receive(data: bytes, selection: Accepting | Proposing, handshake: Handshake) -> bytes:
    answers = b""
    if not selection.agreed:
        answers = selection.receive(data)
        data = selection.rest
    if selection.agreed and data:
        answers += handshake.receive(data)
    return answers


class _Sealed:
    """The few small messages that pass before the muxer takes over sealer and opener."""

    def __init__(self, raw: Channel, secured: Secured) -> None:
        self.sealer = Sealer(secured.send_key)
        self.opener = Opener(secured.receive_key)
        self._raw = raw

    async def write(self, data: bytes) -> None:
        message = bytearray(LENGTH_BYTES + len(data) + TAG_BYTES)
        self.sealer.seal_into(memoryview(data), memoryview(message), 0)
        await self._raw.write(bytes(message))

    async def read(self) -> bytes:
        while not (plain := self.open(await self._raw.read())):
            pass  # a piece of a message, or an empty one; the caller's deadline bounds these
        return plain

    def open(self, data: bytes) -> bytes:
        """What whole messages now hold; raises BrokenSeal."""
        room = memoryview(bytearray(MAX_WIRE + len(data)))
        start = self.opener.begin(room)
        room[start : start + len(data)] = data
        scratch = memoryview(bytearray(MAX_PLAIN))
        return b"".join(bytes(plain) for plain in self.opener.open(room, start + len(data), scratch))


async def _agree_on_muxer(sealed: _Sealed, peer: PeerId, *, dialling: bool, received: bytes) -> bytes:
    """Ask for yamux, or be asked; `received` has come already. Returns what came behind the agreement."""
    selection = Proposing(YAMUX, peer) if dialling else Accepting(YAMUX)
    outgoing = selection.start() + selection.receive(received)
    while True:
        if outgoing:
            await sealed.write(outgoing)
        if selection.agreed:
            return selection.rest
        outgoing = selection.receive(await sealed.read())
