"""What a caller may do to a provider: flood, dawdle, never read, break the rules, stay for ever."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing

from modelnet_p2p.errors import Code, ModelnetError
from modelnet_p2p.events import Call, End, Fault, Hop, Item, Result
from modelnet_p2p.exchange import Role
from modelnet_p2p.frames import HEADER, MAX_HOPS, Kind
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.node.calls.budget import Budget
from modelnet_p2p.node.calls.server import CallServer
from modelnet_p2p.node.serving.served import Answer
from modelnet_p2p.node.transport.contract import StreamReset
from modelnet_p2p.node.transport.memory_stream import MemoryStream, stream_pair

BOB, CAROL, DAVE = (KeyPair(bytes([n]) * 32).id for n in (1, 2, 3))
MIB = 1 << 20


class Bench:
    """A call server whose one model `m` is a function of the test's own; callers drive it by hand."""

    def __init__(self, nursery: trio.Nursery, run: Any, tuning: Any, line_of: Any, **bounds: Any) -> None:
        description = SimpleNamespace(digest=None)
        served = SimpleNamespace(
            run=run, load=0.0, description=description, allocate=lambda size: None, waits=True
        )
        models: Any = SimpleNamespace(
            get=lambda name, version="", digest=None: served if name == "m" else None,
            all=lambda: {"m": served},
        )
        self.served = served
        self.budget = Budget(BOB, bounds.pop("total", 64 * MIB), bounds.pop("per_peer", 32 * MIB))
        self.server = CallServer(BOB, models, tuning, self.budget, **bounds)
        self.ended = 0
        self._line_of = line_of
        self._nursery = nursery

    def line(self, caller: Any = CAROL) -> Any:
        """The caller's end of a new stream."""
        mine, theirs = stream_pair(caller, BOB, "call", trio.lowlevel.checkpoint)
        self._nursery.start_soon(self._handle, theirs)
        return self._line_of(mine, Role.CALLER)

    async def _handle(self, stream: MemoryStream) -> None:
        await self.server.handle(stream)
        await stream.finish()
        self.ended += 1


Open = Callable[..., Any]


async def echo(method: str, value: Any, params: Any, emit: Any, *_: Any) -> Answer:
    return Answer(value, 0, 0)


@pytest.fixture
def bench(tuning: Any, line_of: Any, nursery: trio.Nursery) -> Open:
    return lambda run=echo, **bounds: Bench(nursery, run, tuning, line_of, **bounds)


async def test_a_stream_carries_one_call_after_another(bench: Open) -> None:
    line = bench().line()
    for number in range(3):
        await line.say(Call("m", number))
        assert (await line.hear()).value == number
    await line.say(Call("nobody/has-this", 0))
    assert (await line.hear()).code is Code.NOT_FOUND
    await line.say(Call(f"modelnet:m?provider={CAROL}", 0))
    assert (await line.hear()).code is Code.NOT_FOUND  # meant for somebody else
    await line.say(Call("m", 9))
    assert (await line.hear()).value == 9


async def test_a_call_with_a_full_trace_is_told_so_and_does_not_run(bench: Open) -> None:
    async def never(*_: Any) -> Answer:
        raise AssertionError("it ran")

    line = bench(never).line()
    await line.say(Call("m", 1, trace=(Hop("p", None, 0, 0, 0),) * MAX_HOPS))
    assert (await line.hear()).code is Code.BAD_INPUT
    await line.say(Call("", method="ping"))
    assert isinstance(await line.hear(), Result)


async def test_an_answer_that_cannot_be_sent_is_a_fault(bench: Open) -> None:
    async def odd(*_: Any) -> Answer:
        return Answer(object(), 0, 0)

    line = bench(odd).line()
    for _ in range(2):
        await line.say(Call("m", 1))
        fault = await line.hear()
        assert isinstance(fault, Fault)
        assert fault.code is Code.MODEL_ERROR


async def test_nothing_of_a_call_is_held_once_it_is_answered(bench: Open) -> None:
    seen: list[weakref.ref[Any]] = []

    async def doubles(method: str, value: Any, params: Any, emit: Any, *_: Any) -> Answer:
        answer = value * 2
        seen.extend((weakref.ref(value), weakref.ref(answer)))
        return Answer(answer, 0, 0)

    desk = bench(doubles)
    line = desk.line()
    await line.say(Call("m", np.zeros(MIB, np.uint8)))
    assert (await line.hear()).value.shape == (MIB,)
    await trio.testing.wait_all_tasks_blocked()
    assert [ref() is None for ref in seen] == [True, True]
    assert desk.budget.taken == 0


async def test_a_caller_that_never_reads_loses_its_stream_and_the_model_is_told(
    bench: Open, autojump_clock: trio.testing.MockClock
) -> None:
    ends: list[ModelnetError] = []

    async def endless(method: str, value: Any, params: Any, emit: Any, *_: Any) -> Answer:
        try:
            while True:
                await emit(bytes(100_000))
        except ModelnetError as error:
            ends.append(error)
            raise

    desk = bench(endless)
    await desk.line().say(Call("m", 1))
    await trio.sleep(10)
    assert [error.code for error in ends] == [Code.SLOW_READER]
    assert (desk.ended, desk.server.streams, desk.budget.taken) == (1, 0, 0)


async def test_answers_that_nobody_reads_are_bounded(
    bench: Open, autojump_clock: trio.testing.MockClock
) -> None:
    async def large(*_: Any) -> Answer:
        return Answer(bytes(4 * MIB), 0, 0)

    desk = bench(large)
    for _ in range(100):  # 400 MiB, were they all made and kept
        await desk.line().say(Call("m", 1))
    await trio.sleep(0.1)
    assert desk.budget.taken <= 32 * MIB
    other = desk.line(DAVE)
    await other.say(Call("m", 1))
    assert len((await other.hear()).value) == 4 * MIB
    await trio.sleep(10)
    assert (desk.server.streams, desk.budget.taken) == (1, 0)


async def test_more_than_there_is_room_for_is_refused_with_a_reason(bench: Open) -> None:
    async def waits(*_: Any) -> Answer:
        await trio.sleep_forever()
        raise AssertionError

    desk = bench(waits, total=10 * MIB, per_peer=6 * MIB)
    first = desk.line()
    await first.say(Call("m", bytes(5 * MIB)))
    greedy = desk.line()
    with pytest.raises(StreamReset):
        await greedy.say(Call("m", bytes(5 * MIB)))
    assert (await greedy.hear()).code is Code.BUSY
    small = desk.line()
    await small.say(Call("", method="ping"))
    assert isinstance(await small.hear(), Result)
    await first.stream.reset()
    await trio.testing.wait_all_tasks_blocked()
    assert desk.budget.taken == 0


async def test_an_announced_body_that_never_comes_takes_nothing_from_others(
    bench: Open, autojump_clock: trio.testing.MockClock
) -> None:
    desk = bench()
    head = b"\x81\xa6target\xa1m"
    for _ in range(50):
        line = desk.line()
        await line.stream.send([HEADER.pack(Kind.CALL, 0, len(head), 500 * MIB) + head])
    other = desk.line(DAVE)
    await other.say(Call("m", bytes(MIB)))
    assert len((await other.hear()).value) == MIB
    await trio.sleep(5)
    assert (desk.server.streams, desk.budget.taken) == (1, 0)  # the others were cut off


async def test_idle_streams_are_closed_and_a_busy_one_is_not(
    bench: Open, autojump_clock: trio.testing.MockClock
) -> None:
    async def slow(*_: Any) -> Answer:
        await trio.sleep(100)
        return Answer("late", 0, 0)

    desk = bench(slow)
    silent, busy = desk.line(), desk.line()
    await busy.say(Call("m", 1, deadline_us=10**9))
    await trio.sleep(19)
    assert desk.server.streams == 2
    await trio.sleep(2)
    assert desk.server.streams == 1
    with pytest.raises(ModelnetError):
        await silent.hear()
    assert (await busy.hear()).value == "late"


async def test_a_new_caller_takes_the_place_of_the_stream_that_was_idle_longest(bench: Open) -> None:
    desk = bench(max_streams=3)
    lines = [desk.line() for _ in range(3)]
    for line in (lines[1], lines[0], lines[2]):
        await line.say(Call("m", 1))
        await line.hear()
    newcomer = desk.line(DAVE)
    await newcomer.say(Call("m", 1))
    assert (await newcomer.hear()).value == 1
    with pytest.raises(ModelnetError):
        await lines[1].hear()
    await lines[0].say(Call("m", 2))
    assert (await lines[0].hear()).value == 2


async def test_busy_streams_keep_their_places(bench: Open) -> None:
    async def waits(*_: Any) -> Answer:
        await trio.sleep_forever()
        raise AssertionError

    desk = bench(waits, max_streams=2)
    for _ in range(2):
        await desk.line().say(Call("m", 1))
    await trio.testing.wait_all_tasks_blocked()
    late = desk.line()
    await trio.testing.wait_all_tasks_blocked()
    with pytest.raises(ModelnetError):
        await late.hear()
    assert desk.server.streams == 2


async def test_ten_thousand_calls_at_once_end_that_stream_only(bench: Open) -> None:
    desk = bench()
    flood, honest = desk.line(), desk.line(DAVE)
    frame = b"".join(flood.exchange.send(Call("m", 1)))
    with suppress(ModelnetError):
        await flood.stream.send([frame * 10_000])
    fault = await flood.hear()
    assert isinstance(fault, Fault)
    assert fault.code is Code.BAD_INPUT
    assert await flood.hear() is None
    await honest.say(Call("m", 2))
    assert (await honest.hear()).value == 2
    assert desk.server.malformed == 1
    assert desk.server.streams == 1


@pytest.mark.parametrize("event", [Item(1), End(), Result(1), Fault(Code.BUSY)])
async def test_frames_out_of_turn_are_answered_with_a_reason(bench: Open, event: Any) -> None:
    desk = bench()
    line = desk.line()
    kind = {Item: Kind.ITEM, End: Kind.END, Result: Kind.RESULT, Fault: Kind.FAULT}[type(event)]
    body = b"\x01" if kind in (Kind.ITEM, Kind.RESULT) else b""
    await line.stream.send([HEADER.pack(kind, 0, 0, len(body)) + body])
    said = memoryview(bytearray(4096))
    count = await line.stream.receive_into(said)
    assert bytes(said[:1]) == b"\x05"
    assert b"bad-input" in bytes(said[:count])
    await trio.testing.wait_all_tasks_blocked()
    assert desk.ended == 1


async def test_a_rule_broken_while_an_item_goes_out_ends_in_order(
    bench: Open, autojump_clock: trio.testing.MockClock
) -> None:
    cancelled = trio.Event()

    async def endless(method: str, value: Any, params: Any, emit: Any, *_: Any) -> Answer:
        try:
            while True:
                await emit(bytes(100_000))
        finally:
            cancelled.set()

    desk = bench(endless)
    line = desk.line()
    await line.say(Call("m", 1))
    await trio.testing.wait_all_tasks_blocked()  # the window is full
    await line.stream.send([b"\xff" * 64])
    with trio.fail_after(5):
        await cancelled.wait()
        await trio.testing.wait_all_tasks_blocked()
    assert desk.ended == 1


async def test_a_caller_that_leaves_cancels_its_work(bench: Open) -> None:
    cancelled = trio.Event()

    async def waits(*_: Any) -> Answer:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()
        raise AssertionError

    for leave in ("reset", "finish"):
        cancelled = trio.Event()
        line = bench(waits).line()
        await line.say(Call("m", 1))
        await trio.testing.wait_all_tasks_blocked()
        await getattr(line.stream, leave)()
        with trio.fail_after(5):
            await cancelled.wait()


async def test_a_call_whose_caller_has_left_already_does_not_run(bench: Open) -> None:
    async def never(*_: Any) -> Answer:
        raise AssertionError("it ran")

    desk = bench(never)
    line = desk.line()
    await line.say(Call("m", 1))
    await line.stream.reset()  # before anybody else has had a turn
    await trio.testing.wait_all_tasks_blocked()
    assert (desk.ended, desk.server.streams, desk.server.malformed) == (1, 0, 0)


async def test_a_stream_takes_one_task_however_many_calls_it_carries(bench: Open) -> None:
    started = 0

    class Count(trio.abc.Instrument):
        def task_spawned(self, task: trio.lowlevel.Task) -> None:
            nonlocal started
            started += 1

    desk = bench()
    line = desk.line()
    counting = Count()
    trio.lowlevel.add_instrument(counting)
    for number in range(10):
        await line.say(Call("m", number))
        assert (await line.hear()).value == number
    trio.lowlevel.remove_instrument(counting)
    assert started == 0  # its own was there before


async def test_a_large_call_arrives_in_the_memory_that_its_model_names(bench: Open) -> None:
    rooms: list[memoryview] = []
    seen: list[Any] = []

    async def look(method: str, value: Any, *_: Any) -> Answer:
        seen.append(value)
        return Answer(None, 0, 0)

    def allocate(size: int) -> memoryview | None:
        if len(rooms) == 2:
            return None  # it has no more
        rooms.append(memoryview(bytearray(size)))
        return rooms[-1]

    desk = bench(look)
    desk.served.allocate = allocate
    line = desk.line()
    tensor = np.arange(MIB, dtype=np.float32)
    for _ in range(3):
        await line.say(Call("m", tensor))
        assert isinstance(await line.hear(), Result)
    assert all(np.array_equal(value, tensor) for value in seen)
    shares = [[np.shares_memory(value, np.frombuffer(room, np.uint8)) for room in rooms] for value in seen]
    assert shares == [[True, False], [False, True], [False, False]]
    for target in (
        "nobody/has-this",
        "no name at all!",
    ):  # and one that is not served costs its caller no more
        await line.say(Call(target, tensor))
        assert isinstance(await line.hear(), Fault)
    assert len(rooms) == 2
    assert desk.budget.taken == 0


async def test_a_call_may_arrive_slower_than_a_stream_may_be_idle(
    bench: Open, autojump_clock: trio.testing.MockClock
) -> None:
    line = bench().line()
    await line.say(Call("m", 1))  # its end starts the wait
    assert (await line.hear()).value == 1
    frame = b"".join(line.exchange.send(Call("m", bytes(60_000))))
    for at in range(0, len(frame), 1000):
        await line.stream.send([frame[at : at + 1000]])
        await trio.sleep(0.9)
    assert len((await line.hear()).value) == 60_000
    await trio.sleep(21)  # and then it is idle again
    with pytest.raises(ModelnetError):
        await line.hear()


async def test_an_answer_may_be_read_slower_than_a_stream_may_be_idle(
    bench: Open, autojump_clock: trio.testing.MockClock
) -> None:
    async def large(*_: Any) -> Answer:
        return Answer(bytes(4 * MIB), 0, 0)

    line = bench(large).line()
    await line.say(Call("m", 1))
    piece = memoryview(bytearray(128 << 10))
    left = 4 * MIB
    while left > 0:
        left -= await line.stream.receive_into(piece)
        await trio.sleep(1.0)
    assert left <= 0


async def test_each_call_puts_the_end_of_an_idle_stream_off(
    bench: Open, autojump_clock: trio.testing.MockClock
) -> None:
    desk = bench()
    line = desk.line()
    for number in range(20):
        await line.say(Call("m", number))
        assert (await line.hear()).value == number
        await trio.sleep(0.1 if number % 2 else 19)  # moved by little, and by much
    await trio.sleep(19)
    assert desk.server.streams == 1
    await trio.sleep(2)
    assert desk.server.streams == 0
