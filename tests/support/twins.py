"""Two yamux sessions joined by bytes, with the caller as the wire between them."""

from __future__ import annotations

from modelnet_p2p.node.transport.wire.flow import Flow
from modelnet_p2p.node.transport.wire.sealing import MAX_PLAIN
from modelnet_p2p.node.transport.wire.windows import WindowPool
from modelnet_p2p.node.transport.wire.yamux import DATA, HEADER, HEADER_BYTES, Session

_ROW = bytes(range(251)) * 4096  # 251 is prime: a shifted or swapped piece never looks like the right one


def pattern(id: int, start: int, size: int) -> bytes:
    """The bytes from `start` on that stream `id` carries in tests; at most a MiB at once."""
    at = (17 * id + start) % 251
    return _ROW[at : at + size]


def frame(kind: int, flags: int, id: int, length: int, body: bytes = b"") -> bytes:
    return HEADER.pack(0, kind, flags, id, length) + body


def split(data: bytes) -> list[tuple[int, int, int, int]]:
    """The frames in `data`: type, flags, stream, length."""
    found, at = [], 0
    while at < len(data):
        _, kind, flags, id, length = HEADER.unpack_from(data, at)
        at += HEADER_BYTES + (length if kind == DATA else 0)
        found.append((kind, flags, id, length))
    return found


def session(
    *, initiator: bool = False, pool: WindowPool | None = None, inbound: int = 100, outbound: int = 100
) -> Session:
    return Session(
        initiator=initiator, pool=pool or WindowPool(), now=0.0, max_inbound=inbound, max_outbound=outbound
    )


def step(session: Session) -> bytes:
    """The next message that the session would have sealed; empty if it has nothing to send."""
    scratch = memoryview(bytearray(MAX_PLAIN))
    return bytes(scratch[: session.fill(scratch)])


def drain(session: Session) -> bytes:
    """All that the session has to send now."""
    found = bytearray()
    while data := step(session):
        found += data
    return bytes(found)


class Twins:
    """Alice, who dialled, and bob; nothing moves between them but by `pump`."""

    def __init__(self, *, cap: int = 100, pools: tuple[WindowPool, WindowPool] | None = None) -> None:
        ours, theirs = pools or (WindowPool(), WindowPool())
        self.alice = session(initiator=True, pool=ours, inbound=cap, outbound=cap)
        self.bob = session(pool=theirs, inbound=cap, outbound=cap)
        self.now = 0.0

    def pump(self) -> None:
        """Carry everything over, until neither has more to send."""
        moved = True
        while moved:
            moved = False
            for sender, receiver in ((self.alice, self.bob), (self.bob, self.alice)):
                while data := step(sender):
                    receiver.receive(memoryview(data), self.now)
                    moved = True
                sender.tell()
                receiver.tell()

    def open(self) -> tuple[Flow, Flow]:
        """A stream that alice opened, and bob's end of it."""
        mine = self.alice.open(self.now)
        self.pump()
        return mine, self.bob.opened.pop()


def read(session: Session, flow: Flow, now: float = 0.0, at_once: int = 65536) -> bytes:
    """All that lies there unread."""
    found, buffer = bytearray(), memoryview(bytearray(at_once))
    while n := session.take(flow, buffer, now):
        found += buffer[:n]
    return bytes(found)
