"""What liveness promises, in virtual time: deaths are found, the living are left alive, it costs little."""

from __future__ import annotations

import statistics

import pytest

from modelnet_p2p.beats import Obituary, Verdict
from modelnet_p2p.dht.liveness import Phase, Tell
from watched_town import BEAT, EPOCH_US, Town

SEED = 20_26
TELLING = 0.5  # seconds from an obituary to its holders: a walk of three hops on warm connections


def test_the_killed_are_found_dead_within_seconds() -> None:
    town = Town(120, SEED)
    town.run(20)
    victims = town.rng.sample(town.ids, 24)  # without a word: no connection breaks
    killed: dict[bytes, float] = {}
    for at, victim in enumerate(victims):
        town.run(20 + at * 5.3)
        town.kill(victim)
        killed[victim] = town.now
    town.run(170)
    found = [min(town.announced[victim]) - killed[victim] + TELLING for victim in victims]
    assert statistics.median(found) <= 6
    assert max(found) <= 20
    assert set(town.announced) == set(victims)  # and nobody else


def test_half_of_the_peers_killed_at_once() -> None:
    """Whoever keeps three watchers is found dead by them; whoever loses more costs readers a ping."""
    town = Town(120, SEED)
    town.run(20)
    victims = set(town.rng.sample(town.ids, 60))
    for victim in victims:
        town.kill(victim)
    town.run(60)
    watched = {v: set(town.beaters[v].watchers) - victims for v in victims}
    provable = {victim for victim, left in watched.items() if len(left) >= 3}
    assert provable == set(town.announced)
    assert all(town.announced[victim][0] <= 20 + 20 for victim in provable)


def freezing(town: Town, until: float) -> None:
    """A tenth of all peers stand still for 3 s, another tenth right after, and so on."""
    while town.now < until:
        for peer in town.rng.sample(town.ids, len(town.ids) // 10):
            town.freeze(peer, 3.0)
        town.run(town.now + 3.5)


def test_freezes_of_three_seconds_kill_nobody() -> None:
    town = Town(60, SEED)
    town.run(20)
    freezing(town, 140)
    assert not town.announced
    town.run(200)
    assert all(
        ward.phase is Phase.HEARD for machine in town.watchers.values() for ward in machine.wards.values()
    )


@pytest.mark.slow
def test_a_hundred_peer_hours_of_freezes() -> None:
    """At most 0.1 % false deaths per peer-hour: 3,000 peer-minutes a seed, two seeds."""
    deaths = 0
    for seed in range(2):
        town = Town(100, SEED + seed)
        town.run(20)
        freezing(town, 1820)
        deaths += len(town.announced)
    assert deaths == 0


def test_who_stood_still_for_long_refutes_its_death() -> None:
    town = Town(40, SEED)
    town.run(20)
    alice = town.ids[0]
    town.freeze(alice, 15.0)
    town.run(34)
    assert town.announced[alice]
    assert town.obituaries.of(alice, town.clock_us()) is not None
    town.run(35 + 5)  # thawed at 35, and within five seconds nobody takes her for dead
    assert town.revived[alice]
    assert town.obituaries.of(alice, town.clock_us()) is None
    assert town.beaters[alice].incarnation > EPOCH_US
    town.run(80)
    assert town.obituaries.of(alice, town.clock_us()) is None


def test_a_watcher_who_lies_kills_nobody() -> None:
    """It says dead of everybody, again and again: its word alone proves nothing, and is refuted."""
    town = Town(40, SEED)
    town.run(20)
    liar = town.ids[0]
    wards = town.watchers[liar].wards
    assert wards
    lies: list[Verdict] = []
    while town.now < 120:
        for subject, ward in list(wards.items()):
            lie = Verdict(liar, subject, ward.incarnation, True, town.clock_us())
            lies.append(lie)
            for peer in ward.roster.watchers:
                town.do(liar, [Tell(peer, lie)])
            town.obituaries.add(Obituary(ward.roster, (lie,) * 3), town.clock_us())
        town.run(town.now + BEAT)
    assert lies
    assert not town.announced
    assert all(town.obituaries.of(subject, town.clock_us()) is None for subject in town.ids)


def test_a_watcher_cut_off_from_its_ward_hears_of_it_by_the_others() -> None:
    town = Town(30, SEED)
    town.run(20)
    alice = town.ids[0]
    deaf = town.beaters[alice].watchers[0]
    town.cut |= {(alice, deaf), (deaf, alice)}
    while town.now < 36:
        town.run(town.now + 0.1)
        assert town.watchers[deaf].phase(alice) in (Phase.HEARD, Phase.PROBING)
    town.run(120)
    assert deaf not in town.beaters[alice].watchers  # it was not heard of, and replaced
    assert not town.announced


def test_what_it_costs_does_not_grow_with_the_network() -> None:
    means = []
    for count in (50, 200):
        town = Town(count, SEED)
        town.run(20)
        before, bytes_before = sum(town.sent.values()), sum(town.sent_bytes.values())
        town.run(80)
        messages = (sum(town.sent.values()) - before) / 60 / count
        means.append(messages)
        assert messages <= 5
        assert (sum(town.sent_bytes.values()) - bytes_before) / 60 / count <= 1024
    assert means[0] == pytest.approx(means[1], rel=0.05)


def test_the_same_seed_gives_the_same_town() -> None:
    def play() -> list[tuple[bytes, list[float]]]:
        town = Town(30, SEED)
        town.run(20)
        town.kill(town.ids[3])
        town.run(60)
        return sorted(town.announced.items())

    assert play() == play()


def test_one_watcher_alone_proves_no_death() -> None:
    town = Town(12, SEED, watchers=1)
    town.run(20)
    town.kill(town.ids[0])
    town.run(80)
    assert not town.announced
