"""The file that a model is in: found, named and hashed as it is; and the package that opens it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modelnet_p2p.digest import CHUNK_BYTES, Listing
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.source import Source


def the_file(source: Source) -> Path:
    """The file that a source names; raises LocalError (bad-input) where there is none."""
    path = Path(source.cwd or ".", source.spec)
    if not path.is_file():
        hint = "name a file below the directory you are in, or its whole path"
        raise LocalError(Code.BAD_INPUT, f"there is no file {path}", hint=hint)
    return path


def named_after(path: Path) -> str:
    """A model's name from its file's, or from its directory's where that says more."""
    stem = path.stem.lower().strip("._-")
    return (path.resolve().parent.name.lower().strip("._-") if stem == "model" else stem) or "model"


def hashed_alone(path: Path) -> tuple[bytes, int]:
    """The digest of a file as it is, whatever is in it, and its size; no listing of it is handed out."""
    hashes: list[bytes] = []
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            hashes.append(hashlib.sha256(chunk).digest())
        size = file.tell()
    return Listing(size, CHUNK_BYTES, tuple(hashes), ()).root, size


@contextmanager
def needing(source: Source, package: str, extra: str) -> Iterator[None]:
    """Around the import of what opens that source; raises LocalError (bad-state) where it is not there."""
    try:
        yield
    except ImportError as error:
        raise lacking(source, package, extra) from error


def lacking(source: Source, package: str, extra: str, *, why: str = "", hint: str = "") -> LocalError:
    """The error that says which package a source needs, and the extra of ours that brings it."""
    here = source.interpreter or "this Python"
    words = f"{source.spec} needs {package}, which {here} does not have{why}"
    return LocalError(Code.BAD_STATE, words, hint=f"pip install 'modelnet-p2p[{extra}]'{hint}")
