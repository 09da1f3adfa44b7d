"""The check-up behind `modelnet-peer doctor`: what is wrong here, why it is thought so, what to type.

Checks run in the order in which their causes lie: a full disk is told before the peer that could not start
for it. Each has its time, and one that crashes is a finding too: whoever asks needs an answer.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from modelnet_p2p.errors import Code, LocalError, ModelnetError
from modelnet_p2p.node.checkup import itself, machine, network, place
from modelnet_p2p.node.checkup.blocking import in_thread
from modelnet_p2p.node.checkup.finding import Finding, State, Tell, failed, failed_with
from modelnet_p2p.node.config import Settings
from modelnet_p2p.node.disk.home import Home
from modelnet_p2p.node.serving.guarding import guard
from modelnet_p2p.node.single_error import single_error

CHECK_SECONDS = 10.0  # for a look at files or a socket: beyond, a disk or a mount hangs
LONG_SECONDS = (
    30.0  # for what starts processes or crosses the network; each part of it has a bound of its own
)
_UNREACHED = frozenset({Code.UNREACHABLE, Code.DEADLINE})

Check = Callable[[Tell], Awaitable[object]]


@dataclass(slots=True)
class Checkup:
    """One run: what was found so far, and what later checks take from earlier ones."""

    tell: Tell
    findings: list[Finding] = field(default_factory=list)
    clock: machine.Clock = field(default_factory=machine.Clock)
    status: network.Status | None = None
    entries: Sequence[str] = ()

    async def run(self, name: str, check: Check, seconds: float = CHECK_SECONDS) -> None:
        """One check, which tells its findings itself; how it ends otherwise becomes one."""
        try:
            with trio.move_on_after(seconds) as scope, guard(Code.INTERNAL, "", level=0), single_error():
                await check(self.found)
        except ModelnetError as error:
            if error.code is Code.INTERNAL:
                hint = "this is a bug; MODELNET_LOG=info modelnet-peer doctor prints more"
                self.found(
                    failed(name, "the check itself failed", why=error.message, hint=hint, code=error.code)
                )
            else:
                self.found(failed_with(name, error))
        if scope.cancelled_caught:
            text = f"no result within {seconds:g} s"
            self.found(failed(name, text, why="a disk, a mount or a name server hangs", code=Code.DEADLINE))

    async def run_blocking(self, name: str, check: Callable[[Tell], None]) -> None:
        """One check that may block: in a thread, which is left behind when its time is over."""
        told: list[Finding] = []

        async def off(tell: Tell) -> None:
            await in_thread(lambda: check(told.append))
            for finding in told:
                tell(finding)

        await self.run(name, off)

    def found(self, finding: Finding) -> None:
        self.findings.append(finding)
        self.tell(finding)


async def examine(settings: Settings, tell: Tell) -> list[Finding]:
    """All checks, each finding told as it comes."""
    checkup = Checkup(tell)
    await _look_at_machine(checkup)
    home = settings.home
    await checkup.run_blocking("config", partial(place.check_config, settings, os.environ))
    await checkup.run_blocking("home", partial(place.check_home, home))
    await checkup.run_blocking("identity", partial(place.check_key, home))
    await checkup.run_blocking("runtime", partial(place.check_runtime, settings, os.environ))
    await _look_at_peer(checkup, settings)
    await checkup.run("call", itself.check_self, LONG_SECONDS)
    await _look_at_clock(checkup)
    return checkup.findings


async def examine_without_config(home: Home, broken: LocalError, tell: Tell) -> list[Finding]:
    """What can be looked at while the settings cannot be read."""
    checkup = Checkup(tell)
    await _look_at_machine(checkup)
    checkup.found(failed_with("config", broken))
    await checkup.run_blocking("home", partial(place.check_home, home))
    await checkup.run_blocking("identity", partial(place.check_key, home))
    await checkup.run("call", itself.check_self, LONG_SECONDS)
    await _look_at_clock(checkup)
    return checkup.findings


async def _look_at_machine(checkup: Checkup) -> None:
    await checkup.run("python", machine.check_python)
    await checkup.run("libraries", machine.check_libraries)
    await checkup.run("backends", machine.check_backends, LONG_SECONDS)


async def _look_at_peer(checkup: Checkup, settings: Settings) -> None:
    """The running peer, or what a peer that is started now would meet."""

    async def running(tell: Tell) -> None:
        checkup.status = await network.check_running(settings, tell)

    async def bootstraps(tell: Tell) -> None:
        checkup.entries = await network.check_bootstraps(settings, checkup.status, tell)

    await checkup.run("peer", running)
    if checkup.status is None:
        await checkup.run_blocking("state", partial(place.check_state, settings.home))
        await checkup.run("port", partial(place.check_port, settings))
    elif checkup.status:
        await checkup.run(
            "addresses", partial(network.check_addresses, settings, checkup.status), LONG_SECONDS
        )
    await checkup.run("bootstrap", bootstraps, LONG_SECONDS)
    await checkup.run(
        "dht", partial(network.check_dht, settings, checkup.status, checkup.entries), LONG_SECONDS
    )


async def _look_at_clock(checkup: Checkup) -> None:
    async def clock(tell: Tell) -> None:
        refused: Any = (checkup.status or {}).get("refused") or {}
        tell(machine.judge_clock(checkup.clock, machine.Clock(), int(refused.get("expired", 0))))

    await checkup.run("clock", clock)


def verdict(findings: Sequence[Finding]) -> LocalError | None:
    """The error that a check-up ends with; None where all is well."""
    bad = [finding for finding in findings if finding.state is State.FAILED]
    if not bad:
        return None
    names = ", ".join(dict.fromkeys(finding.check for finding in bad))
    unreached = all(finding.code in _UNREACHED for finding in bad)
    checks = "1 check" if len(bad) == 1 else f"{len(bad)} checks"
    hint = next((finding.hint for finding in bad if finding.hint), "")
    code = Code.UNREACHABLE if unreached else Code.BAD_STATE
    return LocalError(code, f"{checks} of {len(findings)} failed: {names}", hint=hint)
