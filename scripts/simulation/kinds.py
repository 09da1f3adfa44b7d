"""The kinds of phases: reads, life and death in a watched world, attacks. What each reads, and measures.

A key that a phase would not look at, or a mark of a figure that it never has, is a slip in the file, and
is told before anything is played. What a phase could have measured and had no trial of is a mark missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulation.scenario import Phase, World

OF_READS = (
    "kill",
    "cut",
    "heal",
    "update",
    "sybils",
    "one_net",
    "spread",
    "misjudged",
    "all_records",
    "readers",
    "reads",
)
OF_WATCHED = (
    "deaths",
    "loud",
    "freeze",
    "freeze_seconds",
    "freeze_every",
    "liars",
    "calls",
)
OF_BOTH = ("churn", "wait", "seconds")
GOES_WITH = {
    "one_net": "sybils",
    "spread": "sybils",
    "loud": "deaths",
    "freeze_seconds": "freeze",
    "freeze_every": "freeze",
}

SPREAD = ("seconds", "hops", "messages")  # of a read: p50, p90 and p95
READ = (
    "found",
    "answered",
    "newest",
    "stale",
    "share",
    *(f"{name}_p{percent}" for name in SPREAD for percent in (50, 90, 95)),
    "messages_mean",
    "round_trips_p95",
    "patience_s",
    "dead_entries",
)
WITH_UPKEEP = ("upkeep_messages_per_s", "upkeep_bytes_per_s")
WITHOUT_UPKEEP = ("copies_per_read", "busiest_share")
BESIDE_FIRST = ("seconds_p95", "messages_mean")  # as …_vs_first
LIVENESS = ("liveness_messages_per_s", "liveness_bytes_per_s")  # as …_vs_smallest, too
WATCHED = ("false_deaths", "false_deaths_per_peer_hour", "peer_hours")
LIES = ("liars", "lied_about", "lies", "deceived_holders")
CALLS = (
    "wasted",
    "nobody",
    "dead_offers",
    "dead_offers_left",
    "dead_pings",
    "pings_per_call",
    "call_after_p50",
    "call_after_p95",
)
NOTICED = ("noticed", "p50", "p90", "p99")  # of deaths as gone_…, of returns as cleared_…
ATTACKS = {
    "eclipse": ("known_mean", "known_worst", "well_joined"),
    "junk": ("honest_first_20", "found", "rank_worst"),
    "boasters": ("attempts_mean", "attempts_mean_before", "failed", "seconds_mean", "to_liars"),
}


class BadPhase(ValueError):
    """A phase that says what it does not read, or is measured by what it does not have."""


def figures_of(phase: Phase, world: World, first: Phase) -> tuple[str, ...]:
    """All figures that this phase can have, in this world and after this first phase."""
    if phase.attack is not None:
        return ATTACKS[phase.attack.kind]
    if world.watched:
        return (
            *LIVENESS,
            *(f"{name}_vs_smallest" for name in LIVENESS),
            *WATCHED,
            *(f"gone_{name}" for name in NOTICED if phase.deaths),
            *(f"cleared_{name}" for name in NOTICED if phase.freeze),
            *(LIES if phase.liars else ()),
            *(CALLS if phase.calls else ()),
        )
    beside = BESIDE_FIRST if phase is not first and first.attack is None else ()
    return (
        *READ,
        *(WITH_UPKEEP if world.upkeep else WITHOUT_UPKEEP),
        *(f"{name}_vs_first" for name in beside),
    )


def check(phase: Phase, world: World, first: Phase) -> None:
    """Raises BadPhase."""
    given = [one.name for one in fields(phase) if getattr(phase, one.name) != one.default]
    for key in given:
        if phase.attack is not None and key in (*OF_READS, *OF_WATCHED, *OF_BOTH):
            raise BadPhase(
                f"{key} says nothing in a phase with an attack, which has a name and marks beside it"
            )
        if not world.watched and key in OF_WATCHED:
            raise BadPhase(f"{key} is of a watched world; write watched = true in [world], or leave it out")
        if world.watched and key in OF_READS:
            raise BadPhase(
                f"{key} is of a world in which records are read, and this one is watched (watched = true in "
                f"[world]): its phases have {', '.join((*OF_BOTH, *OF_WATCHED))}"
            )
        if (other := GOES_WITH.get(key)) and other not in given:
            raise BadPhase(f"{key} goes with {other}, which is not there")
    if world.watched and phase.attack is None and phase.seconds == 0:
        raise BadPhase("seconds is 0, and life and death are measured over them")
    attack = phase.attack
    if attack and attack.kind == "junk" and min(attack.trials, attack.full) < 2 * world.victims:
        raise BadPhase(
            f"attack: trials is {attack.trials} (full: {attack.full}), and each of {world.victims} victims' "
            "keys has at least two"
        )
    if attack and attack.kind == "boasters" and not attack.gang:
        raise BadPhase("attack: gang is 0, and is who offers the model")
    known = figures_of(phase, world, first)
    for mark in phase.marks:
        if mark.figure not in known:
            raise BadPhase(f"no figure of this phase is called {meant(mark.figure, known)}")


def meant(word: str, known: Sequence[str]) -> str:
    """The word, which of the known ones was probably meant, and all of them."""
    close = get_close_matches(word, known, 1)
    return f"{word!r}; {f'did you mean {close[0]}? ' if close else ''}there are {', '.join(known)}"
