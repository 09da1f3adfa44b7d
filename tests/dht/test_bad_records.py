"""Each kind of bad record at every hop: no holder keeps or tells it, no reader returns it, and no neighbour
of it is lost.

A few hundred of each kind every day; ten thousand of each are `scripts/prove records`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from bad_records import AT_HOLDERS, MAKERS, RECORD_TYPES, Case, Maker, World, cases, make_world
from hops import Hops
from modelnet_p2p.records import REVOCATION_TYPE, Refusal

COUNT = 240


@pytest.fixture(scope="module")
def world() -> World:
    return make_world()


@pytest.mark.parametrize("maker", [*MAKERS, *AT_HOLDERS], ids=lambda maker: maker.__name__)
def test_no_bad_record_gets_past_a_hop(world: World, maker: Maker) -> None:
    hops, made = Hops(world), list(cases(world, maker, COUNT))
    hops.travel(made)
    assert hops.refused.total() == COUNT
    assert {case.kind for case in made} <= set(RECORD_TYPES)


def test_a_sound_record_does_get_through_so_that_the_hops_see_something(world: World) -> None:
    for kind in RECORD_TYPES:
        sound = Case(world.good[kind].envelope, frozenset(Refusal), world.now_us, kind=kind)
        with pytest.raises(AssertionError, match="stored"):
            Hops(world).travel([sound])


def test_a_reader_s_lapse_would_be_seen(world: World) -> None:
    """The same, past the holder: what only the walk has to keep out."""
    for kind in RECORD_TYPES:
        sound = Case(world.good[kind].envelope, frozenset(Refusal), world.now_us, kind=kind)
        hops = Hops(world)
        hops._hold = lambda case: None  # type: ignore[method-assign]  # its lapse
        with pytest.raises(AssertionError):
            hops.travel([sound])
    unheard = replace(next(cases(world, AT_HOLDERS[1], 1)), held=world.good[REVOCATION_TYPE])
    Hops(world).travel([unheard])
