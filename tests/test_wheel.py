"""The distribution holds what the checkout holds: its packages are listed by hand, so a test counts them."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("wheel")  # built once

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LISTED: list[str] = PROJECT["tool"]["setuptools"]["packages"]
FOLDERS = {"modelnet_p2p": "modelnet_p2p", "dht": "modelnet_p2p/dht", "node": "modelnet_p2p/node"}
IGNORED = frozenset({".pyc", ".pyo"})


def shipped() -> Iterator[tuple[str, Path]]:
    """(path inside the wheel, file) of every file of the three floors; the two links are not followed."""
    for folder, inside in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*")):
            below = path.relative_to(ROOT / folder).as_posix()
            linked = folder == "modelnet_p2p" and below.split("/")[0] in ("dht", "node")
            if path.is_file() and not linked and path.suffix not in IGNORED:
                yield f"{inside}/{below}", path


def run(*command: str | Path, cwd: Path) -> str:
    process = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def package_of(name: str) -> str:
    """The package that a file inside the wheel lies in."""
    return name.rpartition("/")[0].replace("/", ".")


def test_every_package_is_listed() -> None:
    exist = {package_of(name) for name, _ in shipped() if name.endswith("/__init__.py")}
    assert sorted(LISTED) == sorted(exist)


def test_python_files_lie_in_packages() -> None:
    assert [name for name, _ in shipped() if name.endswith(".py") and package_of(name) not in LISTED] == []


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source archive, built by pyproject.toml's own backend from a copy."""
    place = tmp_path_factory.mktemp("dist")
    copy = place / "copy"
    copy.mkdir()
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=False
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    for name in listing.stdout.decode().split("\0"):
        source, target = ROOT / name, copy / name
        if name and (source.is_file() or source.is_symlink()):
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_symlink():
                target.symlink_to(source.readlink())
            else:
                target.write_bytes(source.read_bytes())
    uv = Path(sys.executable).with_name("uv")
    builder = [uv] if uv.exists() else ["uv"]
    run(*builder, "build", "--quiet", "--python", sys.executable, "--out-dir", place, copy, cwd=place)
    return place


@pytest.mark.slow
def test_the_wheel_holds_every_file(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert [name for name, _ in shipped() if name not in names] == []
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"modelnet_p2p"}


@pytest.mark.slow
def test_the_source_archive_holds_every_file(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    wanted = {path.relative_to(ROOT).as_posix() for _, path in shipped()}
    assert wanted - names == set()
    assert {"LICENSE", "README.md", "pyproject.toml"} <= names


@pytest.mark.slow
def test_the_wheel_installs_and_imports(built: Path) -> None:
    """In an environment of its own; the packages that it needs are lent by this one."""
    (wheel,) = built.glob("*.whl")
    place = built / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", place, cwd=built)
    python = place / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--quiet", wheel, cwd=built)
    (here,) = {path for path in sys.path if path.endswith("site-packages")}
    (there,) = place.glob("lib/python*/site-packages")
    (there / "lent.pth").write_text(here)  # comes after its own: modelnet_p2p is the wheel's
    code = f"import importlib\nfor name in {LISTED!r}: print(importlib.import_module(name).__file__)"
    files = run(python, "-c", code, cwd=built).split()
    assert files
    assert all(Path(file).is_relative_to(place) for file in files)
    assert run(place / "bin" / "modelnet-peer", "--version", cwd=built).startswith("modelnet-peer 0.")
