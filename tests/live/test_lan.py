"""Machines on one bridge find each other by mDNS: real processes, in network namespaces of the test's own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from namespaces import Bridge, Machine, bridge, why_not

pytestmark = [pytest.mark.live, pytest.mark.slow]
PROGRAM = [sys.executable, "-c", "from modelnet_p2p.node.cli import main; main()"]
PATIENCE = 60.0  # seconds, on a machine that is busy with other tests


class Resident:
    """A person at one machine of the bridge: a home, a runtime directory, and a running peer."""

    def __init__(self, machine: Machine, base: Path, network: str) -> None:
        self.machine = machine
        self.base = base
        (base / "run").mkdir(mode=0o700, parents=True, exist_ok=True)
        ours = ("MODELNET_", "XDG_")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self.env |= {"XDG_RUNTIME_DIR": str(base / "run"), "MODELNET_HOME": str(base / "home")}
        self.env |= {"MODELNET_NETWORK": network, "HOME": str(base)}
        self.ready: dict[str, Any] = {}
        self.process: subprocess.Popen[str] | None = None

    @contextmanager
    def join(self, *argv: str) -> Iterator[Resident]:
        command, pipe = self.machine.command(*PROGRAM, "join", *argv, "--json"), subprocess.PIPE
        with (
            (self.base / "said").open("w") as said,
            subprocess.Popen(command, env=self.env, stdout=pipe, stderr=said, text=True) as process,
        ):
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                assert line, self.said()
                self.ready, self.process = json.loads(line), process
                yield self
            finally:
                process.kill()

    def said(self) -> str:
        return (self.base / "said").read_text()

    def ask(self, *argv: str) -> list[Any]:
        command = self.machine.command(*PROGRAM, *argv, "--json")
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def connected(self) -> set[str]:
        command = self.machine.command(*PROGRAM, "peers", "--json")
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=90, check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        return {line["peer"] for line in lines if line["connected"]}

    def wait_connected(self, *others: Resident) -> None:
        wanted = {other.ready["peer"] for other in others}
        deadline = time.monotonic() + PATIENCE
        while not wanted <= self.connected():
            assert time.monotonic() < deadline, f"{self.connected()} of {wanted}\n{self.said()}"
            time.sleep(0.2)

    def wait_said(self, words: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while words not in self.said():
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)


@pytest.fixture
def lan() -> Iterator[Bridge]:
    if reason := why_not():
        pytest.skip(reason)
    with bridge(3) as made:
        yield made


@pytest.fixture
def base() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="mn-"))  # not tmp_path: too long for a runtime directory
    yield folder
    shutil.rmtree(folder)


def residents(lan: Bridge, base: Path, *networks: str) -> list[Resident]:
    return [
        Resident(machine, base / str(number), network)
        for number, (machine, network) in enumerate(zip(lan.machines, networks, strict=True))
    ]


def test_three_machines_find_each_other_and_call_across(lan: Bridge, base: Path) -> None:
    for machine in lan.machines:
        lan.plug(machine)
    alice, bob, carol = residents(lan, base, "office", "office", "office")
    images = base / "images.npy"
    np.save(images, np.zeros((2, 8, 8), np.float32))
    with alice.join("--lan", "--publish", "builtin:digits"), bob.join("--lan"), carol.join("--lan"):
        address = alice.ready["addrs"][0]
        assert f"modelnet-peer join --lan --network office --bootstrap {address}\n" in alice.said()
        assert address.startswith(f"/ip4/{alice.machine.host}/tcp/")
        for one in (alice, bob, carol):
            one.wait_connected(*{alice, bob, carol} - {one})
        bob.wait_said(f"met on the local network: /ip4/{alice.machine.host}/tcp/")
        for one in (bob, carol):
            offers = one.ask("find", "--task", "image-classification")
            assert [offer["provider"] for offer in offers] == [alice.ready["peer"]]
            last = one.ask("invoke", "modelnet/digits", "--input", str(images))[-1]
            assert (last["done"], last["output"]["scores"]["shape"]) == (True, [2, 10])

        # goodbye, and within the time that `join` has for it
        assert bob.process is not None
        began = time.monotonic()
        bob.process.send_signal(signal.SIGTERM)
        assert bob.process.wait(10) == 0
        assert time.monotonic() - began < 5
    assert "Traceback" not in alice.said() + bob.said() + carol.said()


def test_other_networks_on_the_same_wire_are_left_alone(lan: Bridge, base: Path) -> None:
    for machine in lan.machines:
        lan.plug(machine)
    alice, bob, mallory = residents(lan, base, "office", "office", "elsewhere")
    with mallory.join("--lan"), alice.join("--lan"), bob.join("--lan"):
        alice.wait_connected(bob)
        mallory.wait_said("nobody of the network 'elsewhere' is on this local network yet")
        assert mallory.connected() == set()
        assert mallory.ready["peer"] not in alice.connected() | bob.connected()


def test_a_machine_without_a_network_runs_on_and_is_found_when_it_is_plugged_in(
    lan: Bridge, base: Path
) -> None:
    lan.plug(lan.machines[0])
    alice, bob, _ = residents(lan, base, "office", "office", "office")
    with alice.join("--lan"), bob.join("--lan"):
        assert bob.ready["bootstrap"]["tried"] == 0
        bob.wait_said("this machine is on no network that carries multicast")
        assert bob.ask("status")[0]["peer"] == bob.ready["peer"]
        lan.plug(bob.machine)
        alice.wait_connected(bob)
        bob.wait_said(f"on the local network now, at {bob.machine.host}: looking")
        assert bob.ask("status")[0]["addrs"][0].startswith(f"/ip4/{bob.machine.host}/tcp/")
        assert bob.said().count("warning:") == 1


def test_a_restarted_peer_finds_its_network_by_those_it_had_met(lan: Bridge, base: Path) -> None:
    """Without --bootstrap, and without mDNS: by peers.json alone, after a kill."""
    for machine in lan.machines:
        lan.plug(machine)
    alice, bob, _ = residents(lan, base, "office", "office", "office")
    with bob.join("--listen", f"/ip4/{bob.machine.host}/tcp/4001"):
        # another port each time: bob cannot find her again where she was
        anew = ("--listen", f"/ip4/{alice.machine.host}/tcp/0")
        with alice.join(*anew, "--bootstrap", bob.ready["addrs"][0]):
            alice.wait_connected(bob)
        peers = Path(alice.env["MODELNET_HOME"]) / "peers.json"
        assert bob.ready["addrs"][0] in json.loads(peers.read_text())["addrs"]
        with alice.join(*anew):
            alice.wait_connected(bob)

        peers.write_text("{")
        with alice.join(*anew):
            alice.wait_said(f"warning: cannot use {peers}: it is damaged")
            assert alice.connected() == set()


# Floods the wire with what is no mDNS and what is none of ours, then tells which services come and go.
STRANGER = """
import os, random, socket, sys
from zeroconf import ServiceBrowser, Zeroconf
host = sys.argv[1]
random.seed(7)
wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
wire.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(host))
service = b"\\x04_p2p\\x04_udp\\x05local\\x00"
for number in range(300):
    name = random.randbytes(12).hex().encode()
    instance = bytes([len(name)]) + name + service
    junk = random.randbytes(random.randrange(200))
    pointer = service + bytes([0, 12, 0, 1, 0, 0, 0, 120]) + len(instance).to_bytes(2) + instance
    text = instance + bytes([0, 16, 0, 1, 0, 0, 0, 120]) + len(junk).to_bytes(2) + junk
    whole = bytes([0, 0, 132, 0, 0, 0, 0, 2, 0, 0, 0, 0]) + pointer + text
    for packet in (whole, whole[: random.randrange(len(whole))], random.randbytes(300)):
        wire.sendto(packet, ("224.0.0.251", 5353))
class Watch:
    def add_service(self, zc, kind, name):
        info = zc.get_service_info(kind, name, 300)
        if info and b"modelnet=office" in info.text:
            print("came", name, info.port, flush=True)
    def update_service(self, zc, kind, name):
        pass
    def remove_service(self, zc, kind, name):
        print("went", name, flush=True)
with Zeroconf(interfaces=[host]) as zc:
    ServiceBrowser(zc, "_p2p._udp.local.", listener=Watch())
    sys.stdin.read()
"""


def test_junk_on_the_wire_harms_nobody_and_who_leaves_says_goodbye(lan: Bridge, base: Path) -> None:
    for machine in lan.machines:
        lan.plug(machine)
    alice, bob, mallory = residents(lan, base, "office", "office", "")
    command, pipe = [sys.executable, "-c", STRANGER, mallory.machine.host], subprocess.PIPE
    with (
        alice.join("--lan"),
        subprocess.Popen(mallory.machine.command(*command), stdin=pipe, stdout=pipe, text=True) as stranger,
    ):
        try:
            assert stranger.stdout is not None
            came = stranger.stdout.readline().split()
            port = int(alice.ready["addrs"][0].split("/")[4])
            assert (came[0], int(came[2])) == ("came", port)
            with bob.join("--lan"):
                alice.wait_connected(bob)
                second = stranger.stdout.readline().split()
                assert bob.process is not None
                bob.process.send_signal(signal.SIGTERM)
                assert bob.process.wait(10) == 0
                assert stranger.stdout.readline().split() == ["went", second[1]]
        finally:
            stranger.kill()
    for said in (alice.said(), bob.said()):
        assert "Traceback" not in said
        assert "warning" not in said
