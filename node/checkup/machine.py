"""The machine itself: Python, libraries, backends, clock.

None of it needs settings, so a broken config hides none of it.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, metadata, requires, version
from shlex import quote

import trio
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from modelnet_p2p.errors import Code
from modelnet_p2p.node.checkup.finding import Finding, State, Tell, failed, note, ok
from modelnet_p2p.node.serving.backends.registry import GROUP, OURS

DISTRIBUTION = "modelnet-p2p"
RELEASED_UNIX = 1_767_225_600  # 2026-01-01: this version did not exist before, so no right clock is behind it
LATEST_UNIX = RELEASED_UNIX + 50 * 31_556_952  # half a century on: a clock that is beyond was never set
MAX_DRIFT = 1.0  # seconds by which wall and monotonic time may part during a check-up: it was set meanwhile
IMPORT_SECONDS = 20.0  # for all backends: torch alone takes 3 s, and 15 s from a cold disk
# imported in a process of its own, as in a worker: what crashes there crashes there
_LOAD_ALL = """
import json, sys
from importlib.metadata import EntryPoint
for name, value in json.loads(sys.argv[1]):
    try:
        EntryPoint(name, value, "").load()
        print(json.dumps([name, "", ""]), flush=True)
    except BaseException as error:
        missing = getattr(error, "name", "") or "" if isinstance(error, ImportError) else ""
        print(json.dumps([name, f"{type(error).__name__}: {error}"[:300], missing]), flush=True)
"""


async def check_python(tell: Tell) -> None:
    """Which interpreter this is, and whether it is one that the project is tested with."""
    found = platform.python_version()
    text = f"{found} at {sys.executable}"
    try:
        wanted = metadata(DISTRIBUTION)["Requires-Python"] or ""
    except PackageNotFoundError:
        tell(note("python", text, why="modelnet-p2p is not installed, only importable", hint="pip install ."))
        return
    if SpecifierSet(wanted).contains(found, prereleases=True):
        tell(ok("python", text, f"{platform.system()} {platform.release()} {platform.machine()}"))
    else:
        tell(failed("python", text, why=f"it takes Python {wanted}", hint="python3.13 -m venv .venv"))


async def check_libraries(tell: Tell) -> None:
    """Each required library is there in a version that fits; each extra is there or told how to get."""
    try:
        names = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        tell(note("libraries", "which ones are needed is not known", hint="pip install ."))
        return
    tell_libraries(map(Requirement, names), tell)


def tell_libraries(requirements: Iterable[Requirement], tell: Tell) -> None:
    """Those without an extra in one line, or one for each that is wrong; then a line for each extra."""
    needed: list[str] = []
    wrong = False
    extras: dict[str, list[tuple[Requirement, str]]] = {}
    for one in requirements:
        found = _version(one)
        if extra := _extra(one):
            extras.setdefault(extra, []).append((one, found))
            continue
        if one.marker and not one.marker.evaluate():
            continue
        needed.append(f"{one.name} {found}")
        if not _fits(one, found):
            wrong = True
            why = f"version {found} is installed" if found else "it is not installed"
            wish = f"{one.name}{one.specifier}"
            tell(failed("libraries", f"{wish} is missing", why=why, hint=_pip(wish)))
    if not wrong:
        tell(ok("libraries", f"all {len(needed)} are there, in versions that fit", ", ".join(needed)))
    for extra, parts in extras.items():
        tell(_extra_finding(extra, parts))


def _extra_finding(extra: str, parts: list[tuple[Requirement, str]]) -> Finding:
    missing = [str(one.name) for one, found in parts if not _fits(one, found)]
    check = f"extra {extra}"
    if missing:
        why = f"{', '.join(missing)} is not there, or too old"
        text = "not installed; only models that need it want it"
        return note(check, text, why=why, hint=_pip(f"{DISTRIBUTION}[{extra}]"))
    return ok(check, ", ".join(f"{one.name} {found}" for one, found in parts))


def _extra(one: Requirement) -> str:
    """The extra that brings this requirement, empty for none."""
    text = str(one.marker or "")
    return (
        text.partition("extra ==")[2].strip().strip("()").split()[0].strip("\"'")
        if "extra ==" in text
        else ""
    )


def _version(one: Requirement) -> str:
    try:
        return version(one.name)
    except PackageNotFoundError:
        return ""


def _fits(one: Requirement, found: str) -> bool:
    return bool(found) and one.specifier.contains(found, prereleases=True)


def _pip(wish: str) -> str:
    return f"{quote(sys.executable)} -m pip install {quote(wish)}"


async def check_backends(tell: Tell) -> None:
    """Each kind of model that can be served here can be imported, in a process of its own."""
    points = sorted(entry_points(group=GROUP))
    if not points:
        tell(
            failed("backends", "none is installed", why=f"no entry point in {GROUP}", hint=_pip(DISTRIBUTION))
        )
        return
    asked = json.dumps([[point.name, point.value] for point in points])
    with trio.move_on_after(IMPORT_SECONDS):
        done = await trio.run_process(
            [sys.executable, "-P", "-c", _LOAD_ALL, asked],
            capture_stdout=True, capture_stderr=True, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        told = {name: (why, missing) for name, why, missing in map(json.loads, done.stdout.splitlines())}
        tell_backends(points, told, tell)
        return
    text = f"importing {', '.join(point.name for point in points)} took over {IMPORT_SECONDS:g} s"
    tell(
        failed(
            "backends", text, hint="python -X importtime -c 'import torch' shows where", code=Code.DEADLINE
        )
    )


def tell_backends(points: list[EntryPoint], told: dict[str, tuple[str, str]], tell: Tell) -> None:
    """`told` holds for each one that was tried what went wrong, and the module that is missing."""
    sound = [point.name for point in points if told.get(point.name, ("x", ""))[0] == ""]
    if sound:
        tell(ok("backends", ", ".join(sound)))
    crashed = False
    for point in points:
        why, missing = told.get(point.name, ("its process crashed while importing it", ""))
        if point.name in sound or crashed:
            continue  # behind the one that crashed nothing was tried
        crashed = point.name not in told
        ours = point.value.startswith(OURS)
        owner = point.dist.name if point.dist else point.value.partition(".")[0]
        hint = _pip(missing) if missing else _pip(DISTRIBUTION) if ours else f"pip uninstall {quote(owner)}"
        tell(failed("backends", f"{point.name!r} of {owner} cannot be imported", why=why, hint=hint))


@dataclass(frozen=True, slots=True)
class Clock:
    """The two clocks when the check-up began: wall and monotonic seconds."""

    wall_unix: float = field(default_factory=time.time)
    now: float = field(default_factory=time.monotonic)


def judge_clock(began: Clock, ends: Clock, expired: int) -> Finding:
    """The machine's clock by its year, its pace, and what a running peer refused: `expired` records."""
    hint = "compare `date -u` with another machine's; timedatectl set-ntp true"
    stamp = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(ends.wall_unix))
    if not RELEASED_UNIX <= ends.wall_unix <= LATEST_UNIX:
        return failed("clock", f"it says {stamp}", why="others would refuse every record of ours", hint=hint)
    drift = (ends.wall_unix - began.wall_unix) - (ends.now - began.now)
    if abs(drift) > MAX_DRIFT:
        return failed("clock", f"it jumped by {drift:+.1f} s", why="during this check-up", hint=hint)
    if expired:
        text = f"{stamp}; {expired} records of others came expired, or from the future"
        return note(
            "clock", text, why="the running peer refused them: their clock is wrong, or this one", hint=hint
        )
    return Finding("clock", State.OK, stamp)


def misspelt_variables(known: Iterable[str], environ: Iterable[str] | None = None) -> list[tuple[str, str]]:
    """MODELNET_ variables that nobody reads and that look like one of `known`; each with that one."""
    from difflib import get_close_matches

    names = [f"MODELNET_{name}" for name in known]
    found = sorted(n for n in (os.environ if environ is None else environ) if n.startswith("MODELNET"))
    near = [(name, get_close_matches(name, names, 1, 0.8)) for name in found if name not in names]
    return [(name, match[0]) for name, match in near if match]
