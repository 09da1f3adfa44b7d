"""Calls whose tensors travel in a compact form: chosen by the caller, bounded at the answerer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import trio
import trio.testing

from modelnet_p2p.compact import MIN_ELEMENTS, CompactTensor, compact_tensor
from modelnet_p2p.errors import Code, LocalError, RemoteError
from modelnet_p2p.events import Call, Fault, Item, Result
from modelnet_p2p.exchange import Role
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.node.calls import compacting, outcome
from modelnet_p2p.node.calls.budget import Budget
from modelnet_p2p.node.calls.pipe import EventPipe
from modelnet_p2p.node.calls.server import CallServer
from modelnet_p2p.node.serving.served import Answer
from modelnet_p2p.node.transport.memory_stream import stream_pair
from modelnet_p2p.tensor import allocate

OpenTown = Any  # the fixture that opens a town, see conftest.py
BOB, CAROL = (KeyPair(bytes([n]) * 32).id for n in (1, 2))
MIB = 1 << 20
X = np.random.default_rng(3).standard_normal((64, 4096)).astype(np.float32)


def near(a: Any, b: Any) -> bool:
    """As near as int8 is on such data."""
    return bool(a.dtype == b.dtype and a.shape == b.shape and np.abs(a - b).max() < 5 / 254 * 1.01)


# --- by hand ---


@pytest.fixture
def line_to(tuning: Any, line_of: Any, nursery: trio.Nursery) -> Callable[..., Any]:
    """A stream to bob's call server with one model, `m`, and his budget."""

    def opened(run: Any, per_peer: int = 32 * MIB) -> tuple[Any, Budget]:
        served = SimpleNamespace(
            run=run,
            load=0.0,
            description=SimpleNamespace(digest=None),
            allocate=lambda size: None,
            waits=True,
        )
        models: Any = SimpleNamespace(get=lambda *_: served, all=lambda: {"m": served})
        budget = Budget(BOB, 2 * per_peer, per_peer)
        mine, theirs = stream_pair(CAROL, BOB, "call", trio.lowlevel.checkpoint)
        nursery.start_soon(CallServer(BOB, models, tuning, budget).handle, theirs)
        return line_of(mine, Role.CALLER), budget

    return opened


async def test_the_model_sees_arrays_and_the_answer_is_compact_because_the_call_was(line_to: Any) -> None:
    seen: list[Any] = []

    async def run(method: str, value: Any, params: Any, emit: Any, *_: Any) -> Answer:
        seen.append(value)
        await emit({"half": value[: 64 // 2], "n": 1})
        return Answer([value, value[0, : MIN_ELEMENTS - 1]], 0, 0)

    line, budget = line_to(run)
    await line.say(Call("m", compact_tensor(X, "int8"), wire="int8"))
    item, result = await line.hear(), await line.hear()
    assert near(seen[0], X)
    assert (item.wire, result.wire, result.trace[0].wire) == ("int8", "int8", "int8")
    assert isinstance(item.value["half"], CompactTensor)
    large, small = result.value
    assert isinstance(large, CompactTensor)
    assert isinstance(small, np.ndarray)
    assert result.trace[0].bytes_in < X.nbytes / 3

    await line.say(Call("m", X))  # and the next call on this stream asks for nothing
    item, result = await line.hear(), await line.hear()
    assert (item.wire, result.wire, result.trace[0].wire) == ("", "", "")
    assert np.array_equal(result.value[0], X)
    await line.say(Call("m", X, wire="float16"))  # a form for the answer alone
    assert [(await line.hear()).wire for _ in range(2)] == ["float16", "float16"]
    await trio.testing.wait_all_tasks_blocked()
    assert budget.taken == 0


@pytest.mark.parametrize(("wire", "bad"), [("int8", np.nan), ("float16", 1e6)])
async def test_an_answer_that_does_not_fit_goes_out_as_it_is(line_to: Any, wire: str, bad: float) -> None:
    async def run(method: str, value: Any, *_: Any) -> Answer:
        return Answer({"fits": X, "not": np.full(X.shape, bad, np.float32)}, 0, 0)

    line, _ = line_to(run)
    await line.say(Call("m", wire=wire))
    result = await line.hear()
    assert isinstance(result.value["fits"], CompactTensor)
    assert np.array_equal(result.value["not"], np.full(X.shape, bad, np.float32), equal_nan=True)


async def test_what_becomes_of_compact_tensors_counts_before_memory_is_taken_for_it(line_to: Any) -> None:
    async def run(*_: Any) -> Answer:
        raise AssertionError("it does not fit")

    line, budget = line_to(run, per_peer=MIB)
    small = compact_tensor(np.zeros(512 << 10), "int8")  # half a MiB that becomes four
    await line.say(Call("m", small, wire="int8"))
    fault = await line.hear()
    assert isinstance(fault, Fault)
    assert fault.code is Code.BUSY
    await trio.testing.wait_all_tasks_blocked()
    assert budget.taken == 0


async def test_a_limit_on_a_body_is_one_on_what_becomes_of_it(tuning: Any) -> None:
    mine, theirs = stream_pair(CAROL, BOB, "call", trio.lowlevel.checkpoint)
    caller = EventPipe(mine, Role.CALLER, tuning, Budget(CAROL))
    answerer = EventPipe(theirs, Role.ANSWERER, tuning, Budget(BOB))
    answerer.limit = X.nbytes - 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(caller.send, Call("m", compact_tensor(X, "int8"), wire="int8"))
        with pytest.raises(RemoteError) as caught:
            await answerer.receive()
    assert caught.value.code is Code.TOO_LARGE


async def test_tensors_are_expanded_into_the_place_that_the_model_likes(tuning: Any) -> None:
    rooms: list[memoryview] = []

    def place(size: int, fields: Any) -> memoryview:
        assert fields["target"] == "m"
        rooms.append(allocate(size))
        return rooms[-1]

    mine, theirs = stream_pair(CAROL, BOB, "call", trio.lowlevel.checkpoint)
    caller = EventPipe(mine, Role.CALLER, tuning, Budget(CAROL))
    answerer = EventPipe(theirs, Role.ANSWERER, tuning, Budget(BOB), place)
    value = [compact_tensor(X, "int8"), compact_tensor(X[:9, :777], "int8"), X[:2]]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(caller.send, Call("m", value, wire="int8"))
        call: Any = await answerer.receive()
    assert [len(room) for room in rooms] == [X.nbytes + -(-9 * 777 * 4 // 64) * 64]
    for tensor, sent in zip(call.value, (X, X[:9, :777], X[:2]), strict=True):
        assert near(tensor, sent)
    for tensor in call.value[:2]:
        assert np.shares_memory(tensor, np.frombuffer(rooms[0], np.uint8))
        assert tensor.ctypes.data % 64 == 0


@pytest.mark.parametrize("wire", ["", "float16"])
async def test_a_compact_answer_that_nobody_asked_for_is_refused(open_pair: Any, wire: str) -> None:
    async def answer(line: Any) -> None:
        await line.hear()
        line.exchange.wire = "int8"
        await line.say(Result(compact_tensor(X, "int8"), wire="int8"))

    async with open_pair(answer) as pair:
        with pytest.raises(RemoteError, match="did not ask for"):
            await pair.ask(Call("m", wire=wire))


async def test_a_caller_of_items_is_bound_by_the_form_that_it_chose(tuning: Any) -> None:
    mine, theirs = stream_pair(CAROL, BOB, "call", trio.lowlevel.checkpoint)
    caller = EventPipe(mine, Role.CALLER, tuning, Budget(CAROL))
    answerer = EventPipe(theirs, Role.ANSWERER, tuning, Budget(BOB))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(caller.send, Call("m", wire="int8", open_input=True))
        assert await answerer.receive() == Call("m", wire="int8", open_input=True)
        nursery.start_soon(caller.send, Item(X))
        item: Any = await answerer.receive()
    assert item.wire == "int8"
    assert near(item.value, X)
    with pytest.raises(LocalError):
        await caller.send(Item(np.full(X.shape, np.inf, np.float32)))


async def test_small_and_large_tensors_are_the_same_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"x": X[:2], "twice": [X, X]}
    monkeypatch.setattr(compacting, "THREAD_BYTES", 1 << 40)
    here, _ = await compacting.compacted(value, "int8", strict=True)
    monkeypatch.setattr(compacting, "THREAD_BYTES", 0)
    there, _ = await compacting.compacted(value, "int8", strict=True)
    assert isinstance(here, dict)
    assert isinstance(there, dict)
    assert bytes(here["x"].data) == bytes(there["x"].data)
    assert there["twice"][0] is there["twice"][1]  # the work is done once
    assert (await compacting.compacted({"x": 1}, "int8", strict=True)) == ({"x": 1}, False)
    with pytest.raises(LocalError):
        await compacting.compacted(value, "int4", strict=True)


# --- between peers ---


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "compactshop.py").write_text(
        """
def echo(x):
    return {"x": x, "dtype": str(x.dtype)}

def parts(x):
    yield x[:32]
    yield x[32:]
"""
    )
    return tmp_path


@pytest.mark.parametrize("wire", ["float16", "int8"])
async def test_a_caller_chooses_the_form_of_its_tensors(open_town: OpenTown, shop: Path, wire: str) -> None:
    async with open_town() as town:
        alice, carol = await town.peer("alice"), await town.peer("carol", listen=False)
        await alice.publish("compactshop:echo", cwd=str(shop))
        outcome = await carol.call("echo", X, wire=wire)
        assert outcome.output["dtype"] == "float32"
        assert near(outcome.output["x"], X)
        assert not np.array_equal(outcome.output["x"], X)
        (hop,) = outcome.trace
        assert hop["wire"] == wire
        for sent in (hop["bytes_in"], hop["bytes_out"]):
            assert sent < X.nbytes / {"float16": 1.9, "int8": 3.7}[wire]
        plain = await carol.call("echo", X)
        assert np.array_equal(plain.output["x"], X)
        assert plain.trace[0]["wire"] == ""
        mine: Any = await alice.invoke("echo", X, wire=wire)  # a call to oneself keeps the same rules
        assert np.array_equal(mine["x"], outcome.output["x"])


async def test_items_of_a_stream_are_compact_too(
    open_town: OpenTown, shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_town() as town:
        alice, carol = await town.peer("alice"), await town.peer("carol", listen=False)
        await alice.publish("compactshop:parts", cwd=str(shop))
        items = carol.stream("parts", X, wire="int8")
        assert near(np.concatenate([item async for item in items]), X)
        assert items.outcome.trace[0]["wire"] == "int8"
        assert items.outcome.trace[0]["bytes_out"] < X.nbytes / 3
        # a list of items is bounded by what it takes here, not by what came
        monkeypatch.setattr(outcome, "MAX_COLLECTED_BYTES", X.nbytes // 2)
        with pytest.raises(RemoteError) as caught:
            await carol.invoke("parts", X, wire="int8")
        assert caught.value.code is Code.TOO_LARGE


async def test_an_input_that_does_not_fit_is_refused_before_anybody_is_asked(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, carol = await town.peer("alice"), await town.peer("carol", listen=False)
        await alice.publish("builtin:digits")
        x = np.full((64, 8, 8), np.nan, np.float32)
        with pytest.raises(LocalError, match="not a finite number"):
            await carol.invoke("modelnet/digits", x, wire="int8")
        with pytest.raises(LocalError, match="int4"):
            await carol.invoke("modelnet/digits", x, wire="int4")
        with pytest.raises(LocalError, match="int4"):
            carol.stream("modelnet/digits", x, wire="int4")
        assert (await alice.status())["models"][0]["calls"] == 0


async def test_bfloat16_goes_the_whole_way_bit_for_bit(open_town: OpenTown, shop: Path) -> None:
    """Caller, stream, peer, worker, model and back; numpy itself does not know this dtype."""
    bits = np.arange(1 << 16, dtype=np.uint16)  # every bfloat16 there is, NaN with payloads too
    x = np.tile(bits, 4).view(ml_dtypes.bfloat16).reshape(512, 512)
    async with open_town() as town:
        alice, carol = await town.peer("alice"), await town.peer("carol", listen=False)
        await alice.publish("compactshop:echo", cwd=str(shop))
        output: Any = await carol.invoke("echo", x)
        assert (output["dtype"], output["x"].dtype) == ("bfloat16", ml_dtypes.bfloat16)
        assert np.array_equal(output["x"].view(np.uint16), x.view(np.uint16))
        output = await carol.invoke("echo", X.astype(ml_dtypes.bfloat16), wire="int8")
        assert output["x"].dtype == ml_dtypes.bfloat16
        assert np.abs(output["x"].astype(np.float32) - X).max() < 0.05
