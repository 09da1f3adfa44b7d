"""A Dockerfile built without Docker: its steps read, and done one by one in folders that are images' roots.

Knows the instructions that ours uses, and stops at any other. Each stage begins as a copy of a clean Debian;
commands run in it by chroot, with namespaces of their own, so that nothing outlives them.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PATIENCE = 600.0  # seconds for one step: pip fetches some 60 MB
# of this machine, so that pip inside finds what pip outside does
_NET_FILES = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt")
_INTO = 'mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" && cd "$1" && exec chroot "${@:2}"'


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction: its flags (`--from=build`) apart from the rest of its line."""

    name: str
    text: str
    flags: Mapping[str, str]

    @property
    def words(self) -> list[str]:
        """As a list: of the JSON form, or split as a shell does."""
        if not self.text.startswith("["):
            return shlex.split(self.text)
        words = json.loads(self.text)
        assert isinstance(words, list)
        return words


def read(text: str) -> list[Step]:
    """The steps of a Dockerfile; continued lines are one, comments none."""
    kept = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    steps = []
    for line in "\n".join(kept).replace("\\\n", " ").splitlines():
        name, _, rest = line.strip().partition(" ")
        flags = {}
        while rest.startswith("--"):
            flag, _, rest = rest.partition(" ")
            key, _, value = flag.removeprefix("--").partition("=")
            flags[key] = value
        steps.append(Step(name.upper(), rest.strip(), flags))
    return steps


@dataclass(slots=True)
class Image:
    """A root folder, and what its steps have set."""

    root: Path
    environ: dict[str, str] = field(default_factory=dict)
    user: str = "root"
    folder: str = "/"
    entry: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)
    alone: bool = False  # from now on without any network but its own loopback

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """A command in it, as its user; the processes that it leaves behind end with it."""
        into = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        into += (
            ["--net", "bash", "-c", f"ip link set lo up && {_INTO}"] if self.alone else ["bash", "-c", _INTO]
        )
        into += ["-", str(self.root)]
        inside = ["env", "-i", f"--chdir={self.folder}"]
        inside += [f"{key}={value}" for key, value in {**self.environ, **more}.items()]
        return subprocess.run(
            [*into, f"--userspec={self.user}", ".", *inside, *words],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )


def build(steps: list[Step], context: Path, clean: Path, place: Path) -> Image:
    """Do the steps; the last stage. `clean` is the root that every foreign base is taken for."""
    stages: dict[str, Image] = {}
    image = Image(clean)
    for number, step in enumerate(steps):
        match step.name:
            case "FROM":
                base, _, name = step.text.partition(" AS ")
                image = Image(place / f"stage{number}")
                found = stages[base].root if base in stages else clean
                subprocess.run(["cp", "-a", str(found), str(image.root)], check=True)
                image.environ = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
                _bring_net(image.root)
                stages[name or str(number)] = image
            case "COPY":
                source = stages[step.flags["from"]].root if "from" in step.flags else context
                _copy(image, source, step.words)
            case "RUN":
                done = image.run("sh", "-c", step.text, **_net_environ())
                assert done.returncode == 0, f"{step.text}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
            case "ENV":
                key, _, value = step.text.partition("=")
                image.environ[key] = value
            case "WORKDIR":
                image.folder = step.text
                _inside(image, step.text).mkdir(parents=True, exist_ok=True)
            case "USER":
                image.user = step.text
            case "ENTRYPOINT":
                image.entry = step.words
            case "CMD":
                image.command = step.words
            case "HEALTHCHECK":
                image.health = json.loads(step.text.removeprefix("CMD "))
            case "VOLUME" | "EXPOSE" | "STOPSIGNAL":
                pass
            case other:
                raise AssertionError(f"{other} is not known here")
    return image


def _copy(image: Image, source: Path, words: list[str]) -> None:
    *names, target = words
    into = _inside(image, target)
    for name in names:
        origin = source / name.lstrip("/")
        goal = into / origin.name if target.endswith("/") else into
        if origin.is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(origin, goal, symlinks=True, dirs_exist_ok=True, ignore=ignore)
        else:
            goal.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(origin, goal)


def _inside(image: Image, path: str) -> Path:
    return image.root / str(Path(image.folder, path)).lstrip("/")


def _bring_net(root: Path) -> None:
    for name in _NET_FILES:
        if os.path.exists(name):
            goal = root / name.lstrip("/")
            goal.parent.mkdir(parents=True, exist_ok=True)
            goal.unlink(missing_ok=True)
            shutil.copy(name, goal)


def _net_environ() -> dict[str, str]:
    wanted = ("PIP_", "SSL_CERT_FILE", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "no_proxy")
    return {key: value for key, value in os.environ.items() if key.startswith(wanted)}
