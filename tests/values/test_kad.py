"""The kad message: ours and stock peers', in any cut, and nothing but BadMessage from bad bytes."""

from __future__ import annotations

import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelnet_p2p.identity import KeyPair, PeerId
from modelnet_p2p.kad import (
    MAX_ACCEPTED_BYTES,
    MAX_ADDR_BYTES,
    MAX_ADDRS,
    MAX_FIELDS,
    MAX_MESSAGE_BYTES,
    MAX_PEERS,
    SLOW_DOWN,
    BadMessage,
    Contact,
    Framer,
    Kind,
    Message,
    Value,
    decode,
    encode,
    frame,
)
from modelnet_p2p.pb.kad_pb2 import KadMessage, KadPeer
from modelnet_p2p.records import MAX_RECORD_BYTES

ADDR = b"\x04\x7f\x00\x00\x01\x06\x0f\xa1"  # /ip4/127.0.0.1/tcp/4001
KEY = b"\x12\x20" + bytes(32)

_CONTACTS = st.lists(
    st.builds(
        Contact,
        st.binary(min_size=2, max_size=64).map(PeerId),
        st.lists(st.binary(min_size=1, max_size=30), max_size=4).map(tuple),
    ),
    max_size=4,
).map(tuple)
_MESSAGES = st.builds(
    Message,
    kind=st.sampled_from(Kind),
    key=st.just(KEY),
    closer=_CONTACTS,
    providers=_CONTACTS,
    value=st.none() | st.builds(Value, st.just(KEY), st.binary(max_size=50)),
    records=st.none() | st.lists(st.binary(min_size=1, max_size=50), max_size=4).map(tuple),
    cursor=st.binary(max_size=40),
    refused=st.sampled_from(["", "stale", "foreign_key", SLOW_DOWN]),
    retry_ms=st.integers(0, 2**32 - 1),
)


@settings(max_examples=300, deadline=None)
@given(_MESSAGES)
def test_what_is_encoded_is_decoded(message: Message) -> None:
    assert decode(encode(message)) == message


@settings(max_examples=100, deadline=None)
@given(st.lists(_MESSAGES, max_size=5), st.data())
def test_a_stream_may_be_cut_anywhere(messages: list[Message], data: st.DataObject) -> None:
    stream = b"".join(map(frame, messages))
    framer, got, at = Framer(), [], 0
    while at < len(stream):
        step = data.draw(st.integers(1, len(stream) - at))
        got += framer.feed(stream[at : at + step])
        at += step
    assert got == messages
    assert framer.pending == 0


def test_a_stream_of_single_bytes() -> None:
    message = Message(Kind.FIND_NODE, KEY, records=(bytes(4096),))
    framer = Framer()
    got = [found for byte in frame(message) for found in framer.feed(bytes([byte]))]
    assert got == [message]


def test_the_bytes_of_a_stock_message() -> None:
    """FIND_NODE as js-libp2p writes it, and the same with our mark."""
    assert encode(Message(Kind.FIND_NODE, b"\x00\x24abc")) == b"\x08\x04\x12\x05\x00\x24abc"
    assert encode(Message(Kind.FIND_NODE, b"k", records=())) == b"\x08\x04\x12\x01k" + b"\x82\x04\x00"
    assert encode(Message(Kind.FIND_NODE, b"k", records=(b"r",))) == b"\x08\x04\x12\x01k" + b"\x82\x04\x01r"


def test_the_bytes_of_a_refusal_to_who_asks_too_fast() -> None:
    refusal = Message(Kind.PING, records=(), refused=SLOW_DOWN, retry_ms=50)
    assert encode(refusal) == b"\x08\x05" + b"\x82\x04\x00" + b"\x92\x04\x09slow-down" + b"\x98\x04\x32"


def test_ours_but_empty_is_told_from_a_stock_peers() -> None:
    assert decode(encode(Message(Kind.GET_PROVIDERS, KEY))).records is None
    assert decode(encode(Message(Kind.GET_PROVIDERS, KEY, records=()))).records == ()


def test_a_missing_type_is_put_value() -> None:
    assert decode(b"").kind is Kind.PUT_VALUE
    assert decode(b"\x12\x01k") == Message(Kind.PUT_VALUE, b"k")


@settings(max_examples=300, deadline=None)
@given(_MESSAGES)
def test_the_bytes_are_those_of_the_protobuf_runtime(message: Message) -> None:
    """Peers are written and read apart from the rest, and remembered; nobody can see that from outside."""
    wire = KadMessage.FromString(encode(message))
    assert wire.SerializeToString(deterministic=True) == encode(message)
    for ours, theirs in ((message.closer, wire.closer_peers), (message.providers, wire.provider_peers)):
        assert [(bytes(c.id), list(c.addrs)) for c in ours] == [
            (p.id, list(p.addrs)) for p in map(KadPeer.FromString, theirs)
        ]
    assert decode(b"".join(_fields(wire)[::-1])) == message


def _fields(wire: KadMessage) -> list[bytes]:
    """Each field of a message by itself: others may write them in any order."""
    parts = []
    for descriptor, value in wire.ListFields():
        part = KadMessage()
        target = getattr(part, descriptor.name)
        if isinstance(value, int | str | bytes):
            setattr(part, descriptor.name, value)
        else:
            target.MergeFrom(value)
        parts.append(part.SerializeToString())
    return parts


def test_a_peer_behind_a_tag_of_two_bytes_costs_no_more() -> None:
    """66 written as 0xC2 0x00, which the protobuf runtime takes for the same field."""
    with pytest.raises(BadMessage):
        decode(b"\xc2\x00\xfc\xff\x3f" + b"\x12\x00" * 524_286)
    assert decode(b"\xc2\x00\x04\x0a\x02ab").closer == (Contact(PeerId(b"ab")),)


def test_unknown_fields_are_skipped() -> None:
    """clusterLevelRaw, a peer's connection type, the time a record came, a group, and later extensions."""
    data = (
        b"\x08\x04\x12\x01k"
        + b"\x50\x01"
        + b"\xa3\x06\xa4\x06"
        + b"\xa2\x06\x02hi"
        + b"\x42\x06\x0a\x02ab\x18\x01"
    )
    data += b"\x1a\x08\x0a\x01k\x12\x01v\x2a\x00"
    assert decode(data) == Message(Kind.FIND_NODE, b"k", (Contact(PeerId(b"ab")),), value=Value(b"k", b"v"))


def test_a_trailing_p2p_is_stripped_from_addresses(bob: KeyPair, carol: KeyPair) -> None:
    """Bob's own only: another id there belongs to a relayed address and stays."""
    own = ADDR + b"\xa5\x03\x26" + bob.id
    relayed = ADDR + b"\xa5\x03\x26" + carol.id
    peer = KadPeer(id=bytes(bob.id), addrs=[ADDR, own, relayed, b"", b"\xa5\x03\x26" + bob.id, bytes(300)])
    data = KadMessage(type=4, closer_peers=[peer.SerializeToString()]).SerializeToString()
    assert decode(data).closer == (Contact(bob.id, (ADDR, ADDR, relayed)),)


def test_a_stock_peers_excess_is_cut_and_its_odd_contacts_left_out(bob: KeyPair) -> None:
    talkative = KadPeer(id=bytes(bob.id), addrs=[ADDR] * 40)
    odd = [KadPeer(id=b""), KadPeer(id=b"x"), KadPeer(id=bytes(65), addrs=[ADDR])]
    usual = KadPeer(id=bytes(bob.id), addrs=[ADDR] * 20)
    closer = [peer.SerializeToString() for peer in (*odd, talkative)]
    wire = KadMessage(type=3, closer_peers=closer, provider_peers=[usual.SerializeToString()] * 300)
    message = decode(wire.SerializeToString())
    assert message.closer == (Contact(bob.id, (ADDR,) * MAX_ADDRS),)
    assert len(message.providers) == MAX_PEERS
    assert len(encode(Message(Kind.FIND_NODE, closer=(Contact(bob.id, (ADDR,) * 40),)))) < 250


def test_a_page_of_fifteen_full_records_fits(bob: KeyPair) -> None:
    contact = Contact(bob.id, (bytes(30),) * 2)
    page = Message(
        Kind.GET_PROVIDERS, KEY, (contact,) * 20, (contact,) * 15, records=(bytes(MAX_RECORD_BYTES),) * 14
    )
    assert len(encode(page)) <= MAX_MESSAGE_BYTES
    assert 15 * (MAX_RECORD_BYTES + 4) <= MAX_MESSAGE_BYTES
    with pytest.raises(BadMessage):
        encode(Message(Kind.GET_PROVIDERS, KEY, records=(bytes(MAX_RECORD_BYTES),) * 16))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x08\x06", "type 6"),
        (b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "a negative type"),
        (b"\x12\xff", "cut"),
        (b"\x12\x05abc", "cut"),
        (b"\x12\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", "varint"),
        (b"\x13", "wire type"),
        (b"\x0b\x0b\x0c", "a group without its end"),
        (b"\x0d\x00", "cut"),
        (b"\x09\x00", "cut"),
        (b"\x42\x02\x0a\x05", "a peer's id runs past its end"),
        (b"\x12\x84\x04" + bytes(516), "key"),
        (b"\x8a\x04\x81\x02" + bytes(257), "cursor"),
        (b"\x92\x04\x41" + b"x" * 65, "refusal"),
        (b"\x92\x04\x01\xff", "not UTF-8"),
        (b"\x12\x01k\x1a\x06\x0a\x01j\x12\x01v", "the record's key is not the message's"),
        (b"\x00\x00", "field number 0"),
        (b"\x42\x00" * (MAX_FIELDS + 1), "more than"),
        (b"\x82\x04\x00" * (MAX_FIELDS + 1), "more than"),
        (b"\x50\x01" * (MAX_MESSAGE_BYTES // 2 + 1), "more than, in a long one"),
        (bytes(MAX_ACCEPTED_BYTES + 1), "more than"),
    ],
)
def test_bad_messages(data: bytes, why: str) -> None:
    with pytest.raises(BadMessage):
        decode(data)


@settings(max_examples=1000, deadline=None)
@given(st.binary(max_size=300))
@example(b"\x42\x02\x0a\x00")
@example(b"\x1b" * 200)
def test_any_bytes_are_a_message_or_a_bad_one(data: bytes) -> None:
    try:
        message = decode(data)
    except BadMessage:
        return
    again = decode(encode(message))
    assert (again.kind, again.key, again.closer, again.providers, again.records) == (
        message.kind,
        message.key,
        message.closer,
        message.providers,
        message.records,
    )


@settings(max_examples=300, deadline=None)
@given(_MESSAGES, st.integers(0, 10_000), st.integers(1, 255))
def test_a_message_with_a_byte_changed_is_a_message_or_a_bad_one(
    message: Message, at: int, mask: int
) -> None:
    data = bytearray(encode(message))
    data[at % len(data)] ^= mask
    try:
        decode(bytes(data))
    except BadMessage:
        pass


@pytest.mark.parametrize(
    ("hostile", "refused"),
    [
        (b"\x42\x00" * 500_000, True),  # empty peers
        (b"\x42\xfc\xff\x3f" + b"\x12\x00" * 524_286, True),  # one peer with empty addresses
        ((b"\x42\x80\x08" + b"\x12\x00" * 512) * 1000, True),  # many such
        (b"\x82\x04\x00" * 340_000, True),  # empty records
        (b"\x42\xfc\xff\x3f" + b"\x0b" * 1_048_572, True),  # groups in groups
        (b"\x42\xfc\xff\x03" + b"\x12\x00" * 32_766, False),  # 64 KiB: small enough to be decoded
        (b"\x82\x04\xfa\xff\x3f" + bytes(1_048_570), False),  # one giant record, which `admit` refuses
        (b"\xa2\x06\x00" * 4000, False),  # unknown fields
    ],
    ids=lambda value: f"{len(value)} bytes" if isinstance(value, bytes) else None,
)
def test_hostile_messages_cost_little(hostile: bytes, refused: bool) -> None:
    """The protobuf runtime's memory is outside of Python's count, so its work must not begin at all
    where many small fields would take a multiple of their bytes."""
    tracemalloc.start()
    try:
        if refused:
            with pytest.raises(BadMessage):
                decode(hostile)
        else:
            assert len(decode(hostile).closer) == 0
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * len(hostile) + (1 << 20)


def test_the_framer_takes_no_more_than_its_bound() -> None:
    framer = Framer(max_bytes=1000)
    with pytest.raises(BadMessage):
        framer.feed(b"\xe9\x07")  # 1,001, told before a byte of it has come
    assert framer.pending == 0
    with pytest.raises(BadMessage):
        framer.feed(frame(Message(Kind.PING)))


@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff\xff\x0f", b"\x80\x80\x80", b"\x85\x00", b"\x80\x00", b"\xff\xff\x7f"]
)
def test_lengths_that_are_none(data: bytes) -> None:
    with pytest.raises(BadMessage):
        Framer().feed(data)


def test_an_empty_message_is_a_message() -> None:
    assert Framer().feed(b"\x00") == [Message(Kind.PUT_VALUE)]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=50), max_size=6))
def test_any_stream_gives_messages_or_one_lasting_error(chunks: list[bytes]) -> None:
    framer, broken = Framer(max_bytes=200), False
    for chunk in chunks:
        try:
            framer.feed(chunk)
        except BadMessage:
            broken = True
        else:
            assert not broken
        assert framer.pending <= 203


def test_the_longest_address_taken(bob: KeyPair) -> None:
    for size, taken in ((MAX_ADDR_BYTES, 1), (MAX_ADDR_BYTES + 1, 0)):
        peer = KadPeer(id=bytes(bob.id), addrs=[bytes(size)])
        wire = KadMessage(type=4, closer_peers=[peer.SerializeToString()])
        assert len(decode(wire.SerializeToString()).closer[0].addrs) == taken
