"""What a newcomer waits for: the commands of the first minutes, each a process of its own, and their memory.

Commands are timed from their start to their end, `join` to its ready line, as a person at a shell meets them;
the files they import are in the disk cache, and their bytecode is kept. What programs do is in `first_calls`.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
from rich.console import Console

from benches import first_calls, usage
from benches.figure import Figure
from processes import COMMAND, Failed, PeerProcess, Troupe, end

MODELS = Path(__file__).resolve().parent  # where echo.py lies
CALLABLE, DIGITS = "echo:same", "builtin:digits"
PUBLISHED = {DIGITS: "modelnet/digits", CALLABLE: "same"}  # and the name each is served under
ECHO_TASK = "x-bench/echo"
HELP_TIMEOUT = 30.0  # seconds; a hundred times what it takes


@dataclass(frozen=True, slots=True)
class Plan:
    """How often each thing is done."""

    helps: int
    joins: int
    answers: int  # the way from nothing to a first answer
    commands: int  # of each other kind
    calls: first_calls.Plan


FULL = Plan(20, 10, 5, 10, first_calls.FULL)
QUICK = Plan(3, 2, 1, 2, first_calls.QUICK)


def measure(quick: bool, against: Sequence[str], console: Console) -> Iterator[Figure]:
    """Nobody else is measured here."""
    plan = QUICK if quick else FULL

    def say(what: str) -> None:
        console.print(f"  {what} ...", style="dim", highlight=False)

    with Troupe() as troupe:
        say("help and join")
        yield show_help(plan)
        yield join(troupe, plan)
        say("from nothing to an answer")
        yield answer(troupe, plan)
        say("publishing and finding")
        (serving,) = troupe.start("serving")
        known = [serving.address]
        asking, idle = troupe.start("asking", "idle", bootstrap=known)
        yield from publish(troupe, serving, plan)
        yield from find(troupe, serving, asking, plan)
        say("memory")
        yield from memory(serving, idle)
        say("calls and tensors")
        for source, model in first_calls.SERVED:
            troupe.ask(serving, "publish", source, "--model", model, cwd=MODELS)
        yield from first_calls.measure(known, troupe.network, plan.calls)


def show_help(plan: Plan) -> Figure:
    """`modelnet-peer --help`."""

    def once() -> None:
        subprocess.run([COMMAND, "--help"], stdout=subprocess.DEVNULL, check=True, timeout=HELP_TIMEOUT)

    return Figure("help", "ms", timed(once, plan.helps))


def join(troupe: Troupe, plan: Plan) -> Figure:
    """`modelnet-peer join` on a home that is not there yet, to its ready line; it meets nobody."""
    samples = []
    for number in range(plan.joins):
        started = perf_counter()
        (peer,) = troupe.start(f"join-{number}")
        samples.append((perf_counter() - started) * 1000)
        end([peer.process])
    return Figure("join_ready", "ms", samples, {"home": "new"})


def answer(troupe: Troupe, plan: Plan) -> Figure:
    """`join`, `publish builtin:digits`, `invoke`, one after the other, on a home that is not there yet."""
    image = troupe.folder / "digit.npy"
    np.save(image, np.zeros((1, 8, 8), np.float32))
    samples = []
    for number in range(plan.answers):
        started = perf_counter()
        (peer,) = troupe.start(f"answer-{number}")
        troupe.ask(peer, "publish", DIGITS)
        done = troupe.ask(peer, "invoke", PUBLISHED[DIGITS], "--input", image)[-1]
        samples.append(perf_counter() - started)
        if not done["output"]["label"]:
            raise Failed(f"the digits were not read: {done}")
        end([peer.process])
    return Figure("first_answer", "s", samples, {"commands": "join, publish, invoke"})


def publish(troupe: Troupe, peer: PeerProcess, plan: Plan) -> Iterator[Figure]:
    """`modelnet-peer publish`, to where two other peers hold the record; each is withdrawn again."""
    for source, model in PUBLISHED.items():
        samples = []
        for _ in range(plan.commands):
            samples += timed(partial(troupe.ask, peer, "publish", source, cwd=MODELS), 1)
            troupe.ask(peer, "unpublish", model)
        kind = "builtin" if source == DIGITS else "callable"
        yield Figure("publish", "ms", samples, {"source": kind})


def find(troupe: Troupe, serving: PeerProcess, asking: PeerProcess, plan: Plan) -> Iterator[Figure]:
    """`modelnet-peer find --task`: asked of a running peer, and by a temporary one that joins first."""
    troupe.ask(serving, "publish", CALLABLE, "--task", ECHO_TASK, cwd=MODELS)
    query = ["find", "--task", ECHO_TASK]
    troupe.ask(asking, *query)  # the first time opens connections
    yield Figure(
        "find", "ms", timed(lambda: troupe.ask(asking, *query), plan.commands), {"by": "a running peer"}
    )
    (nobody,) = troupe.start("gone")
    end([nobody.process])
    alone = [*query, "--bootstrap", serving.address]
    samples = timed(lambda: troupe.ask(nobody, *alone), plan.commands)
    yield Figure("find", "ms", samples, {"by": "a temporary peer"})


def memory(serving: PeerProcess, idle: PeerProcess) -> Iterator[Figure]:
    """Of a peer that serves nothing, and of a worker with a function of numpy; shared pages by share."""
    if not usage.is_known_here():
        return
    yield Figure("idle_memory", "MiB", [usage.pss([idle.process.pid])], {"process": "peer"})
    workers = usage.tree(serving.process.pid) - {serving.process.pid}
    if not workers:
        raise Failed(f"{serving.name} serves {CALLABLE} without a worker")
    yield Figure("idle_memory", "MiB", [usage.pss(workers)], {"process": "worker"})


def timed(action: Callable[[], object], times: int) -> list[float]:
    """Milliseconds of each time."""
    samples = []
    for _ in range(times):
        started = perf_counter()
        action()
        samples.append((perf_counter() - started) * 1000)
    return samples
