"""What runs a peer for good, a systemd unit and a container: read every day, really made by slow tests."""

from __future__ import annotations

import configparser
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from dockerfile import Image, Step, build, read
from modelnet_p2p.node.cli.app import PROGRAM, app

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "scripts" / "deploy"
DEBIAN = "bookworm"  # its Python is 3.11, the oldest that will do
BOOTSTRAP_SECONDS = 600
# what a container's owner does: start it, ask whether it is well, publish, and stop it
LIFE = """
modelnet-peer join --json >ready.json 2>err.txt & peer=$!
tries=0
until modelnet-peer status --json >status.json 2>/dev/null; do
  tries=$((tries + 1)); [ $tries -lt 60 ] || { cat err.txt; exit 9; }; sleep 0.5
done
modelnet-peer publish builtin:digits && modelnet-peer status && cat ready.json && id -u
kill -TERM $peer; wait $peer; echo "ended $?"
"""


def dockerfile() -> list[Step]:
    return read((DEPLOY / "Dockerfile").read_text(encoding="utf-8"))


def known(words: list[str]) -> bool:
    """Whether this is a line of ours: a command that exists, with flags that it has."""
    program, command, *flags = words
    assert program == PROGRAM
    found = app.commands.get(command) or app.get_command(None, command)  # type: ignore[arg-type]  # unused there
    names = {name for param in found.params for name in param.opts} if found else set()
    return found is not None and all(flag in names for flag in flags if flag.startswith("--"))


def one(steps: list[Step], name: str) -> Step:
    (step,) = (step for step in steps if step.name == name)
    return step


def test_the_container_runs_our_program_as_nobody_important() -> None:
    steps = dockerfile()
    assert one(steps, "USER").text not in ("root", "0")
    assert known([*one(steps, "ENTRYPOINT").words, *one(steps, "CMD").words])
    health = one(steps, "HEALTHCHECK")
    assert known(Step("CMD", health.text.removeprefix("CMD "), {}).words)
    assert one(steps, "VOLUME").text in [step.text.partition("=")[2] for step in steps if step.name == "ENV"]


def test_hadolint_finds_no_fault_with_the_dockerfile() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint has no wheel for this machine")
    done = subprocess.run([hadolint, "--no-color", DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_container_is_made_of_what_is_there() -> None:
    kept = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    shown = [line.removeprefix("!") for line in kept if line.startswith("!")]
    copies = [step for step in dockerfile() if step.name == "COPY" and "from" not in step.flags]
    sources = [name for step in copies for name in step.words[:-1]]
    assert all((ROOT / name).exists() for name in sources)
    assert all(any(fnmatch(name, pattern) for pattern in shown) for name in sources)


def test_all_of_the_distribution_is_in_the_container() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert all(f"COPY {folder} ./{folder}" in text for folder in ("modelnet_p2p", "dht", "node"))


def test_steps_are_read_as_docker_reads_them() -> None:
    text = '# no\nFROM a AS b\nRUN one \\\n  two\nCOPY --from=b --chown=x /p /q\nCMD ["a b", "c"]\n'
    first, second, third, last = read(text)
    assert (first.name, first.text) == ("FROM", "a AS b")
    assert second.text == "one    two"
    assert (third.flags, third.words) == ({"from": "b", "chown": "x"}, ["/p", "/q"])
    assert last.words == ["a b", "c"]


def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # the way to keep upper case
    parser.read(DEPLOY / "modelnet-peer.service", encoding="utf-8")
    return parser


def test_the_unit_runs_a_command_of_ours() -> None:
    service = unit()["Service"]
    path, *rest = service["ExecStart"].split()
    assert known([Path(path).name, *rest])
    assert service["RestartPreventExitStatus"].split() == ["2", "6"]


@pytest.mark.slow
def test_systemd_finds_no_fault_with_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    program = tmp_path / PROGRAM
    program.write_text("#!/bin/sh\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    text = (DEPLOY / "modelnet-peer.service").read_text(encoding="utf-8")
    start = unit()["Service"]["ExecStart"].split()[0]
    assert text.count(start) == 1
    (tmp_path / "modelnet-peer.service").write_text(text.replace(start, str(program)), encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "modelnet-peer.service")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def clean(tmp_path: Path) -> Iterator[Path]:
    """The root of a Debian that knows Python and nothing of this project."""
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        pytest.skip("needs root and debootstrap")
    if subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True).returncode:
        pytest.skip("namespaces are not permitted here")
    root = tmp_path / "clean"
    words = ["debootstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates"]
    made = subprocess.run(
        [*words, DEBIAN, str(root)], capture_output=True, text=True, timeout=BOOTSTRAP_SECONDS
    )
    if made.returncode:
        pytest.skip(f"no Debian can be had here: {made.stdout[-200:]}{made.stderr[-200:]}")
    yield root
    shutil.rmtree(tmp_path)  # hundreds of MB


@pytest.mark.slow
@pytest.mark.live
def test_the_container_starts_is_well_publishes_and_stops(clean: Path, tmp_path: Path) -> None:
    image: Image = build(dockerfile(), ROOT, clean, tmp_path)
    assert (image.entry, image.command) == ([PROGRAM], ["join"])
    image.alone = True  # its port is open to the world
    lived = image.run("sh", "-c", LIFE)
    said = lived.stdout + lived.stderr
    assert lived.returncode == 0, said
    assert "modelnet/digits" in lived.stdout, said
    assert '"event": "ready"' in lived.stdout, said
    assert "/tcp/4001/" in lived.stdout, said
    assert "\n10001\n" in lived.stdout, said
    assert lived.stdout.endswith("ended 0\n"), said
    assert image.run(*image.health).returncode == 7  # which a container's owner sees as unhealthy
