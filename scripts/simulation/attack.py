"""What a phase's attack is: who attacks and with how much; the module of its kind plays it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

KINDS: Mapping[str, tuple[str, ...]] = {  # what each reads, beside its trials
    "eclipse": ("gang", "full_gang", "nets", "ground"),
    "junk": ("gang", "full_gang", "nets", "late", "feigned"),
    "boasters": ("gang", "full_gang", "share", "slow", "every"),
}
OF_ALL = ("kind", "trials", "full")


class BadAttack(ValueError):
    """An attack that cannot be played."""


@dataclass(frozen=True, slots=True)
class Attack:
    """`attack = {…}` of a phase."""

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
        known = (*OF_ALL, *KINDS[self.kind])
        for one in fields(self):
            if one.name not in known and getattr(self, one.name) != one.default:
                raise BadAttack(f"{one.name} says nothing to {self.kind}, which reads {', '.join(known)}")
        for key in ("trials", "full"):
            if getattr(self, key) < 1:
                raise BadAttack(f"{key} is {getattr(self, key)}; it is at least 1")


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of it."""

    trials: int
    figures: Mapping[str, float]
