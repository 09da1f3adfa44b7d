"""What is in a .pt2 file that is data alone: a graph as JSON, and weights as raw bytes.

`torch.export.load` (looked at in 2.13) is not used, for it runs what it reads: the sample inputs, which
every archive of `torch.export.save` has, are unpickled, with all safeguards off where the safe way fails;
so are weights and constants that are marked `use_pickle`, custom objects and all of older archives;
compiled ones are loaded as shared libraries; sizes are evaluated as Python expressions, and operators found
by attributes of the module torch, whatever they are (`torch.os.system`). Here the zip file is read by its
own directory, the sample inputs are left alone, and an archive with any other pickle, or with compiled
code, is refused.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, cast
from zipfile import ZIP_STORED, BadZipFile, ZipFile

from modelnet_p2p.errors import Code, LocalError

MAX_ENTRIES = 65_536  # of the zip file: each weight is one
MAX_JSON_BYTES = 64 << 20  # of the graph: the largest models have some 100,000 nodes
SAMPLES = "data/sample_inputs/"  # pickles that nothing needs: never opened
COMPILED = "data/aotinductor/"
_PICKLED_SUFFIXES = (".pt", ".pkl", ".pickle", ".bin", ".pth")
_OBJECTS = ("custom_obj_", "opaque_obj_")

# schema.ScalarType of torch/_export/serde, by numpy's names
SCALAR_TYPES = {
    1: "uint8",
    2: "int8",
    3: "int16",
    4: "int32",
    5: "int64",
    6: "float16",
    7: "float32",
    8: "float64",
    12: "bool",
    13: "bfloat16",
    28: "uint16",
}
STRIDED = 7  # schema.Layout
_HINT = "export it again with the torch of today: torch.export.save(torch.export.export(model, args), FILE)"


class BadArchive(ValueError):
    """The archive is not one that `torch.export.save` writes."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor's bytes, and how it lies in them; several may share the same bytes."""

    data: bytearray
    dtype: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements
    offset: int

    def __post_init__(self) -> None:
        sizes = (*self.shape, *self.strides, self.offset)
        if any(not 0 <= size < 1 << 40 for size in sizes) or len(self.shape) != len(self.strides):
            raise BadArchive("a weight of it has no sound shape")


@dataclass(frozen=True, slots=True)
class Archive:
    """`model` is schema.ExportedProgram as JSON; weights and constants by their names in it."""

    model: Mapping[str, Any]  # Any: JSON, looked at where it is used
    weights: Mapping[str, Weight]
    constants: Mapping[str, Weight]


def read_archive(path: Path) -> Archive:
    """Raises LocalError: unsafe for whatever would run code, bad-input for what is no such archive."""
    try:
        with ZipFile(path) as file:
            return _Reader(file, path).archive()
    except (OSError, BadZipFile, ValueError, RecursionError, NotImplementedError) as error:
        raise LocalError(Code.BAD_INPUT, f"cannot read {path}: {error}", hint=_HINT) from error
    except (KeyError, TypeError, AttributeError, struct.error, zlib.error, RuntimeError) as error:
        words = f"cannot read {path}: it is not as torch.export.save writes it ({type(error).__name__})"
        raise LocalError(Code.BAD_INPUT, words, hint=_HINT) from error


class _Reader:
    def __init__(self, file: ZipFile, path: Path) -> None:
        self._file = file
        self._path = path
        names = file.namelist()
        if len(names) > MAX_ENTRIES:
            raise BadArchive("it has too many entries")
        self._root = names[0].partition("/")[0] + "/" if names and "/" in names[0] else ""
        self._names = {name.removeprefix(self._root) for name in names}
        self._blobs: dict[str, bytearray] = {}

    def archive(self) -> Archive:
        self._refuse_code()
        models = sorted(name for name in self._names if name.startswith("models/") and name.endswith(".json"))
        if len(models) != 1:
            raise BadArchive(f"it holds {len(models)} exported models, not one")
        name = models[0].removeprefix("models/").removesuffix(".json")
        return Archive(
            self._json(models[0]),
            self._tensors("data/weights/", f"data/weights/{name}_weights_config.json"),
            self._tensors("data/constants/", f"data/constants/{name}_constants_config.json"),
        )

    def _refuse_code(self) -> None:
        for name in sorted(self._names):
            if name.startswith(COMPILED) or name.endswith((".so", ".dylib", ".dll", ".py")):
                raise self._unsafe(f"{name[:80]} is compiled code, or a program")
            if name.lower().endswith(_PICKLED_SUFFIXES) and not name.startswith(SAMPLES):
                raise self._unsafe(f"{name[:80]} is a pickle")

    def _unsafe(self, what: str) -> LocalError:
        return LocalError(Code.UNSAFE, f"{self._path}: {what}, which runs when it is loaded", hint=_HINT)

    def _tensors(self, folder: str, config: str) -> dict[str, Weight]:
        if config not in self._names:
            return {}
        return {
            name: self._weight(folder, name, entry) for name, entry in self._json(config)["config"].items()
        }

    def _weight(self, folder: str, name: str, entry: Mapping[str, Any]) -> Weight:
        where = str(entry["path_name"])
        if entry["use_pickle"] is not False or where.startswith(_OBJECTS):
            raise self._unsafe(f"its weight {name[:80]!r} is a pickle")
        meta = entry["tensor_meta"]
        dtype = SCALAR_TYPES.get(meta["dtype"])
        if dtype is None or meta["layout"] != STRIDED:
            raise BadArchive(f"its weight {name[:80]!r} is of a kind that is not served")
        shape = tuple(fixed(size) for size in meta["sizes"])
        strides = tuple(fixed(size) for size in meta["strides"])
        data = self._blob(folder + where) if prod(shape) else bytearray()
        return Weight(data, dtype, shape, strides, fixed(meta["storage_offset"]))

    def _blob(self, name: str) -> bytearray:
        if name not in self._blobs:
            info = self._file.getinfo(self._root + name)
            if (
                info.compress_type != ZIP_STORED
            ):  # torch stores; what is packed may be a thousand times larger
                raise BadArchive(f"{name[:80]} is compressed")
            self._blobs[name] = bytearray(self._file.read(info))
        return self._blobs[name]

    def _json(self, name: str) -> dict[str, Any]:
        info = self._file.getinfo(self._root + name)
        if info.file_size > MAX_JSON_BYTES:
            raise BadArchive(f"{name[:80]} is larger than {MAX_JSON_BYTES} bytes")
        found = json.loads(self._file.read(info))
        if not isinstance(found, dict):
            raise BadArchive(f"{name[:80]} is not a map")
        return cast(dict[str, Any], found)


def fixed(size: Mapping[str, Any]) -> int:
    """A SymInt that is a number."""
    value = size["as_int"]
    if type(value) is not int:
        raise BadArchive("a size of it is not a whole number")
    return value
