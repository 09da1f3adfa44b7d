"""Callers who share the steps of one model in its worker process. Real processes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from modelnet_p2p.errors import Code, LocalError, ModelnetError
from modelnet_p2p.node.serving.description import MAX_SLOTS, Description
from modelnet_p2p.node.serving.models import Models
from modelnet_p2p.node.serving.served import Served
from modelnet_p2p.node.serving.source import Source

Call = Callable[..., Awaitable[tuple[Any, list[Any]]]]  # Any: each test knows what its model gives
MakeSource = Callable[..., Source]

HANG = 60  # seconds: tells a hang from a machine where others build

ROWS = """
import os, time
import numpy as np

steps = []

def doubled(rows, wait=0.0):
    steps.append(len(rows))
    while wait and not os.path.exists("go"):
        time.sleep(0.002)
    if np.isnan(rows).any():
        raise ValueError("a NaN")
    if (rows < 0).any():
        os._exit(3)
    return {"rows": rows * 2, "steps": list(steps)[-1:] * len(rows), "pid": os.getpid()}
doubled.batches = 8

async def later(rows):
    return rows * 3
later.batches = 4

async def wide(text):
    return text
wide.slots = 64

async def too_wide(text):
    return text
too_wide.slots = 0
"""


@pytest.fixture
def rows_source(shop: Path, source: MakeSource) -> MakeSource:
    (shop / "rows.py").write_text(ROWS)
    return source


def rows(number: float, count: int = 1, width: int = 4) -> Any:
    return np.full((count, width), number, np.float32)


async def gather(call: Call, served: Served, inputs: list[Any], **params: Any) -> list[Any]:
    """The answer to each, or the error that it met."""
    outcomes: list[Any] = [None] * len(inputs)

    async def one(at: int) -> None:
        try:
            outcomes[at] = (await call(served, inputs[at], **params))[0]
        except ModelnetError as error:
            outcomes[at] = error

    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            for at in range(len(inputs)):
                nursery.start_soon(one, at)
    return outcomes


async def test_callers_share_steps_and_get_their_own_rows(
    models: Models, rows_source: MakeSource, call: Call, shop: Path
) -> None:
    served = await models.add(rows_source("rows:doubled"))
    assert (served.description.batches, served.description.places) == (8, 16)
    inputs = [rows(number, 1 + number % 2, 20_000 if number % 3 == 0 else 4) for number in range(16)]
    answers = await gather(call, served, inputs)
    for mine, answer in zip(inputs, answers, strict=True):
        np.testing.assert_array_equal(answer["rows"], mine * 2)  # the wide ones came in shared memory
    async with trio.open_nursery() as nursery:

        async def release() -> None:
            with trio.fail_after(HANG):
                while served.stats()["in_flight"] < 16:
                    await trio.sleep(0.001)
            await trio.sleep(0.1)  # they are on their way to the worker; else the steps are only smaller
            (shop / "go").touch()

        nursery.start_soon(release)
        answers = await gather(call, served, [rows(number) for number in range(16)], wait=1.0)
    sizes = [answer["steps"][0] for answer in answers]
    assert max(sizes) > 1
    assert max(sizes) <= 8
    assert served.stats()["faults"] == 0


async def test_one_bad_input_fails_alone_and_the_process_lives(
    models: Models, rows_source: MakeSource, call: Call
) -> None:
    served = await models.add(rows_source("rows:doubled"))
    pid = served.pid
    answers = await gather(call, served, [rows(np.nan if number == 7 else number) for number in range(16)])
    for number, answer in enumerate(answers):
        if number == 7:
            assert isinstance(answer, LocalError)
            assert answer.message == "the model raised ValueError: a NaN"
        else:
            np.testing.assert_array_equal(answer["rows"], rows(2 * number))
    assert served.pid == pid


async def test_who_leaves_a_step_does_not_take_its_neighbours_along(
    models: Models, rows_source: MakeSource, call: Call, shop: Path
) -> None:
    served = await models.add(rows_source("rows:doubled"))
    pid = served.pid
    answers: list[Any] = []
    late: list[ModelnetError] = []

    async def patient(number: int) -> None:
        answers.append((await call(served, rows(number), wait=1.0))[0]["pid"])

    async def impatient(number: int) -> None:
        with pytest.raises(LocalError) as caught:
            await call(served, rows(number), wait=1.0, timeout=0.5)
        late.append(caught.value)
        if len(late) == 4:
            await trio.sleep(0.5)  # more than the grace: had they waited for the step, it were dead by now
            (shop / "go").touch()

    with trio.fail_after(HANG):
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(patient, number)
            await trio.sleep(0.05)
            for number in range(4):
                nursery.start_soon(impatient, number)
    assert answers == [pid] * 4
    assert {error.code for error in late} == {Code.DEADLINE}


async def test_whoever_is_killed_beside_another_call_may_ask_again(
    models: Models, rows_source: MakeSource, call: Call
) -> None:
    """One of these inputs ends the process, and nobody can say which."""
    served = await models.add(rows_source("rows:doubled"))
    answers = await gather(call, served, [rows(-1 if number == 7 else number) for number in range(8)])
    dead = [answer for answer in answers if isinstance(answer, LocalError)]
    assert dead
    for error in dead:
        assert error.code is Code.MODEL_ERROR
        assert "exit status 3" in error.message
        assert error.retryable is (len(dead) > 1)
    with pytest.raises(LocalError) as alone:
        await call(served, rows(-1))
    assert not alone.value.retryable


async def test_a_model_that_awaits_takes_rows_too(
    models: Models, rows_source: MakeSource, call: Call
) -> None:
    served = await models.add(rows_source("rows:later"))
    assert served.description.places == 8
    for number, answer in enumerate(await gather(call, served, [rows(number) for number in range(8)])):
        np.testing.assert_array_equal(answer, rows(3 * number))


def test_places_are_bounded() -> None:
    assert Description("a", "t", "f", batches=512).places == MAX_SLOTS
    assert Description("a", "t", "f", batches=1).places == 1
    assert Description("a", "t", "f", batches=4, slots=20).places == 20


async def test_an_async_function_says_how_many_calls_it_answers_at_once(
    models: Models, rows_source: MakeSource, call: Call
) -> None:
    served = await models.add(rows_source("rows:wide"))
    assert served.description.slots == 64
    assert await call(served, "x") == ("x", [])
    with pytest.raises(LocalError, match="slots = 0"):
        await models.add(rows_source("rows:too_wide"))


async def test_its_publisher_may_choose_how_many(models: Models, rows_source: MakeSource) -> None:
    served = await models.add(replace(rows_source("rows:wide"), options={"slots": "3"}))
    assert served.description.slots == 3
    for spec, slots, why in (
        ("rows:wide", "65", "slots=65: calls at once, 1 to 64"),
        ("rows:doubled", "3", "rows:doubled takes no --slots: it answers one call at a time"),
        ("builtin:digits", "3", "builtin:digits is no model that takes --slots"),
    ):
        with pytest.raises(LocalError, match=why) as caught:
            await models.add(replace(rows_source(spec), options={"slots": slots}))
        assert caught.value.code is Code.BAD_INPUT
