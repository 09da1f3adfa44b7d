"""The check-up: what each check says of a thing that is wrong, and that nothing ends it early."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import trio
from packaging.requirements import Requirement
from trio.testing import MockClock

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.checkup import machine, place
from modelnet_p2p.node.checkup.examination import CHECK_SECONDS, Checkup, verdict
from modelnet_p2p.node.checkup.finding import Finding, State, Tell, failed, note, ok
from modelnet_p2p.node.config import Settings
from modelnet_p2p.node.disk.home import Home
from modelnet_p2p.node.disk.runtime import Runtime

NOON = machine.Clock(wall_unix=machine.RELEASED_UNIX + 1e6, now=100.0)


@pytest.fixture
def told() -> list[Finding]:
    return []


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    run = tempfile.mkdtemp(prefix="mn-")  # not tmp_path: it may be too long for a Unix socket
    monkeypatch.setenv("XDG_RUNTIME_DIR", run)
    yield Home(tmp_path / "home")
    shutil.rmtree(run)


def only(told: list[Finding]) -> Finding:
    assert len(told) == 1, told
    return told[0]


# --- how checks are run ---


async def test_a_check_that_crashes_is_a_finding_and_the_next_one_runs(told: list[Finding]) -> None:
    checkup = Checkup(told.append)

    async def crash(tell: Tell) -> None:
        tell(ok("first", "half of it"))
        raise ZeroDivisionError("oh")

    async def sound(tell: Tell) -> None:
        tell(ok("second", "fine"))

    await checkup.run("first", crash)
    await checkup.run("second", sound)
    assert [(f.check, f.state) for f in told] == [
        ("first", State.OK), ("first", State.FAILED), ("second", State.OK),
    ]  # fmt: skip
    assert "ZeroDivisionError: oh" in told[1].why
    assert told[1].hint


async def test_a_nursery_that_crashes_inside_of_a_check_is_told_by_its_cause(told: list[Finding]) -> None:
    async def crash() -> None:
        raise KeyError("inner")

    async def check(tell: Tell) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crash)

    await Checkup(told.append).run("nursery", check)
    assert "KeyError" in only(told).why


async def test_a_check_that_hangs_ends_with_its_time(told: list[Finding], autojump_clock: MockClock) -> None:
    async def hang(tell: Tell) -> None:
        await trio.sleep_forever()

    began = trio.current_time()
    await Checkup(told.append).run("disk", hang)
    assert trio.current_time() - began == CHECK_SECONDS
    assert (only(told).state, only(told).code) == (State.FAILED, Code.DEADLINE)


async def test_a_known_error_keeps_its_own_hint(told: list[Finding]) -> None:
    async def refuse(tell: Tell) -> None:
        raise LocalError(Code.IN_USE, "taken", hint="take another")

    await Checkup(told.append).run("port", refuse)
    assert (only(told).text, only(told).hint, only(told).code) == ("taken", "take another", Code.IN_USE)


async def test_what_blocks_runs_beside(told: list[Finding]) -> None:
    checkup = Checkup(told.append)
    await checkup.run_blocking("file", lambda tell: tell(ok("file", "read")))
    assert only(checkup.findings) is only(told)


def test_all_is_well_with_notes() -> None:
    assert verdict([ok("a", "x"), note("b", "y")]) is None


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ((Code.UNREACHABLE,), Code.UNREACHABLE),
        ((Code.UNREACHABLE, Code.DEADLINE), Code.UNREACHABLE),
        ((Code.UNREACHABLE, Code.IN_USE), Code.BAD_STATE),
        ((Code.INTERNAL,), Code.BAD_STATE),
    ],
)
def test_the_verdict_says_on_which_side_it_was(codes: tuple[Code, ...], code: Code) -> None:
    bad = [failed(f"check{i}", "x", hint=f"type {i}", code=each) for i, each in enumerate(codes)]
    error = verdict([ok("python", "3"), *bad])
    assert error is not None
    assert (error.code, error.hint) == (code, "type 0")
    assert all(finding.check in error.message for finding in bad)


# --- the machine ---


@pytest.mark.parametrize(
    ("wall", "expired", "state"),
    [
        (60.0, 0, State.OK),
        (62.5, 0, State.FAILED),  # set while we looked
        (57.0, 0, State.FAILED),
        (60.0, 3, State.NOTE),
        (-machine.RELEASED_UNIX, 0, State.FAILED),  # 1970: a board without a battery
        (60 * 31_556_952.0, 0, State.FAILED),
    ],
)
def test_the_clock(wall: float, expired: int, state: State) -> None:
    finding = machine.judge_clock(NOON, machine.Clock(NOON.wall_unix + wall, NOON.now + 60.0), expired)
    assert finding.state is state
    assert bool(finding.hint) == (state is not State.OK)


def test_libraries_that_fit_are_one_line_and_each_that_does_not_has_its_own(told: list[Finding]) -> None:
    machine.tell_libraries([Requirement("trio>=0.1"), Requirement("click")], told.append)
    assert only(told).state is State.OK
    told.clear()
    wanted = ["trio>=99", "nobody-made-this>=1", "click", "colorama; sys_platform == 'win32'"]
    machine.tell_libraries(map(Requirement, wanted), told.append)
    assert [finding.state for finding in told] == [State.FAILED, State.FAILED]
    assert "is installed" in told[0].why
    assert told[1].hint.endswith("-m pip install 'nobody-made-this>=1'")


def test_an_extra_is_optional(told: list[Finding]) -> None:
    wanted = ["trio>=0.1", 'nobody-made-this>=1; extra == "ears"', 'click; extra == "eyes"']
    machine.tell_libraries(map(Requirement, wanted), told.append)
    assert [(f.check, f.state) for f in told[1:]] == [("extra ears", State.NOTE), ("extra eyes", State.OK)]
    assert told[1].hint.endswith("'modelnet-p2p[ears]'")


def test_backends_that_cannot_be_imported_are_named_with_what_is_missing(told: list[Finding]) -> None:
    points = [
        EntryPoint(name, f"{name}.x:Y", "modelnet.backends") for name in ("good", "lacking", "deadly", "late")
    ]
    tried = {"good": ("", ""), "lacking": ("ModuleNotFoundError: No module named 'ears'", "ears")}
    machine.tell_backends(points, tried, told.append)
    assert [(f.text.partition(" ")[0], f.state) for f in told] == [
        ("good", State.OK), ("'lacking'", State.FAILED), ("'deadly'", State.FAILED),
    ]  # fmt: skip
    assert told[1].hint.endswith("pip install ears")
    assert "crashed" in told[2].why


async def test_our_own_backends_can_be_imported(told: list[Finding]) -> None:
    await machine.check_backends(told.append)
    assert "builtin" in only(told).text


def test_a_misspelt_variable_is_seen_and_others_are_left_alone() -> None:
    environ = ["MODELNET_BOOTSTRP", "MODELNET_HOME", "MODELNETHOME", "MODELNET_FOO_OF_MY_OWN", "PATH"]
    assert machine.misspelt_variables(place.VARIABLES, environ) == [
        ("MODELNETHOME", "MODELNET_HOME"),
        ("MODELNET_BOOTSTRP", "MODELNET_BOOTSTRAP"),
    ]


# --- this home ---


def test_a_level_that_is_none_is_seen(home: Home, told: list[Finding]) -> None:
    place.check_config(Settings(home), {"MODELNET_LOG": "verbose"}, told.append)
    assert only(told).state is State.NOTE
    assert "info" in only(told).hint


def test_a_config_that_a_start_would_refuse(home: Home, told: list[Finding]) -> None:
    place.check_config(Settings(home), {}, told.append)
    assert only(told).state is State.OK
    told.clear()
    settings = Settings(home, tuning="fast", bootstrap=("/ip4/192.0.2.7/tcp/1", "nonsense"))
    place.check_config(settings, {}, told.append)
    assert [finding.state for finding in told] == [State.FAILED] * 3
    assert all(finding.hint for finding in told)


def test_a_home_to_be(home: Home, told: list[Finding]) -> None:
    place.check_home(home, told.append)
    assert only(told).state is State.OK
    assert not home.path.exists()


def test_a_home_leaves_no_probe_behind(home: Home, told: list[Finding]) -> None:
    home.path.mkdir(mode=0o700)
    place.check_home(home, told.append)
    assert only(told).state is State.OK
    assert list(home.path.iterdir()) == []


def test_a_home_that_is_none(home: Home, told: list[Finding]) -> None:
    home.path.write_text("")
    place.check_home(home, told.append)
    assert "not a directory" in only(told).text


def test_a_home_that_others_may_write(home: Home, told: list[Finding]) -> None:
    home.path.mkdir()
    home.path.chmod(0o777)
    place.check_home(home, told.append)
    assert only(told).hint == f"chmod 700 {home.path}"


def test_a_key(home: Home, told: list[Finding]) -> None:
    place.check_key(home, told.append)
    key = home.load_or_make_key()
    place.check_key(home, told.append)
    home.key_path.chmod(0o644)
    place.check_key(home, told.append)
    home.key_path.chmod(0o600)
    home.key_path.write_bytes(b"x")
    place.check_key(home, told.append)
    assert [f.state for f in told] == [State.NOTE, State.OK, State.FAILED, State.FAILED]
    assert told[1].text == str(key.id)
    assert told[2].hint.startswith("chmod 600 ")
    assert str(home.key_path) in told[3].text


def test_damaged_state_is_named(home: Home, told: list[Finding]) -> None:
    home.load_or_make_key()
    place.check_state(home, told.append)
    assert told == []
    models = home.state_path / "models"
    models.mkdir(parents=True)
    place.check_state(home, told.append)
    (models / "x.json").write_text("{}")
    place.check_state(home, told.append)
    assert [f.state for f in told] == [State.OK, State.FAILED]
    assert str(models / "x.json") in told[1].text


def test_state_that_a_silent_process_holds(home: Home, told: list[Finding]) -> None:
    home.load_or_make_key()
    home.state_path.mkdir()
    with Runtime("", home).lock():
        place.check_state(home, told.append)
    assert str(os.getpid()) in only(told).text
    assert only(told).code is Code.IN_USE


def test_a_runtime_directory_of_somebody_else(home: Home, told: list[Finding]) -> None:
    base = Path(os.environ["XDG_RUNTIME_DIR"])
    environ = {"XDG_RUNTIME_DIR": str(base)}
    place.check_runtime(Settings(home), environ, told.append)
    (base / "modelnet").chmod(0o777)
    place.check_runtime(Settings(home), environ, told.append)
    base.chmod(0o777)  # then the one in /tmp is taken, which others of this user may look for elsewhere
    place.check_runtime(Settings(home), environ, told.append)
    assert [f.state for f in told] == [State.OK, State.FAILED, State.NOTE]
    assert "XDG_RUNTIME_DIR" in told[1].hint


async def test_a_port_that_is_taken(home: Home, told: list[Finding]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        addr = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
        settings = Settings(
            home, listen=("/ip4/127.0.0.1/tcp/0", addr), origins={"listen": "MODELNET_LISTEN"}
        )
        await place.check_port(settings, told.append)
    assert [f.state for f in told] == [State.OK, State.FAILED]
    assert (told[1].code, told[1].why) == (Code.IN_USE, "from MODELNET_LISTEN")
    assert "ss -ltnp" in told[1].hint
