"""A scenario as its file says it: a world, what happens to it phase by phase, and the marks of each phase.

Every value has one type and every key is known, so that a slip in a file is an error and not a scenario
that quietly tests something else. `[full]` replaces values of the world when `--full` is asked for.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TypeVar

from modelnet_p2p.dht.simulator import Weather
from simulation import kinds
from simulation.attack import Attack, BadAttack

FOLDER = Path(__file__).parent / "scenarios"
_MARK = re.compile(r"(?P<sense>>=|<=)\s*(?P<bound>\d+(?:\.\d+)?)")
Section = TypeVar("Section", "World", "Weather", "Phase", "Attack")
READERS = ("as they are", "warm", "cold")
TABLES = ("drawn", "joined")
SECTIONS = ("title", "beside", "world", "full", "weather", "phase")
SHARES = ("kill", "churn", "freeze", "loss", "share", "slow")  # from 0 to 1
NOT_ALL = ("kill", "loss")  # ... and below 1: somebody lives, something arrives
AT_LEAST_ONE = ("publishers", "reads", "victims", "limit", "per_key")
ABOVE_ZERO = ("misjudged", "stretch")
TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
CLAIMS = 0.999  # a share that is promised from here on ...
CLAIM_TRIALS = 3000  # ... takes this many trials to claim: with 0 misses of 3,000, 95 % certain

RULE_OF_THREE = 3.0  # of what happens so often an hour: as many would have been seen, were it true


class BadScenario(ValueError):
    """A scenario file that says what cannot be played."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What a figure must reach."""

    figure: str
    sense: str  # ">=" or "<="
    bound: float

    @classmethod
    def parse(cls, figure: str, text: object) -> Mark:
        found = _MARK.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise BadScenario(f"the mark of {figure} is {text!r}; write '>= 0.999' or '<= 2000'")
        return cls(figure, found["sense"], float(found["bound"]))

    def holds(self, value: float) -> bool:
        return value >= self.bound if self.sense == ">=" else value <= self.bound

    def claims(self, trials: int) -> bool:
        """Whether that many trials, or hours for what happens so often an hour, are enough to speak of it."""
        if self.figure.endswith("_per_peer_hour"):
            return trials * self.bound >= RULE_OF_THREE
        return self.sense != ">=" or self.bound < CLAIMS or trials >= CLAIM_TRIALS

    def __str__(self) -> str:
        return f"{self.figure} {self.sense} {self.bound:g}"


@dataclass(frozen=True, slots=True)
class Phase:
    """First what happens at once, then `wait` seconds, then reads, spread over `seconds`."""

    name: str
    kill: float = 0.0  # share of the living that falls silent at once
    churn: float = 0.0  # share of the peers that leaves in a minute, each replaced by a newcomer
    cut: bool = False  # the world falls into two halves that do not hear each other
    heal: bool = False
    update: bool = False  # each publisher signs its record anew and stores it
    sybils: int = 0  # identities ground closest to each of some keys that are published only then
    one_net: bool = False  # ... all with addresses of one /24
    spread: bool = False  # ... not closest, but all over where the key's holders are
    misjudged: float = 1.0  # times the size of the network that everybody takes it for
    all_records: bool = False  # readers walk through everything under the key
    deaths: int = 0  # of a watched world: providers killed one after the other while somebody looks for them
    loud: bool = False  # ... their machines run on, so that their connections break; else they are silent
    freeze: float = 0.0  # ... share that stands still at once, then others, and so on
    freeze_seconds: float = 3.0
    freeze_every: float = 0.0  # seconds from one to the next; 0: one right after the other
    liars: bool = False  # ... one watcher of each peer says that it is dead, as far as that can be arranged
    calls: int = 0  # ... of whoever serves the first publisher's model
    readers: str = "as they are"  # warm: connected to all their table; cold: to nobody
    reads: int = 0  # as many as the world says, where it is 0
    wait: float = 0.0
    seconds: float = 1.0
    marks: tuple[Mark, ...] = ()
    attack: Attack | None = None  # instead of the reads


@dataclass(frozen=True, slots=True)
class World:
    """What there is before anything happens."""

    peers: tuple[int, ...] = (300,)  # more than one: the same scenario in worlds of each size
    publishers: int = 30  # each publishes one model
    hot: bool = False  # ... all the same one
    tables: str = "drawn"  # of the truth; or joined: each peer joined by itself, one after the other
    upkeep: bool = False  # peers refresh their tables and store their records again
    reads: int = 200  # in each phase
    victims: int = 3  # keys that are besieged in a phase with Sybils
    apart: bool = False  # each phase in a world of its own
    readers: int = 0  # who read in all phases, and so have learnt how long answers take; 0: everybody
    limit: int = 20  # records after which a reader has enough
    per_key: int = 4096  # records that a holder keeps under one key
    stretch: float = 1.0  # of a watched world: its phases without deaths last so many times as long
    watched: bool = False  # all serve and watch over each other; phases are of life and death, not of reads


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    title: str
    world: World
    weather: Weather
    phases: tuple[Phase, ...]
    full: Mapping[str, object] = field(default_factory=dict)
    beside: str = ""  # a known figure of somebody else's, with its source

    def at_full_size(self) -> Scenario:
        world = _made(World, {**_values(self.world), **self.full}, f"{self.name}: [full]")
        phases = tuple(replace(one, attack=one.attack and one.attack.at_full_size()) for one in self.phases)
        return Scenario(self.name, self.title, world, self.weather, phases, {}, self.beside)


def read(path: Path) -> Scenario:
    """The scenario in a file; raises BadScenario, which names what is wrong."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadScenario(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadScenario(f"{path}: {error}") from error
    return parse(path.stem, data)


def parse(name: str, data: Mapping[str, object]) -> Scenario:
    for section in data:
        if section not in SECTIONS:
            raise BadScenario(f"{name}: no section is called {kinds.meant(section, SECTIONS)}")
    title, beside, phases = data.get("title"), data.get("beside", ""), data.get("phase")
    if not isinstance(title, str) or not isinstance(beside, str):
        raise BadScenario(f"{name}: it needs a title, a text")
    if not isinstance(phases, list) or not phases:
        raise BadScenario(f"{name}: it needs a [[phase]]")
    world = _made(World, data.get("world", {}), f"{name}: [world]")
    weather = _made(Weather, data.get("weather", {}), f"{name}: [weather]")
    played = tuple(_phase(name, number, values) for number, values in enumerate(phases, 1))
    full = data.get("full", {})
    if not isinstance(full, dict):
        raise BadScenario(f"{name}: [full] is no table")
    scenario = Scenario(name, title, world, weather, played, full, beside)
    for one in (scenario, scenario.at_full_size()):  # raises here and not only with --full
        _check_phases(one)
    return scenario


def _check_phases(scenario: Scenario) -> None:
    """Whether each phase reads and measures in this world what it says."""
    world, phases = scenario.world, scenario.phases
    if not world.watched and world.stretch != 1.0:
        raise BadScenario(
            f"{scenario.name}: [world]: stretch is of a watched world; write watched = true, or leave it out"
        )
    for number, phase in enumerate(phases, 1):
        try:
            kinds.check(phase, world, phases[0])
        except kinds.BadPhase as error:
            raise BadScenario(f"{_where(scenario.name, number, phase.name)}: {error}") from error


def _where(scenario: str, number: int, phase: object) -> str:
    return f"{scenario}: [[phase]] {number}" + (f" {phase!r}" if isinstance(phase, str) else "")


def _phase(scenario: str, number: int, values: object) -> Phase:
    if not isinstance(values, dict):
        raise BadScenario(f"{_where(scenario, number, None)} is no table")
    where = _where(scenario, number, values.get("name"))
    marks = values.get("marks", {})
    if not isinstance(marks, dict):
        raise BadScenario(f"{where}: marks is no table; write marks = {{ found = '>= 0.999' }}")
    try:
        found = tuple(Mark.parse(figure, text) for figure, text in marks.items())
    except BadScenario as error:
        raise BadScenario(f"{where}: {error}") from error
    attack = _made(Attack, values["attack"], f"{where}: attack") if "attack" in values else None
    rest = {key: value for key, value in values.items() if key != "attack"}
    phase = replace(_made(Phase, {**rest, "marks": found}, where), attack=attack)
    if phase.readers not in READERS:
        raise BadScenario(f"{where}: readers are {', '.join(READERS)}, not {phase.readers!r}")
    return phase


def _values(world: World) -> dict[str, object]:
    return {one.name: getattr(world, one.name) for one in fields(world)}


def _made(kind: type[Section], values: object, where: str) -> Section:
    """An instance of `kind` with these values, each of its default's type."""
    if not isinstance(values, dict):
        raise BadScenario(f"{where} is no table")
    known: dict[str, object] = {one.name: one.default for one in fields(kind)}
    checked: dict[str, object] = {}
    for key, value in values.items():
        if key not in known:
            raise BadScenario(f"{where}: no key is called {kinds.meant(key, [*known])}")
        checked[key] = _value(value, known[key], f"{where}: {key}")
        _check_number(key, checked[key], f"{where}: {key}")
    if kind is Phase and not isinstance(checked.get("name"), str):
        raise BadScenario(f"{where} needs a name")
    made = kind(**checked)  # type: ignore[arg-type]  # each was checked against its default
    if isinstance(made, World):
        _check(made, where)
    if isinstance(made, Weather) and made.fastest > made.slowest:
        raise BadScenario(f"{where}: fastest is {made.fastest:g} s, and slowest {made.slowest:g} s")
    if isinstance(made, Attack):
        try:
            made.check()
        except BadAttack as error:
            raise BadScenario(f"{where}: {error}") from error
    return made


def _check(world: World, where: str) -> None:
    if world.tables not in TABLES:
        raise BadScenario(f"{where}: tables are {' or '.join(TABLES)}, not {world.tables!r}")
    if not world.peers or any(type(size) is not int or size < 2 for size in world.peers):
        raise BadScenario(f"{where}: peers are at least 2, or a list of such numbers")
    for key in AT_LEAST_ONE:
        if getattr(world, key) < 1:
            raise BadScenario(f"{where}: {key} is {getattr(world, key)}; it is at least 1")
    if world.publishers > min(world.peers):
        raise BadScenario(
            f"{where}: publishers is {world.publishers}, of {min(world.peers)} peers (their default is "
            f"{World().publishers}); publishers are peers"
        )
    if world.victims > world.publishers:
        raise BadScenario(
            f"{where}: victims is {world.victims}, of publishers = {world.publishers} (their default is "
            f"{World().victims}); victims are publishers"
        )


def _check_number(key: str, value: object, where: str) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    if not math.isfinite(value) or value < 0:
        raise BadScenario(f"{where} is {value:g}; it cannot be negative, nor without end")
    if key in SHARES and (value > 1 or (key in NOT_ALL and value == 1)):
        below = " and below it" if key in NOT_ALL else ""
        raise BadScenario(f"{where} is {value:g}; it is a share, from 0 to 1{below}")
    if key in ABOVE_ZERO and value == 0:
        raise BadScenario(f"{where} is 0; it is a factor above 0 (0.5: half as much)")


def _value(value: object, default: object, where: str) -> object:
    if isinstance(value, list):
        value = tuple(value)
    if isinstance(default, tuple) and isinstance(value, int):
        value = (value,)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    wanted = type(default) if isinstance(default, str | int | float | tuple) else str
    if type(value) is not wanted:
        said = TYPES.get(wanted, "a whole number, or a list of them")
        raise BadScenario(f"{where} is {value!r}; it has to be {said}")
    return value
