"""A slow link made in user space: packets of two TUN devices, handed across late and one after the other.

    python -m benches.forwarder DEVICE DEVICE --delay-ms 40 --mbit 500 --queue 5000000

Each direction is a pipe of that rate with a queue of that many bytes in front of it, behind which packets
are dropped, and then of that delay. It makes the devices, prints a line when both are there, and lives
until its stdin ends. One process on plain system calls: with packets of 16 KiB the rate needs 4,000 of them
a second, of which it moves ten times as many.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import select
import struct
import sys
from collections import deque
from dataclasses import dataclass, field
from time import monotonic

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
PACKET_BYTES = 1 << 16  # more than any MTU
BURST = 64  # packets read from one device before the other one is looked at


def open_tun(name: str) -> int:
    """Makes the device, as long as the descriptor is open. Needs root."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return device


@dataclass(slots=True)
class Pipe:
    """One direction, as a machine: packets in, and out when their time has come."""

    seconds_per_byte: float
    delay: float
    queue: int  # bytes that may wait for their turn
    dropped: int = 0
    _free: float = 0.0  # when the last accepted packet will have left the queue
    _under_way: deque[tuple[float, bytes]] = field(default_factory=deque)

    def put(self, packet: bytes, now: float) -> None:
        waiting = max(0.0, self._free - now)
        if waiting > self.queue * self.seconds_per_byte:
            self.dropped += 1
            return
        self._free = now + waiting + len(packet) * self.seconds_per_byte
        self._under_way.append((self._free + self.delay, packet))

    def next_at(self) -> float | None:
        """When a packet arrives next."""
        return self._under_way[0][0] if self._under_way else None

    def take(self, now: float) -> list[bytes]:
        """The packets that have arrived, in order."""
        arrived = []
        while self._under_way and self._under_way[0][0] <= now:
            arrived.append(self._under_way.popleft()[1])
        return arrived


def forward(devices: tuple[int, int], pipes: tuple[Pipe, Pipe]) -> None:
    """Packets of either device to the other, until stdin ends."""
    poll = select.poll()
    for watched in (*devices, sys.stdin.fileno()):
        poll.register(watched, select.POLLIN)
    here = {devices[0]: pipes[0], devices[1]: pipes[1]}
    there = {devices[0]: devices[1], devices[1]: devices[0]}
    while True:
        now = monotonic()
        for device, pipe in here.items():
            for packet in pipe.take(now):
                deliver(there[device], packet)
        due = [at for pipe in pipes if (at := pipe.next_at()) is not None]
        wait = None if not due else max(0.0, (min(due) - monotonic()) * 1000)
        for ready, _ in poll.poll(wait):
            if ready == sys.stdin.fileno():
                return
            for packet in read_burst(ready):
                here[ready].put(packet, monotonic())


def read_burst(device: int) -> list[bytes]:
    packets: list[bytes] = []
    try:
        while len(packets) < BURST:
            packets.append(os.read(device, PACKET_BYTES))
    except BlockingIOError:
        pass
    return packets


def deliver(device: int, packet: bytes) -> None:
    try:
        os.write(device, packet)
    except OSError:  # the device is down, or its own queue is full: lost, as on any link
        return


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("devices", nargs=2)
    parser.add_argument("--delay-ms", type=float, required=True, help="one way")
    parser.add_argument("--mbit", type=float, required=True)
    parser.add_argument("--queue", type=int, required=True, help="bytes")
    options = parser.parse_args()
    one, other = (open_tun(name) for name in options.devices)
    seconds_per_byte = 8 / (options.mbit * 1e6)
    pipes = [Pipe(seconds_per_byte, options.delay_ms / 1000, options.queue) for _ in range(2)]
    print("ready", flush=True)
    forward((one, other), (pipes[0], pipes[1]))


if __name__ == "__main__":
    main()
