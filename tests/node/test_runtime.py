"""The runtime directory: a lock that dies with its process, meeting files, and strangers' files in it."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.disk.home import Home
from modelnet_p2p.node.disk.runtime import (
    LOCK_PAUSE,
    MAX_SOCKET_PATH,
    Runtime,
    find_control,
    joining,
    runtime_directory,
)

ALICE = ("alice", ["/ip4/127.0.0.1/tcp/1/p2p/alice"])
BOB = ("bob", ["/ip4/127.0.0.1/tcp/2/p2p/bob"])


@pytest.fixture
def environ() -> Iterator[dict[str, str]]:
    base = Path(tempfile.mkdtemp(prefix="mn-"))  # mode 0700, and short
    yield {"XDG_RUNTIME_DIR": str(base)}
    shutil.rmtree(base)


def test_peers_of_one_network_meet(environ: dict[str, str]) -> None:
    alice, bob = Runtime("n", environ=environ), Runtime("n", environ=environ)
    carol = Runtime("another", environ=environ)
    assert alice.others() == []
    alice.announce(*ALICE)
    bob.announce(*BOB)
    assert (alice.others(), bob.others(), carol.others()) == (BOB[1], ALICE[1], [])
    alice.announce("alice", ["/ip4/127.0.0.1/tcp/9"])
    assert bob.others() == ["/ip4/127.0.0.1/tcp/9"]
    alice.withdraw()
    alice.withdraw()
    assert bob.others() == []
    bob.withdraw()


def test_a_killed_peers_file_is_removed(environ: dict[str, str]) -> None:
    program = (
        "import time\nfrom modelnet_p2p.node.disk.runtime import Runtime\n"
        "r = Runtime('n')\nr.announce('bob', ['/ip4/2'])\nprint('there', flush=True)\ntime.sleep(60)"
    )
    alice = Runtime("n", environ=environ)
    with subprocess.Popen(
        [sys.executable, "-c", program], env={**os.environ, **environ}, stdout=subprocess.PIPE
    ) as bob:
        assert bob.stdout is not None
        bob.stdout.readline()
        assert alice.others() == ["/ip4/2"]
        bob.send_signal(signal.SIGKILL)
    assert alice.others() == []
    assert not list(alice.directory.rglob("*.json"))


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b'{"addrs": 3}', b'{"addrs": [1, "x", null]}', b"\xff", b"[" * 8000, b"x" * 99999],
)
def test_strange_files_are_ignored(environ: dict[str, str], data: bytes) -> None:
    alice, bob = Runtime("n", environ=environ), Runtime("n", environ=environ)
    bob.announce(*BOB)
    next(bob.directory.glob("net-*/*.json")).write_bytes(data)  # its lock stays: it looks alive
    assert alice.others() == []
    bob.withdraw()


def test_a_fifo_a_link_and_a_directory_do_no_harm(environ: dict[str, str]) -> None:
    alice, bob = Runtime("n", environ=environ), Runtime("n", environ=environ)
    bob.announce(*BOB)
    meeting = next(bob.directory.glob("net-*"))
    os.mkfifo(meeting / "a.json")
    (meeting / "b.json").symlink_to("/etc/passwd")
    (meeting / "c.json").mkdir()
    assert alice.others() == BOB[1]
    assert (meeting / "b.json").is_symlink()
    bob.withdraw()


def test_a_home_is_locked_once_and_free_after_kill_9(environ: dict[str, str], tmp_path: Path) -> None:
    home = Home(tmp_path / "a home")
    with Runtime("n", home, environ=environ).lock():
        with pytest.raises(LocalError) as caught, Runtime("m", home, environ=environ).lock():
            pass
        assert caught.value.code is Code.IN_USE
        assert str(os.getpid()) in caught.value.message
        assert caught.value.hint == f"modelnet-peer status --home '{home.path}'"
    program = (
        "import sys, time\nfrom modelnet_p2p.node.disk.runtime import Runtime\n"
        "with Runtime('n', sys.argv[1]).lock():\n  print('held', flush=True)\n  time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(home.path)], stdout=subprocess.PIPE) as bob:
        assert bob.stdout is not None
        bob.stdout.readline()
        with pytest.raises(LocalError), Runtime("n", home, environ=environ).lock():
            pass
        bob.send_signal(signal.SIGKILL)
    with Runtime("n", home, environ=environ).lock():
        pass


def test_a_home_tells_whether_a_join_holds_it_from_its_first_moment(
    environ: dict[str, str], tmp_path: Path
) -> None:
    home = Home(tmp_path / "home")
    runtime = Runtime("n", home, environ=environ)
    assert joining(home) == ""
    with runtime.lock(joining=True):
        assert joining(home) == str(os.getpid())
        assert find_control(home, environ={}) == runtime.socket_path
        assert home.lock_path.read_text() == f"{os.getpid()}\n"  # `kill $(cat lock)` is in the README
        with Runtime("n", home, environ=environ).lock():  # the peer's own
            assert joining(home) == str(os.getpid())
        assert joining(home) == str(os.getpid())
    assert joining(home) == ""
    runtime.note_control()  # as one that was killed leaves it
    assert joining(home) == ""
    with Runtime("n", home, environ=environ).lock():  # a program's peer has no socket to wait for
        assert joining(home) == ""


def test_a_command_that_looks_at_the_lock_does_not_keep_a_peer_from_starting(
    environ: dict[str, str], tmp_path: Path
) -> None:
    home = Home(tmp_path / "home")
    with Runtime("n", home, environ=environ).lock():
        pass
    looking = os.open(home.lock_path, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    timer = threading.Timer(LOCK_PAUSE, os.close, (looking,))
    timer.start()
    with Runtime("n", home, environ=environ).lock():
        pass
    timer.join()


def test_the_socket_path_is_short_and_another_shell_finds_it(environ: dict[str, str], tmp_path: Path) -> None:
    home = Home(tmp_path / ("long" * 50))
    home.path.mkdir()
    runtime = Runtime("n", home, environ=environ)
    assert len(str(runtime.socket_path)) <= MAX_SOCKET_PATH
    assert find_control(home, environ=environ) == runtime.socket_path
    runtime.note_control()
    assert find_control(home, environ={}) == runtime.socket_path
    runtime.forget_control()
    assert find_control(home, environ={}) != runtime.socket_path


def test_a_runtime_directory_of_others_is_not_used(tmp_path: Path) -> None:
    open_to_all = tmp_path / "run"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    assert runtime_directory({"XDG_RUNTIME_DIR": str(open_to_all)}) == Path(f"/tmp/modelnet-{os.getuid()}")


@pytest.mark.parametrize("make", ["link", "file", "open"])
def test_somebody_else_sits_in_its_place(environ: dict[str, str], make: str) -> None:
    place = Path(environ["XDG_RUNTIME_DIR"]) / "modelnet"
    if make == "link":
        place.symlink_to("/tmp")
    elif make == "file":
        place.write_text("")
    else:
        place.mkdir()
        place.chmod(0o755)
    with pytest.raises(LocalError, match=str(place)) as caught:
        runtime_directory(environ)
    assert caught.value.code is Code.BAD_STATE


def test_a_disk_that_takes_nothing_is_one_error_that_names_the_file(
    environ: dict[str, str], tmp_path: Path
) -> None:
    home = Home(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        with (
            pytest.raises(LocalError, match="cannot write") as caught,
            Runtime("n", home, environ=environ).lock(),
        ):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.code is Code.BAD_STATE
    assert str(home.lock_path) in caught.value.message
