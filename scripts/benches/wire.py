"""What the wire carries and what it costs: calls, connections, tensors; ours, and others by turns in one run.

Every system has a caller and a server as processes of their own, joined over loopback. Each figure is taken
in rounds: all systems once, one after the other, then all of them once more; who is not at it is stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console

from benches import handshake, slow_link, usage
from benches.figure import Figure, quantile
from benches.rigs.stage import SMALL_BYTES
from benches.systems import OURS, Running, running
from processes import Failed

WARM_UP = 30  # calls at the start of each turn: a process that was stopped has cold caches
MB_PER_MIB = 1.048576
SIZES = (1, 16, 128)  # MiB
LARGE = 128
HUGE = 256  # MiB: with its head, the largest power of two that a call may carry
BULK_TIMES = 4  # of 256 MiB: the transfer of 1 GiB beside which small calls are made
CALLERS = (16, 64)

Samples = dict[str, list[float]]  # by system


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of each; the samples of all rounds are one set."""

    rounds: int
    calls: int  # a round
    rate_seconds: float
    transfers: Mapping[int, int]  # by MiB, a round
    strangers: int  # all in one round: with hivemind each costs more than the one before it
    beside: int  # rounds of a bulk transfer with small calls
    slow: int  # rounds over the slow link
    handshakes: int


FULL = Plan(5, 600, 2.0, {1: 15, 16: 5, 128: 2}, 24, 3, 3, 200)
QUICK = Plan(2, 150, 0.7, {1: 5, 16: 3, 128: 1}, 5, 1, 1, 30)


def measure(quick: bool, against: Sequence[str], console: Console) -> Iterator[Figure]:
    """Ours first, then the others in the order given, of each figure."""
    plan = QUICK if quick else FULL
    if not usage.is_known_here():
        raise Failed("the wire is measured on Linux alone: CPU time and memory of processes come from /proc")

    def say(what: str) -> None:
        console.print(f"  {what} ...", style="dim", highlight=False)

    say("starting " + ", ".join([OURS, *against]))
    with running([OURS, *against]) as systems:
        say("memory")  # first: nothing of a tensor has been here yet
        yield from memory(systems, plan)
        say("calls")
        yield from calls(systems, plan)
        say("calls at a time")
        for callers in CALLERS:
            yield from calls_per_s(systems, plan, callers)
        say("new connections")
        yield from connections(systems, plan)
        say("tensors")
        for mebibytes in SIZES:
            yield from tensors(systems, plan, mebibytes)
        say("small calls beside a bulk transfer")
        yield from beside(systems[0], plan)
    say("handshakes")
    yield handshake.measure(plan.handshakes)
    if why := slow_link.why_not():
        console.print(why, style="yellow", markup=False)
    else:
        say("the slow link")
        yield from slow_link.measure(plan.slow)


def turns(systems: Sequence[Running], rounds: int) -> Iterator[Running]:
    """Each system awake and warm, as often as there are rounds, never two at a time."""
    for _ in range(rounds):
        for system in systems:
            with system.awake():
                system.order(do="calls", to="peer", count=WARM_UP)
                yield system


def by_turns(
    systems: Sequence[Running], rounds: int, take: Callable[[Running], Sequence[float]]
) -> list[tuple[str, list[float]]]:
    """What `take` gave in all rounds, by system and in their order."""
    samples: Samples = {system.via: [] for system in systems}
    for system in turns(systems, rounds):
        samples[system.via] += take(system)
    return list(samples.items())


def memory(systems: Sequence[Running], plan: Plan) -> Iterator[Figure]:
    """The peak at either end during transfers, above what was there before the first, without the tensor."""
    taken: dict[tuple[str, str], float] = {}
    for system in turns(systems, 1):
        system.order(do="prepare", mebibytes=LARGE)  # the caller's own tensor is none of it
        ends = system.ends()
        before = {end: usage.pss(pids) for end, pids in ends.items()}
        system.order(do="up", mebibytes=LARGE, way=system.ways[0], times=1)
        peaks = {end: usage.Peak(pids) for end, pids in ends.items()}
        with usage.watching(*peaks.values()):
            system.order(do="up", mebibytes=LARGE, way=system.ways[0], times=2 + plan.rounds)
        for end, peak in peaks.items():
            taken[system.via, end] = peak.mib - before[end] - (LARGE if end == "server" else 0)
    for (via, end), mib in taken.items():
        yield Figure("extra_memory_128MiB", "MiB", [mib], {"end": end}, via)


def calls(systems: Sequence[Running], plan: Plan) -> Iterator[Figure]:
    def of(to: str) -> Callable[[Running], list[float]]:
        return lambda system: milliseconds(system.order(do="calls", to=to, count=plan.calls)["seconds"])

    for via, samples in by_turns(systems, plan.rounds, of("peer")):
        yield small("invoke_100B", samples, "in the peer", via)
    for via, samples in by_turns(systems[:1], plan.rounds, of("worker")):
        yield small("invoke_100B", samples, "in its worker", via)


def small(name: str, samples: list[float], answered: str, via: str) -> Figure:
    params = {"answered": answered, "bytes": SMALL_BYTES, "p99": round(quantile(samples, 0.99), 3)}
    return Figure(name, "ms", samples, params, via)


def calls_per_s(systems: Sequence[Running], plan: Plan, callers: int) -> Iterator[Figure]:
    def take(system: Running) -> list[float]:
        told = system.order(do="rate", callers=callers, seconds=plan.rate_seconds)
        return [told["calls"] / told["seconds"]]

    for via, samples in by_turns(systems, plan.rounds, take):
        params = {"answered": "in the peer", "bytes": SMALL_BYTES}
        yield Figure(f"calls_per_s_{callers}", "1/s", samples, params, via)


def connections(systems: Sequence[Running], plan: Plan) -> Iterator[Figure]:
    def take(system: Running) -> list[float]:
        return milliseconds(system.order(do="connect", times=plan.strangers)["seconds"])

    for via, samples in by_turns(systems, 1, take):
        yield Figure("connect_first_call", "ms", samples, {"bytes": SMALL_BYTES}, via)


def tensors(systems: Sequence[Running], plan: Plan, mebibytes: int) -> Iterator[Figure]:
    """One way, to where a model can use it; for large ones also the CPU time of all processes of the system.

    A system that can send in several ways has a figure for each.
    """
    times, size = plan.transfers[mebibytes], mebibytes * MB_PER_MIB
    speeds: dict[tuple[str, str], list[float]] = {(s.via, way): [] for s in systems for way in s.ways}
    cpu: dict[tuple[str, str], list[float]] = {key: [] for key in speeds}
    for system in turns(systems, plan.rounds):
        for way in system.ways:
            system.order(do="up", mebibytes=mebibytes, way=way, times=1)  # memory is warm from then on
            pids = system.pids()
            before = usage.cpu_seconds(pids)
            told = system.order(do="up", mebibytes=mebibytes, way=way, times=times)
            cpu[system.via, way].append((usage.cpu_seconds(pids) - before) / (times * size / 1000))
            speeds[system.via, way] += [size / seconds for seconds in told["seconds"]]
    for (via, way), samples in speeds.items():
        yield Figure(f"tensor_up_{mebibytes}MiB", "MB/s", samples, {"dtype": "float32", "way": way}, via)
    if mebibytes == LARGE:
        for (via, way), samples in cpu.items():
            yield Figure("cpu_s_per_GB", "s/GB", samples, {"MiB": mebibytes, "way": way}, via)


def beside(ours: Running, plan: Plan) -> Iterator[Figure]:
    """The 99th percentile of small calls during a bulk transfer on their connection, over the quiet one."""
    quiet, busy, ratios = [], [], []
    for system in turns([ours], plan.beside):
        system.order(do="up", mebibytes=HUGE, way=system.ways[0], times=1)  # as above: memory is warm
        told = system.order(do="beside", mebibytes=HUGE, times=BULK_TIMES, count=2 * plan.calls)
        quiet.append(quantile(milliseconds(told["quiet"]), 0.99))
        busy.append(quantile(milliseconds(told["busy"]), 0.99))
        ratios.append(busy[-1] / quiet[-1])
        count = len(told["busy"])
    params = {"MiB": HUGE * BULK_TIMES, "calls": count, "answered": "in the peer"}
    yield Figure("small_call_p99_quiet", "ms", quiet, {"calls": 2 * plan.calls})
    yield Figure("small_call_p99_busy", "ms", busy, params)
    yield Figure("small_call_p99_during_bulk", "x", ratios, params)


def milliseconds(seconds: Sequence[float]) -> list[float]:
    return [value * 1000 for value in seconds]
