"""What the rest of the node may ask of a transport: peers, connections, byte streams.

Two networks keep this contract: `MemoryNetwork`, for tests and simulations inside one process,
and the libp2p one. Nothing above this page knows which of them it talks to, and one suite of tests
holds both to it. It is small on purpose: addresses are text, a stream is bytes with three distinct
ends, and everything that waits has a deadline inside.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Self

from modelnet_p2p.errors import Code, RemoteError
from modelnet_p2p.identity import PeerId

LINGER = 5.0  # seconds that a finished stream waits for the far side's end before it is reset


class StreamReset(RemoteError):
    """The far side gave up on this stream; the connection lives on."""

    def __init__(self, peer: PeerId, protocol: str) -> None:
        super().__init__(
            Code.UNREACHABLE, f"peer {peer} gave up on the {protocol or 'new'} stream", peer=str(peer)
        )


class ConnectionLost(RemoteError):
    """The connection below this stream died, and every stream on it."""

    def __init__(self, peer: PeerId) -> None:
        super().__init__(Code.UNREACHABLE, f"the connection to peer {peer} was lost", peer=str(peer))


class Stream(ABC):
    """One two-way byte stream to one peer.

    It ends in one of three ways, told apart for the reader: the far side's clean *end*
    (`receive_into` returns 0), its *reset* (`StreamReset`), or the *loss* of the connection
    (`ConnectionLost`). Bytes that had arrived before a reset or a loss are delivered first.

    One task may send while another receives; two senders or two receivers at once are an error of
    the program and raise `trio.BusyResourceError`. A stream that this side has reset raises
    `trio.ClosedResourceError` from then on.

    `async with stream:` resets it on the way out, unless both sides have ended by then.
    """

    peer: PeerId
    protocol: str

    @abstractmethod
    async def send(self, buffers: Sequence[bytes | memoryview]) -> None:
        """Send all of the buffers, in order; waits while the far side's window is full.

        The buffers may be reused when it returns. Cancelling it never harms the connection: the
        stream is reset, for nobody could tell how much of it went out.
        """

    def rest(self) -> None:
        """It is kept in case it is needed: a far side that vanishes unseen may be noticed late, unless
        something was sent that it should answer."""
        return  # where looking costs nothing there is nothing to spare

    def send_now(self, data: bytes) -> bool:
        """Send these few bytes as `send` would, if that takes no waiting; False: nothing of them went out.

        No checkpoint, so it suits who answers many small messages. Raises what `send` raises.
        """
        return False

    @abstractmethod
    async def receive_into(self, buffer: memoryview) -> int:
        """Fill some of `buffer` and return how many bytes, at least 1; 0 is the far side's end.

        Cancelling it loses nothing: the next call goes on where this one stood.
        """

    @abstractmethod
    def on_broken(self, callback: Callable[[], None] | None) -> None:
        """Call back once, at the instant that nothing more will come: the far side ends or resets the stream,
        or the connection is lost.

        At once if that has happened already; never for a reset of our own. It must be quick and must not
        raise. None takes it back. What had arrived can still be received.
        """

    @abstractmethod
    async def finish(self) -> None:
        """End my side: the far side reads what was sent and then the end. Receiving goes on."""

    @abstractmethod
    async def reset(self) -> None:
        """Give up on both directions, now. Never raises, never waits for the far side; idempotent."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.reset()


Handler = Callable[[Stream], Awaitable[None]]
PeerCallback = Callable[[PeerId], None]


class Network(ABC):
    """My place among the peers: I am reachable at `addrs` and open streams to others."""

    id: PeerId

    @property
    @abstractmethod
    def addrs(self) -> tuple[str, ...]:
        """Text multiaddrs with `/p2p/<my id>` that others can dial; empty for a client."""

    def renew_addrs(self) -> None:
        """The interfaces of this machine have changed: look where I am now, and tell those connected."""
        return  # a network that lies in memory has none

    @abstractmethod
    def handle(self, protocol: str, handler: Handler) -> None:
        """Run `handler` for every stream that a peer opens with this protocol.

        When it returns, my side is finished, and the stream is reset if the far side has not
        ended within `LINGER`. When it raises, the stream is reset and the error logged; nothing
        else is touched. Registering one protocol twice raises ValueError.
        """

    @abstractmethod
    async def connect(self, peer: PeerId, addrs: Sequence[str] = ()) -> None:
        """Be connected to `peer`: at once if so already, else by dialling `addrs`.

        Without addresses those are tried that the peer told before. Concurrent calls for one peer
        share one dial. Raises RemoteError (unreachable, deadline) that names what was tried.
        """

    @abstractmethod
    async def open_stream(self, peer: PeerId, protocol: str) -> Stream:
        """A new stream on the connection to `peer`.

        Raises RemoteError: unreachable (not connected), unknown-method (the peer does not speak
        it), busy (too many streams to it are open), deadline. Where the peer has told that it speaks
        the protocol no round trip is spent on asking; had it changed its mind, the first `receive_into`
        raises the unknown-method.
        """

    @abstractmethod
    async def disconnect(self, peer: PeerId) -> None:
        """Close every connection to `peer`; its streams are lost on both sides. Never raises."""

    @abstractmethod
    def idle(self, peer: PeerId) -> bool:
        """Whether nothing runs on the connections with `peer` but streams at rest."""

    @abstractmethod
    def connected(self) -> frozenset[PeerId]:
        """The peers that I have a live connection with, whoever opened it."""

    @abstractmethod
    async def protocols(self, peer: PeerId) -> frozenset[str]:
        """The protocols that a connected peer told to speak; waits for it to tell.

        Raises RemoteError: unreachable (not connected, or lost meanwhile), deadline.
        """

    @abstractmethod
    def peer_addrs(self, peer: PeerId) -> tuple[str, ...]:
        """Addresses, without `/p2p/…`, at which `peer` may be dialled: those told, and the one dialled."""

    @abstractmethod
    def remote_group(self, peer: PeerId) -> str | None:
        """The IP group (/24, /48) of the direct connection; None for private addresses and strangers."""

    @abstractmethod
    def on_connected(self, callback: PeerCallback) -> None:
        """Call back whenever the first connection to a peer opens; quick, and must not raise."""

    @abstractmethod
    def on_disconnected(self, callback: PeerCallback) -> None:
        """Call back whenever the last connection to a peer is gone; quick, and must not raise."""
