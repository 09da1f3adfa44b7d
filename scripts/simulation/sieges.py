"""The attacks that are no reading: each kind has its page."""

from __future__ import annotations

from collections.abc import Callable

from simulation import boasters, eclipse, junk
from simulation.attack import Attack, Measured
from simulation.town import Town

PLAYED: dict[str, Callable[[Town, Attack], Measured]] = {
    "eclipse": eclipse.play,
    "junk": junk.play,
    "boasters": boasters.play,
}


def play(town: Town, attack: Attack) -> Measured:
    return PLAYED[attack.kind](town, attack)
