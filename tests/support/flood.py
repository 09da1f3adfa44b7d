"""What a stranger does to a peer from a process of his own, so that it costs the peer only its own share.

python flood.py KIND ADDR SECONDS    # says `ready`, attacks, and prints one line of JSON
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from intruder import Intruder, dial
from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.node.transport import negotiation
from modelnet_p2p.node.transport.wire.yamux import DATA, FIN, HEADER, PING, RST, SYN, WINDOW_UPDATE

OPENING = negotiation.proposal("/echo")
LOST = (trio.BrokenResourceError, trio.ClosedResourceError, OSError, AssertionError)


@dataclass
class Report:
    sent: int = 0  # bytes
    connections: int = 0
    lost: list[float] = field(default_factory=list)  # seconds after which it was cut off


@dataclass
class Attack:
    port: int
    peer: PeerId
    seconds: float
    report: Report = field(default_factory=Report)

    async def mallory(self, i: int) -> Intruder:
        found = await dial(self.port, self.peer, KeyPair(i.to_bytes(32, "big")))
        self.report.connections += 1
        return found

    async def hammer(self, i: int, frames: Callable[[int], bytes], *, reads: bool = True) -> None:
        """Send batch after batch on a connection, until the time is over or the far side has had enough."""
        began = trio.current_time()
        mallory = await self.mallory(i)
        try:
            async with trio.open_nursery() as nursery:
                if reads:
                    nursery.start_soon(swallow, mallory)
                turn = 0
                while trio.current_time() < began + self.seconds:
                    batch = frames(turn)
                    await mallory.write(batch)
                    self.report.sent += len(batch)
                    turn += 1
                nursery.cancel_scope.cancel()
        except* LOST:
            self.report.lost.append(trio.current_time() - began)
        finally:
            mallory.vanish()


async def swallow(mallory: Intruder) -> None:
    while await mallory.stream.receive_some(1 << 20):
        pass


async def crowd(attack: Attack, one: Callable[[int], Awaitable[None]], count: int) -> None:
    async with trio.open_nursery() as nursery:
        for i in range(count):
            nursery.start_soon(one, i)


def rapid_resets(turn: int) -> bytes:
    ids = range(turn * 400 + 1, turn * 400 + 401, 2)
    return b"".join(
        HEADER.pack(0, DATA, SYN, id, len(OPENING)) + OPENING + HEADER.pack(0, WINDOW_UPDATE, RST, id, 0)
        for id in ids
    )


def opened_and_ended(turn: int) -> bytes:
    ids = range(turn * 40 + 1, turn * 40 + 41, 2)
    return b"".join(HEADER.pack(0, DATA, SYN | FIN, id, len(OPENING) + 5) + OPENING + b"hello" for id in ids)


def single_bytes(turn: int) -> bytes:
    start = HEADER.pack(0, DATA, SYN, 1, len(OPENING)) + OPENING if not turn else b""
    return start + (HEADER.pack(0, DATA, 0, 1, 1) + b"x") * 100


def pings(turn: int) -> bytes:
    return HEADER.pack(0, PING, SYN, 0, turn) * 1000


async def handshakes(attack: Attack, i: int) -> None:
    began = trio.current_time()
    while trio.current_time() < began + attack.seconds:
        try:
            (await attack.mallory(i)).vanish()
        except LOST:
            attack.report.lost.append(trio.current_time() - began)
            await trio.sleep(0.01)


async def idle_streams(attack: Attack, i: int) -> None:
    """As many streams as are let in, each with a protocol chosen, and then nothing."""
    mallory = await attack.mallory(i)
    frames = b"".join(HEADER.pack(0, DATA, SYN, 2 * n + 1, len(OPENING)) + OPENING for n in range(600))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(swallow, mallory)
            await mallory.write(frames)
            attack.report.sent += len(frames)
            await trio.sleep(attack.seconds)
            nursery.cancel_scope.cancel()
    except* LOST:
        attack.report.lost.append(0)
    mallory.vanish()


async def never_reads(attack: Attack, i: int) -> None:
    """Asks for echoes on many streams, and takes none of the answers."""
    mallory = await attack.mallory(i)
    began = trio.current_time()
    ids = [2 * n + 1 for n in range(400)]
    try:
        await mallory.write(b"".join(HEADER.pack(0, DATA, SYN, id, len(OPENING)) + OPENING for id in ids))
        with trio.move_on_after(attack.seconds):
            while True:
                for id in ids:
                    piece = HEADER.pack(0, DATA, 0, id, 32) + bytes(32)
                    await mallory.write(piece * 40)
                    attack.report.sent += len(piece) * 40
    except LOST:
        attack.report.lost.append(trio.current_time() - began)
    await trio.sleep(max(0.0, attack.seconds - (trio.current_time() - began)))
    mallory.vanish()


KINDS: dict[str, Callable[[Attack], Awaitable[None]]] = {
    "rapid-resets": lambda a: crowd(a, lambda i: a.hammer(i, rapid_resets), 2),
    "opened-and-ended": lambda a: crowd(a, lambda i: a.hammer(i, opened_and_ended), 2),
    "single-bytes": lambda a: crowd(a, lambda i: a.hammer(i, single_bytes), 2),
    "pings": lambda a: crowd(a, lambda i: a.hammer(i, pings), 2),
    "unread-pings": lambda a: crowd(a, lambda i: a.hammer(i, pings, reads=False), 2),
    "handshakes": lambda a: crowd(a, lambda i: handshakes(a, i), 8),
    "idle-streams": lambda a: crowd(a, lambda i: idle_streams(a, i), 40),
    "never-reads": lambda a: crowd(a, lambda i: never_reads(a, i), 4),
}


async def main(kind: str, addr: str, seconds: str) -> None:
    parts = addr.split("/")
    attack = Attack(int(parts[4]), PeerId.parse(parts[-1]), float(seconds))
    print("ready", flush=True)
    await KINDS[kind](attack)
    report = attack.report
    print(json.dumps({"sent": report.sent, "connections": report.connections, "lost": report.lost}))


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
