"""Alice serves; bob, carol and dave watch over her: the table of phases, and who may say what."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from modelnet_p2p.beats import Beat, Heard, Message, Obituary, Probe, Roster, Verdict, Watch
from modelnet_p2p.dht.liveness.beating import Beater
from modelnet_p2p.dht.liveness.obituaries import LIFETIME_US, MAX_SUBJECTS, SKEW_US, Obituaries, covers
from modelnet_p2p.dht.liveness.suspicion import MAX_DOUBT, Health, Suspicion, Tempo
from modelnet_p2p.dht.liveness.watcher import MAX_WARDS, Announce, Effect, Phase, Tell, Watcher
from modelnet_p2p.identity import PeerId
from simulation.vigil import Pen

BEAT = 2.0
EPOCH_US = 1_700_000_000_000_000
KEYS = tuple(bytes([number]) * 34 for number in range(12))  # three models at four keys each


def peer_id(number: int) -> PeerId:
    return PeerId.of_key(number.to_bytes(32))


ALICE, BOB, CAROL, DAVE, EVE = (peer_id(number) for number in range(1, 6))
ROSTER = Roster(ALICE, 1, (BOB, CAROL, DAVE))
TEMPO = Tempo(BEAT)


def bob_watches() -> Watcher:
    """Bob, who has had one beat of alice at 0 s."""
    watcher = Watcher(BOB, Pen(BOB, lambda: EPOCH_US), BEAT, lambda below, wanted: range(wanted), 0.0)
    assert watcher.on_message(ALICE, Watch(ROSTER, KEYS), 0.0) == []
    assert watcher.on_message(ALICE, Beat(ALICE, 7, 1), 0.0) == []
    return watcher


def polled(watcher: Watcher, until: float) -> list[Effect]:
    """All that comes of polling it in time."""
    effects = []
    while watcher.due <= until:
        effects += watcher.poll(watcher.due)
    return effects


def verdict(watcher: PeerId, *, dead: bool = True, incarnation: int = 7) -> Verdict:
    return Verdict(watcher, ALICE, incarnation, dead, EPOCH_US)


def test_silence_is_asked_about_then_suspected_then_a_verdict() -> None:
    bob = bob_watches()
    assert polled(bob, 2.9) == []
    assert polled(bob, 3.9) == [Tell(peer, Probe(ALICE)) for peer in (ALICE, CAROL, DAVE)]
    assert bob.phase(ALICE) is Phase.PROBING
    assert polled(bob, 4.1) == [Tell(peer, verdict(BOB, dead=False)) for peer in (CAROL, DAVE)]
    assert bob.phase(ALICE) is Phase.SUSPECT
    assert polled(bob, 13.9) == []  # alone with it
    assert polled(bob, 14.1) == [Tell(peer, verdict(BOB)) for peer in (CAROL, DAVE)]
    assert bob.phase(ALICE) is Phase.DEAD  # and nobody is told: one watcher is no quorum
    polled(bob, 14 + 300 * BEAT + 1)
    assert bob.phase(ALICE) is None


def test_a_shared_suspicion_ripens_soon_and_two_verdicts_of_three_are_an_obituary() -> None:
    bob = bob_watches()
    polled(bob, 4.1)
    assert bob.on_message(CAROL, verdict(CAROL, dead=False), 4.2) == []
    effects = polled(bob, 6.1)
    assert effects == [Tell(peer, verdict(BOB)) for peer in (CAROL, DAVE)]
    proof = Obituary(ROSTER, (verdict(BOB), verdict(CAROL)))
    assert bob.on_message(CAROL, verdict(CAROL), 6.2) == [Announce(KEYS, proof)]
    assert bob.on_message(DAVE, verdict(DAVE), 6.3) == []  # it is told once
    assert proof.proven


def test_a_beat_ends_any_doubt_and_a_higher_incarnation_refutes() -> None:
    bob = bob_watches()
    polled(bob, 4.1)
    bob.on_message(CAROL, verdict(CAROL), 4.2)
    polled(bob, 6.3)
    assert bob.phase(ALICE) is Phase.DEAD
    assert bob.on_message(ALICE, Beat(ALICE, 7, 1), 7.0) == []  # an old one, sent again
    assert bob.phase(ALICE) is Phase.DEAD
    assert bob.on_message(ALICE, Beat(ALICE, 7, 2), 7.0) == [Tell(ALICE, Heard(7, 2, True))]
    assert bob.phase(ALICE) is Phase.HEARD
    polled(bob, 8.9)
    refutation = Beat(ALICE, 8, 3)
    assert bob.on_message(ALICE, refutation, 9.0) == [Announce(KEYS, refutation)]
    assert bob.on_message(CAROL, verdict(CAROL), 9.1) == [Tell(CAROL, refutation)]
    assert bob.health.doubt == 1


def test_a_lost_connection_saves_the_wait() -> None:
    bob = bob_watches()
    assert bob.on_lost(ALICE, 0.5) == [Tell(peer, Probe(ALICE)) for peer in (ALICE, CAROL, DAVE)]
    assert bob.on_lost(EVE, 0.5) == []
    assert polled(bob, 1.6) == [Tell(peer, verdict(BOB, dead=False)) for peer in (CAROL, DAVE)]


def test_a_probe_is_passed_on_and_its_answer_comes_back() -> None:
    bob = bob_watches()
    assert bob.on_message(EVE, Probe(ALICE), 1.0) == []  # she does not watch over alice
    assert bob.on_message(CAROL, Probe(ALICE), 1.0) == [Tell(ALICE, Probe(ALICE))]
    beat = Beat(ALICE, 7, 2)
    assert bob.on_message(ALICE, beat, 1.1) == [Tell(CAROL, beat)]


def test_who_wakes_up_late_blames_itself() -> None:
    bob = bob_watches()
    assert bob.poll(60.0) == []
    assert bob.phase(ALICE) is Phase.HEARD
    assert bob.health.doubt == 1


def test_only_who_watches_over_alice_judges_her_and_only_she_names_her_watchers() -> None:
    bob = bob_watches()
    assert bob.on_message(EVE, verdict(EVE), 1.0) == []
    assert bob.on_message(EVE, verdict(CAROL), 1.0) == []  # carol's words from eve's mouth
    assert bob.on_message(BOB, verdict(BOB), 1.0) == []
    assert bob.wards[ALICE].verdicts == {}
    assert bob.on_message(EVE, Watch(Roster(ALICE, 9, (EVE,))), 1.0) == []
    assert bob.phase(ALICE) is Phase.HEARD
    bob.on_message(ALICE, Watch(Roster(ALICE, 0, (EVE,))), 1.0)  # an old one
    assert bob.phase(ALICE) is Phase.HEARD
    bob.on_message(ALICE, Watch(Roster(ALICE, 2, (EVE,))), 1.0)
    assert bob.phase(ALICE) is None


def test_a_watcher_takes_on_no_more_than_it_can() -> None:
    bob = bob_watches()
    for number in range(10, 10 + 2 * MAX_WARDS):
        subject = peer_id(number)
        bob.on_message(subject, Watch(Roster(subject, 1, (BOB,))), 0.0)
    assert len(bob.wards) == MAX_WARDS


# --- the one who is watched over ---


def alice_beats() -> Beater:
    alice = Beater(ALICE, Pen(ALICE, lambda: EPOCH_US), BEAT, 100, 0.0)
    assert alice.poll(0.0) == []  # nobody watches over her yet
    watch = Watch(Roster(ALICE, 101, (BOB, CAROL)), KEYS)
    assert alice.on_watchers([BOB, CAROL], KEYS, 0.0) == [Tell(BOB, watch), Tell(CAROL, watch)]
    return alice


def test_beats_go_to_every_watcher_at_their_pace() -> None:
    alice = alice_beats()
    assert alice.poll(2.0) == [Tell(BOB, Beat(ALICE, 100, 1)), Tell(CAROL, Beat(ALICE, 100, 1))]
    assert alice.poll(2.5) == []
    assert alice.poll(4.0) == [Tell(BOB, Beat(ALICE, 100, 2)), Tell(CAROL, Beat(ALICE, 100, 2))]


def test_doubt_raises_the_incarnation_once_a_beat() -> None:
    alice = alice_beats()
    alice.poll(2.0)
    for _ in range(10):
        assert alice.on_message(BOB, Heard(100, 1, True), 2.1) == []
    alice.on_message(EVE, Heard(100, 1, True), 2.1)
    assert alice.poll(4.0)[0] == Tell(BOB, Beat(ALICE, 101, 2))
    alice.on_message(BOB, Heard(100, 1, True), 4.1)  # late: that doubt is refuted already
    assert alice.poll(6.0)[0] == Tell(BOB, Beat(ALICE, 101, 3))


def test_a_question_is_answered_with_a_beat_and_a_flood_of_them_with_the_same_one() -> None:
    alice = alice_beats()
    alice.poll(2.0)
    first = alice.on_message(EVE, Probe(ALICE), 3.0)
    assert first == [Tell(EVE, Beat(ALICE, 100, 2))]
    assert [alice.on_message(EVE, Probe(ALICE), 3.1) for _ in range(100)] == [first] * 100
    assert alice.on_message(EVE, Probe(BOB), 3.0) == []


def test_watchers_that_fall_silent_are_named_and_those_let_go_are_told() -> None:
    alice = alice_beats()
    alice.on_message(CAROL, Heard(100, 4), 15.0)
    assert alice.silent(21.0) == {BOB}
    alice.on_lost(CAROL)
    assert alice.silent(21.0) == {BOB, CAROL}
    watch = Watch(Roster(ALICE, 102, (CAROL, DAVE)), KEYS)
    assert alice.on_watchers([CAROL, DAVE], KEYS, 21.0) == [Tell(peer, watch) for peer in (CAROL, DAVE, BOB)]
    assert alice.silent(21.0) == set()
    assert alice.on_watchers([CAROL, DAVE], KEYS, 21.0) == []


def test_a_roster_follows_every_record_of_its_subject() -> None:
    alice = alice_beats()
    assert alice.on_watchers([BOB, CAROL], KEYS, 1.0, 101) == []
    watch = Watch(Roster(ALICE, 5000, (BOB, CAROL)), KEYS)
    assert alice.on_watchers([BOB, CAROL], KEYS, 1.0, 5000) == [Tell(BOB, watch), Tell(CAROL, watch)]
    assert alice.on_watchers([BOB, CAROL], KEYS, 1.0, 5000) == []


# --- what holders believe ---


def obituary(*watchers: PeerId, roster: Roster = ROSTER, incarnation: int = 7) -> Obituary:
    return Obituary(roster, tuple(verdict(who, incarnation=incarnation) for who in watchers))


def test_an_obituary_needs_a_quorum_of_the_newest_watchers() -> None:
    known = Obituaries()
    assert not known.add(obituary(BOB), EPOCH_US)
    assert not known.add(obituary(BOB, BOB), EPOCH_US)
    assert not known.add(obituary(BOB, EVE), EPOCH_US)
    mixed = Obituary(ROSTER, (verdict(BOB), verdict(CAROL, incarnation=8)))
    assert not known.add(mixed, EPOCH_US)
    doubts = Obituary(ROSTER, (verdict(BOB, dead=False), verdict(CAROL, dead=False)))
    assert not known.add(doubts, EPOCH_US)
    assert not known.add(obituary(BOB, roster=Roster(ALICE, 1, (BOB,))), EPOCH_US)
    newer = Roster(ALICE, 5, (CAROL, DAVE))
    assert known.add(obituary(CAROL, DAVE, roster=newer), EPOCH_US)
    assert not known.add(obituary(BOB, CAROL), EPOCH_US)


def test_an_obituary_ends_by_refutation_by_age_and_by_what_was_said_later() -> None:
    known = Obituaries()
    death = obituary(BOB, CAROL)
    assert known.add(death, EPOCH_US)
    assert known.of(ALICE, EPOCH_US) == death
    assert known.of(ALICE, EPOCH_US, issued_us=EPOCH_US + 1) is None
    assert known.of(ALICE, EPOCH_US + LIFETIME_US + 1) is None
    assert not known.refute(Beat(ALICE, 7, 9))
    assert known.refute(Beat(ALICE, 8, 10))
    assert known.of(ALICE, EPOCH_US) is None
    assert not known.add(death, EPOCH_US)  # it was refuted
    assert not known.add(obituary(BOB, CAROL, incarnation=9), EPOCH_US - LIFETIME_US)  # from the future


def test_what_the_dead_one_issued_is_placed_by_its_own_clock() -> None:
    known = Obituaries()
    ahead_us = EPOCH_US + SKEW_US - 1
    death = obituary(BOB, CAROL, roster=Roster(ALICE, ahead_us, (BOB, CAROL, DAVE)))
    assert known.add(death, EPOCH_US)
    assert known.of(ALICE, EPOCH_US, issued_us=ahead_us) == death
    assert known.of(ALICE, EPOCH_US, issued_us=ahead_us + 1) is None  # it is back
    behind = obituary(BOB, CAROL, roster=Roster(ALICE, 1, (BOB, CAROL, DAVE)))
    assert covers(behind, EPOCH_US - SKEW_US)
    assert not covers(behind, EPOCH_US - SKEW_US + 1)


def test_the_dead_of_a_flooder_are_forgotten_like_all_others() -> None:
    known = Obituaries()
    for number in range(10, 10 + MAX_SUBJECTS + 5):
        subject = peer_id(number)
        verdicts = tuple(Verdict(who, subject, 1, True, EPOCH_US) for who in (BOB, CAROL))
        assert known.add(Obituary(Roster(subject, 1, (BOB, CAROL)), verdicts), EPOCH_US)
    assert len(known) == MAX_SUBJECTS


# --- suspicion and self-doubt ---


def test_a_suspicion_ripens_between_its_bounds() -> None:
    suspicion = Suspicion(TEMPO, 100.0, 2)
    ripe = [suspicion.ripe_at(1.0)]
    for watcher in (CAROL, CAROL, DAVE, EVE):
        suspicion.confirm(watcher)
        ripe.append(suspicion.ripe_at(1.0))
    assert ripe == sorted(ripe, reverse=True)
    assert ripe[0] == 100 + TEMPO.ripe_latest
    assert ripe[1] == ripe[2]
    assert ripe[3] == ripe[4] == 100 + TEMPO.ripe_soonest
    assert suspicion.ripe_at(3.0) == 100 + 3 * TEMPO.ripe_soonest


def test_self_doubt_is_bounded_and_passes() -> None:
    health = Health(TEMPO, 0.0)
    for _ in range(10):
        health.worsen(0.0)
    assert health.doubt == MAX_DOUBT
    health.pass_time(10.0)
    assert health.doubt == MAX_DOUBT - 1
    health.pass_time(1000.0)
    assert health.slowness == 1.0


_PEOPLE = st.sampled_from([ALICE, BOB, CAROL, DAVE, EVE])
_SMALL = st.integers(0, 3)
_ROSTERS = st.builds(Roster, _PEOPLE, _SMALL, st.lists(_PEOPLE, max_size=5, unique=True).map(tuple))
_VERDICTS = st.builds(Verdict, _PEOPLE, _PEOPLE, _SMALL, st.booleans(), st.just(EPOCH_US))
_MESSAGES = st.one_of(
    st.builds(Watch, _ROSTERS),
    st.builds(Beat, _PEOPLE, _SMALL, _SMALL),
    st.builds(Heard, _SMALL, _SMALL, st.booleans()),
    st.builds(Probe, _PEOPLE),
    _VERDICTS,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(_PEOPLE, st.none() | _MESSAGES, st.floats(0, 5)), max_size=60))
def test_whatever_anybody_says_every_announcement_is_proven_and_polling_ends(
    story: list[tuple[PeerId, Message | None, float]],
) -> None:
    rng, now = Random(1), 0.0
    bob = Watcher(BOB, Pen(BOB, lambda: EPOCH_US), BEAT, lambda n, k: rng.sample(range(n), k), now)
    for sender, message, pause in story:
        now += pause
        effects = bob.on_lost(sender, now) if message is None else bob.on_message(sender, message, now)
        effects += bob.poll(now)
        assert bob.due > now or bob.poll(now) == []
        assert len(effects) <= 40
        for effect in effects:
            match effect:
                case Announce(_, Obituary() as death):
                    assert death.proven
                case Tell(peer, _):
                    assert peer != BOB
