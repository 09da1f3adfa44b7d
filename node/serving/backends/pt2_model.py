"""FILE.pt2: a torch program that `torch.export.save` wrote, without the module's code and without pickles.

What of such a file is read, and why torch's own loader is not used, stands in `pt2_archive`; what of it is
run, in `pt2_program`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.contract import Description
from modelnet_p2p.node.serving.backends.files import hashed_alone, named_after, needing
from modelnet_p2p.node.serving.backends.pt2_archive import read_archive
from modelnet_p2p.node.serving.backends.pt2_program import Program
from modelnet_p2p.node.serving.backends.tensor_model import TASK, Opened, TensorBackend
from modelnet_p2p.node.serving.backends.torch_serving import from_torch, to_torch
from modelnet_p2p.payload import Value
from modelnet_p2p.tensor import Array


class ExportedBackend(TensorBackend):
    """On the first GPU if torch sees one, else on the CPU."""

    suffix = ".pt2"
    _program: Program
    _device: str

    def open(self, path: Path) -> Opened:
        with needing(self.source, "torch", "torch"):
            import torch
        archive = read_archive(path)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._program = Program(archive, self._device)
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, struct.error) as error:
            hint = "export the module in eval mode, or publish its safetensors with --module MODULE:CLASS"
            words = f"cannot serve {path}: {error or type(error).__name__}"
            raise LocalError(Code.BAD_INPUT, words[:500], hint=hint) from error
        digest, size = hashed_alone(path)  # no listing: it may hold a pickle, which others would load
        description = Description(
            name=named_after(path),
            task=TASK,
            framework="torch.export",
            precision=self._program.precision,
            parameters=self._program.parameters,
            digest=digest,
            size_bytes=size,
        )
        return Opened(
            description, self._program.inputs, self._program.outputs, batches=not self._program.random
        )

    def run(self, arrays: list[Array]) -> Sequence[Value]:
        import torch

        with torch.inference_mode():
            tensors: list[Any] = [to_torch(array, self._device) for array in arrays]
            return [from_torch(output) for output in self._program.run(tensors)]
