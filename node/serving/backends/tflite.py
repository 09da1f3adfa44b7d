"""FILE.tflite: a TensorFlow model in LiteRT (`ai-edge-litert`, 22 MB), without TensorFlow.

The file is a flatbuffer of operators that the runtime has itself; custom ones come from libraries, which are
programs and never loaded. An interpreter is of one shape at a time and not safe in two threads: it is
resized to the rows that come, between two calls that run one after the other.
"""

from __future__ import annotations

import os
import struct
from collections import Counter
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.contract import Description
from modelnet_p2p.node.serving.backends.files import named_after, needing
from modelnet_p2p.node.serving.backends.ports import Port
from modelnet_p2p.node.serving.backends.tensor_model import TASK, Opened, TensorBackend
from modelnet_p2p.node.serving.guarding import guard
from modelnet_p2p.node.weights.hashing import artifact_of
from modelnet_p2p.payload import Value
from modelnet_p2p.tensor import DTYPES, Array

if TYPE_CHECKING:
    from ai_edge_litert.interpreter import Interpreter

THREADS = 4  # of one model: a peer serves several, and others use the machine, too
_PREFIX, _FIRST = "serving_default_", ":0"  # what the converter puts around the names that people gave


class TfliteBackend(TensorBackend):
    """On the CPU."""

    suffix = ".tflite"
    _interpreter: Interpreter
    _in: list[int]  # the interpreter's numbers of inputs and outputs
    _out: list[int]
    _shapes: list[tuple[int, ...]]  # of the inputs, as it stands

    def open(self, path: Path) -> Opened:
        with needing(self.source, "ai-edge-litert", "tflite"):
            from ai_edge_litert.interpreter import Interpreter
        hashed = artifact_of(path)
        told = _told(path)
        with guard(Code.BAD_INPUT, f"LiteRT cannot load {path}: "):
            self._interpreter = Interpreter(str(path), num_threads=min(THREADS, os.cpu_count() or 1))
            self._interpreter.allocate_tensors()
            given, gives = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        self._in, self._out = [int(tensor["index"]) for tensor in given], [int(t["index"]) for t in gives]
        self._shapes = [tuple(map(int, tensor["shape"])) for tensor in given]
        inputs, outputs = _ports(given), _ports(gives)
        for port in inputs:
            if not port.dtype:
                words = f"{path}: its input {port.name[:80]!r} is no tensor of numbers"
                raise LocalError(Code.BAD_INPUT, words, hint="convert it with tensors of numbers as inputs")
        description = Description(
            name=named_after(path),
            task=TASK,
            framework="tflite",
            precision=told.precision,
            parameters=told.parameters,
            digest=hashed.root,
            size_bytes=hashed.size,
            files=str(path.resolve()),
        )
        return Opened(description, inputs, outputs)

    def run(self, arrays: list[Array]) -> Sequence[Value]:
        shapes = [array.shape for array in arrays]
        if shapes != self._shapes:
            self._shapes = []  # until it is whole again
            for index, shape in zip(self._in, shapes, strict=True):
                self._interpreter.resize_tensor_input(index, shape, strict=True)
            self._interpreter.allocate_tensors()
            self._shapes = shapes
        for index, array in zip(self._in, arrays, strict=True):
            self._interpreter.set_tensor(index, array)
        self._interpreter.invoke()
        return [_plain(self._interpreter.get_tensor(index)) for index in self._out]


class _Told:
    """What the file says of its constants: how many numbers they are, and of which dtype most."""

    def __init__(self) -> None:
        self.parameters = 0
        self._elements: Counter[str] = Counter()

    def add(self, dtype: str, count: int) -> None:
        self.parameters += count
        self._elements[dtype] += count

    @property
    def precision(self) -> str:
        return self._elements.most_common(1)[0][0] if self._elements else ""


def _told(path: Path) -> _Told:
    """Raises LocalError (bad-input) for a file that is none, or that needs a library."""
    from ai_edge_litert import schema_py_generated as schema

    names = {
        number: name.lower() for name, number in vars(schema.TensorType).items() if isinstance(number, int)
    }
    told = _Told()
    try:
        data = path.read_bytes()
        if data[4:8] != b"TFL3":
            raise ValueError("it is not a TFLite file")
        model = schema.Model.GetRootAs(data)
        for at in range(model.OperatorCodesLength()):
            code = model.OperatorCodes(at)
            if code.BuiltinCode() == schema.BuiltinOperator.CUSTOM or code.DeprecatedBuiltinCode() == 32:
                name = (code.CustomCode() or b"").decode(errors="replace")
                raise ValueError(f"its operator {name[:80]!r} comes from a library, which is not loaded")
        for at in range(model.SubgraphsLength()):
            graph = model.Subgraphs(at)
            for number in range(graph.TensorsLength()):
                tensor = graph.Tensors(number)
                buffer = model.Buffers(tensor.Buffer())
                if tensor.Buffer() and (buffer.DataLength() or buffer.Size()):
                    shape = tensor.ShapeAsNumpy() if tensor.ShapeLength() else []
                    told.add(names.get(tensor.Type(), ""), prod(map(int, shape)))
    except (OSError, ValueError, TypeError, IndexError, AttributeError, struct.error) as error:
        raise LocalError(Code.BAD_INPUT, f"cannot read {path}: {error}") from error
    return told


def _ports(tensors: Sequence[dict[str, Any]]) -> tuple[Port, ...]:  # Any: the interpreter's details
    full = [str(tensor["name"]) for tensor in tensors]
    short = [name.removeprefix(_PREFIX).removesuffix(_FIRST) for name in full]
    names = short if len(set(short)) == len(short) else full
    return tuple(_port(name, tensor) for name, tensor in zip(names, tensors, strict=True))


def _port(name: str, tensor: dict[str, Any]) -> Port:
    dtype = np.dtype(tensor["dtype"]).name
    fixed = [int(size) for size in tensor["shape"]]
    signed = [int(size) for size in tensor["shape_signature"]]  # -1 where it is free; of old files empty
    sizes = signed if len(signed) == len(fixed) else fixed
    return Port(name, dtype if dtype in DTYPES else "", tuple(None if size < 0 else size for size in sizes))


def _plain(output: Array) -> Value:
    """Words as texts, tensors as they are."""
    if output.dtype.kind not in "OS":
        return output
    return [text.decode(errors="replace") if isinstance(text, bytes) else str(text) for text in output.flat]
