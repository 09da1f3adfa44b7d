"""FILE.safetensors --module MODULE:CLASS: a torch module with weights that cannot run code.

torch is imported when a model is loaded, in the worker. Tensors come and go as numpy arrays,
bfloat16 by its bits, for torch and numpy know no common name for it.
"""

from __future__ import annotations

import inspect
import json
import mmap
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError

from modelnet_p2p.digest import listing_of
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.callable import check_keywords, construct, resolve
from modelnet_p2p.node.serving.backends.contract import Backend, Description
from modelnet_p2p.payload import Value
from modelnet_p2p.records import Spec

if TYPE_CHECKING:
    import torch

TASK = "x-modelnet/module"
SUFFIX = ".safetensors"
MAX_CONFIG_BYTES = 1 << 20  # constructor arguments, not data


class TorchModuleBackend(Backend):
    """Runs in a worker process, on the first GPU if torch sees one, else on the CPU."""

    blocks = True
    _module: torch.nn.Module
    _device: str
    _signature: inspect.Signature
    _description: Description

    @classmethod
    def claims(cls, spec: str) -> bool:
        return spec.endswith(SUFFIX)

    async def load(self) -> None:
        await self.offload(self._load)

    def _load(self) -> None:
        path = Path(self.source.cwd or ".", self.source.spec)
        if not path.is_file():
            hint = "name a file below the directory you are in, or its whole path"
            raise LocalError(Code.BAD_INPUT, f"there is no file {path}", hint=hint)
        try:
            import torch
        except ImportError as error:
            raise LocalError(
                Code.BAD_INPUT,
                f"{self.source.spec} needs torch, and {self.source.interpreter or 'this Python'} has none",
                hint="pip install torch",
            ) from error
        if self.source.module is None:
            raise LocalError(
                Code.BAD_INPUT,
                f"{self.source.spec} holds weights and no code",
                hint="add --module MODULE:CLASS, the torch module that they belong to",
            )
        digest = _digest(path)
        cls = resolve(self.source.module, self.source.cwd)
        if not (isinstance(cls, type) and issubclass(cls, torch.nn.Module)):
            raise LocalError(Code.BAD_INPUT, f"{self.source.module} is not a class of torch.nn.Module")
        module = construct(cls, self.source.module, _config(path))
        assert isinstance(module, torch.nn.Module)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        _fill(module, path)
        self._module = module.to(self._device).eval()
        self._signature = inspect.signature(module.forward)
        self._description = Description(
            name=path.stem.lower().strip("._-") or "module",
            task=TASK,
            framework="torch",
            precision=_precision(module),
            inputs=(Spec("input", "tensor"),),
            parameters=sum(parameter.numel() for parameter in module.parameters()),
            digest=digest,
            files=str(path.resolve()),
            idempotent=True,  # fixed weights and nothing else
        )

    def describe(self) -> Description:
        return self._description

    async def invoke(self, value: Value, params: Mapping[str, Value]) -> Value:
        """`module(input, **params)`, arrays anywhere in both becoming tensors, and back."""
        check_keywords(self.source.module or "", self._signature, value, params)
        return await self.offload(lambda: self._invoke(value, params))

    def _invoke(self, value: Value, params: Mapping[str, Value]) -> Value:
        import torch

        with torch.inference_mode():
            keywords = {name: to_torch(param, self._device) for name, param in params.items()}
            return from_torch(self._module(to_torch(value, self._device), **keywords))


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        # not closed by hand: after an error the traceback still holds views on it
        return listing_of(memoryview(data)).root
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


def _precision(module: torch.nn.Module) -> str:
    """The dtype of most parameters."""
    counts: Counter[str] = Counter()
    for parameter in module.parameters():
        counts[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    return counts.most_common(1)[0][0] if counts else ""


def to_torch(value: Value, device: str = "cpu") -> object:
    """`value` with each numpy array as a tensor on `device` (on the CPU: sharing its memory)."""
    import torch

    match value:
        case np.ndarray():
            array = value if value.flags.writeable and value.flags.c_contiguous else value.copy()
            if array.dtype == ml_dtypes.bfloat16:
                return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).to(device)
            return torch.from_numpy(array).to(device)
        case list():
            return [to_torch(item, device) for item in value]
        case dict():
            return {key: to_torch(item, device) for key, item in value.items()}
    return value


def from_torch(value: Any) -> Value:  # Any: whatever a stranger's module returns
    """`value` with each tensor as a numpy array; tuples become lists."""
    import torch

    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu().contiguous()
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()
    if isinstance(value, list | tuple):
        return [from_torch(item) for item in value]
    if isinstance(value, Mapping):
        return {key: from_torch(item) for key, item in value.items()}
    return value
