"""Who calls again and again waits for one search, and no more: the later ones are made beside his calls."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
import trio

from modelnet_p2p.errors import Code, RemoteError
from modelnet_p2p.events import Call, Result
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.node.calls.found import FOUND_SECONDS, MAX_FOUND, Found
from modelnet_p2p.node.calls.router import Router
from modelnet_p2p.node.calls.target import Target
from modelnet_p2p.node.overlay.batches import Tally
from modelnet_p2p.node.serving.policy.memory import Memory
from modelnet_p2p.offers import Offer, State
from modelnet_p2p.query import Query
from modelnet_p2p.records import Manifest, OfferRecord, open_manifest, seal_manifest

OLD = FOUND_SECONDS + 0.1
NAME = "town/model"
QUERY = Query(network="town", model=NAME)
# Any: the fixtures, see conftest.py
OpenPair = Any


def offer(key: KeyPair, addrs: Sequence[str] = ()) -> Offer:
    envelope = seal_manifest(Manifest(key.id, NAME, "x-town/task", 1_700_000_000), key)
    record = OfferRecord(key.id, "town", open_manifest(envelope), envelope, 1, 0, 1)
    return Offer(record, b"", tuple(addrs), State.ALIVE)


ANN, BEN = (offer(KeyPair(name.ljust(32, b"."))) for name in (b"ann", b"ben"))


def test_what_was_found_just_now_is_good_and_later_only_who_has_answered() -> None:
    found = Found()
    assert found.recall(QUERY, 0.0) == ()
    found.keep(QUERY, [ANN, BEN], 0.0)
    assert found.recall(QUERY, FOUND_SECONDS) == [ANN, BEN]
    assert found.recall(QUERY, OLD) == []
    assert not found.on_answer(QUERY, BEN, 1.5)
    assert found.recall(QUERY, OLD) == [BEN]
    assert found.recall(QUERY, 1.6 + FOUND_SECONDS) == []
    found.forget(QUERY)
    assert found.recall(QUERY, 0.0) == ()


def test_a_search_is_due_once_for_each_time_that_an_old_one_was_of_use() -> None:
    found = Found()
    found.keep(QUERY, [ANN], 0.0)
    assert not found.on_answer(QUERY, ANN, 1.0)
    found.recall(QUERY, 1.5)
    assert not found.on_answer(QUERY, ANN, 1.6)  # it was not old
    found.recall(QUERY, OLD)
    assert not found.on_answer(QUERY, BEN, OLD)  # nobody that was found
    assert found.on_answer(QUERY, ANN, OLD)
    assert not found.on_answer(QUERY, ANN, OLD)
    found.keep(QUERY, [ANN], OLD)
    found.recall(QUERY, OLD)
    assert not found.on_answer(QUERY, ANN, OLD)


def test_it_remembers_so_many_searches_and_no_more() -> None:
    found = Found()
    for number in range(MAX_FOUND + 1):
        found.keep(Query(network="town", model=f"town/m{number}"), [ANN], 0.0)
    assert found.recall(Query(network="town", model="town/m0"), 0.0) == ()
    assert found.recall(Query(network="town", model=f"town/m{MAX_FOUND}"), 0.0) == [ANN]


class Anybody:
    """Owners of whom nobody remembers anything."""

    def meant(self, query: Query) -> None:
        pass

    def used(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("fails", [False, True])
async def test_who_calls_again_and_again_waits_for_one_search(
    open_pair: OpenPair, autojump_clock: object, fails: bool
) -> None:
    """Also where those beside his calls fail."""
    searches: list[float] = []

    async def echo(line: Any) -> None:
        while isinstance(call := await line.hear(), Call):
            await trio.sleep(0.5)
            await line.say(Result(call.value))

    async def search(query: Query, tally: Tally) -> Sequence[Offer]:
        searches.append(trio.current_time())
        await trio.sleep(0.7)
        if fails and len(searches) > 1:
            raise RemoteError(Code.UNREACHABLE, "nobody answers")
        return [offer(key, pair.bob.addrs)]

    async with open_pair(echo) as pair, trio.open_nursery() as nursery:
        key = KeyPair(hashlib.sha256(b"bob").digest())
        memory = Memory(lambda n: 0, trio.current_time)
        owners: Any = Anybody()
        router = Router(pair.client, search, memory, owners, Random(1), nursery=nursery)
        target = Target.parse(NAME, "town")

        async def call() -> float:
            began = trio.current_time()
            assert (await router.call(target, "x", {}, 30.0)).output == "x"
            return trio.current_time() - began

        assert await call() == pytest.approx(1.2, abs=0.1)
        for _ in range(20):
            assert await call() == pytest.approx(0.5, abs=0.1)
        assert 4 <= len(searches) <= 12
        await trio.sleep(2 * FOUND_SECONDS)
        if not fails:
            assert await call() == pytest.approx(1.2, abs=0.1)
        nursery.cancel_scope.cancel()
