"""What is said of life and death: sealed by whoever says it, and only BadRecord comes of bad bytes."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelnet_p2p.beats import (
    BEAT_TYPE,
    MAX_ASKED,
    MAX_KEYS,
    MAX_SEALED_BYTES,
    MAX_WATCHERS,
    ROSTER_TYPE,
    Ask,
    Framer,
    Heard,
    Message,
    Obituary,
    Probe,
    Seals,
    Verdict,
    Watch,
    decode,
    encode,
    frame,
)
from modelnet_p2p.canonical import pack, unpack
from modelnet_p2p.envelope import seal
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.names import MAX_NETWORK_BYTES
from modelnet_p2p.refusals import BadRecord, Refusal

NOW_US = 1_700_000_000_000_000
NETWORK = "town"
PEOPLE = [KeyPair(bytes([number]) * 32) for number in range(1, 8)]
ALICE, *WATCHERS = PEOPLE
IDS = tuple(key.id for key in WATCHERS[:MAX_WATCHERS])


def seals(key: KeyPair, network: str = NETWORK) -> Seals:
    return Seals(key, network, lambda: NOW_US)


def obituary(*watchers: KeyPair, dead: bool = True, incarnation: int = 7) -> Obituary:
    roster = seals(ALICE).roster(3, IDS)
    return Obituary(roster, tuple(seals(who).verdict(ALICE.id, incarnation, dead) for who in watchers))


MESSAGES: list[Message] = [
    Watch(seals(ALICE).roster(NOW_US, IDS), (b"k" * 34,) * 3),
    Watch(seals(ALICE).roster(1, ())),
    seals(ALICE).beat(NOW_US, 2),
    Heard(NOW_US, 4, True),
    Probe(ALICE.id),
    seals(WATCHERS[0]).verdict(ALICE.id, 7, False),
    obituary(*WATCHERS[:3]),
    Ask((ALICE.id, *IDS)),
    Ask(()),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_what_is_encoded_is_decoded(message: Message) -> None:
    assert decode(encode(message), NETWORK) == message


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(MESSAGES), max_size=5), st.data())
def test_a_stream_may_be_cut_anywhere(messages: list[Message], data: st.DataObject) -> None:
    stream = b"".join(map(frame, messages))
    framer, at = Framer(NETWORK), 0
    got: list[Message] = []
    while at < len(stream):
        step = data.draw(st.integers(1, len(stream) - at))
        got += framer.feed(stream[at : at + step])
        at += step
    assert got == messages


def test_beats_are_small_and_the_fullest_message_fits() -> None:
    assert len(frame(seals(ALICE, "public").beat(NOW_US, 10**6))) <= 220
    wide = "n" * MAX_NETWORK_BYTES
    roster = seals(ALICE, wide).roster(2**53 - 1, IDS)
    assert len(roster.envelope) <= MAX_SEALED_BYTES
    keys = tuple(bytes([number]) * 34 for number in range(MAX_KEYS))
    assert decode(encode(Watch(roster, keys)), wide) == Watch(roster, keys)
    verdicts = tuple(seals(key, wide).verdict(ALICE.id, 2**53 - 1, True) for key in WATCHERS[:5])
    assert decode(encode(Obituary(roster, verdicts)), wide) == Obituary(roster, verdicts)
    everybody = Ask(tuple(KeyPair(number.to_bytes(32)).id for number in range(1, MAX_ASKED + 1)))
    assert decode(encode(everybody), wide) == everybody


@pytest.mark.parametrize(
    "made_up",
    [
        obituary(WATCHERS[0]),
        obituary(WATCHERS[0], WATCHERS[0], WATCHERS[0]),
        obituary(WATCHERS[0], WATCHERS[1], WATCHERS[5]),  # not on the roster
        obituary(*WATCHERS[:3], dead=False),
        Obituary(
            seals(ALICE).roster(3, IDS),
            (*obituary(*WATCHERS[:2]).verdicts, *obituary(WATCHERS[2], incarnation=8).verdicts),
        ),
    ],
)
def test_an_obituary_without_a_quorum_is_none(made_up: Obituary) -> None:
    with pytest.raises(BadRecord) as refused:
        decode(encode(made_up), NETWORK)
    assert refused.value.refusal is Refusal.WRONG_OWNER


def test_what_another_network_or_another_hand_sealed_is_refused() -> None:
    beat = seals(ALICE).beat(1, 1)
    with pytest.raises(BadRecord) as foreign:
        decode(encode(beat), "city")
    assert foreign.value.refusal is Refusal.FOREIGN_KEY
    forged = beat.envelope[:-1] + bytes([beat.envelope[-1] ^ 1])
    with pytest.raises(BadRecord) as refused:
        decode(pack({"beat": forged, "kind": "beat"}), NETWORK)
    assert refused.value.refusal is Refusal.FORGED
    roster = seals(ALICE).roster(1, IDS).envelope
    with pytest.raises(BadRecord):
        decode(pack({"beat": roster, "kind": "beat"}), NETWORK)


def sealed_by_alice(payload_type: bytes, fields: dict[str, object]) -> bytes:
    return seal(payload_type, pack({"network": NETWORK, **fields}), ALICE)


@pytest.mark.parametrize(
    "message",
    [
        {"kind": "chat"},
        {},
        {"kind": "beat"},
        {"kind": "beat", "beat": 7},
        {"kind": "beat", "beat": sealed_by_alice(BEAT_TYPE, {"incarnation": True, "seq": 1})},
        {"kind": "beat", "beat": sealed_by_alice(BEAT_TYPE, {"incarnation": -1, "seq": 1})},
        {"kind": "beat", "beat": sealed_by_alice(BEAT_TYPE, {"incarnation": 2**53, "seq": 1})},
        {"kind": "heard", "incarnation": 1, "seq": 1, "doubted": 1},
        {"kind": "probe", "subject": b"x"},
        {"kind": "probe", "subject": bytes(38)},
        {"kind": "ask", "subjects": [bytes(ALICE.id)] * 2},
        {"kind": "ask", "subjects": [b"\x00\x24" + bytes(36)] * (MAX_ASKED + 1)},
        {
            "kind": "watch",
            "keys": [],
            "roster": sealed_by_alice(ROSTER_TYPE, {"seq": 1, "watchers": [bytes(ALICE.id)]}),
        },
        {"kind": "watch", "keys": [bytes(65)], "roster": MESSAGES[0].roster.envelope},  # type: ignore[union-attr]
    ],
)
def test_whatever_has_another_form_is_refused(message: dict[str, object]) -> None:
    with pytest.raises(BadRecord):
        decode(pack(message), NETWORK)


def test_unknown_fields_are_for_later_versions() -> None:
    assert decode(pack({**unpack(encode(MESSAGES[3])), "zz": 1}), NETWORK) == MESSAGES[3]


def test_a_length_beyond_the_bound_ends_the_stream() -> None:
    with pytest.raises(BadRecord):
        list(Framer(NETWORK).feed(b"\xff\xff"))


@settings(max_examples=1000, deadline=None)
@given(st.binary(max_size=200))
@example(b"\x00\x00")
def test_bytes_of_nobody(data: bytes) -> None:
    for read in (lambda: decode(data, NETWORK), lambda: list(Framer(NETWORK).feed(data))):
        try:
            read()
        except BadRecord:
            pass


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(MESSAGES), st.data())
def test_one_changed_byte_is_refused_or_changes_no_seal(message: Message, data: st.DataObject) -> None:
    whole = bytearray(encode(message))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    try:
        read = decode(bytes(whole), NETWORK)
    except BadRecord:
        return
    for part in (read, *getattr(read, "verdicts", ())):
        if isinstance(part, Verdict):
            assert part in (message, *getattr(message, "verdicts", ()))
    assert isinstance(read, type(message))
