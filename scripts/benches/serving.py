"""What serving costs: an expert beside hivemind's, batching, a worker that is killed, the gateway.

As with the wire, every system is a caller and a server in processes of their own, each figure is taken in
rounds, and who is not at it is stopped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import median

from rich.console import Console

from benches import gateway, usage
from benches.figure import Figure, quantile
from benches.rigs.serving_stage import BATCHES, EXPERT
from benches.systems import OURS, Running, rigs
from processes import Failed

RIVAL = "hivemind"  # the only other one that serves experts
RIGS = {OURS: "benches.rigs.expert_modelnet", RIVAL: "benches.rigs.expert_hivemind"}
ITSELF = (("alone", "over_model"), ("packed", "over_packed"))  # the order, and the name of what is over it
WARM_UP = 10  # calls at the start of each turn
CALLERS = 16
MANY = 32  # callers for batching, as many as fit a step
KILLED = {"napping": "a Python callable", "one": "a torch module"}  # model -> what it is, for people


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of each; the samples of all rounds are one set."""

    rounds: int
    calls: int  # a round, with one row; a third of it with 32
    rate_seconds: float
    kills: int  # of each model


FULL = Plan(rounds=5, calls=300, rate_seconds=3.0, kills=5)
QUICK = Plan(rounds=2, calls=60, rate_seconds=1.0, kills=2)


def measure(quick: bool, against: Sequence[str], console: Console) -> Iterator[Figure]:
    """Ours first, then hivemind's where that is asked for."""
    plan = QUICK if quick else FULL
    if not usage.is_known_here():
        raise Failed("serving is measured on Linux alone: the processes of a peer come from /proc")
    if find_spec("torch") is None:
        console.print("without an expert: torch is not there", style="yellow", highlight=False)
    else:
        yield from experts(plan, against, console)
    console.print("  the gateway ...", style="dim", highlight=False)
    yield from gateway.measure(quick, console)


def experts(plan: Plan, against: Sequence[str], console: Console) -> Iterator[Figure]:
    """All that needs torch."""

    def say(what: str) -> None:
        console.print(f"  {what} ...", style="dim", highlight=False)

    names = [OURS, *(name for name in against if name == RIVAL)]
    say("starting the expert servers of " + ", ".join(names))
    with rigs({name: RIGS[name] for name in names}) as systems:
        for rows in BATCHES:
            say(f"an expert, {rows} row{'s' * (rows > 1)} a call")
            yield from calls(systems, plan, rows)
            yield from calls_per_s(systems, plan, rows)
        say("batching")
        yield from batching(systems[0], plan)
        say("killed workers")
        yield from killed(systems[0], plan)


@contextmanager
def turn(system: Running, model: str, rows: int) -> Iterator[None]:
    """It is awake and warm, and no other one is."""
    with system.awake():
        system.order(do="calls", model=model, rows=rows, count=WARM_UP)
        for way, _ in ITSELF if system.via == OURS else ITSELF[:1]:
            system.order(do=way, rows=rows, count=WARM_UP)
        yield


def calls(systems: Sequence[Running], plan: Plan, rows: int) -> Iterator[Figure]:
    """One after the other, and the same module called in the caller's process, in the same turn: as torch has
    it, and of ours also with its weights packed, as its worker has it."""
    count = plan.calls if rows == 1 else plan.calls // 3
    samples: dict[str, dict[str, list[float]]] = {system.via: defaultdict(list) for system in systems}
    for _ in range(plan.rounds):
        for system in systems:
            ways = ITSELF if system.via == OURS else ITSELF[:1]
            with turn(system, EXPERT, rows):
                itself = {way: milliseconds(system.order(do=way, rows=rows, count=count)) for way, _ in ways}
                called = milliseconds(system.order(do="calls", model=EXPERT, rows=rows, count=count))
            samples[system.via]["calls"] += called
            for way, over in ways:
                samples[system.via][way] += itself[way]
                samples[system.via][over].append(median(called) - median(itself[way]))
    for system in systems:
        via, found = system.via, samples[system.via]
        p99 = round(quantile(found["calls"], 0.99), 2)
        yield Figure(f"expert_b{rows}", "ms", found["calls"], {"rows": rows, "p99": p99}, via)
        threads = {"rows": rows, "threads": system.ready["threads"]}
        for way, over in ITSELF:
            if way in found:
                yield Figure(f"expert_b{rows}_{way}", "ms", found[way], threads, via)
                yield Figure(f"expert_b{rows}_{over}", "ms", found[over], {"rows": rows}, via)


def calls_per_s(systems: Sequence[Running], plan: Plan, rows: int) -> Iterator[Figure]:
    samples: dict[str, list[float]] = {system.via: [] for system in systems}
    for _ in range(plan.rounds):
        for system in systems:
            with turn(system, EXPERT, rows):
                told = system.order(
                    do="rate", model=EXPERT, rows=rows, callers=CALLERS, seconds=plan.rate_seconds
                )
            samples[system.via].append(told["calls"] / told["seconds"])
    for via, values in samples.items():
        yield Figure(f"expert_b{rows}_calls_per_s_{CALLERS}", "1/s", values, {"rows": rows}, via)


def batching(ours: Running, plan: Plan, on: str = "together", off: str = "one") -> Iterator[Figure]:
    """The same expert as a callable that takes 32 rows a step, and as one that takes one input."""
    rates: dict[str, list[float]] = {"on": [], "off": []}
    slowest: dict[str, list[float]] = {"on": [], "off": []}
    for _ in range(plan.rounds):
        for how, model in (("on", on), ("off", off)):
            with turn(ours, model, 1):
                told = ours.order(do="rate", model=model, rows=1, callers=MANY, seconds=plan.rate_seconds)
            rates[how].append(told["calls"] / told["seconds"])
            slowest[how].append(quantile([one * 1000 for one in told["each"]], 0.99))
    for how in ("on", "off"):
        params = {"callers": MANY, "batching": how}
        yield Figure(f"batching_calls_per_s_{MANY}", "1/s", rates[how], params)
        yield Figure(f"batching_p99_{MANY}", "ms", slowest[how], params)
    for name, values in (("batching_gain", rates), ("batching_p99_share", slowest)):
        shares = [one / other for one, other in zip(values["on"], values["off"], strict=True)]
        yield Figure(name, "x", shares, {"callers": MANY})


def killed(ours: Running, plan: Plan) -> Iterator[Figure]:
    """From `kill -9` of a worker that is at a call until its caller has the fault, until it answers again."""
    for model, what in KILLED.items():
        with ours.awake():
            told = [ours.order(do="kill", model=model) for _ in range(plan.kills)]
        codes = ", ".join(sorted({str(one["code"]) for one in told}))
        yield Figure(
            "worker_fault", "ms", [one["fault"] * 1000 for one in told], {"model": what, "code": codes}
        )
        yield Figure("worker_back", "ms", [one["back"] * 1000 for one in told], {"model": what})


def milliseconds(told: dict[str, list[float]]) -> list[float]:
    return [value * 1000 for value in told["seconds"]]
