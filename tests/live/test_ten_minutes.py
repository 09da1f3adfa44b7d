"""A stranger's first ten minutes at a terminal, mistakes included.

Whatever goes wrong says what was wrong and names the next step; where that step is a line to copy, the
stranger types it, and it works.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tmux import PATIENCE, Pane, Tmux, Told, missing

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]
LEAVE_SECONDS = 5.0  # the contract's for `join` after Ctrl-C
SHOUT = """\
def shout(text: str, mark: str = "!") -> str:
    return text.upper() + mark

def words(text: str):
    for word in text.split():
        yield word + " "

def slow(text: str) -> str:
    import time
    time.sleep(600)
    return text
"""


@pytest.fixture
def desk() -> Iterator[Tmux]:
    """A machine on which nobody has used modelnet before."""
    base = Path(tempfile.mkdtemp(prefix="mn-"))  # not tmp_path: it may be too long for a Unix socket
    (base / "run").mkdir(mode=0o700)
    (base / "home").mkdir()
    (base / "home" / "shout.py").write_text(SHOUT)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MODELNET_", "XDG_"))}
    environ = kept | {
        "HOME": str(base / "home"),
        "XDG_RUNTIME_DIR": str(base / "run"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONDONTWRITEBYTECODE": "",
    }
    environ.pop("TMUX", None)
    with Tmux(base / "home", environ) as tmux:
        yield tmux
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def shell(desk: Tmux) -> Pane:
    """The terminal in which commands are typed."""
    return desk.open("shell")


def join(desk: Tmux, name: str, flags: str = "") -> Pane:
    """Another terminal, with a peer in its foreground."""
    pane = desk.open(name)
    pane.start(f"modelnet-peer join {flags}".rstrip())
    pane.wait_for(r"^ready +12D3Koo")
    return pane


def leave(pane: Pane) -> Told:
    """Ctrl-C, and how it ended."""
    began = time.monotonic()
    pane.press("C-c")
    told = pane.finish()
    assert time.monotonic() - began < LEAVE_SECONDS + 1  # of looking
    return told


def peer_of(pane: Pane) -> tuple[str, str]:
    """The id and the address that a joined peer printed."""
    ready = re.search(r"^ready +(\S+)\naddress +(\S+)", pane.shown(), re.MULTILINE)
    assert ready is not None
    return ready[1], ready[2]


def test_the_way_that_help_shows(desk: Tmux, shell: Pane) -> None:
    told = shell.run("modelnet-peer --help")
    assert told.status == 0
    examples = re.findall(r"^ +(modelnet-peer .*?)(?: +#.*)?$", told.text, re.MULTILINE)
    assert examples[:3] == [
        "modelnet-peer join",
        "modelnet-peer publish builtin:digits",
        "modelnet-peer find --task image-classification",
    ]
    peer = join(desk, "peer")
    peer.wait_for("In another terminal: modelnet-peer publish builtin:digits")
    assert shell.run(examples[1]).status == 0
    found = shell.run(examples[2])
    assert found.status == 0
    assert re.search(r"modelnet/digits.*alive", found.text)

    assert shell.run("modelnet-peer publish shout:shout --task text2text-generation").status == 0
    assert shell.run("modelnet-peer publish shout:words").status == 0
    for target in ("shout", "task:text2text-generation"):
        answer = shell.run(f"modelnet-peer invoke {target} hello")
        assert (answer.status, "HELLO!" in answer.text) == (0, True)
    assert "one two three" in shell.run("modelnet-peer invoke words 'one two three'").text
    make = "import numpy; numpy.save('digit.npy', numpy.zeros((1, 8, 8), 'float32'))"
    assert shell.run(f"python -c {shlex.quote(make)}").status == 0
    assert (
        "scores: tensor float32 [1, 10]"
        in shell.run("modelnet-peer invoke modelnet/digits --input digit.npy").text
    )
    assert re.search(r"shout +serving", shell.run("modelnet-peer status").text)

    assert leave(peer).status == 0
    gone = shell.run("modelnet-peer status")
    assert (gone.status, gone.hint) == (7, "modelnet-peer join")
    again = desk.open("again")
    again.start(gone.hint)
    again.wait_for("^ready")
    assert "HELLO!" in shell.run("modelnet-peer invoke shout hello").text  # it serves what it served


def test_slips_of_the_hand(desk: Tmux, shell: Pane) -> None:
    slip = shell.run("modelnet-peer joim")
    assert (slip.status, slip.hint) == (2, "did you mean: modelnet-peer join")
    peer = desk.open("peer")
    peer.start(slip.hint.removeprefix("did you mean: "))
    peer.wait_for("^ready")
    slip = shell.run("modelnet-peer pulbish shout:shout")
    assert slip.status == 2
    assert shell.run(slip.hint.removeprefix("did you mean: ")).status == 0
    assert "'--task'" in shell.run("modelnet-peer find --taks x").text
    for line, status, step in (
        ("modelnet-peer", 2, ""),
        ("modelnet-peer frobnicate", 2, "modelnet-peer --help"),
        ("modelnet-peer --home x status", 2, "modelnet-peer status --home"),
        ("modelnet-peer invoke shout two words", 2, "'some text'"),
        ("modelnet-peer invoke shout", 2, "'some text'"),
        ("modelnet-peer invoke shout hi --param mark=?", 2, """--param 'mark="?"'"""),
        ("modelnet-peer invoke shout hi --param makr=1", 5, "shout(text: str, mark: str = '!')"),
        ("modelnet-peer invoke shout --input nothing.npy", 2, "--input takes a file"),
        ("modelnet-peer find", 2, "modelnet-peer find --task"),
        ("modelnet-peer ping nobody", 2, "modelnet-peer ping --help"),
        ("modelnet-peer publish shout", 2, "modelnet-peer publish shout:NAME"),
        ("modelnet-peer publish shout:shuot", 2, "it has"),
        ("modelnet-peer publish builtin:digit", 2, "builtin:digits"),
        ("modelnet-peer publish weights.pt", 6, "safetensors"),
        ("modelnet-peer publish nothing.safetensors", 2, "whole path"),
        ("modelnet-peer join --home ../second --bootstrap /ip4/127.0.0.1/tcp/1", 2, "the whole address"),
        ("modelnet-peer join --home ../second --listen localhost:4001", 2, "/ip4/"),
    ):
        told = shell.run(line)
        assert told.status == status, told
        assert step in told.hint, told


def test_a_name_that_nobody_has(desk: Tmux, shell: Pane) -> None:
    join(desk, "first")
    assert shell.run("modelnet-peer publish shout:shout").status == 0
    alone = shell.run("modelnet-peer invoke shuot hello")  # nobody else is there who could have it
    assert (alone.status, "did you mean shout" in alone.hint) == (4, True)
    command = alone.hint.partition("? ")[2]
    assert "HELLO!" in shell.run(f"{command} hello").text
    join(desk, "second", "--home ../second")
    nobody = shell.run("modelnet-peer invoke nothing-like-it hello --home ../second")
    assert (nobody.status, "modelnet-peer find --home ../second --task" in nobody.hint) == (3, True)
    task = shell.run("modelnet-peer find --task no-such-task")
    assert (task.status, "publish MODULE:NAME --task x-ORG/no-such-task" in task.hint) == (3, True)


def test_before_any_peer_runs(desk: Tmux, shell: Pane) -> None:
    for line, status in (
        ("modelnet-peer publish builtin:digits", 7),
        ("modelnet-peer invoke modelnet/digits hello", 4),
        ("modelnet-peer find --task x", 4),
        ("modelnet-peer peers", 7),
    ):
        told = shell.run(line)
        assert (told.status, told.hint.startswith("modelnet-peer join")) == (status, True), told


def test_a_home_and_a_port_that_are_taken(desk: Tmux, shell: Pane) -> None:
    first = join(desk, "first")
    taken = shell.run("modelnet-peer join")
    assert taken.status == 6
    peer, address = peer_of(first)
    assert peer in shell.run(taken.hint).text  # which shows the peer that is in the way
    port = address.partition("/p2p/")[0]
    taken = shell.run(f"modelnet-peer join --home ../second --listen {port}")
    assert taken.status == 6
    assert "another port, or 0 for any" in taken.hint
    join(desk, "second", f"--home ../second --listen {re.sub('[0-9]+$', '0', port)}")


def test_a_provider_that_is_killed(desk: Tmux, shell: Pane) -> None:
    first = join(desk, "first", "--publish shout:shout --publish builtin:digits")
    join(desk, "second", "--home ../second --publish builtin:digits")
    np.save(desk.folder / "digit.npy", np.zeros((1, 8, 8), np.float32))
    call_digits = "modelnet-peer invoke modelnet/digits --input digit.npy --home ../second"
    assert "HELLO!" in shell.run("modelnet-peer invoke shout hello --home ../second").text
    assert shell.run(call_digits).status == 0
    assert shell.run("kill -9 $(cat .local/share/modelnet/lock)").status == 0
    assert first.finish().status == 128 + 9
    assert shell.run(call_digits).status == 0  # by the other one
    gone = shell.run("modelnet-peer invoke shout hello --home ../second")
    assert gone.status in (3, 4), gone  # not reachable, or already known not to be there
    assert gone.hint.startswith("modelnet-peer find "), gone
    first.start("modelnet-peer join")  # the same home serves again what it had published
    first.wait_for("^ready")
    assert re.search("shout +serving", shell.run("modelnet-peer status").text)
    assert "HELLO!" in shell.run("modelnet-peer invoke shout hello --home ../second").text


def test_files_that_are_damaged(desk: Tmux, shell: Pane) -> None:
    peer = join(desk, "peer", "--publish builtin:digits")
    assert leave(peer).status == 0
    home = desk.folder / ".local" / "share" / "modelnet"

    (home / "config.toml").write_text('listne = "/ip4/127.0.0.1/tcp/4001"\n')
    told = shell.run("modelnet-peer join")
    assert (told.status, str(home / "config.toml") in told.text) == (6, True)
    assert "listen" in told.text
    (home / "config.toml").unlink()

    (state,) = (home / "state" / "models").glob("*.json")
    state.write_text("half a fi")
    told = shell.run("modelnet-peer join")
    assert (told.status, str(state) in told.text) == (6, True)
    assert shell.run(told.hint[told.hint.index("mv ") :]).status == 0
    peer.start("modelnet-peer join")
    peer.wait_for("^ready")
    assert leave(peer).status == 0

    key = home / "identity.key"
    key.chmod(0o644)
    told = shell.run("modelnet-peer join")
    assert (told.status, str(key) in told.text) == (6, True)
    assert shell.run(told.hint).status == 0
    key.write_bytes(key.read_bytes()[:10])
    told = shell.run("modelnet-peer join")
    assert (told.status, str(key) in told.text, "--home DIR" in told.hint) == (6, True, True)


def test_ctrl_c_while_a_model_is_at_it(desk: Tmux, shell: Pane) -> None:
    peer, other = join(desk, "peer", "--publish shout:slow"), desk.open("other")

    def until_in_flight(number: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while not re.search(f"slow +serving +{number} ", other.run("modelnet-peer status").text):
            assert time.monotonic() < deadline

    shell.start("modelnet-peer invoke slow hello --timeout 300")
    until_in_flight(1)
    shell.press("C-c")
    told = shell.finish()
    assert (told.status, "interrupted" in told.text, "Traceback" in told.text) == (130, True, False)
    until_in_flight(0)  # the server hears of it a little later than the caller's shell
    shell.start("modelnet-peer invoke slow hello --timeout 300")
    until_in_flight(1)
    assert leave(peer).status == 0
    told = shell.finish()
    assert (told.status, told.hint) == (7, "modelnet-peer join"), told


def test_lan_where_there_is_no_lan(desk: Tmux, shell: Pane) -> None:
    apart = ["unshare", "-rn"]  # a network namespace in which there is no network but a loopback that is down
    if not shutil.which(apart[0]) or subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("needs unshare -rn, to be without a network")
    shell.start(f"{' '.join(apart)} modelnet-peer join --lan")
    shell.wait_for("^ready")
    assert "0.0.0.0" in shell.shown()
    shell.wait_for("^warning: .*network")
    assert leave(shell).status == 0
