"""How peers of one local network find each other: on a fake of the air, in virtual time."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from ipaddress import IPv4Interface
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.node.daemon import outward_addr, tell_lan
from modelnet_p2p.node.lan.card import (
    MAX_CARD_ADDRS,
    MAX_CARD_BYTES,
    MAX_CARD_DIALS,
    Card,
    dialable,
    read_card,
    write_card,
)
from modelnet_p2p.node.lan.mdns import interfaces
from modelnet_p2p.node.lan.meeting import (
    AGAIN_SECONDS,
    LOOK_SECONDS,
    MAX_CARDS,
    MAX_TRIES,
    QUIET_SECONDS,
    Heard,
    Lan,
)
from modelnet_p2p.node.notices import MAX_KEPT, Notices
from modelnet_p2p.node.peer import Peer

# Any: the fixture that opens a town, see conftest.py
OpenTown = Any

BOB = KeyPair(bytes(range(32))).id
HERE = (IPv4Interface("192.168.1.7/24"),)
OFFICE = (IPv4Interface("10.0.0.1/8"),)  # where the peers of a town live


def entry(text: bytes) -> bytes:
    return bytes([len(text)]) + text


def card(*addrs: str, network: str = "town", peer: PeerId = BOB) -> bytes:
    return write_card(network, [f"{addr}/p2p/{peer}" for addr in addrs])


# --- what a card says ---


def test_a_card_is_what_libp2p_writes_with_the_network_beside_it() -> None:
    addr = f"/ip4/192.168.1.9/tcp/4001/p2p/{BOB}"
    txt = write_card("town", [addr])
    assert txt == entry(b"modelnet=town") + entry(f"dnsaddr={addr}".encode())
    assert read_card(txt) == Card("town", BOB, ("/ip4/192.168.1.9/tcp/4001",))
    assert read_card(entry(f"dnsaddr={addr}".encode())) is None  # another libp2p peer, no network of ours


def test_a_card_of_many_addresses_stays_within_one_packet() -> None:
    txt = card(*(f"/ip4/192.168.1.{number}/tcp/4001" for number in range(40)), network="n" * 64)
    assert len(txt) <= MAX_CARD_BYTES
    read = read_card(txt)
    assert read is not None
    assert read.addrs == tuple(f"/ip4/192.168.1.{number}/tcp/4001" for number in range(MAX_CARD_ADDRS))


@pytest.mark.parametrize(
    "txt",
    [
        b"",
        b"\x00",
        b"\xff",
        entry(b"modelnet=town"),
        entry(b"modelnet=town") + entry(b"dnsaddr="),
        entry(b"modelnet=town") + entry(b"dnsaddr=/ip4/192.168.1.9/tcp/4001"),  # whose?
        entry(b"modelnet=town") + entry(f"dnsaddr=/ip4/192.168.1.9/udp/4001/quic-v1/p2p/{BOB}".encode()),
        entry(b"modelnet=a town") + entry(f"dnsaddr=/ip4/192.168.1.9/tcp/4001/p2p/{BOB}".encode()),
        entry(b"modelnet=\xff\x1b[2J") + entry(f"dnsaddr=/ip4/192.168.1.9/tcp/4001/p2p/{BOB}".encode()),
        card("/ip4/192.168.1.9/tcp/4001")[:-3],  # cut short
        card("/ip4/192.168.1.9/tcp/4001") + bytes(MAX_CARD_BYTES),
        card("/ip4/192.168.1.9/tcp/4001")
        + entry(f"dnsaddr=/ip4/192.168.1.9/tcp/4001/p2p/{KeyPair(bytes(32)).id}".encode()),  # two peers
    ],
)
def test_what_is_no_card_of_one_peer_of_a_network_is_nothing(txt: bytes) -> None:
    assert read_card(txt) is None


@given(st.binary(max_size=400) | st.lists(st.binary(max_size=80)).map(lambda b: b"".join(map(entry, b))))
def test_a_stranger_s_bytes_are_a_card_or_nothing(txt: bytes) -> None:
    read = read_card(txt)
    assert read is None or len(dialable(read, HERE)) <= MAX_CARD_DIALS


@pytest.mark.parametrize(
    ("addr", "allowed"),
    [
        ("/ip4/192.168.1.9/tcp/4001", True),
        ("/ip4/192.168.77.9/tcp/4001", True),  # another subnet behind the same router
        ("/ip4/10.1.2.3/tcp/4001", True),
        ("/ip4/172.31.0.1/tcp/4001", True),
        ("/ip4/169.254.3.4/tcp/4001", True),
        ("/ip6/fd00::9/tcp/4001", True),
        ("/ip4/127.0.0.1/tcp/4001", False),  # my own services
        ("/ip6/::1/tcp/4001", False),
        ("/ip4/0.0.0.0/tcp/4001", False),
        ("/ip4/255.255.255.255/tcp/4001", False),
        ("/ip4/224.0.0.251/tcp/5353", False),
        ("/ip4/8.8.8.8/tcp/53", False),
        ("/ip4/172.32.0.1/tcp/4001", False),
        ("/ip4/100.64.0.1/tcp/4001", False),
        ("/ip6/2001:db8::1/tcp/4001", False),
        ("/ip6/::ffff:8.8.8.8/tcp/53", False),
        ("/ip6/::ffff:127.0.0.1/tcp/53", False),
        ("/ip6/fe80::1/tcp/4001", False),
        ("/dns4/router.local/tcp/80", False),
        ("/ip4/192.168.1.9/tcp/0", False),
    ],
)
def test_only_addresses_of_a_local_network_are_dialled_because_of_a_card(addr: str, allowed: bool) -> None:
    assert dialable(Card("town", BOB, (addr,)), HERE) == ((addr,) if allowed else ())


def test_public_addresses_of_my_own_subnet_count_as_local_and_my_subnets_come_first() -> None:
    shown = Card("town", BOB, ("/ip4/10.0.0.1/tcp/1", "/ip4/203.0.113.9/tcp/2", "/ip4/198.51.100.1/tcp/3"))
    campus = (IPv4Interface("203.0.113.7/24"),)
    assert dialable(shown, campus) == ("/ip4/203.0.113.9/tcp/2", "/ip4/10.0.0.1/tcp/1")


def test_only_interfaces_that_carry_multicast_are_a_local_network(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {
        "lo": "up,loopback,running,multicast",
        "eth0": "up,broadcast,running,multicast",
        "tun0": "up,pointopoint,running,noarp,multicast",
        "plain0": "up,broadcast,running",
        "silent0": "",  # a system that tells no flags
        "down0": "broadcast,multicast",
    }
    inet, inet6 = socket.AddressFamily.AF_INET, socket.AddressFamily.AF_INET6

    def address(family: socket.AddressFamily, host: str, mask: str | None) -> SimpleNamespace:
        return SimpleNamespace(family=family, address=host, netmask=mask)

    known = {
        name: [address(inet, f"192.168.{number}.7", "255.255.255.0"), address(inet6, "fe80::1%x", None)]
        for number, name in enumerate(flags)
    }
    stats = {name: SimpleNamespace(isup=name != "down0", flags=text) for name, text in flags.items()}
    monkeypatch.setattr("psutil.net_if_addrs", lambda: known)
    monkeypatch.setattr("psutil.net_if_stats", lambda: stats)
    assert interfaces() == (IPv4Interface("192.168.1.7/24"), IPv4Interface("192.168.4.7/24"))


# --- meeting ---


class Air:
    """What a local network carries: everybody hears every card, the earlier ones too."""

    def __init__(self) -> None:
        self.shown: dict[str, bytes] = {}
        self.ports: list[int] = []
        self.broken = ""  # why a radio cannot be opened
        self._ears: list[trio.MemorySendChannel[Heard]] = []

    @asynccontextmanager
    async def radio(
        self, around: Sequence[IPv4Interface], card: bytes | None, port: int
    ) -> AsyncIterator[trio.MemoryReceiveChannel[Heard]]:
        assert around
        if self.broken:
            raise LocalError(Code.UNREACHABLE, self.broken)
        send, receive = trio.open_memory_channel[Heard](1000)
        for name, txt in self.shown.items():
            send.send_nowait(Heard(name, txt))
        self._ears.append(send)
        self.ports.append(port)
        name = f"card {len(self.ports)}"
        if card is not None:
            self.show(name, card)
        try:
            yield receive
        finally:
            self._ears.remove(send)
            if card is not None:
                self.show(name, None)

    def show(self, name: str, txt: bytes | None) -> None:
        if txt is None:
            self.shown.pop(name, None)
        else:
            self.shown[name] = txt
        for ear in self._ears:
            ear.send_nowait(Heard(name, txt))

    def fail(self) -> None:
        for ear in self._ears:
            ear.close()


class Residents:
    """Peers of a town that know nobody, each with its `Lan` and with what its person was told."""

    def __init__(self, town: Any, nursery: trio.Nursery) -> None:  # Any: a Town, see conftest.py
        self.air = Air()
        self.around: tuple[IPv4Interface, ...] = OFFICE
        self.told: dict[str, list[str]] = {}
        self._scopes: list[trio.CancelScope] = []
        self._town = town
        self._nursery = nursery

    async def peer(self, name: str, *, listen: bool = True, lan: bool = True) -> Peer:
        bootstraps = dict(self._town.peers)
        self._town.peers.clear()  # who comes now is told of nobody
        peer: Peer = await self._town.peer(name, listen=listen)
        self._town.peers |= bootstraps
        if not lan:
            return peer
        notices = Notices()
        notices.listen(self.told.setdefault(name, []).append)
        mine = Lan(peer.parts.overlay, notices, self.air.radio, lambda: self.around)
        self._nursery.start_soon(self._run, mine)
        return peer

    async def _run(self, lan: Lan) -> None:
        with trio.CancelScope() as scope:
            self._scopes.append(scope)
            await lan.run()

    def leave(self) -> None:
        """The peers close after their `Lan`, as in life."""
        for scope in self._scopes:
            scope.cancel()


def knows(peer: Peer) -> set[PeerId]:
    return {contact.id for contact in peer.parts.overlay.table}


async def until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    with trio.fail_after(seconds):
        while not true():
            await trio.sleep(0.05)


OpenResidents = Callable[[], AbstractAsyncContextManager[Residents]]


@pytest.fixture
def open_residents(open_town: OpenTown) -> OpenResidents:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Residents]:
        async with trio.open_nursery() as nursery, open_town() as town:
            residents = Residents(town, nursery)
            yield residents
            residents.leave()

    return opened


async def test_peers_of_one_network_find_each_other_and_say_so(
    open_residents: OpenResidents, autojump_clock: MockClock
) -> None:
    async with open_residents() as residents:
        alice, bob = await residents.peer("alice"), await residents.peer("bob")
        carol = await residents.peer("carol")
        await until(lambda: all(len(knows(peer)) == 2 for peer in (alice, bob, carol)))
        await trio.sleep(10 * AGAIN_SECONDS)
        told = residents.told["bob"]
        assert sorted(told) == sorted(
            f"met on the local network: {other.addrs[0]}" for other in (alice, carol)
        )
        assert residents.air.ports == [4001] * 3


async def test_a_client_finds_others_and_shows_no_card(
    open_residents: OpenResidents, autojump_clock: MockClock
) -> None:
    async with open_residents() as residents:
        alice = await residents.peer("alice")
        client = await residents.peer("client", listen=False)
        await until(lambda: knows(client) == {alice.peer_id})
        assert len(residents.air.shown) == 1


async def test_other_networks_and_my_own_card_are_not_dialled(
    open_residents: OpenResidents, autojump_clock: MockClock
) -> None:
    async with open_residents() as residents:
        alice = await residents.peer("alice")
        await until(lambda: bool(residents.air.shown))
        (mine,) = residents.air.shown.values()
        residents.air.show("mirror", mine)
        residents.air.show("elsewhere", card("/ip4/10.9.9.9/tcp/4001", network="village"))
        residents.air.show("lure", card("/ip4/8.8.8.8/tcp/4001"))
        dialled = watch_dials(alice)
        await trio.sleep(3 * AGAIN_SECONDS)
        assert dialled == []


def watch_dials(peer: Peer) -> list[tuple[PeerId, tuple[str, ...]]]:
    dialled = []
    connect = peer.parts.overlay.network.connect

    async def watched(whom: PeerId, addrs: Sequence[str] = ()) -> None:
        dialled.append((whom, tuple(addrs)))
        await connect(whom, addrs)

    # to count them: each is still the real one
    peer.parts.overlay.network.connect = watched  # type: ignore[method-assign, assignment]
    return dialled


async def test_a_card_that_nobody_stands_behind_is_tried_a_few_times(
    open_residents: OpenResidents, autojump_clock: MockClock
) -> None:
    async with open_residents() as residents:
        alice = await residents.peer("alice")
        dialled = watch_dials(alice)
        residents.air.show("ghost", card("/ip4/10.9.9.9/tcp/4001"))
        await trio.sleep(20 * AGAIN_SECONDS)
        assert dialled == [(BOB, ("/ip4/10.9.9.9/tcp/4001",))] * MAX_TRIES
        residents.air.show("ghost", card("/ip4/10.9.9.8/tcp/4001"))  # it has moved: that is worth another try
        await until(lambda: len(dialled) == MAX_TRIES + 1)


async def test_a_peer_that_was_away_is_met_again(
    open_residents: OpenResidents, autojump_clock: MockClock
) -> None:
    async with open_residents() as residents:
        alice, bob = await residents.peer("alice"), await residents.peer("bob")
        await until(lambda: knows(alice) == {bob.peer_id})
        await alice.parts.overlay.network.disconnect(bob.peer_id)
        await until(lambda: not alice.parts.overlay.network.connected())
        await until(lambda: bob.peer_id in alice.parts.overlay.network.connected(), 2 * AGAIN_SECONDS)


async def test_a_flood_of_cards_leaves_room_for_an_honest_one(
    open_residents: OpenResidents, autojump_clock: MockClock
) -> None:
    async with open_residents() as residents:
        alice = await residents.peer("alice")
        await trio.sleep(1)
        for number in range(MAX_CARDS + 50):
            liar = KeyPair(number.to_bytes(32)).id
            residents.air.show(f"fake {number}", card("/ip4/10.9.9.9/tcp/4001", peer=liar))
        await trio.sleep(3 * AGAIN_SECONDS)
        bob = await residents.peer("bob", lan=False)  # does not look for others himself
        assert knows(alice) == set()
        residents.air.show("honest", write_card("town", bob.addrs))
        await until(lambda: knows(alice) == {bob.peer_id})


async def test_no_network_is_told_once_and_one_that_comes_is_used(
    open_residents: OpenResidents, autojump_clock: MockClock
) -> None:
    async with open_residents() as residents:
        alice = await residents.peer("alice")
        residents.around = ()
        bob = await residents.peer("bob")
        await trio.sleep(3 * LOOK_SECONDS)
        (line,) = residents.told["bob"]
        assert line.startswith("warning: this machine is on no network")
        assert "--bootstrap MULTIADDR" in line
        residents.around = OFFICE
        await until(lambda: knows(bob) == {alice.peer_id})
        assert residents.told["bob"][1:] == [
            "on the local network now, at 10.0.0.1: looking for peers there",
            f"met on the local network: {alice.addrs[0]}",
        ]


async def test_where_mdns_is_not_possible_one_warning_says_why(
    open_residents: OpenResidents, autojump_clock: MockClock
) -> None:
    async with open_residents() as residents:
        residents.air.broken = "operation not permitted"
        bob = await residents.peer("bob")
        await trio.sleep(QUIET_SECONDS + 3 * LOOK_SECONDS)
        (line,) = residents.told["bob"]
        assert line.startswith("warning: mDNS is not possible here (operation not permitted)")
        assert (await bob.status())["peer"] == bob.id


async def test_a_radio_that_fails_is_opened_again(
    open_residents: OpenResidents, autojump_clock: MockClock
) -> None:
    async with open_residents() as residents:
        alice = await residents.peer("alice")
        await trio.sleep(1)
        residents.air.fail()
        await trio.sleep(LOOK_SECONDS)
        bob = await residents.peer("bob")
        await until(lambda: bob.peer_id in knows(alice))


async def test_who_stays_alone_is_told_what_may_be_wrong(
    open_residents: OpenResidents, autojump_clock: MockClock
) -> None:
    async with open_residents() as residents:
        await residents.peer("alice")
        await trio.sleep(QUIET_SECONDS * 3)
        (line,) = residents.told["alice"]
        assert line.startswith("nobody of the network 'town' is on this local network yet")
        assert "UDP 5353 and TCP 4001" in line


# --- what the person is told ---


def test_what_was_said_before_anybody_listened_is_heard_then() -> None:
    notices, heard = Notices(), list[str]()
    for number in range(MAX_KEPT + 1):
        notices.say(str(number))
    notices.listen(heard.append)
    notices.say("last")
    assert heard == [*(str(number) for number in range(1, MAX_KEPT + 1)), "last"]


def test_lan_says_what_it_opens_and_prints_the_line_for_the_next_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("modelnet_p2p.node.daemon.my_ip", lambda: "192.168.1.7")
    addrs = [f"/ip4/{host}/tcp/4001/p2p/{BOB}" for host in ("172.17.0.1", "192.168.1.7", "127.0.0.1")]
    assert outward_addr(addrs) == addrs[1]
    assert outward_addr(addrs[:1]) == addrs[0]
    assert outward_addr(addrs[2:]) is None
    said = list[str]()
    tell_lan(addrs, "my'lab", said.append)
    assert "0.0.0.0" in said[0]
    name = "--network 'my'\"'\"'lab'"
    assert said[2] == f"  modelnet-peer join --lan {name}"
    assert said[4] == f"  modelnet-peer join --lan {name} --bootstrap {addrs[1]}"
    tell_lan(addrs, "public", said.append)
    assert said[7] == "  modelnet-peer join --lan"
