"""What a table learns of how fast peers come and go, and how often records are told because of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelnet_p2p.dht.keyspace import common_prefix, position
from modelnet_p2p.dht.table.churn import FASTEST, LOSS, MAX_GONE, SETTLING, SLOWEST, Churn
from modelnet_p2p.dht.table.routing import MAX_FAILURES, RoutingTable
from modelnet_p2p.identity import PeerId
from modelnet_p2p.kad import Contact

PRESET = 600.0
LOOK = 30.0


def peer(number: int) -> PeerId:
    return PeerId(b"peer" + number.to_bytes(4))


@dataclass
class Resident:
    id: PeerId
    dies: float
    seen: float
    missed: int = 0


class Corner:
    """A corner of the world whose residents are looked at every half minute, as a table does; the dead are
    replaced."""

    def __init__(self, rng: Random, size: int, rate: float) -> None:
        self.rng, self.rate = rng, rate
        self.churn = Churn()
        self.now = 0.0
        self.born = 0
        self.residents = [self.newcomer() for _ in range(size)]

    def newcomer(self) -> Resident:
        self.born += 1
        dies = self.now + self.rng.expovariate(self.rate) if self.rate else math.inf
        self.churn.came(peer(self.born), self.now)
        return Resident(peer(self.born), dies, self.now)

    def look(self) -> None:
        self.now += LOOK
        for resident in list(self.residents):
            if resident.dies > self.now:
                self.churn.lived(resident.seen, self.now)
                resident.seen, resident.missed = self.now, 0
                continue
            resident.missed += 1
            if resident.missed == MAX_FAILURES:
                self.churn.died(resident.id, resident.seen, self.now)
                self.residents.remove(resident)
                self.residents.append(self.newcomer())


@pytest.mark.parametrize("a_minute", [0.01, 0.05, 0.1])
def test_the_rate_at_which_peers_leave_is_measured(a_minute: float) -> None:
    rates = []
    for seed in range(10):
        corner = Corner(Random(seed), 30, a_minute / 60)
        while corner.now < 3600:
            corner.look()
        rates.append(corner.churn.rate(corner.now))
    # the prior's one death and the greater of two noisy counts both say more rather than less
    assert a_minute / 60 * 0.9 < sum(rates) / len(rates) < a_minute / 60 * 1.6


def test_at_the_interval_half_of_the_holders_are_left_and_it_stays_within_its_bounds() -> None:
    calm = Corner(Random(1), 30, 0.0)
    assert calm.churn.interval(0.0, PRESET) == pytest.approx(PRESET)  # nothing is known yet
    while calm.now < 1800:
        calm.look()
    assert calm.churn.interval(calm.now, PRESET) == SLOWEST
    for a_minute in (0.05, 0.1):
        world = Corner(Random(2), 200, a_minute / 60)
        while world.now < 3600:
            world.look()
        left = math.exp(-a_minute / 60 * world.churn.interval(world.now, PRESET))
        assert left == pytest.approx(1 - LOSS, abs=0.1)
    wild = Corner(Random(3), 30, 0.02)
    while wild.now < 1800:
        wild.look()
    assert wild.churn.interval(wild.now, PRESET) == FASTEST


def test_a_mass_death_is_seen_at_once_and_forgotten_in_time() -> None:
    corner = Corner(Random(4), 40, 0.0)
    while corner.now < 3600:
        corner.look()
    for resident in corner.residents[:28]:
        resident.dies = corner.now
    for _ in range(MAX_FAILURES):
        corner.look()
    assert corner.churn.interval(corner.now, PRESET) < 1000
    while corner.now < 7200:
        corner.look()
    assert corner.churn.interval(corner.now, PRESET) == SLOWEST


def test_newcomers_displace_holders_so_a_world_that_only_grows_is_told_more_often() -> None:
    corner = Corner(Random(5), 30, 0.0)
    while corner.now < SETTLING:
        corner.look()
    while corner.now < 1800:  # another resident each minute: 30 are 55 now
        corner.look()
        if corner.now % 60 == 0:
            corner.residents.append(corner.newcomer())
    assert FASTEST < corner.churn.interval(corner.now, PRESET) < 0.6 * SLOWEST


def test_whom_a_joiner_meets_at_first_is_no_newcomer_and_who_comes_back_was_not_dead() -> None:
    churn = Churn()
    for number in range(50):
        churn.came(peer(number), float(number))
    for number in range(50):
        churn.lived(number, 1000.0)
    calm = churn.rate(1000.0)
    churn.died(peer(7), 1000.0, 1000.0)
    assert churn.rate(1000.0) > calm
    churn.came(peer(7), 1010.0)
    churn.lived(1000.0, 1010.0)
    assert churn.rate(1010.0) == pytest.approx(calm, rel=0.05)


def test_a_preset_for_tests_is_taken_as_it_is() -> None:
    churn = Churn()
    for number in range(30):
        churn.died(peer(number), 0.0, 1.0)
    assert churn.interval(2.0, 5.0) == 5.0
    assert churn.interval(2.0, PRESET) == FASTEST


def test_only_where_nobody_waits_a_table_counts_the_dead() -> None:
    def dead_in(size: int) -> RoutingTable:
        table = RoutingTable(PeerId(b"me"), 4)
        for number in range(size):
            table.add(Contact(peer(number), (b"addr",)), 0.0)
        for contact in list(table):
            for _ in range(MAX_FAILURES):
                table.failed(contact.id, 10.0)
        return table

    few, unseen = dead_in(4), Churn()
    unseen.lived(0.0, 20.0)  # four of them for five seconds each
    assert few.churn.rate(10.0) == pytest.approx(5 * unseen.rate(20.0), rel=0.05)
    crowd = dead_in(400)
    assert len(crowd) < 60
    deaths = crowd.churn.rate(10.0) / unseen.rate(20.0) - 1
    assert deaths < 40  # of hundreds: the buckets that are full with others waiting do not count


def ids_in(bucket: int, me: PeerId, rng: Random) -> Iterator[PeerId]:
    """Peers that share exactly so many leading bits with `me`."""
    while True:
        candidate = PeerId(b"peer" + rng.randbytes(8))
        if common_prefix(position(candidate), position(me)) == bucket:
            yield candidate


@pytest.mark.parametrize(("bucket", "is_new"), [(0, False), (1, False), (6, True)])
def test_who_comes_by_from_far_away_is_not_new_to_the_world(bucket: int, *, is_new: bool) -> None:
    """A table of a settled world goes on filling for hours; only of its own neighbourhood it knows all."""
    rng, k = Random(7), 20
    table = RoutingTable(PeerId(b"me"), k)
    for index, known in ((0, 6), (1, 6), (2, 12), (5, 8), (6, 6)):
        for candidate in islice(ids_in(index, table.me, rng), known):
            table.add(Contact(candidate, (b"addr",)), 0.0)
    others = [contact.id for contact in table]
    for now in range(30, 1201, 30):
        for other in others:
            assert table.answered(other, float(now))
    calm = table.churn.rate(1200.0)
    comers = islice(ids_in(bucket, table.me, rng), 10)
    for now, comer in enumerate(comers, 1200):
        table.add(Contact(comer, (b"addr",)), float(now))
    rate = table.churn.rate(1210.0)
    assert (rate > 5 * calm) == is_new, (rate, calm)
    assert (table.churn.interval(1210.0, PRESET) < SLOWEST) == is_new


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["came", "lived", "died"]),
            st.integers(0, 20),
            st.floats(0, 1e6, allow_nan=False),
        ),
        max_size=60,
    )
)
def test_whatever_is_seen_the_interval_stays_between_its_bounds(
    steps: list[tuple[str, int, float]],
) -> None:
    churn, now = Churn(), 0.0
    for what, number, seconds in steps:
        if what == "came":
            churn.came(peer(number), now)
        elif what == "lived":
            churn.lived(seconds, now)  # even from the future
            now += seconds / 100
        else:
            churn.died(peer(number), seconds, now)
        assert FASTEST <= churn.interval(now, PRESET) <= SLOWEST
        assert 0 < churn.silence(now, 300.0) <= 300.0
        assert churn.rate(now - 1.0) > 0  # a clock that stands still or goes back changes nothing


def test_it_remembers_a_bounded_number_of_the_dead() -> None:
    churn = Churn()
    for number in range(2 * MAX_GONE):
        churn.died(peer(number), 0.0, 1.0)
    assert len(churn._gone) == MAX_GONE
