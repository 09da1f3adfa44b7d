"""One tensor over a long link: two network namespaces, joined by the forwarder in user space.

Ours and a bare TCP stream, by turns, in the same run. Each has moved a small tensor before it counts, as a
connection has that is in use. Needs root, `ip` and /dev/net/tun.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benches.figure import Figure
from benches.systems import OURS, SCRIPTS, Place, running
from processes import Failed

RTT_MS, MBIT = 80, 500
# Of one direction: what is under way in one round trip, so that a sender that fills it loses nothing at first
QUEUE = RTT_MS * MBIT * 1000 // 8
MTU = 16384  # bytes; 1,500 would be 42,000 packets a second, more than one Python process moves
# TCP's own windows must not be the limit; they grow to this by themselves
BUFFERS = {"net.ipv4.tcp_rmem": "4096 131072 33554432", "net.ipv4.tcp_wmem": "4096 16384 33554432"}
CALLER, SERVER = "10.77.31.1", "10.77.31.2"
WARM_MEBIBYTES, MEBIBYTES = 1, 128


def why_not() -> str | None:
    """One line that says what is missing here; None if nothing is."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "the slow link needs root on Linux (network namespaces)"
    if shutil.which("ip") is None:
        return "the slow link needs `ip`: apt-get install iproute2"
    if not Path("/dev/net/tun").exists():
        return "the slow link needs /dev/net/tun"
    return None


def measure(rounds: int) -> Iterator[Figure]:
    """Each transfer is a sample."""
    samples: dict[str, list[float]] = {OURS: [], "trio": []}
    with link() as place, running(list(samples), place) as systems:
        for _ in range(rounds):
            for system in systems:
                with system.awake():
                    way = system.ways[0]
                    system.order(do="up", mebibytes=WARM_MEBIBYTES, way=way, times=1)
                    told = system.order(do="up", mebibytes=MEBIBYTES, way=way, times=1)
                size = MEBIBYTES * 1.048576
                samples[system.via] += [size / seconds for seconds in told["seconds"]]
    params = {"rtt_ms": RTT_MS, "mbit": MBIT, "mtu": MTU, "queue_bytes": QUEUE}
    for via, speeds in samples.items():
        yield Figure("slow_link_128MiB", "MB/s", speeds, params, via)


@contextmanager
def link() -> Iterator[Place]:
    """The two namespaces and what joins them; all of it is gone after the block."""
    mark = f"mnb{os.getpid()}"
    ends = {f"{mark}a": CALLER, f"{mark}b": SERVER}
    command = [sys.executable, "-m", "benches.forwarder", *ends]
    command += ["--delay-ms", str(RTT_MS / 2), "--mbit", str(MBIT), "--queue", str(QUEUE)]
    environ = os.environ | {"PYTHONPATH": str(SCRIPTS)}
    try:
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ, start_new_session=True
        ) as forwarder:
            assert forwarder.stdin is not None  # both were opened as pipes
            assert forwarder.stdout is not None
            try:
                if forwarder.stdout.readline() != b"ready\n":
                    raise Failed("the TUN devices of the slow link could not be made")
                for name, address in ends.items():
                    make_end(name, address)
                yield Place(SERVER, caller_netns=f"{mark}a", server_netns=f"{mark}b")
            finally:
                forwarder.stdin.close()  # it ends then
    finally:
        for name in ends:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def make_end(name: str, address: str) -> None:
    """A namespace with the device of the same name in it."""
    ip("netns", "add", name)
    ip("link", "set", name, "netns", name)
    inside = ("netns", "exec", name)
    ip(*inside, "ip", "address", "add", f"{address}/24", "dev", name)
    ip(*inside, "ip", "link", "set", name, "mtu", str(MTU), "txqueuelen", "2000", "up")
    ip(*inside, "ip", "link", "set", "lo", "up")
    for key, value in BUFFERS.items():
        ip(*inside, "sysctl", "-q", "-w", f"{key}={value}")


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"`ip {' '.join(words)}`: {done.stderr.strip()}")
