"""Whom carol asks first."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from modelnet_p2p.identity import KeyPair
from modelnet_p2p.node.serving.policy.memory import MAX_KNOWN_PROVIDERS, Memory
from modelnet_p2p.node.serving.policy.ranking import (
    BOAST_MEMORY,
    FAILURE_MEMORY,
    MAX_BOAST_MEMORY,
    Experience,
    draw,
    rank,
)
from modelnet_p2p.node.serving.policy.reasons import reasons
from modelnet_p2p.offers import Offer, State
from modelnet_p2p.records import Manifest, OfferRecord, open_manifest, seal_manifest

NAMES = ("ann", "ben", "cat", "dan", "eve")


def offer(
    name: str, state: State = State.ALIVE, rtt: float | None = None, load: float | None = None
) -> Offer:
    key = KeyPair(name.encode().ljust(32, b"."))
    envelope = seal_manifest(Manifest(key.id, "town/model", "x-town/task", 1_700_000_000), key)
    record = OfferRecord(key.id, "town", open_manifest(envelope), envelope, 1, 0, 1)
    return Offer(record, b"", (), state, rtt, load)


def strangers(offer: Offer) -> None:
    """Nobody was called before."""


def order(offers: list[Offer], seen: dict[str, Experience] | None = None, now: float = 0.0) -> list[int]:
    """The places of `offers` in the order in which they are ranked."""
    by_provider = {o.provider: (seen or {}).get(str(i)) for i, o in enumerate(offers)}
    return [offers.index(o) for o in rank(offers, lambda o: by_provider[o.provider], now)]


def test_the_living_come_before_the_unknown_the_suspect_and_the_dead() -> None:
    states = (State.DEAD, State.SUSPECT, State.UNKNOWN, State.ALIVE)
    offers = [offer(name, state) for name, state in zip(NAMES, states, strict=False)]
    assert order(offers) == [3, 2, 1, 0]


def test_among_the_living_the_near_and_idle_lead() -> None:
    offers = [offer("ann", rtt=20.0), offer("ben", rtt=2.0), offer("cat", rtt=2.0, load=1.0), offer("dan")]
    assert order(offers) == [1, 2, 0, 3]


def test_own_experience_counts_more_than_what_peers_say() -> None:
    offers = [offer("ann", rtt=1.0, load=0.0), offer("ben", rtt=9.0), offer("cat", rtt=3.0)]
    slow, quick, failed = Experience(), Experience(), Experience()
    slow.succeeded(500.0)
    quick.succeeded(40.0)
    failed.failed(100.0)
    # ann's model took half a second; ben's 40 ms; cat is new, and its model will hardly be free
    assert order(offers, {"0": slow, "1": quick}) == [1, 2, 0]
    assert order(offers, {"0": failed}, now=101.0)[-1] == 0
    assert order(offers, {"0": failed}, now=101.0 + FAILURE_MEMORY)[0] == 0


@pytest.mark.parametrize("count", [0, 1, 2])
def test_with_one_or_two_there_is_nothing_to_draw(count: int) -> None:
    ranked = [offer(name, rtt=1.0) for name in NAMES[:count]]
    assert draw(ranked, strangers, 0.0, Random(1).randrange) == ranked


def test_of_many_alike_two_are_drawn_and_the_better_leads() -> None:
    ranked = [offer(name, rtt=float(i)) for i, name in enumerate(NAMES[:4])] + [offer("eve", State.DEAD)]
    rng = Random(2026)
    leads = Counter(ranked.index(draw(ranked, strangers, 0.0, rng.randrange)[0]) for _ in range(6000))
    # of the 6 pairs of four: the best is in 3, the second leads 2, the third 1, the last never
    assert [round(leads[i] / 1000) for i in range(5)] == [3, 2, 1, 0, 0]
    assert sorted(map(ranked.index, draw(ranked, strangers, 0.0, rng.randrange))) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("count", "most"), [(5, 64), (2, 150)])
def test_who_asks_many_at_once_spreads_them(count: int, most: int) -> None:
    ranked = rank([offer(str(n), rtt=float(n)) for n in range(count)], strangers, 0.0)
    rng, flying = Random(2), Counter[str]()
    for _ in range(300):
        flying[
            draw(ranked, strangers, 0.0, rng.randrange, lambda offer: flying[offer.provider])[0].provider
        ] += 1
    assert len(flying) == count
    assert max(flying.values()) <= most


def test_who_failed_lately_is_not_drawn_while_others_are_alive() -> None:
    failed = Experience()
    failed.failed(0.0)
    offers = [offer(name, rtt=1.0) for name in NAMES]
    sad = {offers[0].provider: failed}

    def recall(o: Offer) -> Experience | None:
        return sad.get(o.provider)

    rng = Random(7)
    ranked = rank(offers, recall, 1.0)
    assert all(draw(ranked, recall, 1.0, rng.randrange)[0] is not offers[0] for _ in range(200))


def test_who_said_it_was_idle_and_refused_is_distrusted_for_longer_and_each_time_more() -> None:
    seen = Experience()
    for told in (None, 0.9):  # it said nothing, or that it was nearly full: it may well be busy
        seen.failed(0.0, refused_at=told)
        assert seen.trusted(FAILURE_MEMORY + 1)
    seen.failed(0.0, refused_at=0.0)
    assert not seen.trusted(BOAST_MEMORY - 1)
    assert seen.trusted(BOAST_MEMORY + 1)
    seen.failed(0.0, refused_at=0.0)
    assert not seen.trusted(BOAST_MEMORY + 1)
    for _ in range(1000):
        seen.failed(0.0, refused_at=0.0)
    assert seen.trusted(MAX_BOAST_MEMORY + 1)


def test_a_served_call_restores_trust_and_takes_one_boast_back() -> None:
    seen = Experience()
    seen.failed(0.0, refused_at=0.0)
    seen.succeeded(5.0)
    assert seen.trusted(1.0)
    seen.failed(2.0, refused_at=0.0)
    assert seen.trusted(2.0 + BOAST_MEMORY + 1)  # as if it were the first time


def test_a_memory_asks_a_boaster_last_and_forgets_the_oldest_when_it_is_full() -> None:
    now = 0.0
    memory = Memory(Random(1).randrange, lambda: now)
    idle, full = offer("ann", load=0.0), offer("ben", load=0.9)
    assert memory.rank([full, idle]) == [idle, full]
    memory.failed(idle, busy=True)
    now = FAILURE_MEMORY + 1
    assert memory.rank([full, idle]) == [full, idle]
    memory.failed(full, busy=False)  # it broke off: that is no lie
    now += FAILURE_MEMORY + 1
    assert memory.rank([full, idle]) == [full, idle]
    for number in range(MAX_KNOWN_PROVIDERS):
        memory.succeeded(offer(f"peer {number}"), 1.0)
    assert memory.rank([full, idle]) == [idle, full]


def test_who_was_lied_to_by_strangers_asks_whom_it_knows_before_another_one() -> None:
    friend, stranger = offer("ann", rtt=10.0, load=0.4), offer("ben", rtt=10.0, load=0.0)
    believing, burnt = (Memory(Random(1).randrange, lambda: 0.0) for _ in range(2))
    for memory in (believing, burnt):
        memory.succeeded(friend, 40.0)
        assert memory.rank([friend, stranger]) == [stranger, friend]  # it says that it is idle
    for number in range(6):
        met = offer(f"peer {number}", load=0.0)
        believing.succeeded(met, 40.0)
        burnt.failed(met, busy=True)
    assert believing.rank([friend, stranger]) == [stranger, friend]
    assert burnt.rank([friend, stranger]) == [friend, stranger]
    for number in range(200):  # what came later counts more than what was long ago
        burnt.succeeded(offer(f"honest {number}", load=0.0), 40.0)
    assert burnt.rank([friend, stranger]) == [stranger, friend]


def test_who_said_that_it_is_loaded_and_refuses_has_told_no_lie() -> None:
    memory = Memory(Random(1).randrange, lambda: 0.0)
    friend, stranger = offer("ann", rtt=10.0, load=0.4), offer("ben", rtt=10.0, load=0.0)
    memory.succeeded(friend, 40.0)
    for number in range(6):
        memory.failed(offer(f"full {number}", load=0.9), busy=True)
        memory.failed(offer(f"gone {number}", load=0.0), busy=False)
        memory.failed(offer(f"silent {number}"), busy=True)  # it said nothing of its load
    assert memory.rank([friend, stranger]) == [stranger, friend]


def test_a_crowd_of_my_own_calls_makes_nobody_a_liar() -> None:
    """What a provider says of its load it said before they came."""
    now = 0.0
    memory = Memory(Random(1).randrange, lambda: now)
    friend, stranger, newcomer = (
        offer(name, rtt=10.0, load=load) for name, load in (("ann", 0.4), ("ben", 0.0), ("cat", 0.0))
    )
    memory.succeeded(friend, 40.0)
    with memory.calling(stranger), memory.calling(stranger):
        pass
    memory.failed(stranger, busy=True)
    assert memory.rank([friend, newcomer]) == [newcomer, friend]  # strangers are believed as before
    now = FAILURE_MEMORY + 1
    assert memory.rank([friend, stranger]) == [stranger, friend]  # and it is forgiven as who was busy is
    memory.failed(stranger, busy=True)  # alone
    now += FAILURE_MEMORY + 1
    assert memory.rank([friend, stranger]) == [friend, stranger]


def test_doubt_fades_with_the_hours() -> None:
    now = 0.0
    memory = Memory(Random(1).randrange, lambda: now)
    friend, stranger = offer("ann", rtt=10.0, load=0.4), offer("ben", rtt=10.0, load=0.0)
    memory.succeeded(friend, 40.0)
    for number in range(20):
        memory.failed(offer(f"peer {number}", load=0.0), busy=True)
    assert memory.rank([friend, stranger]) == [friend, stranger]
    now = 8 * BOAST_MEMORY
    assert memory.rank([friend, stranger]) == [stranger, friend]


def test_who_is_called_all_the_time_is_not_forgotten() -> None:
    memory = Memory(Random(1).randrange, lambda: 0.0)
    friend, stranger = offer("ann", rtt=90.0, load=0.0), offer("ben", rtt=10.0, load=0.0)
    memory.succeeded(friend, 5.0)
    for number in range(MAX_KNOWN_PROVIDERS):
        memory.succeeded(offer(f"peer {number}"), 5.0)
        memory.succeeded(friend, 5.0)
    assert memory.rank([stranger, friend]) == [friend, stranger]


def test_what_decided_is_told_in_words() -> None:
    now, offers = 100.0, [offer(name, rtt=1.0) for name in NAMES]
    slow, quick, failing, boasting = Experience(), Experience(), Experience(), Experience()
    slow.succeeded(1000.0)
    quick.succeeded(5.25)
    quick.failed(0.0)  # too long ago
    failing.failed(88.0)
    boasting.failed(40.0, refused_at=0.0)
    seen = dict(zip((o.provider for o in offers), (slow, quick, failing, boasting), strict=False))
    told = reasons(offers, lambda o: seen.get(o.provider), now, doubt=0.25)
    stranger = [
        "no own call yet: counted as 5.2 ms, the fastest other, and a round trip",
        "a stranger's word counts less: of those that said they are idle 25% were busy",
    ]
    assert told[0] == ["own calls took about 1.0 s"]
    assert told[1] == ["own calls took about 5.2 ms"]
    assert told[2] == [*stranger, "a call failed 12 s ago, which puts it behind all others for 48 s more"]
    boasted = "it said that it was idle and refused as busy 60 s ago"
    assert told[3][-1] == f"{boasted}, which puts it behind all others for 29 min more"
    assert told[4] == stranger
    assert reasons(offers, strangers, now) == [[]] * len(offers)
