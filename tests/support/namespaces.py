"""Machines on one bridge, in network namespaces that the test makes for itself: no packet leaves them.

Each namespace is held by a process that only waits for the end of its standard input, which comes when the
test's process ends, however it ends; the kernel takes the namespace and its devices away with it. A user
namespace around all of them makes root unnecessary where the kernel allows that.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache

HOLD = ["sh", "-c", "echo ready; exec cat"]
SUBNET = "10.77.44"


class Machine:
    """One network namespace; `command` runs something inside."""

    def __init__(self, pid: int, host: str = "") -> None:
        self.pid = pid
        self.host = host  # its address on the bridge, once it is plugged in

    def command(self, *words: str) -> list[str]:
        return ["nsenter", "-t", str(self.pid), "-U", "-n", "--preserve-credentials", *words]

    def ip(self, *words: str) -> None:
        done = subprocess.run(self.command("ip", *words), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"

    def unplug(self) -> None:
        self.ip("link", "set", "eth0", "down")


class Bridge:
    """The switch that the machines hang on."""

    def __init__(self, switch: Machine, machines: Sequence[Machine]) -> None:
        self.switch = switch
        self.machines = machines
        switch.ip("link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        switch.ip("link", "set", "br0", "up")

    def plug(self, machine: Machine) -> None:
        """Give it an address on the bridge, and a cable to it."""
        number = self.machines.index(machine) + 1
        machine.host = f"{SUBNET}.{number}"
        port = f"port{number}"
        far = ("peer", "name", "eth0", "netns", str(machine.pid))
        self.switch.ip("link", "add", port, "type", "veth", *far)
        self.switch.ip("link", "set", port, "master", "br0", "up")
        machine.ip("address", "add", f"{machine.host}/24", "dev", "eth0")
        machine.ip("link", "set", "eth0", "up")


@cache
def why_not() -> str | None:
    """One line that says what is missing here; None if nothing is."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    for tool in ("ip", "unshare", "nsenter"):
        if shutil.which(tool) is None:
            return f"network namespaces need `{tool}`: apt-get install iproute2 util-linux"
    try:
        with bridge(1) as made:
            made.plug(made.machines[0])
    except AssertionError as error:
        return f"network namespaces are not permitted here: {error}"
    return None


@contextmanager
def bridge(machines: int) -> Iterator[Bridge]:
    """A switch and some machines beside it that are not plugged in yet; only loopback is up in each."""
    with ExitStack() as stack:
        switch = stack.enter_context(_held(["unshare", "-rn", *HOLD]))
        found = [stack.enter_context(_held(switch.command("unshare", "-n", *HOLD))) for _ in range(machines)]
        for machine in found:
            machine.ip("link", "set", "lo", "up")
        yield Bridge(switch, found)


@contextmanager
def _held(command: Sequence[str]) -> Iterator[Machine]:
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stderr is not None
        try:
            assert holder.stdout.readline() == b"ready\n", holder.stderr.read().decode().strip()
            yield Machine(holder.pid)
        finally:
            holder.stdin.close()  # it ends then
