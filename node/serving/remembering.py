"""What a peer still knows of a model when it starts again, so that it can be announced before it is loaded.

A description alone would not do: the model may have been changed meanwhile. So the files that it was made of
are remembered with their sizes and times, the publisher's interpreter and the folder of its packages among
them. If one is not as it was, or the description was made by another version of ours, the model is loaded
before anything is said of it. What may change without a file (a server behind a URL) is never remembered.
"""

from __future__ import annotations

import base64
import os
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelnet_p2p import __version__
from modelnet_p2p.node.serving.description import Description
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.payload import Value

MAX_STAMPS = 512  # files of one model; one that is made of more is loaded before it is announced
MAX_PATH_CHARS = 4096  # Linux's own bound
OURS = "modelnet_p2p"


@dataclass(frozen=True, slots=True)
class Stamp:
    """A file or directory as it was."""

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str) -> Stamp | None:
        """As it is now; None if it is not there, or nobody may look."""
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            return None
        return cls(path, found.st_size, found.st_mtime_ns)


def stamps_of(source: Source, files: str) -> list[Stamp] | None:
    """In the process that has loaded it: the files of `source`, beside what its description calls its
    `files`; None when they do not tell whether the model is still the same."""
    if "://" in source.spec:
        return None
    stamps: dict[str, Stamp] = {}
    for path in _paths(source, files):
        if path not in stamps and (stamp := Stamp.of(path)) is not None:
            stamps[path] = stamp
        if len(stamps) > MAX_STAMPS:
            return None
    return list(stamps.values())


def _paths(source: Source, files: str) -> Iterator[str]:
    yield from {sys.executable, source.interpreter or sys.executable}
    yield from _packages()
    for name in (source.spec, files, *source.options.values()):
        path = Path(source.cwd or ".", name).absolute()
        if not name or not path.exists():
            continue
        yield str(path)
        if path.is_dir():
            for folder, _, names in os.walk(path):
                yield folder
                yield from (os.path.join(folder, each) for each in sorted(names))
        else:  # what belongs to a file is beside it, under its name
            yield from (str(each) for each in sorted(path.parent.glob(f"{path.stem}.*")))
    yield from _modules()


def _packages() -> set[str]:
    """Folders whose times change when a package is installed or removed."""
    paths = sysconfig.get_paths()
    return {paths["purelib"], paths["platlib"]}


def _modules() -> Iterator[str]:
    """Those that are loaded and do not come with the interpreter or its packages."""
    paths = sysconfig.get_paths()
    installed = tuple(
        os.path.join(paths[name], "") for name in ("stdlib", "platstdlib", "purelib", "platlib")
    )
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and name.partition(".")[0] != OURS and not file.startswith(installed):
            yield os.path.abspath(file)


@dataclass(frozen=True, slots=True)
class Remembered:
    """A loaded model's description, and the files that it is good for."""

    description: Description
    stamps: tuple[Stamp, ...]

    @property
    def is_current(self) -> bool:
        """Whether all of the files are as they were."""
        return all(Stamp.of(stamp.path) == stamp for stamp in self.stamps)

    def to_map(self) -> dict[str, object]:
        """In JSON's values."""
        fields = self.description.to_map()
        sealed = {name: value for name, value in fields.items() if isinstance(value, bytes)}
        return {
            "version": __version__,
            "description": {name: value for name, value in fields.items() if name not in sealed},
            "bytes": {name: base64.b64encode(value).decode() for name, value in sealed.items()},
            "stamps": [[stamp.path, stamp.size, stamp.mtime_ns] for stamp in self.stamps],
        }

    @classmethod
    def from_map(cls, fields: object) -> Remembered:
        """What `to_map` of the same version of ours wrote; raises ValueError on anything else."""
        match fields:
            case {
                "version": str(version),
                "description": {**description},
                "bytes": {**sealed},
                "stamps": stamps,
            } if version == __version__:
                texts = {str(name): str(text) for name, text in sealed.items()}
                raw = {name: base64.b64decode(text, validate=True) for name, text in texts.items()}
                return cls(Description.from_map(dict(description) | raw), read_stamps(stamps))
        raise ValueError("not what this version remembers of a model")


def read_stamps(fields: Value | Any) -> tuple[Stamp, ...]:  # Any: of a file, or of a stranger's process
    """Stamps as lists of path, size and time; raises ValueError for anything else."""
    if not isinstance(fields, list) or len(fields) > MAX_STAMPS:
        raise ValueError(f"not a list of at most {MAX_STAMPS} files")
    stamps = []
    for row in fields:
        match row:
            case [str(path), int(size), int(mtime_ns)] if len(path) <= MAX_PATH_CHARS:
                stamps.append(Stamp(path, size, mtime_ns))
            case _:
                raise ValueError("not a file's path, size and time")
    return tuple(stamps)
