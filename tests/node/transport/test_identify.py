"""Identify: what a peer tells of itself, as stock nodes write and read it, and what strangers may not do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelnet_p2p.identity import PUBLIC_KEY_HEADER, KeyPair
from modelnet_p2p.node.transport import identify
from modelnet_p2p.node.transport.addresses import to_binary
from modelnet_p2p.node.transport.identify import AGENT, MAX_ADDRESSES, MAX_MESSAGE, MAX_PROTOCOLS
from modelnet_p2p.pb.identify_pb2 import Identify

ALICE = KeyPair(b"a" * 32)
ADDRS = ("/ip4/127.0.0.1/tcp/4001", "/ip4/192.168.1.7/tcp/4001")
PROTOCOLS = ("/modelnet/call/1.0.0", "/ipfs/ping/1.0.0")


def body() -> bytes:
    """Alice's message without its length, which two bytes hold."""
    addrs = [f"{addr}/p2p/{ALICE.id}" for addr in ADDRS]
    message = identify.encode(ALICE.id, addrs, PROTOCOLS, "/ip4/8.8.8.8/tcp/9")
    assert (message[0] & 0x7F) | message[1] << 7 == len(message) - 2
    return message[2:]


def test_what_alice_tells_is_understood() -> None:
    told = identify.decode(body())
    assert (told.protocols, told.addrs, told.agent) == (frozenset(PROTOCOLS), ADDRS, AGENT)


def test_the_fields_are_those_of_the_specification() -> None:
    """Written out, for both ends of the other tests share one schema."""
    by_number: dict[int, list[bytes]] = {}
    rest = body()
    while rest:
        tag, length = rest[0], rest[1]  # no part is longer than 127 bytes
        assert tag & 7 == 2
        by_number.setdefault(tag >> 3, []).append(rest[2 : 2 + length])
        rest = rest[2 + length :]
    assert by_number == {
        1: [PUBLIC_KEY_HEADER + ALICE.id[-32:]],
        2: [to_binary(addr) for addr in ADDRS],
        3: [text.encode() for text in sorted(PROTOCOLS)],
        4: [to_binary("/ip4/8.8.8.8/tcp/9")],
        5: [b"ipfs/0.1.0"],
        6: [AGENT.encode()],
    }


@pytest.mark.live
def test_stock_py_libp2p_reads_and_writes_the_same() -> None:
    """In the live part only because importing libp2p takes a second."""
    from libp2p.identity.identify.pb import identify_pb2 as stock

    message = stock.Identify()
    message.ParseFromString(body())
    assert message.agent_version == AGENT
    assert list(message.listen_addrs) == [to_binary(addr) for addr in ADDRS]
    assert identify.decode(message.SerializeToString()) == identify.decode(body())


def test_lists_are_bounded_and_unknown_addresses_left_out() -> None:
    many = Identify(
        listen_addrs=[b"\xff\xff\xff", to_binary(ADDRS[0])]
        + [to_binary(f"/ip4/1.2.3.4/tcp/{port}") for port in range(1, 99)],
        protocols=[f"/p/{i}" for i in range(999)],
        agent_version="x" * 999,
    )
    told = identify.decode(many.SerializeToString())
    assert told.addrs[0] == ADDRS[0]
    assert len(told.addrs) == MAX_ADDRESSES - 1
    assert len(told.protocols) == MAX_PROTOCOLS
    assert len(told.agent) == 128


@given(st.binary(max_size=400))
def test_no_bytes_break_it(data: bytes) -> None:
    try:
        identify.decode(data)
    except ValueError:
        pass  # the one error that leaves it


@given(st.integers(0, 200), st.binary(min_size=1, max_size=4))
def test_no_bent_message_breaks_it(at: int, noise: bytes) -> None:
    good = body()
    for bent in (good[:at], good[:at] + noise + good[at + len(noise) :]):
        try:
            identify.decode(bent)
        except ValueError:
            pass


def test_the_longest_message_stays_small_in_memory() -> None:
    told = identify.decode(b"\x1a\x00" * (MAX_MESSAGE // 2))  # 8,192 protocols without a name
    assert told.protocols == {""}
