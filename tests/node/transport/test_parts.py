"""The pure parts of the transport: addresses, the gate, negotiation and identify, hostile input included."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelnet_p2p.errors import Code, LocalError, RemoteError
from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.node.transport import negotiation
from modelnet_p2p.node.transport.addresses import (
    Endpoint,
    ip_group,
    is_public,
    split_p2p,
    tcp_address,
    tcp_endpoint,
    to_binary,
    to_text,
    with_peer,
)
from modelnet_p2p.node.transport.gate import Gate
from modelnet_p2p.node.transport.link import KEEPALIVE, tune
from modelnet_p2p.node.transport.registry import MAX_KNOWN_ADDRS, MAX_KNOWN_PEERS, AddressBook, Target

ALICE, BOB = KeyPair(b"a" * 32).id, KeyPair(b"b" * 32).id
RELAYED = f"/ip4/1.2.3.4/tcp/4001/p2p/{BOB}/p2p-circuit"


# --- addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/127.0.0.1/tcp/4001",
        "/ip6/::1/tcp/4001",
        "/ip4/1.2.3.4/udp/4001/quic-v1",
        "/dns4/example.org/tcp/443",
        "/dns/example.org/tcp/443/wss",
        f"/ip4/127.0.0.1/tcp/4001/p2p/{ALICE}",
        RELAYED,
        f"{RELAYED}/p2p/{ALICE}",
        f"/p2p/{ALICE}",
    ],
)
def test_addresses_survive_the_way_there_and_back(text: str) -> None:
    assert to_text(to_binary(text)) == text


@pytest.mark.parametrize(
    "text",
    ["", "/", "x", "ip4/1.2.3.4", "/ip4/1.2.3.400/tcp/1", "/ip4/1.2.3.4/tcp", "/ip4/1.2.3.4/tcp/65536",
     "/ip4/1.2.3.4/p2p/nobody", "/dns4/\u00e9\x00/tcp/1", "/unknown/7", "/ip4/1.2.3.4" * 100],
)  # fmt: skip
def test_other_texts_are_bad_input(text: str) -> None:
    for parse in (to_binary, split_p2p, tcp_endpoint):
        with pytest.raises(LocalError) as caught:
            parse(text)
        assert caught.value.code is Code.BAD_INPUT


@given(st.binary(max_size=300))
def test_no_bytes_break_the_decoder_and_what_it_takes_is_canonical(raw: bytes) -> None:
    try:
        text = to_text(raw)
    except LocalError:
        return  # the one error that leaves it
    assert to_binary(text) == raw


@given(st.integers(0, 43), st.binary(min_size=1, max_size=4))
def test_a_bent_address_is_taken_whole_or_refused(at: int, noise: bytes) -> None:
    good = to_binary(f"/ip4/127.0.0.1/tcp/4001/p2p/{ALICE}")
    for bent in (good[:at], good[:at] + noise + good[at + len(noise) :]):
        try:
            assert to_binary(to_text(bent)) == bent
        except LocalError:
            pass


@given(st.text(max_size=60))
def test_no_text_breaks_the_parser(text: str) -> None:
    for parse in (to_binary, split_p2p, tcp_endpoint):
        try:
            parse("/" + text)
        except LocalError:
            pass  # the one error that leaves them


def test_the_peer_is_split_off_the_end_only() -> None:
    plain = "/ip4/127.0.0.1/tcp/4001"
    assert split_p2p(plain) == (None, plain)
    assert split_p2p(with_peer(plain, ALICE)) == (ALICE, plain)
    assert split_p2p(RELAYED) == (None, RELAYED)
    assert split_p2p(with_peer(RELAYED, ALICE)) == (ALICE, RELAYED)
    assert split_p2p(f"/p2p/{ALICE}") == (ALICE, "")


def test_endpoints_are_plain_tcp_only() -> None:
    assert tcp_endpoint("/ip4/127.0.0.1/tcp/4001") == Endpoint("ip4", "127.0.0.1", 4001)
    assert tcp_endpoint(f"/dns4/example.org/tcp/443/p2p/{ALICE}") == Endpoint("dns4", "example.org", 443)
    for other in ("/ip4/1.2.3.4/udp/4001/quic-v1", "/dns/example.org/tcp/443/wss", RELAYED, f"/p2p/{ALICE}"):
        assert tcp_endpoint(other) is None


def test_ip_groups_are_of_public_addresses_only() -> None:
    assert ip_group("8.8.8.8") == ip_group("8.8.8.9") == "8.8.8.0/24"
    assert ip_group("::ffff:8.8.8.8") == "8.8.8.0/24"
    assert ip_group("2a00:1450:4001:81a::200e") == "2a00:1450:4001::/48"
    for private in (
        "127.0.0.1",
        "10.1.2.3",
        "192.168.1.1",
        "169.254.1.1",
        "::1",
        "fe80::1%eth0",
        "example.org",
    ):
        assert ip_group(private) is None
        assert not is_public(private)
    assert tcp_address("::ffff:8.8.8.8", 1) == "/ip4/8.8.8.8/tcp/1"
    assert tcp_address("fe80::1%eth0", 1) == "/ip6/fe80::1/tcp/1"


# --- the gate --------------------------------------------------------------------------------------


def test_the_gate_keeps_a_quarter_for_our_own_dials() -> None:
    gate = Gate(8, 8)
    inbound = [gate.enter(inbound=True) for _ in range(7)]
    assert [place is not None for place in inbound] == [True] * 6 + [False]
    assert gate.enter(inbound=False)
    assert gate.enter(inbound=False)
    assert gate.enter(inbound=False) is None
    assert (gate.taken, gate.refused) == (8, 2)
    for place in inbound:
        if place:
            place.leave()
            place.leave()
    assert gate.taken == 2


def test_the_gate_bounds_each_peer() -> None:
    gate = Gate(100, 2)
    places = [place for _ in range(3) if (place := gate.enter(inbound=True))]
    assert [place.name(ALICE) for place in places] == [True, True, False]
    assert not places[2].leave()  # type: ignore[func-returns-value]
    places[0].leave()
    other = gate.enter(inbound=True)
    assert other is not None
    assert other.name(ALICE)
    with pytest.raises(ValueError):
        other.name(BOB)
    places[1].leave()
    other.leave()
    assert (gate.taken, dict(gate.per_peer)) == (0, {})


# --- what is known of peers ------------------------------------------------------------------------


def test_the_address_book_is_bounded_and_keeps_the_latest() -> None:
    book = AddressBook()
    book.learn(ALICE, [])
    assert book.of(ALICE) == ()
    for port in range(1, 40):
        book.learn(ALICE, [f"/ip4/1.2.3.4/tcp/{port}", "/ip4/1.2.3.4/tcp/1"])
    assert len(book.of(ALICE)) == MAX_KNOWN_ADDRS
    assert book.of(ALICE)[:2] == ("/ip4/1.2.3.4/tcp/39", "/ip4/1.2.3.4/tcp/1")
    for i in range(MAX_KNOWN_PEERS):
        book.learn(PeerId(b"\x12\x20" + i.to_bytes(32, "big")), ["/ip4/1.2.3.4/tcp/1"])
    assert book.of(ALICE) == ()


def test_a_target_leaves_out_other_peers_addresses_and_doubles() -> None:
    plain = "/ip4/1.2.3.4/tcp/1"
    addrs = [plain, with_peer(plain, ALICE), with_peer("/ip4/1.2.3.4/tcp/2", BOB), f"/p2p/{ALICE}"]
    assert Target.of(ALICE, addrs).addrs == (plain,)
    assert len(Target.of(ALICE, [f"/ip4/1.2.3.4/tcp/{i}" for i in range(1, 99)]).addrs) == 16


# --- negotiation -----------------------------------------------------------------------------------


def test_a_proposal_is_what_stock_nodes_send() -> None:
    assert negotiation.proposal("/ipfs/ping/1.0.0") == b"\x13/multistream/1.0.0\n\x11/ipfs/ping/1.0.0\n"
    with pytest.raises(ValueError):
        negotiation.message("/" + "x" * 126)


def test_messages_are_read_without_a_byte_too_many() -> None:
    data = negotiation.proposal("/a") + b"what follows"
    received = bytearray()
    while need := negotiation.missing(received, 2):
        received += data[len(received) : len(received) + need]
    assert bytes(received) == negotiation.proposal("/a")
    assert negotiation.texts(received) == [negotiation.HEADER, "/a"]


def test_answers_are_told_apart() -> None:
    header = negotiation.message(negotiation.HEADER)
    negotiation.check_answers(negotiation.proposal("/a"), "/a", BOB)
    for answers, code in (
        (header + negotiation.message("na"), Code.UNKNOWN_METHOD),
        (header + negotiation.message("/b"), Code.UNREACHABLE),
        (negotiation.message("/a") * 2, Code.UNREACHABLE),
        (header + b"\x02/a", Code.UNREACHABLE),
    ):
        with pytest.raises(RemoteError) as caught:
            negotiation.check_answers(answers, "/a", BOB)
        assert caught.value.code is code
        assert caught.value.peer in (str(BOB), None)


@given(st.binary(max_size=300), st.integers(1, 8))
def test_no_bytes_break_negotiation(data: bytes, messages: int) -> None:
    received = bytearray()
    try:
        while need := negotiation.missing(received, messages):
            if len(received) + need > len(data):
                return
            received += data[len(received) : len(received) + need]
        assert len(negotiation.texts(received)) == messages
    except negotiation.BadNegotiation:
        pass


def test_the_kernel_watches_over_a_connection_at_rest() -> None:
    with socket.socket() as sock:
        tune(sock)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        for name, value in KEEPALIVE.items():
            assert (
                not hasattr(socket, name)
                or sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) == value
            )
