"""What one provider alone has is found, whatever it is, and few offers are read for it."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from modelnet_p2p.names import Keys, provider_key
from simulation.rare import MARK, SEED, TASK, Market, Size, measure

TINY = Size(peers=60, providers=120, searches=10)


@pytest.mark.parametrize("per_key", [4096, 30])  # the task's key holds all, or splits
def test_a_search_of_each_kind_finds_its_one_provider(per_key: int) -> None:
    market = Market(replace(TINY, per_key=per_key), SEED)
    market.fill()
    assert (market.kept, len(market.sought)) == (market.published, 10)
    task = provider_key(Keys(market.sim.network).task(TASK))
    split = any(node.store.is_split(task, market.sim.now_us) for node in market.town.honest)
    assert split is (per_key == 30)
    for provider, rare in market.sought:
        searched = market.search(provider, rare)
        assert searched.found, rare
        assert searched.tally.cards == 120
        assert searched.tally.cards_ruled_out >= 117
        assert searched.tally.read <= 3  # the one, and who has a word like it by chance
        assert searched.messages >= searched.tally.messages > 3  # replies, too; one may be the last search's


def test_what_nobody_has_is_not_found() -> None:
    market = Market(TINY, SEED)
    market.fill()
    provider, _ = market.sought[0]
    searched = market.search(provider, "language:rare-0 and tier:nowhere")
    assert not searched.found
    assert (searched.tally.cards_ruled_out, searched.tally.read) == (120, 0)


@pytest.mark.slow
def test_a_crowd_of_hundreds_hides_nobody() -> None:
    if sys.gettrace() is not None:
        pytest.skip("traced for coverage a world takes minutes: scripts/simulate rare")
    figures = measure(Size(), SEED)
    assert figures["kept"] == 1.0
    assert figures["found"] >= MARK
    assert figures["ruled_out"] > 0.99
    assert figures["cards_p50"] == Size().providers
