"""What a phase's attack is: who attacks and with how much; the module of its kind plays it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

KINDS = ("eclipse", "junk", "boasters")


class BadAttack(ValueError):
    """An attack that cannot be played."""


@dataclass(frozen=True, slots=True)
class Attack:
    """`attack = {…}` of a phase; each kind reads what concerns it."""

    kind: str = ""
    gang: int = 0  # identities that work together; or all that offer a model, of whom ...
    share: float = 0.0  # ... so many lie
    slow: float = 0.0  # ... of whom so many answer, after ten seconds, and the others refuse
    every: float = 1.0  # seconds between two calls of one caller
    nets: int = 0  # /24s that they share; 0: each has its own
    ground: int = 0  # so many more, ground for each victim once it has shown up
    late: bool = False  # they come after the honest one, who else finds them there
    feigned: bool = False  # each says that it is in another network
    full_gang: int = 0  # ... of the gang, with --full; 0: as many
    trials: int = 10  # victims, or reads
    full: int = 300  # ... with --full

    def at_full_size(self) -> Attack:
        return replace(self, trials=self.full, gang=self.full_gang or self.gang)

    def check(self) -> None:
        """Raises BadAttack."""
        if self.kind not in KINDS:
            raise BadAttack(f"kind is {self.kind!r}; there are {', '.join(KINDS)}")
        if min(self.gang, self.nets, self.ground) < 0 or min(self.trials, self.full) < 1:
            raise BadAttack("a number is negative, or there is no victim")


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of it."""

    trials: int
    figures: Mapping[str, float]
