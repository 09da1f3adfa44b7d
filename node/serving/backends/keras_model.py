"""FILE.keras: a whole Keras 3 model, on the backend that Keras is set to (TensorFlow, torch or JAX).

Behind an extra of 600 MB, so no test installs it: what can be checked without it stands in `keras_file`.
Smaller, and faster to load, is the same model converted to TFLite or ONNX.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelnet_p2p.errors import Code
from modelnet_p2p.node.serving.backends.contract import Description
from modelnet_p2p.node.serving.backends.files import hashed_alone, lacking, named_after
from modelnet_p2p.node.serving.backends.keras_file import check_config
from modelnet_p2p.node.serving.backends.ports import Port
from modelnet_p2p.node.serving.backends.tensor_model import TASK, Opened, TensorBackend
from modelnet_p2p.node.serving.guarding import guard
from modelnet_p2p.payload import Value
from modelnet_p2p.tensor import DTYPES, Array


class KerasBackend(TensorBackend):
    """As safe_mode loads it, without its optimiser."""

    suffix = ".keras"
    _model: Any  # Any: Keras has no types

    def open(self, path: Path) -> Opened:
        check_config(path)
        try:
            import keras
        except ImportError as error:
            what, why = "keras and what it runs on", f" ({error})"
            raise lacking(self.source, what, "keras", why=why) from error
        with guard(Code.BAD_INPUT, f"Keras cannot load {path}: "):
            self._model = keras.saving.load_model(path, compile=False, safe_mode=True)
            inputs = tuple(_port(tensor, tensor.name) for tensor in self._model.inputs)
            given = self._model.outputs
            numbered = ["output"] if len(given) == 1 else [f"output.{at}" for at in range(len(given))]
            names = getattr(self._model, "output_names", numbered)  # a Sequential has none
            outputs = tuple(_port(tensor, name) for tensor, name in zip(given, names, strict=True))
        digest, size = hashed_alone(path)
        description = Description(
            name=named_after(path),
            task=TASK,
            framework="keras",
            precision=str(self._model.variable_dtype),
            parameters=int(self._model.count_params()),
            digest=digest,
            size_bytes=size,
        )
        return Opened(description, inputs, outputs)

    def run(self, arrays: list[Array]) -> Sequence[Value]:
        import keras

        found = self._model(arrays if len(arrays) > 1 else arrays[0], training=False)
        return [keras.ops.convert_to_numpy(output) for output in keras.tree.flatten(found)]


def _port(tensor: Any, name: str) -> Port:  # Any: a KerasTensor
    dtype = str(tensor.dtype)
    if dtype not in DTYPES:
        raise TypeError(f"{name[:80]!r} is a tensor of {dtype}")
    return Port(name, dtype, tuple(None if size is None else int(size) for size in tensor.shape))
