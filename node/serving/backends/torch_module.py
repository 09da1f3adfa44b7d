"""FILE.safetensors --module MODULE:CLASS: a torch module with weights that cannot run code.

torch is imported when a model is loaded, in the worker.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from safetensors import SafetensorError

from modelnet_p2p.digest import listing_of, metadata_of
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.callable import construct, resolve
from modelnet_p2p.node.serving.backends.contract import Backend, Description
from modelnet_p2p.node.serving.backends.files import needing, the_file
from modelnet_p2p.node.serving.backends.rows import Rows
from modelnet_p2p.node.serving.backends.tensor_model import QUANTISE, worded
from modelnet_p2p.node.serving.backends.torch_serving import TorchServing
from modelnet_p2p.node.serving.source import SAMPLE
from modelnet_p2p.payload import Value

if TYPE_CHECKING:
    import torch

SUFFIX = ".safetensors"
MAX_CONFIG_BYTES = 1 << 20  # constructor arguments, not data


class TorchModuleBackend(Backend):
    """Runs in a worker process, on the first GPU if torch sees one, else on the CPU."""

    blocks = True
    options: ClassVar[frozenset[str]] = frozenset({SAMPLE, QUANTISE})
    takes_module = True
    _serving: TorchServing
    _description: Description

    @classmethod
    def claims(cls, spec: str) -> bool:
        return spec.endswith(SUFFIX)

    async def load(self) -> None:
        await self.offload(self._load)

    def _load(self) -> None:
        path = the_file(self.source)
        with needing(self.source, "torch", "torch"):
            import torch
        from modelnet_p2p.node.serving.backends.torch_loading import serve

        if self.source.module is None:
            raise LocalError(
                Code.BAD_INPUT,
                f"{self.source.spec} holds weights and no code",
                hint="add --module MODULE:CLASS, the torch module that they belong to",
            )
        digest, said = _read(path)
        cls = resolve(self.source.module, self.source.cwd)
        if not (isinstance(cls, type) and issubclass(cls, torch.nn.Module)):
            raise LocalError(Code.BAD_INPUT, f"{self.source.module} is not a class of torch.nn.Module")
        module = construct(cls, self.source.module, _config(path))
        assert isinstance(module, torch.nn.Module)
        _fill(module, path)
        self._serving, told = serve(module, self, self.source.module)
        whole = told.digest is None  # not a variant of what is in the file
        told = replace(
            told,
            name=path.stem.lower().strip("._-") or "module",
            digest=digest if whole else told.digest,
            files=str(path.resolve()) if whole else "",
            size_bytes=path.stat().st_size if whole else told.size_bytes,
        )
        self._description = worded(told, said)

    def describe(self) -> Description:
        return self._description

    async def invoke(self, value: Value, params: Mapping[str, Value]) -> Value:
        """`module(input, **params)`, see `TorchServing.run`."""
        self._serving.check(value, params)
        return await self.offload(lambda: self._serving.run(value, params))

    def rows(self, value: Value, params: Mapping[str, Value]) -> Rows | None:
        return self._serving.rows(value, params)


def _read(path: Path) -> tuple[bytes, Mapping[str, str]]:
    """The digest of the file, and the free text in its header."""
    try:
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        # not closed by hand: after an error the traceback still holds views on it
        return listing_of(data).root, metadata_of(data)
    except (OSError, ValueError) as error:  # BadArtifact, and mmap's own one for an empty file
        raise LocalError(Code.BAD_INPUT, f"cannot read {path}: {error}") from error


def _config(path: Path) -> Mapping[str, object]:
    """The constructor's arguments, from NAME.json beside NAME.safetensors, or none."""
    beside = path.with_suffix(".json")
    if not beside.exists():
        return {}
    try:
        with beside.open("rb") as file:
            fields = json.loads(file.read(MAX_CONFIG_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise LocalError(Code.BAD_INPUT, f"cannot read {beside}: {error}") from error
    if not isinstance(fields, dict):
        raise LocalError(Code.BAD_INPUT, f"{beside} is not a JSON object of constructor arguments")
    return fields


def _fill(module: torch.nn.Module, path: Path) -> None:
    """Strict: every tensor of the module is in the file and the other way round. The file's dtypes win."""
    from safetensors.torch import load_file

    try:
        module.load_state_dict(load_file(path), strict=True, assign=True)
    except (RuntimeError, SafetensorError, OSError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise LocalError(
            Code.BAD_INPUT, f"{path} does not fit {type(module).__name__}: {' '.join(lines)[:400]}"
        ) from error
