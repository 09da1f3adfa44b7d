"""What a .keras file may hold, looked at before Keras is imported: layers of Keras itself, by its
config.json.

`safe_mode` alone has let code through more than once (CVE-2024-3660, CVE-2025-1550, CVE-2025-8747): a
config names modules and classes, and Keras imports and builds them. So only names of Keras's own layers and
their parts pass here, none of those that hold or load code, and no lookup layer that reads its words from a
path.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from modelnet_p2p.errors import Code, LocalError

CONFIG = "config.json"
MAX_CONFIG_BYTES = 64 << 20  # of the largest models some MB
_PARTS = frozenset(
    {"activations", "constraints", "dtype_policies", "initializers", "layers", "losses", "metrics", "models"}
    | {"ops", "optimizers", "quantizers", "regularizers"}
)
_CODE = frozenset(
    {"Lambda", "__lambda__", "TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer", "function"}
    | {"__typespec__"}  # makes any class that it names, Lambda as well, with any arguments
)
_LOOKUPS = frozenset({"StringLookup", "IntegerLookup", "TextVectorization"})


def check_config(path: Path) -> None:
    """Raises LocalError: unsafe for whatever could run code or read files, bad-input for what is no model."""
    try:
        with ZipFile(path) as file:
            info = file.getinfo(CONFIG)
            if info.file_size > MAX_CONFIG_BYTES:
                raise ValueError(f"its {CONFIG} is larger than {MAX_CONFIG_BYTES} bytes")
            config = json.loads(file.read(info))
    except (
        OSError,
        KeyError,
        ValueError,
        RecursionError,
        BadZipFile,
        NotImplementedError,
        RuntimeError,
    ) as error:
        hint = "model.save('model.keras') of Keras 3 writes such a file"
        raise LocalError(Code.BAD_INPUT, f"cannot read {path}: {error}", hint=hint) from error
    for trouble in _troubles(config):
        hint = "build it of Keras's own layers, or convert it to TFLite or ONNX"
        raise LocalError(Code.UNSAFE, f"{path}: {trouble}", hint=hint)


def _troubles(config: object) -> Iterator[str]:
    waiting = [config]
    while waiting:
        found = waiting.pop()
        if isinstance(found, list):
            waiting += found
        elif isinstance(found, dict):
            waiting += found.values()
            name, module, registered = (found.get(key) for key in ("class_name", "module", "registered_name"))
            if name is not None and not (isinstance(name, str) and name.isidentifier()):
                yield f"it names {str(name)[:80]!r}, which is no class"  # `config.…` is all of Keras
            elif name in _CODE:
                yield f"its {name} holds code, which would run here"
            if module is not None and not _is_keras(module):
                yield f"it names {str(module)[:80]!r}, which is no part of Keras that a model is made of"
            if isinstance(registered, str) and ">" in registered:
                yield f"it needs {registered[:80]!r}, a class of somebody's own"
            inner = found.get("config")
            if name in _LOOKUPS and isinstance(inner, dict) and isinstance(inner.get("vocabulary"), str):
                yield f"its {name} reads words from the file {inner['vocabulary'][:80]!r}"


def _is_keras(module: object) -> bool:
    if not isinstance(module, str):
        return False
    parts = module.split(".")
    if parts[0] != "keras":
        return False
    rest = parts[2:] if parts[1:2] == ["src"] else parts[1:]
    return not rest or rest[0] in _PARTS
