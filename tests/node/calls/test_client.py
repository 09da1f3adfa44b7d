"""What a provider may do to a caller: break off, dawdle, say too much, say nothing."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing

from modelnet_p2p.errors import Code, NotFound, RemoteError
from modelnet_p2p.events import Call, Fault, Item, Result
from modelnet_p2p.frames import HEADER, Kind
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.node.calls.client import MAX_IDLE_STREAMS, Progress
from modelnet_p2p.node.calls.pipe import _take
from modelnet_p2p.node.calls.tries import Tries, may_move, next_candidate
from modelnet_p2p.node.transport.contract import Stream

# Any: the fixture that opens a pair of peers, see conftest.py
OpenPair = Any
CALL = Call("m", 1)


async def test_a_stream_that_went_stale_in_the_pool_costs_no_call(open_pair: OpenPair) -> None:
    async def one_call_a_stream(line: Any) -> None:
        await line.say(Result((await line.hear()).value))
        await line.stream.reset()

    async with open_pair(one_call_a_stream) as pair:
        for number in range(5):
            assert (await pair.ask(Call("m", number))).value == number
            await trio.testing.wait_all_tasks_blocked()


async def test_a_stream_that_was_idle_for_long_is_not_used_again(
    open_pair: OpenPair, autojump_clock: trio.testing.MockClock
) -> None:
    opened = 0

    async def answers(line: Any) -> None:
        nonlocal opened
        opened += 1
        while (call := await line.hear()) is not None:
            await line.say(Result(call.value))

    async with open_pair(answers) as pair:
        for pause in (9.0, 10.5, 0.0):  # the pool keeps streams for ten seconds
            await pair.ask(CALL)
            await trio.sleep(pause)
        assert opened == 2


async def test_an_answer_given_in_advance_is_not_taken_for_the_next_call(open_pair: OpenPair) -> None:
    async def eager(line: Any) -> None:
        while (call := await line.hear()) is not None:
            frames = line.exchange.send(Result(call.value))
            stale = HEADER.pack(Kind.RESULT, 0, 0, 1) + b"\x07"
            await line.stream.send([b"".join([*frames, stale])])

    async with open_pair(eager) as pair:
        for number in range(3):
            assert (await pair.ask(Call("m", number))).value == number


async def test_who_trickles_an_answer_byte_by_byte_is_left(
    open_pair: OpenPair, autojump_clock: trio.testing.MockClock
) -> None:
    async def trickles(line: Any) -> None:
        await line.hear()
        frames = b"".join(line.exchange.send(Result("x" * 1000)))
        for byte in frames:
            await line.stream.send([bytes([byte])])
            await trio.sleep(0.9)  # a byte within each second, as if that were progress

    async with open_pair(trickles) as pair:
        progress = Progress()
        started = trio.current_time()
        with pytest.raises(RemoteError, match="stopped in the middle") as caught:
            await pair.ask(CALL, 600, progress)
        assert caught.value.code is Code.UNREACHABLE
        assert trio.current_time() - started < 5
        assert progress.sent
        assert pair.budget.taken == 0


async def test_a_slow_but_steady_answer_arrives(
    open_pair: OpenPair, autojump_clock: trio.testing.MockClock
) -> None:
    async def steady(line: Any) -> None:
        await line.hear()
        frames = b"".join(line.exchange.send(Result(bytes(60_000))))
        for at in range(0, len(frames), 1000):
            await line.stream.send([frames[at : at + 1000]])
            await trio.sleep(0.9)

    async with open_pair(steady) as pair:
        assert (await pair.ask(CALL, 600)).value == bytes(60_000)


async def test_a_withheld_body_ends_the_call_in_time(
    open_pair: OpenPair, autojump_clock: trio.testing.MockClock
) -> None:
    async def withholds(line: Any) -> None:
        await line.hear()
        await line.stream.send([HEADER.pack(Kind.RESULT, 0, 0, 500 << 20)])
        await trio.sleep_forever()

    async with open_pair(withholds) as pair:
        with pytest.raises(RemoteError) as caught, trio.fail_after(5):
            await pair.ask(CALL, 600)
        assert caught.value.code is Code.UNREACHABLE


async def test_an_answer_beyond_what_the_caller_expects_is_not_taken(open_pair: OpenPair) -> None:
    async def verbose(line: Any) -> None:
        await line.hear()
        await line.say(Result(np.zeros(1 << 20, np.uint8)))

    async with open_pair(verbose) as pair:
        with pytest.raises(RemoteError) as caught:
            await pair.client.unary(pair.bob.id, pair.bob.addrs, CALL, 5.0, max_body=65536)
        assert caught.value.code is Code.TOO_LARGE


async def test_why_a_call_was_not_taken_is_heard_although_it_was_still_being_sent(
    open_pair: OpenPair,
) -> None:
    async def declines(line: Any) -> None:
        await line.stream.receive_into(memoryview(bytearray(16)))
        fault = Fault(Code.TOO_LARGE, "no more than a megabyte here")
        line.exchange.refuse(Code.TOO_LARGE, "")
        await line.stream.send(line.exchange.send(fault))
        await line.stream.reset()

    async with open_pair(declines) as pair:
        progress = Progress()
        with pytest.raises(RemoteError, match="no more than a megabyte") as caught:
            await pair.ask(Call("m", np.zeros(8 << 20, np.uint8)), 10, progress)
        assert caught.value.code is Code.TOO_LARGE
        assert not progress.sent


async def test_a_provider_that_never_reads_is_left_and_nothing_ran_there(
    open_pair: OpenPair, autojump_clock: trio.testing.MockClock
) -> None:
    async def deaf(line: Any) -> None:
        await trio.sleep_forever()

    async with open_pair(deaf) as pair:
        progress = Progress()
        with pytest.raises(RemoteError) as caught:
            await pair.ask(Call("m", np.zeros(8 << 20, np.uint8)), 600, progress)
        assert caught.value.code is Code.SLOW_READER
        assert not progress.sent
        offer: Any = None
        assert may_move(caught.value, progress, offer)


async def test_items_without_an_end_stop_at_the_deadline(open_pair: OpenPair) -> None:
    async def endless(line: Any) -> None:
        await line.hear()
        while True:
            await line.say(Item(0))

    async with open_pair(endless) as pair:
        with pytest.raises(RemoteError) as caught, trio.fail_after(5):
            await pair.ask(CALL, 0.2)
        assert caught.value.code is Code.DEADLINE


async def test_a_call_may_have_no_deadline(open_pair: OpenPair) -> None:
    async def answers(line: Any) -> None:
        call = await line.hear()
        await line.say(Result(call.deadline_us))

    async with open_pair(answers) as pair:
        assert (await pair.ask(CALL, math.inf)).value == 86_400_000_000


async def test_a_peer_that_goes_while_its_idle_streams_are_closed(
    open_pair: OpenPair, autojump_clock: trio.testing.MockClock
) -> None:
    async def answers(line: Any) -> None:
        while (call := await line.hear()) is not None:
            await line.say(Result(call.value))

    class Parting(Stream):
        """Its reset takes a moment, in which the peer goes."""

        def __init__(self, inner: Stream, goes: Any) -> None:
            self.peer, self.protocol, self._inner, self._goes = inner.peer, inner.protocol, inner, goes

        async def send(self, buffers: Any) -> None:
            await self._inner.send(buffers)

        async def receive_into(self, buffer: memoryview) -> int:
            return await self._inner.receive_into(buffer)

        def on_broken(self, callback: Any) -> None:
            self._inner.on_broken(callback)

        async def finish(self) -> None:
            await self._inner.finish()

        async def reset(self) -> None:
            await self._goes()
            await self._inner.reset()

    async with open_pair(answers) as pair:
        await pair.ask(CALL)
        [(pipe, _)] = pair.client._idle[pair.bob.id]

        async def goes() -> None:
            await pair.carol.disconnect(pair.bob.id)

        pipe.stream = Parting(pipe.stream, goes)
        await trio.sleep(11)
        await pair.client.close_idle()
        assert pair.client._idle == {}


class Offered:
    """As much of an offer as the choice of candidates looks at."""

    def __init__(self, provider: str) -> None:
        self.provider = provider


def test_each_provider_is_asked_once_whatever_it_offers() -> None:
    offers: Any = [Offered(name) for name in "aabba"]
    moving: Any = type("Target", (), {"pinned": False})
    pinned: Any = type("Target", (), {"pinned": True})
    assert next_candidate(moving, offers, set()) is offers[0]
    assert next_candidate(moving, offers, {"a"}) is offers[2]
    assert next_candidate(moving, offers, {"a", "b"}) is None
    assert next_candidate(pinned, offers, set()) is offers[0]
    assert next_candidate(pinned, offers, {"a"}) is None


def test_when_a_call_may_move() -> None:
    def error(code: Code, retryable: bool | None = None) -> RemoteError:
        return RemoteError(code, "", retryable=retryable)

    safe: Any = type("Offer", (), {"record": type("Record", (), {"idempotent": True})})
    unsafe: Any = type("Offer", (), {"record": type("Record", (), {"idempotent": False})})
    unsent, sent, begun = Progress(), Progress(sent=True), Progress(sent=True, items=1)
    assert may_move(error(Code.BUSY, False), sent, unsafe)  # a foreign peer may leave the flag out
    assert may_move(error(Code.UNREACHABLE), unsent, unsafe)
    assert may_move(error(Code.UNKNOWN_METHOD), unsent, unsafe)
    assert may_move(error(Code.DEADLINE), unsent, unsafe)  # it could not even be reached in time
    assert may_move(error(Code.NOT_FOUND), sent, unsafe)  # withdrawn there meanwhile
    assert not may_move(error(Code.DEADLINE), sent, safe)
    assert not may_move(error(Code.UNREACHABLE), sent, unsafe)
    assert may_move(error(Code.UNREACHABLE), sent, safe)
    assert not may_move(error(Code.UNREACHABLE), begun, safe)
    assert not may_move(error(Code.MODEL_ERROR), sent, safe)
    assert may_move(error(Code.MODEL_ERROR, True), sent, safe)  # its process died, other calls were on
    assert not may_move(error(Code.MODEL_ERROR, True), sent, unsafe)
    assert not may_move(error(Code.MODEL_ERROR, True), begun, safe)
    assert not may_move(error(Code.UNKNOWN_METHOD), sent, safe)


async def test_as_many_streams_are_kept_as_callers_came_at_once(open_pair: OpenPair) -> None:
    opened = 0

    async def answers(line: Any) -> None:
        nonlocal opened
        opened += 1
        while (call := await line.hear()) is not None:
            await line.say(Result(call.value))

    async with open_pair(answers) as pair:
        for callers in (MAX_IDLE_STREAMS, MAX_IDLE_STREAMS, MAX_IDLE_STREAMS + 10):
            async with trio.open_nursery() as nursery:
                for _ in range(callers):
                    nursery.start_soon(pair.ask, CALL)
            await pair.client.close_idle()
        assert opened == MAX_IDLE_STREAMS + 10
        assert len(pair.client._idle[pair.bob.id]) == MAX_IDLE_STREAMS


async def test_a_small_call_makes_one_cancel_scope(
    open_pair: OpenPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answers(line: Any) -> None:
        while (call := await line.hear()) is not None:
            await line.say(Result(call.value))

    made = 0
    real = trio.CancelScope

    def counted(**options: Any) -> trio.CancelScope:
        nonlocal made
        made += 1
        return real(**options)

    async with open_pair(answers) as pair:
        await pair.ask(CALL)
        monkeypatch.setattr(trio, "CancelScope", counted)
        await pair.ask(CALL)
        assert made == 1


def test_what_is_sent_is_cut_without_a_copy() -> None:
    data = np.arange(1000, dtype=np.uint8).data
    rest = deque([data[:10], data[10:900], data[900:]])
    runs = []
    while rest:
        runs.append(_take(rest, 256))
    assert [sum(map(len, run)) for run in runs] == [256, 256, 256, 232]
    assert b"".join(part for run in runs for part in run) == bytes(data)
    assert all(part.obj is data.obj for run in runs for part in run)


class Diary:
    """As much of a router as its tries look at: what was found, and what went wrong."""

    def __init__(self, *found: Sequence[Any] | None) -> None:
        self._found = list(found)
        self.notes: list[tuple[str, Code]] = []
        self.hints: list[tuple[str, str]] = []
        self.hinted: Any = None

    def recall(self, query: Any) -> Any:
        return self._found.pop(0)

    async def find(self, target: Any, until: float) -> Any:
        return self._found.pop(0)

    async def find_at(self, target: Any, provider: str, like: Any) -> Any:
        self.hints.append((provider, like.provider))
        return self.hinted

    def note(self, target: Any, offer: Any, error: RemoteError) -> None:
        self.notes.append((offer.provider, error.code))


async def test_the_tries_of_one_call() -> None:
    record = SimpleNamespace(idempotent=False, provider=KeyPair(hashlib.sha256(b"bob").digest()).id)
    offers: list[Any] = [SimpleNamespace(provider=name, record=record) for name in ("anna", "ben", "cleo")]
    target: Any = SimpleNamespace(pinned=False, query=SimpleNamespace(provider=None), text="m")
    diary: Any = Diary(offers[:1], offers)  # what was remembered, and what a search finds
    tries = Tries(diary, target, trio.current_time() + 60)
    assert (await tries.next()) == offers[0]
    unreachable = RemoteError(Code.UNREACHABLE, "gone")
    assert tries.go_on(offers[0], unreachable, begun=False)
    assert (await tries.next()) == offers[0]  # nothing was sent: it is asked again where it is now
    tries.progress.sent = True
    assert tries.go_on(offers[0], RemoteError(Code.BUSY, "full"), begun=False)
    assert (await tries.next()) == offers[1]
    assert tries.last.code is Code.BUSY
    assert not tries.go_on(offers[1], RemoteError(Code.BUSY, "full"), begun=True)
    late = tries.too_late(3)
    assert (late.code, late.peer) == (Code.DEADLINE, record.provider.text)
    busy = ("anna", Code.BUSY), ("ben", Code.BUSY)
    assert diary.notes == [("anna", Code.UNREACHABLE), *busy, ("ben", Code.DEADLINE)]
    assert tries.number == 3


async def test_tries_that_find_nobody_say_so() -> None:
    target: Any = SimpleNamespace(pinned=False, query=SimpleNamespace(provider="bob"), text="m")
    diary: Any = Diary(None, [])
    tries = Tries(diary, target, trio.current_time() + 60)
    assert "search" in tries.too_late(3).message
    assert await tries.next() is None
    assert isinstance(tries.last, NotFound)
    assert "at peer bob" in tries.last.message


def busy(instead: str) -> RemoteError:
    return RemoteError(Code.BUSY, "full", instead=instead)


def story(*found: Any, pinned: bool = False) -> tuple[Any, Tries]:
    target: Any = SimpleNamespace(pinned=pinned, query=SimpleNamespace(provider=None), text="m")
    diary: Any = Diary(*found)
    return diary, Tries(diary, target, trio.current_time() + 60)


def offers_of(*names: str) -> list[Any]:
    record = SimpleNamespace(idempotent=False)
    return [SimpleNamespace(provider=name, record=record) for name in names]


async def test_a_call_at_which_two_models_died_is_not_tried_on_a_third() -> None:
    died = RemoteError(Code.MODEL_ERROR, "died (signal 9)", retryable=True)
    offers = offers_of("anna", "ben", "cleo")
    for offer in offers:
        offer.record.idempotent = True
    _, tries = story(offers, offers)
    assert await tries.next() == offers[0]
    tries.progress.sent = True
    assert tries.go_on(offers[0], died, begun=False)
    assert await tries.next() == offers[1]
    tries.progress.sent = True
    assert not tries.go_on(offers[1], died, begun=False)


async def test_a_busy_provider_names_another_who_is_asked_without_a_new_search() -> None:
    anna, ben, cleo = offers_of("anna", "ben", "cleo")
    diary, tries = story([anna, ben, cleo])  # remembered; a search would find nothing more to pop
    assert await tries.next() == anna
    assert tries.go_on(anna, busy("cleo"), begun=False)
    assert await tries.next() == cleo
    assert diary.hints == []


async def test_one_that_was_not_found_before_is_looked_up() -> None:
    anna, dora = offers_of("anna", "dora")
    diary, tries = story([anna])
    assert await tries.next() == anna
    diary.hinted = dora
    assert tries.go_on(anna, busy("dora"), begun=False)
    assert await tries.next() == dora
    assert diary.hints == [("dora", "anna")]
    assert tries.number == 2


async def test_a_hint_that_lies_is_followed_once_and_changes_nothing() -> None:
    anna, ben, cleo = offers_of("anna", "ben", "cleo")
    diary, tries = story([anna], [anna, ben, cleo])
    assert await tries.next() == anna
    assert tries.go_on(anna, busy("nobody"), begun=False)
    assert await tries.next() == ben  # of a new search, as without a hint
    assert tries.go_on(ben, busy("nobody else"), begun=False)
    assert await tries.next() == cleo
    assert not tries.go_on(cleo, busy("anna"), begun=True)
    assert diary.hints == [("nobody", "anna")]


async def test_a_hint_back_to_one_that_was_asked_or_for_a_pinned_call_is_none() -> None:
    anna, ben = offers_of("anna", "ben")
    diary, tries = story([anna], [anna, ben])
    assert await tries.next() == anna
    tries.progress.sent = True
    assert tries.go_on(anna, busy("anna"), begun=False)
    assert await tries.next() == ben
    _, tries = story([anna, ben], [anna, ben], pinned=True)
    assert await tries.next() == anna
    tries.progress.sent = True
    assert tries.go_on(anna, busy("ben"), begun=False)
    assert await tries.next() is None
    assert tries.last.code is Code.BUSY
    assert diary.hints == []
