"""A torch module as a model: arrays in and out, what its layers and a first run tell, its int8 variant.

Tensors come and go as numpy arrays, bfloat16 by its bits, for torch and numpy know no common name for it.
What a module takes stands nowhere: it is what the publisher's sample is, or the module's own
`example_input_array` (Lightning's word), or what its first layer has weights for. So it is asked, not
believed: the module runs on whatever comes, and where it raises on what does not look like that, the input is
to blame.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.callable import check_keywords
from modelnet_p2p.node.serving.backends.ports import Port, has_rank, offered, specs, with_arrays
from modelnet_p2p.node.serving.backends.rows import Rows, rows_of
from modelnet_p2p.node.serving.backends.warming import Warmth, cold, warm_up
from modelnet_p2p.node.serving.guarding import guard
from modelnet_p2p.payload import Value
from modelnet_p2p.records import Spec
from modelnet_p2p.tensor import DTYPES, Array, dtype_name

if TYPE_CHECKING:
    import torch

TASK = "x-modelnet/module"


class TorchServing:
    """On the first GPU if torch sees one, else on the CPU. `words` name the module to its callers."""

    def __init__(self, module: torch.nn.Module, words: str, *, on_cpu: bool = False) -> None:
        import torch

        self._words = words
        self._device = "cuda" if torch.cuda.is_available() and not on_cpu else "cpu"
        self.module = module.to(self._device).eval()
        self._signature = inspect.signature(module.forward)
        self._floats = self.precision if self.precision in ("float16", "bfloat16", "float64") else "float32"
        self._port: Port | None = None  # what it takes, once a first run has succeeded on that

    def check(self, value: Value, params: Mapping[str, Value]) -> None:
        """Raises LocalError (bad-input) for keywords that the module does not have."""
        check_keywords(self._words, self._signature, value, params)

    def rows(self, value: Value, params: Mapping[str, Value]) -> Rows | None:
        """None, too, for what has not its rank: a linear layer takes [4] as well as [1,4], and would take two
        of them in one step for [8]."""
        return rows_of(value, params) if self._port is not None and has_rank(self._port, value) else None

    def run(self, value: Value, params: Mapping[str, Value]) -> Value:
        """`module(input, **params)`, arrays anywhere in both and lists of numbers in the input becoming
        tensors, and back. Raises LocalError (bad-input) for an input that is not what the module is known to
        take, if it does not take that either."""
        if self._port is None:
            return self._run(with_arrays(value, self._floats), params)
        given, misfit = offered(self._port, value, self._words, self._floats)
        if misfit is None:
            return self._run(given, params)
        try:
            with guard(Code.BAD_INPUT, f"{self._words} raised ", level=logging.DEBUG):
                return self._run(given, params)
        except LocalError as error:
            raise misfit from error

    def _run(self, value: Value, params: Mapping[str, Value]) -> Value:
        import torch

        with torch.inference_mode():
            keywords = {name: to_torch(param, self._device) for name, param in params.items()}
            return from_torch(self.module(to_torch(value, self._device), **keywords))

    # --- what is told of it ---

    @property
    def precision(self) -> str:
        """The dtype of most parameters."""
        counts: Counter[str] = Counter()
        for parameter in self.module.parameters():
            counts[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
        return counts.most_common(1)[0][0] if counts else ""

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.module.parameters())

    @property
    def size_bytes(self) -> int:
        """Of its weights, buffers among them."""
        tensors = [*self.module.parameters(), *self.module.buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def sample_port(self, sample: Value) -> tuple[Port, Array | None] | None:
        """What it takes, where it is one tensor, with an example if there is one: the publisher's `sample`,
        the module's own, or none. None: nobody knows."""
        example = (
            sample if sample is not None else from_torch(getattr(self.module, "example_input_array", None))
        )
        name = next(iter(self._signature.parameters), "input")
        if isinstance(example, np.ndarray):
            shape = (None, *example.shape[1:]) if example.ndim else ()
            return Port(name, dtype_name(example.dtype), shape), example
        guessed = _first_layer(self.module)
        return None if guessed is None else (Port(name, *guessed), None)

    def warm(
        self, found: tuple[Port, Array | None] | None
    ) -> tuple[Warmth, tuple[Spec, ...], tuple[Spec, ...]]:
        """Its first runs, and the specs of inputs and outputs that they tell."""
        if found is None:
            return cold(self._words, "nobody knows what it takes"), (Spec("input", "tensor"),), ()
        port, example = found
        outputs: list[Port] = []

        def run(arrays: list[Array]) -> Sequence[Value]:
            parts = _parts(self._run(arrays[0], {}))
            if not outputs:
                outputs.extend(_port_of(name, part) for name, part in parts.items())
            return list(parts.values())

        warmth = warm_up(self._words, run, [port], outputs, [] if example is None else [example])
        if warmth.is_cold:
            return warmth, (Spec(port.name, "tensor"),), ()
        self._port = port
        return warmth, specs([port]), specs(outputs)


def _parts(output: Value) -> dict[str, Value]:
    """The outputs by name, as well as they have some."""
    if isinstance(output, dict):
        return {str(name): part for name, part in output.items()}
    if isinstance(output, list):
        return {f"output.{number}": part for number, part in enumerate(output)}
    return {"output": output}


def _port_of(name: str, part: Value) -> Port:
    """An output of which one is known: what it has rows of is only known when rows were tried."""
    if not isinstance(part, np.ndarray) or part.dtype.name not in DTYPES:
        return Port(name, "", None)
    return Port(name, part.dtype.name, (None, *part.shape[1:]) if part.ndim else ())


def _first_layer(module: torch.nn.Module) -> tuple[str, tuple[int | None, ...]] | None:
    """The dtype and shape that the first layer with weights takes, of the kinds that are used most."""
    from torch import nn

    for layer in module.modules():
        weight = getattr(layer, "weight", None)
        dtype = str(getattr(weight, "dtype", "")).removeprefix("torch.")
        match layer:
            case nn.Embedding():
                return "int64", (None, None)
            case nn.Linear(in_features=size) if dtype in DTYPES:
                return dtype, (None, size)
            case nn.Conv1d(in_channels=size) if dtype in DTYPES:
                return dtype, (None, size, None)
            case nn.Conv2d(in_channels=size) if dtype in DTYPES:
                return dtype, (None, size, None, None)
            case nn.Conv3d(in_channels=size) if dtype in DTYPES:
                return dtype, (None, size, None, None, None)
            case nn.LSTM(input_size=size) | nn.GRU(input_size=size) | nn.RNN(input_size=size):
                return "float32", (None, None, size)
    return None


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
