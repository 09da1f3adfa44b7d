"""One toy model, y = relu(x W1 + b1) W2 + b2, in the form of each framework; its weights are sines.

Run as a script it writes `toy.tflite`, which the tests use as it is committed:
`python tests/support/toys.py tests/node/serving/toy.tflite`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

INPUTS, HIDDEN, OUTPUTS = 4, 32, 3


def sines(*shape: int, start: int) -> Floats:
    count = int(np.prod(shape))
    return np.sin(np.arange(start, start + count)).astype(np.float32).reshape(shape)


W1, B1 = sines(INPUTS, HIDDEN, start=0), sines(HIDDEN, start=500)
W2, B2 = sines(HIDDEN, OUTPUTS, start=1000), sines(OUTPUTS, start=2000)
X = sines(5, INPUTS, start=3000)

MODULE = f"""
import torch

class Toy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.a = torch.nn.Linear({INPUTS}, {HIDDEN})
        self.b = torch.nn.Linear({HIDDEN}, {OUTPUTS})

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))
"""


def expected(x: Floats) -> Floats:
    found: Floats = np.maximum(x @ W1 + B1, 0) @ W2 + B2
    return found


def tensors() -> dict[str, Floats]:
    """For the module above, as safetensors has them."""
    return {"a.weight": W1.T.copy(), "a.bias": B1, "b.weight": W2.T.copy(), "b.bias": B2}


def onnx_bytes(
    nodes: Sequence[Any] | None = None,  # Any: onnx's own messages
    inputs: Sequence[Any] | None = None,
    outputs: Sequence[Any] | None = None,
    tensors: Sequence[Any] | None = None,
    properties: dict[str, str] | None = None,
) -> bytes:
    """An ONNX file of those parts, by default of the toy."""
    from onnx import TensorProto, helper, numpy_helper

    float_ = TensorProto.FLOAT
    if nodes is None:
        nodes = [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Gemm", ["r", "w2", "b2"], ["y"]),
        ]
        weights = {"w1": W1, "b1": B1, "w2": W2, "b2": B2}
        tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(
        nodes,
        "toy",
        inputs or [helper.make_tensor_value_info("x", float_, ["rows", INPUTS])],
        outputs or [helper.make_tensor_value_info("y", float_, ["rows", OUTPUTS])],
        tensors or [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, properties or {})
    return bytes(model.SerializeToString())


def tflite_bytes() -> bytes:
    """The toy as a flatbuffer, by the runtime's own schema."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT()
    model.version, model.description = 3, b"toy"
    model.buffers = [schema.BufferT()]
    graph = schema.SubGraphT()
    graph.tensors, graph.operators = [], []

    def tensor(name: str, shape: Sequence[int], data: Floats | None = None) -> int:
        entry = schema.TensorT()
        entry.name, entry.type, entry.buffer = name.encode(), schema.TensorType.FLOAT32, 0
        entry.shape = [abs(size) for size in shape]
        if data is None:
            entry.shapeSignature = list(shape)
        else:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(data.astype("<f4").tobytes(), np.uint8)
            model.buffers.append(buffer)
            entry.buffer = len(model.buffers) - 1
        graph.tensors.append(entry)
        return len(graph.tensors) - 1

    def layer(source: int, weights: Floats, bias: Floats, name: str, activation: int) -> int:
        w, b = tensor(f"{name}.w", weights.T.shape, weights.T), tensor(f"{name}.b", bias.shape, bias)
        operator = schema.OperatorT()
        operator.opcodeIndex = 0
        operator.inputs, operator.outputs = [source, w, b], [tensor(name, (-1, len(bias)))]
        operator.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
        operator.builtinOptions = schema.FullyConnectedOptionsT()
        operator.builtinOptions.fusedActivationFunction = activation
        graph.operators.append(operator)
        return int(operator.outputs[0])

    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 1
    model.operatorCodes, model.subgraphs = [code], [graph]
    x = tensor("serving_default_x:0", (-1, INPUTS))
    h = layer(x, W1, B1, "h", schema.ActivationFunctionType.RELU)
    y = layer(h, W2, B2, "y:0", schema.ActivationFunctionType.NONE)
    graph.inputs, graph.outputs = [x], [y]
    builder = flatbuffers.Builder(4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(tflite_bytes())
