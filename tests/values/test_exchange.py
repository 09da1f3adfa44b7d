"""Calls between alice, who asks, and bob, who answers: both ends at once, in chunks of any size."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelnet_p2p import frames as frame_module
from modelnet_p2p.compact import compact_tensor
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.exchange import (
    TRANSITIONS,
    Call,
    End,
    Event,
    Exchange,
    Fault,
    Hop,
    Item,
    LocalProtocolError,
    RemoteProtocolError,
    Result,
    Role,
    State,
)
from modelnet_p2p.frames import HEADER, MAX_HEAD_BYTES, Kind
from modelnet_p2p.jsonvalue import from_json, to_json
from modelnet_p2p.tree import BadPayload, Buffer, pack_tree

VECTORS = Path(__file__).parent / "vectors" / "frames.json"


def deliver(data: bytes, to: Exchange, rng: random.Random | None = None) -> list[Event]:
    """Feeds `data` to one end, whole or in random chunks; what it makes of it."""
    events: list[Event] = []
    at = 0
    while True:
        while (event := to.next_event()) is not None:
            events.append(event)
        if at == len(data):
            return events
        buffer = to.get_buffer()
        n = min(len(buffer), len(data) - at)
        if rng is not None:
            n = min(n, rng.choice((1, 2, 15, 16, 17, 200, 5_000, n)))
        buffer[:n] = data[at : at + n]
        to.received(n)
        at += n


class ConnectionPair:
    """Alice and bob, joined: what one sends the other receives, re-chunked by the seed."""

    def __init__(self, seed: int | None = None, *, max_body: int = 1 << 30) -> None:
        self.alice = Exchange(Role.CALLER, max_body=max_body)
        self.bob = Exchange(Role.ANSWERER, max_body=max_body)
        self.rng = None if seed is None else random.Random(seed)

    def other(self, end: Exchange) -> Exchange:
        return self.bob if end is self.alice else self.alice

    def send(self, end: Exchange, *events: Event) -> list[Event]:
        """Sends as one write; checks that both ends agree on both states."""
        data = b"".join(b"".join(end.send(event)) for event in events)
        heard = deliver(data, self.other(end), self.rng)
        assert not self.other(end).in_frame
        if self.alice.state is not State.FAILED:
            assert self.alice.state is self.bob.their_state
            assert self.bob.state is self.alice.their_state
        return heard


def same(a: object, b: object) -> bool:
    """Events by their JSON forms: arrays do not compare."""
    return type(a) is type(b) and describe(a) == describe(b)


def describe(event: Any) -> dict[str, object]:  # Any: one of the events, field by field
    return {
        name: [[h.provider, h.digest, h.bytes_in, h.bytes_out, h.us, h.wire] for h in event.trace]
        if name == "trace"
        else to_json(getattr(event, name))
        for name in type(event).__slots__
        if name != "params" or event.params
    }


HOP = Hop("12D3alice", "sha256:ab", 10, 20, 300)
COMPACT_HOP = Hop("12D3bob", None, 10, 20, 300, "int8")
TENSOR = np.arange(40_000, dtype=np.float32).reshape(200, 200)
CALL = Call(
    "acme/sentiment@2",
    {"text": "good", "image": TENSOR, "mask": [np.zeros((0, 3), bool)]},
    method="stream",
    params={"top_k": 3, "stop": ["."]},
    deadline_us=30_000_000,
    key="k1",
    session="s1",
    upstream="12D3carol",
    position=7,
    trace=(HOP,),
    auth=b"\0token",
    extra={"future": [1, {"x": None}]},
    wire="float16",
)
RESULT = Result(TENSOR[::-1], "sha256:ab", "12D3bob", 12, 345, (HOP, COMPACT_HOP), {"more": 1}, "float16")


# --- the table ---


def test_the_table_is_total_and_a_call_ends_once() -> None:
    """Every kind in every state is either in the table or an error, on the sending and on the far side."""
    events: dict[Kind, Event] = {
        Kind.CALL: Call("m"),
        Kind.OPEN_CALL: Call("m", open_input=True),
        Kind.ITEM: Item(1),
        Kind.END: End(),
        Kind.RESULT: Result(),
        Kind.FAULT: Fault(Code.BUSY),
    }
    ends: dict[Role, Callable[[ConnectionPair], Exchange]] = {
        Role.CALLER: lambda pair: pair.alice,
        Role.ANSWERER: lambda pair: pair.bob,
    }
    reach: dict[tuple[Role, State], list[tuple[Role, Event]]] = {
        (Role.CALLER, State.IDLE): [],
        (Role.ANSWERER, State.IDLE): [],
        (Role.CALLER, State.SENDING): [(Role.CALLER, Call("m", open_input=True))],
        (Role.CALLER, State.DONE): [(Role.CALLER, Call("m"))],
        (Role.ANSWERER, State.ANSWERING): [(Role.CALLER, Call("m"))],
        (Role.ANSWERER, State.DONE): [
            (Role.CALLER, Call("m", open_input=True)),
            (Role.ANSWERER, Result()),
        ],
    }
    for (role, state), path in reach.items():
        for kind, event in events.items():
            pair = ConnectionPair()
            for sender, step in path:
                pair.send(ends[sender](pair), step)
            end = ends[role](pair)
            assert end.state is state
            if kind in TRANSITIONS[role].get(state, {}):
                pair.send(end, event)
                continue
            before = (end.state, end.their_state, end.bytes_out)
            with pytest.raises(LocalProtocolError) as local:
                end.send(event)
            assert local.value.code is Code.INTERNAL
            assert (end.state, end.their_state, end.bytes_out) == before
            with pytest.raises(RemoteProtocolError) as remote:
                deliver(frame(kind, b"", b"\xc0"), pair.other(end))
            assert remote.value.code is Code.BAD_INPUT


@pytest.mark.parametrize("seed", range(20))
def test_a_call_and_its_result_arrive_whole_however_they_are_cut(seed: int) -> None:
    pair = ConnectionPair(seed)
    for _ in range(3):  # the stream is used again
        (call,) = pair.send(pair.alice, CALL)
        assert same(call, CALL)
        (result,) = pair.send(pair.bob, RESULT)
        assert same(result, RESULT)
        assert pair.alice.state is pair.bob.state is State.IDLE
        assert (pair.alice.bytes_in, pair.alice.bytes_out) == (pair.bob.bytes_out, pair.bob.bytes_in)
        assert pair.alice.bytes_out > TENSOR.nbytes


@pytest.mark.parametrize("seed", range(10))
def test_items_flow_both_ways_and_many_frames_come_in_one_read(seed: int) -> None:
    pair = ConnectionPair(seed if seed else None)
    items: list[Event] = [Item({"token": i, "logits": np.full(i, i, np.float16)}) for i in range(50)]
    heard = pair.send(pair.alice, Call("m", open_input=True), *items, End())
    assert isinstance(heard[0], Call)
    assert heard[0].open_input
    assert all(map(same, heard[1:], [*items, End()]))
    heard = pair.send(pair.bob, *items, Result(None))
    assert all(map(same, heard, [*items, Result(None)]))
    assert pair.alice.state is pair.bob.state is State.IDLE


def test_bob_may_answer_before_alice_has_said_all_and_the_stream_is_still_good() -> None:
    pair = ConnectionPair()
    pair.send(pair.alice, Call("m", open_input=True), Item(1))
    assert same(pair.send(pair.bob, Fault(Code.BUSY, "full", True))[0], Fault(Code.BUSY, "full", True))
    assert (pair.alice.state, pair.bob.state) == (State.SENDING, State.DONE)
    assert pair.send(pair.alice, Item(2), Item(TENSOR)) == []
    assert pair.send(pair.alice, End()) == []
    assert pair.alice.state is pair.bob.state is State.IDLE
    assert same(pair.send(pair.alice, Call("again"))[0], Call("again"))


def test_alice_may_end_one_call_and_begin_the_next_in_one_write() -> None:
    pair = ConnectionPair()
    pair.send(pair.alice, Call("m", open_input=True))
    pair.send(pair.bob, Result(1))
    assert same(pair.send(pair.alice, Item(0), End(), Call("next"))[0], Call("next"))


def test_compact_tensors_travel_in_the_form_that_the_call_asked_for_and_in_no_other() -> None:
    compact = compact_tensor(TENSOR, "int8")
    pair = ConnectionPair(5)
    (call,) = pair.send(pair.alice, Call("m", [compact, TENSOR], wire="int8"))
    assert isinstance(call, Call)
    value: Any = call.value
    tensor, plain = value
    assert (tensor.wire, tensor.dtype, tensor.shape) == ("int8", "float32", TENSOR.shape)
    assert bytes(tensor.data) == bytes(compact.data)
    assert np.array_equal(plain, TENSOR)
    for wrong in (
        Item(compact),
        Result(compact),
        Item(TENSOR, wire="float16"),
        Result(compact, wire="float16"),
    ):
        with pytest.raises(LocalProtocolError):
            pair.bob.send(wrong)
    (item,) = pair.send(pair.bob, Item(compact, wire="int8"))
    assert isinstance(item, Item)
    assert item.wire == "int8"
    pair.send(pair.bob, Result(TENSOR))  # it need not

    pair.send(pair.alice, Call("m"))  # and what one call asked for is not asked for by the next
    with pytest.raises(LocalProtocolError):
        pair.bob.send(Result(compact, wire="int8"))
    pair.bob.wire = "int8"
    with pytest.raises(RemoteProtocolError, match="did not ask") as caught:
        deliver(b"".join(pair.bob.send(Result(compact, wire="int8"))), pair.alice)
    assert caught.value.code is Code.BAD_INPUT


def test_an_unknown_code_becomes_internal_and_a_fault_an_error_that_names_the_peer() -> None:
    alice = Exchange(Role.CALLER)
    alice.send(Call("m"))
    head = {"code": "on-fire", "message": "m", "hint": "h", "retryable": True}
    (fault,) = deliver(frame(Kind.FAULT, pack_tree(head)), alice)
    assert fault == Fault(Code.INTERNAL, "m", True, "h")
    error = fault.error("12D3bob")
    assert (error.code, error.peer, error.retryable, error.hint) == (Code.INTERNAL, "12D3bob", True, "h")
    assert Fault.of(error) == fault


def test_a_fault_can_always_be_sent() -> None:
    pair = ConnectionPair()
    pair.send(pair.alice, Call("m"))
    with pytest.raises(LocalProtocolError) as caught:
        pair.bob.send(Result(object()))
    assert caught.value.code is Code.BAD_INPUT
    (fault,) = pair.send(pair.bob, Fault(Code.MODEL_ERROR, "é\ud800" * 9_000, hint="h" * 99_999))
    assert isinstance(fault, Fault)
    assert fault.message.startswith("é?")


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (Call("m" * 513), Code.BAD_INPUT),
        (Call("m", method="x" * 129), Code.BAD_INPUT),
        (Call("m", params={"p": "x" * MAX_HEAD_BYTES}), Code.BAD_INPUT),
        (Call("m", params={"p": np.zeros(2)}), Code.BAD_INPUT),
        (Call("m", deadline_us=-1), Code.BAD_INPUT),
        (Call("m", auth=bytes(4097)), Code.BAD_INPUT),
        (Call("m", trace=(HOP,) * 65), Code.BAD_INPUT),
        (Call("m", extra={"target": "n"}), Code.BAD_INPUT),
        (Call("m", wire="int4"), Code.BAD_INPUT),
        (Call("m", compact_tensor(TENSOR, "int8"), wire="float16"), Code.BAD_INPUT),
        (Call("m", bytes(2_000)), Code.TOO_LARGE),
        (Call("m", {1: 2}), Code.BAD_INPUT),
    ],
)
def test_what_the_far_side_would_refuse_is_refused_here_and_nothing_changes(call: Call, code: Code) -> None:
    pair = ConnectionPair(max_body=1_000)
    with pytest.raises(LocalError) as caught:
        pair.alice.send(call)
    assert caught.value.code is code
    assert pair.alice.state is State.IDLE
    assert same(pair.send(pair.alice, Call("m"))[0], Call("m"))


# --- ends ---


def end_stream(end: Exchange) -> None:
    end.get_buffer()
    end.received(0)


def test_a_stream_that_ends_between_calls_ends_well() -> None:
    pair = ConnectionPair()
    pair.send(pair.alice, Call("m"))
    result = b"".join(pair.bob.send(Result(5)))
    pair.alice.get_buffer()[: len(result)] = result
    pair.alice.received(len(result))
    end_stream(pair.alice)  # the end came with the last bytes
    assert same(pair.alice.next_event(), Result(5))
    for end in (pair.alice, pair.bob):
        if end is pair.bob:
            end_stream(end)
        assert end.next_event() is None
        assert end.next_event() is None
        assert end.state is end.their_state is State.ENDED
        with pytest.raises(LocalProtocolError):
            end.get_buffer()
        with pytest.raises(LocalProtocolError):
            end.send(Call("m"))


def test_a_stream_that_ends_inside_of_a_call_or_a_frame_is_an_error() -> None:
    pair = ConnectionPair()
    pair.send(pair.alice, Call("m"))
    for end in (pair.alice, pair.bob):
        end_stream(end)
        for _ in range(2):
            with pytest.raises(RemoteProtocolError) as caught:
                end.next_event()
            assert caught.value.code is Code.UNREACHABLE
            assert caught.value.retryable
    call = b"".join(Exchange(Role.CALLER).send(Call("m", TENSOR)))
    for cut in (1, 15, 16, 20, 100, len(call) - 1):
        bob = Exchange(Role.ANSWERER)
        deliver(call[:cut], bob)
        assert bob.in_frame
        end_stream(bob)
        with pytest.raises(RemoteProtocolError):
            bob.next_event()


def test_received_and_get_buffer_judge_their_driver() -> None:
    bob = Exchange(Role.ANSWERER)
    with pytest.raises(LocalProtocolError):
        bob.received(1)
    assert len(bob.get_buffer(100)) == 100
    with pytest.raises(LocalProtocolError):
        bob.received(101)
    flood = b"".join(b"".join(Exchange(Role.CALLER).send(Call("m"))) for _ in range(2_000))
    with pytest.raises(LocalProtocolError):  # a driver that never takes an event
        for _ in range(100):
            room = bob.get_buffer()
            room[:] = flood[: len(room)]
            bob.received(len(room))


# --- memory ---


def frame(
    word: int, head: bytes = b"", body: bytes = b"", *, zero: int = 0, announced: int | None = None
) -> bytes:
    return HEADER.pack(word, zero, len(head), len(body) if announced is None else announced) + head + body


CALL_HEAD = pack_tree({"target": "m"})


def test_a_large_body_is_read_into_one_allocation_and_never_moved() -> None:
    rooms: list[bytearray] = []

    def allocate(size: int, fields: Mapping[str, object]) -> bytearray:
        assert fields["target"] == "m"  # the head is known by then
        rooms.append(bytearray(size))
        return rooms[-1]

    bob = Exchange(Role.ANSWERER, allocate=allocate)
    buffers = Exchange(Role.CALLER).send(Call("m", TENSOR))
    assert any(np.shares_memory(np.frombuffer(buffer, np.uint8), TENSOR) for buffer in buffers)
    (call,) = deliver(b"".join(buffers), bob)
    assert isinstance(call, Call)
    assert [len(room) for room in rooms] == [sum(map(len, buffers)) - 16 - buffers_head(buffers)]
    assert np.shares_memory(np.frombuffer(rooms[0], np.uint8), call.value)
    assert np.array_equal(call.value, TENSOR)  # type: ignore[arg-type]  # as above


def buffers_head(buffers: Iterable[Buffer]) -> int:
    return int(HEADER.unpack_from(next(iter(buffers)))[2])


def test_get_buffer_is_a_slice_of_the_body_while_one_arrives() -> None:
    bob = Exchange(Role.ANSWERER)
    data = b"".join(Exchange(Role.CALLER).send(Call("m", TENSOR)))
    assert deliver(data[:1_000], bob) == []
    assert len(bob.get_buffer()) == len(data) - 1_000
    assert len(bob.get_buffer(10)) == 10
    (call,) = deliver(data[1_000:], bob)
    assert isinstance(call, Call)
    assert call.value.ctypes.data % 64 == 0  # type: ignore[attr-defined]  # an array
    assert call.value.flags.writeable  # type: ignore[attr-defined]


@pytest.mark.parametrize("padding", range(40, 60))
def test_an_empty_tensor_right_behind_the_tree_needs_no_bytes(padding: int) -> None:
    pair = ConnectionPair()
    call = Call("m", ["x" * padding, np.zeros((0, 2))])
    assert same(pair.send(pair.alice, call)[0], call)


def test_small_frames_come_with_one_read_and_outlive_the_scratch() -> None:
    pair = ConnectionPair()
    values = []
    for i in range(5):
        data = b"".join(pair.alice.send(Call("m", np.full(100, i, np.int32))))
        room = pair.bob.get_buffer()
        assert len(room) > len(data)
        room[: len(data)] = data
        pair.bob.received(len(data))
        call = pair.bob.next_event()
        assert isinstance(call, Call)
        values.append(call.value)
        pair.send(pair.bob, Result())
    assert [int(value[0]) for value in values] == [0, 1, 2, 3, 4]  # type: ignore[index]  # arrays


def test_a_head_of_64_kib_is_taken_and_its_room_given_back() -> None:
    pair = ConnectionPair(3)
    call = Call("m", params={"p": "x" * (MAX_HEAD_BYTES - 40)})
    assert same(pair.send(pair.alice, call)[0], call)
    assert len(pair.bob.get_buffer()) == 1 << 14


def test_nothing_is_allocated_before_the_header_is_judged() -> None:
    def never(size: int, fields: Mapping[str, object]) -> bytearray:
        raise AssertionError(f"{size} bytes asked for")

    for bad in (
        frame(Kind.CALL, CALL_HEAD, announced=1_000_001),
        frame(Kind.CALL, CALL_HEAD, announced=(1 << 64) - 1),
        frame(Kind.ITEM, announced=1_000_000),
        frame(Kind.CALL, b"\xc1", announced=1_000_000),
        frame(Kind.CALL, b"\x80", announced=1_000_000),
        frame(0x0006, announced=1_000_000),
        HEADER.pack(Kind.CALL, 0, MAX_HEAD_BYTES + 1, 0),
        HEADER.pack(Kind.CALL, 0, (1 << 32) - 1, 0),
    ):
        bob = Exchange(Role.ANSWERER, max_body=1_000_000, allocate=never)
        with pytest.raises(RemoteProtocolError):
            deliver(bad, bob)
        assert bob.their_state is State.FAILED


def test_a_refused_call_may_be_answered_with_one_fault() -> None:
    pair = ConnectionPair(max_body=1_000_000)
    pair.alice._max_body = 1 << 30
    with pytest.raises(RemoteProtocolError) as caught:
        pair.send(pair.alice, Call("m", bytes(1_000_001)))
    assert caught.value.code is Code.TOO_LARGE
    (fault,) = deliver(b"".join(pair.bob.send(Fault.of(caught.value))), pair.alice)
    assert isinstance(fault, Fault)
    assert fault.code is Code.TOO_LARGE
    with pytest.raises(LocalProtocolError):
        pair.bob.send(Fault(Code.BUSY))


def test_no_memory_for_a_body_is_the_end_of_that_stream_alone() -> None:
    def full(size: int, fields: Mapping[str, object]) -> bytearray:
        raise MemoryError

    bob = Exchange(Role.ANSWERER, allocate=full)
    with pytest.raises(RemoteProtocolError) as caught:
        deliver(frame(Kind.CALL, CALL_HEAD, announced=1 << 20), bob)
    assert caught.value.code is Code.TOO_LARGE


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_withheld_bodies_cost_no_memory() -> None:
    """A gibibyte is announced and not sent: the pages of its allocation are never touched."""
    with open("/proc/self/statm") as statm:
        before = int(statm.read().split()[1])
    held = []
    for _ in range(8):
        bob = Exchange(Role.ANSWERER)
        deliver(frame(Kind.CALL, CALL_HEAD, announced=1 << 30), bob)
        held.append(bob)
    with open("/proc/self/statm") as statm:
        grown = (int(statm.read().split()[1]) - before) * 4096
    assert grown < 32 << 20


# --- strangers ---


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ({}, b"\xc0"),
        ({"target": 1}, b"\xc0"),
        ({"target": "m" * 513}, b"\xc0"),
        ({"target": "m", "deadline_us": -1}, b"\xc0"),
        ({"target": "m", "deadline_us": True}, b"\xc0"),
        ({"target": "m", "deadline_us": 1 << 63}, b"\xc0"),
        ({"target": "m", "position": 1.5}, b"\xc0"),
        ({"target": "m", "auth": "text"}, b"\xc0"),
        ({"target": "m", "params": []}, b"\xc0"),
        ({"target": "m", "trace": [["p", None, 1, 2]]}, b"\xc0"),
        ({"target": "m", "trace": [["p", None, 1, 2, -3]]}, b"\xc0"),
        ({"target": "m", "trace": [["p", 5, 1, 2, 3]]}, b"\xc0"),
        ({"target": "m", "trace": [["p", None, 1, 2, 3]] * 65}, b"\xc0"),
        ({"target": "m", "tree": 2}, b"\xc0"),
        ({"target": "m", "tree": 0}, b"\xc0"),
        ({"target": "m", "tree": "1"}, b"\xc0"),
        ({"target": "m"}, b""),
        ({"target": "m"}, b"\xc0\xc0"),
        ({"target": "m"}, b"\xd5\x01\x02\x00"),
        ([], b"\xc0"),
    ],
)
def test_heads_and_bodies_that_lie_end_the_stream(head: object, body: bytes) -> None:
    bob = Exchange(Role.ANSWERER)
    for _ in range(2):
        with pytest.raises(RemoteProtocolError) as caught:
            deliver(frame(Kind.CALL, pack_tree(head), body), bob)
        assert caught.value.code is Code.BAD_INPUT


def test_unknown_flags_reserved_bits_and_bodies_without_a_place_end_the_stream() -> None:
    for bad in (
        frame(0x0201, CALL_HEAD, b"\xc0"),
        frame(0x0102, b"", b"\xc0"),
        frame(0x0000),
        frame(Kind.CALL, CALL_HEAD, b"\xc0", zero=1),
    ):
        with pytest.raises(RemoteProtocolError):
            deliver(bad, Exchange(Role.ANSWERER))
    alice = Exchange(Role.CALLER)
    alice.send(Call("m"))
    with pytest.raises(RemoteProtocolError):
        deliver(frame(Kind.FAULT, pack_tree({"code": "busy"}), b"\xc0"), alice)


def test_unknown_fields_come_back_as_they_were() -> None:
    head = pack_tree({"value": 1, "open_input": True, "extra": {"a": 1}, "target": "m"})
    (call,) = deliver(frame(Kind.CALL, head, b"\xc0"), Exchange(Role.ANSWERER))
    assert call == Call("m", extra={"value": 1, "open_input": True, "extra": {"a": 1}})
    (again,) = deliver(b"".join(Exchange(Role.CALLER).send(call)), Exchange(Role.ANSWERER))
    assert again == call


heads = st.dictionaries(
    st.sampled_from(["target", "method", "params", "trace", "tree", "deadline_us", "code", "message", "x"]),
    st.none() | st.integers(-1, 1 << 63) | st.text(max_size=3) | st.lists(st.integers(), max_size=5),
    max_size=5,
)
frames = st.builds(
    frame,
    st.sampled_from(list(Kind)) | st.integers(0, 0xFFFF),
    st.binary(max_size=30) | heads.map(lambda head: bytes(_packed(head))),
    st.just(b"\xc0") | st.binary(max_size=100),
    zero=st.sampled_from([0, 0, 0, 0, 1]),
    announced=st.none() | st.integers(0, (1 << 64) - 1),
)


def _packed(head: Mapping[str, object]) -> bytes:
    try:
        return pack_tree(head)
    except ValueError:  # an integer of more than 64 bits
        return b"\x80"


@settings(max_examples=400)
@given(st.lists(frames | st.binary(max_size=50), max_size=4), st.sampled_from(Role), st.integers())
def test_only_a_remote_protocol_error_leaves(parts: list[bytes], role: Role, seed: int) -> None:
    end = Exchange(role, max_body=1 << 16)
    if role is Role.CALLER:
        end.send(Call("m", open_input=True))
    try:
        deliver(b"".join(parts), end, random.Random(seed))
        end_stream(end)
        end.next_event()
    except RemoteProtocolError:
        assert end.their_state is State.FAILED
        with pytest.raises(RemoteProtocolError):
            end.next_event()


@settings(max_examples=300)
@given(st.data(), st.integers())
def test_a_flipped_byte_never_does_more_than_end_the_stream(data: st.DataObject, seed: int) -> None:
    call = Call("m", {"a": np.arange(5), "b": True}, params={"k": [1]}, trace=(HOP,))
    wire = bytearray(b"".join(Exchange(Role.CALLER).send(call)))
    wire[data.draw(st.integers(0, len(wire) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        deliver(bytes(wire), Exchange(Role.ANSWERER, max_body=1 << 20), random.Random(seed))
    except RemoteProtocolError:
        pass


@settings(max_examples=100)
@given(st.lists(st.integers(0, 5), max_size=40), st.integers())
def test_two_honest_ends_always_agree(choices: list[int], seed: int) -> None:
    """Whatever either sends that it may send, the other takes, and both know both states."""
    pair = ConnectionPair(seed)
    moves: list[tuple[Exchange, Event]] = [
        (pair.alice, Call("m", 1)),
        (pair.alice, Call("m", TENSOR, open_input=True)),
        (pair.alice, Item([1, np.zeros(3)])),
        (pair.alice, End()),
        (pair.bob, Item("token")),
        (pair.bob, Result(TENSOR)),
    ]
    for choice in choices:
        end, event = moves[choice]
        late = end is pair.alice and pair.bob.state is State.DONE
        try:
            heard = pair.send(end, event)
        except LocalProtocolError:
            continue
        assert late or same(heard[0], event)


def test_garbage_in_a_steady_stream_takes_no_memory() -> None:
    rng = random.Random(7)
    tracemalloc.start()
    for _ in range(200):
        with pytest.raises(RemoteProtocolError):
            deliver(
                HEADER.pack(Kind.CALL, 0, 60_000, 1 << 40) + rng.randbytes(60_000), Exchange(Role.ANSWERER)
            )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.live
def test_the_machine_alone_does_not_import_numpy() -> None:
    """Thin commands speak these frames to their peer and start in milliseconds."""
    code = "import sys, modelnet_p2p.exchange, modelnet_p2p.jsonvalue; sys.exit('numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- golden vectors ---


def build(kind: str, fields: dict[str, Any]) -> Event:  # Any: JSON
    fields = {**fields}
    if "value" in fields:
        fields["value"] = from_json(fields["value"])
    if "trace" in fields:
        fields["trace"] = tuple(Hop(*row) for row in fields["trace"])
    if "auth" in fields:
        fields["auth"] = from_json(fields["auth"])
    if "code" in fields:
        fields["code"] = Code(fields["code"])
    kinds: dict[str, Callable[..., Event]] = {
        "call": Call,
        "item": Item,
        "end": End,
        "result": Result,
        "fault": Fault,
    }
    return kinds[kind](**fields)


GOLDEN = json.loads(VECTORS.read_text())


def opened(sender: Role, event: Event) -> ConnectionPair:
    """A pair in which `sender` may send `event`."""
    pair = ConnectionPair()
    if sender is Role.ANSWERER:
        pair.send(pair.alice, Call("m"))
    elif not isinstance(event, Call):
        pair.send(pair.alice, Call("m", open_input=True))
    return pair


@pytest.mark.parametrize("vector", GOLDEN["frames"], ids=lambda vector: vector["name"])
def test_golden_frames(vector: dict[str, Any]) -> None:
    event = build(vector["kind"], vector["fields"])
    sender = Role[vector["sender"].upper()]
    pair = opened(sender, event)
    end = pair.alice if sender is Role.CALLER else pair.bob
    wire = b"".join(end.send(event))
    assert wire.hex() == vector["hex"]
    (heard,) = deliver(wire, pair.other(end))
    assert same(heard, event)


@pytest.mark.parametrize("vector", GOLDEN["refused"], ids=lambda vector: vector["name"])
def test_golden_refusals(vector: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        deliver(bytes.fromhex(vector["hex"]), Exchange(Role.ANSWERER))
    assert caught.value.code == vector["code"]


trees = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.text(max_size=4)
    | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3) | st.integers(-9, 9), inner, max_size=4)
    ),
    max_leaves=20,
)
loose_heads = st.dictionaries(
    st.sampled_from(["target", "params", "trace", "key", "wire", "digest", "x"]) | st.binary(max_size=2),
    trees,
    max_size=6,
)


@settings(max_examples=600)
@given(
    st.sampled_from(Kind), loose_heads.map(msgpack.packb) | trees.map(msgpack.packb) | st.binary(max_size=60)
)
def test_a_small_head_is_judged_as_a_large_one(kind: Kind, data: bytes) -> None:
    """Small ones are decoded before they are looked over; what is taken and what is refused is the same."""

    def judged(small: int) -> object:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(frame_module, "SMALL_BYTES", small)
            try:
                return frame_module.decode_head(kind, data)
            except BadPayload:
                return BadPayload

    assert judged(1024) == judged(-1)


@settings(max_examples=600)
@given(
    trees.map(msgpack.packb) | st.binary(max_size=60) | st.text(max_size=40).map(msgpack.packb), st.booleans()
)
def test_an_item_that_comes_whole_is_judged_as_one_that_comes_in_pieces(body: bytes, more: bool) -> None:
    """The former is read in one step; so are the bytes behind it left where they are."""
    frame = HEADER.pack(Kind.ITEM, 0, 0, len(body)) + body
    heard: list[object] = []
    for rng in (None, random.Random(1)):
        alice = Exchange(Role.CALLER)
        alice.send(Call("m"))
        try:
            events = deliver(frame * (1 + more), alice, rng)
        except RemoteProtocolError as error:
            heard.append((error.code, error.message, alice.their_state))
        else:
            heard.append((repr(events), alice.bytes_in, alice.their_state, alice.in_frame))
    assert heard[0] == heard[1]


@settings(max_examples=300)
@given(st.text(max_size=300) | trees | st.just(object()) | st.just(TENSOR) | st.just("\ud800"))
def test_an_item_is_written_as_with_a_head_that_is_empty(value: object) -> None:
    def written(event: Event) -> object:
        bob = Exchange(Role.ANSWERER, max_body=1 << 20)
        deliver(b"".join(Exchange(Role.CALLER).send(Call("m"))), bob)
        try:
            data = b"".join(bob.send(event))
        except LocalProtocolError as error:
            return error.code, error.message.removeprefix("ITEM: ").removeprefix("RESULT: ")
        return data[2:], bob.bytes_out

    assert written(Item(value)) == written(Result(value))


@pytest.mark.parametrize(
    "opening", [b"\xdc\x00\x40", b"\xdd\x00\x00\x04\x00", b"\x9f", b"\x91", b"\x8f", b"\xde\xff\xff"]
)
def test_the_worst_small_heads_cost_little(opening: bytes) -> None:
    data = opening * (1024 // len(opening))
    tracemalloc.start()
    try:
        with pytest.raises(BadPayload):
            frame_module.decode_head(Kind.CALL, data)
        assert tracemalloc.get_traced_memory()[1] < 400_000
    finally:
        tracemalloc.stop()
