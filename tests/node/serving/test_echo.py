"""builtin:echo: what comes in goes out, at once and for many."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import trio
import trio.testing

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.builtin import BuiltinBackend
from modelnet_p2p.node.serving.backends.registry import find_backend
from modelnet_p2p.node.serving.description import MAX_SLOTS
from modelnet_p2p.node.serving.models import Models
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.records import open_manifest

Call = Callable[..., Awaitable[tuple[Any, list[Any]]]]  # Any: the echo's output is its input
OpenTown = Any  # the fixture that opens a town, see conftest.py
ECHO = Source("builtin:echo")


async def test_it_says_what_it_is(models: Models) -> None:
    description = (await models.add(ECHO)).description
    assert (description.name, description.task) == ("modelnet/echo", "x-modelnet/echo")
    assert (description.slots, description.idempotent) == (MAX_SLOTS, True)
    assert description.manifest_envelope is not None
    assert open_manifest(description.manifest_envelope).name == "modelnet/echo"


async def test_it_gives_back_what_it_gets(models: Models, call: Call) -> None:
    served = await models.add(ECHO)
    for value in (None, 7, "text", b"bytes", [1, {"a": 2.5}]):
        assert await call(served, value) == (value, [])
    tensor = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert (await call(served, tensor))[0] is tensor
    assert await call(served, 7, method="stream") == (None, [7])


async def test_it_takes_no_parameters(models: Models, call: Call) -> None:
    served = await models.add(ECHO)
    with pytest.raises(LocalError) as caught:
        await call(served, 7, loud=True)
    assert caught.value.code is Code.BAD_INPUT
    assert served.stats() == {"in_flight": 0, "queued": 0, "calls": 1, "faults": 1}


async def test_it_answers_without_giving_way_to_any_other_task(models: Models, call: Call) -> None:
    served = await models.add(ECHO)
    with trio.testing.assert_no_checkpoints():
        await call(served, 7)


async def test_its_deadline_cannot_pass_for_it_waits_for_nothing(models: Models, call: Call) -> None:
    served = await models.add(ECHO)
    assert not served.waits
    assert (await call(served, 7, timeout=float("-inf")))[0] == 7


async def test_no_backend_of_another_package_is_asked_for_it() -> None:
    assert find_backend("builtin:echo") is BuiltinBackend


async def test_the_echoes_of_all_peers_are_one_model(open_town: OpenTown) -> None:
    async with open_town() as town:
        for name in ("alice", "ben"):
            await (await town.peer(name)).publish("builtin:echo")
        carol = await town.peer("carol", listen=False)
        assert len(await carol.find(model="modelnet/echo")) == 2
        assert await carol.invoke("modelnet/echo", "hello") == "hello"  # no owner need be named
        assert await carol.invoke("task:x-modelnet/echo", "hello") == "hello"


async def test_sixty_four_callers_at_once_and_none_is_refused(open_town: OpenTown) -> None:
    async with open_town() as town:
        alice, carol = await town.peer("alice"), await town.peer("carol", listen=False)
        await alice.publish("builtin:echo")
        answers: list[object] = []

        async def ask(number: int) -> None:
            answers.append(await carol.invoke("modelnet/echo", number))

        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for number in range(64):
                    nursery.start_soon(ask, number)
        assert sorted(answers) == sorted([*range(64), *range(64)])  # type: ignore[type-var]  # they are numbers
        assert (await alice.status())["models"][0]["faults"] == 0
        # one more for pings: the second round took those of the first
        assert alice.parts.call_server.streams <= 65
