"""An exported torch program, run node by node: operators of torch's own on tensors, and nothing else.

Which operators there are is decided in `pt2_operators`. A program that changes its own weights, or its
inputs, is refused: its answers would depend on who called before. Graphs inside of graphs (`torch.cond`,
`torch.no_grad`) are not run.

Source: torch/_export/serde/schema.py
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelnet_p2p.node.serving.backends.ports import Port
from modelnet_p2p.node.serving.backends.pt2_archive import SCALAR_TYPES, STRIDED, Archive, BadArchive, Weight
from modelnet_p2p.node.serving.backends.pt2_operators import ARITHMETIC, operator_of

if TYPE_CHECKING:
    import torch

MAX_NODES = 200_000


@dataclass(frozen=True, slots=True)
class _Ref:
    """Something that was computed before, by its place."""

    place: int


@dataclass(frozen=True, slots=True)
class _Step:
    call: Callable[..., Any]
    args: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]
    outputs: tuple[int, ...]
    alone: bool  # it gives one value, not several
    written: tuple[int, ...] = ()  # places whose tensors it changes


class Program:
    """Ready to run; its tensors are on `device`."""

    def __init__(self, archive: Archive, device: str) -> None:
        """Raises BadArchive that says what is not served; KeyError and the like for what is no program."""
        self._device = device
        graph = archive.model["graph_module"]["graph"]
        self._signature = archive.model["graph_module"]["signature"]
        self._meta = graph["tensor_values"]
        self._places: dict[str, int] = {}
        self._values: list[Any] = []  # what stands before the first node: weights, and room for the inputs
        self._inputs: list[int] = []
        self._frozen: set[int] = set()  # places that no node may write to
        self.parameters = 0
        self._elements: Counter[str] = Counter()
        self.random = False
        self._kept: set[int] = set()  # addresses of the weights' memory
        names = self._placeholders(archive)
        nodes = graph["nodes"]
        if len(nodes) > MAX_NODES:
            raise BadArchive("it has too many nodes")
        self._steps = [self._step(node) for node in nodes]
        self._outputs = [self._argument(output) for output in self._user_outputs()]
        self.inputs = tuple(self._port(name, name) for name in names)
        self.outputs = self._out_ports(archive)

    def run(self, tensors: Sequence[torch.Tensor]) -> list[Any]:
        values = [*self._values, *([None] * (len(self._places) - len(self._values)))]
        for place, tensor in zip(self._inputs, tensors, strict=True):
            values[place] = tensor
        given = {_memory(tensor) for tensor in tensors}
        for step in self._steps:
            for place in step.written:  # also by another name: a view of a weight is a weight
                if values[place].numel() and _memory(values[place]) in self._kept | given:
                    raise BadArchive("a node of it changes a weight or an input, so calls would not be alike")
            found = step.call(
                *(_resolve(arg, values) for arg in step.args),
                **{name: _resolve(arg, values) for name, arg in step.keywords},
            )
            if step.alone:
                values[step.outputs[0]] = found
            else:
                for place, part in zip(step.outputs, found or (), strict=False):
                    values[place] = part
        return [_resolve(output, values) for output in self._outputs]

    @property
    def precision(self) -> str:
        """The dtype of most parameters."""
        return self._elements.most_common(1)[0][0] if self._elements else ""

    # --- made ready ---

    def _place(self, name: str) -> int:
        return self._places.setdefault(name, len(self._places))

    def _placeholders(self, archive: Archive) -> list[str]:
        """Takes in weights and constants; the names of the inputs."""
        names: list[str] = []
        tensors: dict[int, Any] = {}  # several names may share a weight's bytes
        for spec in self._signature["input_specs"]:
            match spec:
                case {"parameter": {"arg": {"name": str(name)}, "parameter_name": key}}:
                    self._hold(name, archive.weights[key], tensors, counts=True)
                case {"buffer": {"arg": {"name": str(name)}, "buffer_name": key}}:
                    weight = archive.weights.get(key) or archive.constants[key]
                    self._hold(name, weight, tensors)
                case {"tensor_constant": {"arg": {"name": str(name)}, "tensor_constant_name": key}}:
                    self._hold(name, archive.constants[key], tensors)
                case {"user_input": {"arg": {"as_tensor": {"name": str(name)}}}}:
                    self._frozen.add(self._place(name))
                    self._inputs.append(self._place(name))
                    self._values.append(None)
                    names.append(name)
                case {"constant_input": {"name": str(name)}}:
                    self._place(name)
                    self._values.append(None)  # it is written into the graph
                case _:
                    raise BadArchive(f"it has an input that is no tensor: {', '.join(spec)[:80]}")
        return names

    def _hold(self, name: str, weight: Weight, tensors: dict[int, Any], *, counts: bool = False) -> None:
        import torch

        dtype = getattr(torch, weight.dtype)
        flat = tensors.get(id(weight.data))
        if flat is None and weight.data:
            flat = tensors[id(weight.data)] = torch.frombuffer(weight.data, dtype=torch.uint8).to(
                self._device
            )
        if flat is None:
            tensor = torch.empty(weight.shape, dtype=dtype, device=self._device)
        else:
            tensor = flat.view(dtype).as_strided(weight.shape, weight.strides, weight.offset)
        if counts:
            self.parameters += tensor.numel()
            self._elements[weight.dtype] += tensor.numel()
        self._frozen.add(self._place(name))
        self._values.append(tensor)
        self._kept.add(_memory(tensor))

    def _step(self, node: Mapping[str, Any]) -> _Step:
        target = str(node["target"])
        args: list[Any] = []
        keywords: list[tuple[str, Any]] = []
        for given in node["inputs"]:
            value = self._argument(given["arg"])
            if given.get("kind") == 2 or (keywords and given.get("kind") != 1):
                keywords.append((str(given["name"]), value))
            else:
                args.append(value)
        outputs = [place for output in node["outputs"] for place in self._output_places(output)]
        if target in ARITHMETIC:
            if not all(_is_number(arg) for arg in (*args, *(value for _, value in keywords))):
                raise BadArchive(f"{target[:80]} is for numbers")
            return _Step(ARITHMETIC[target], tuple(args), tuple(keywords), tuple(outputs), True)
        found, written = self._operator(target, args, keywords)
        listed = any("as_tensors" in output for output in node["outputs"])
        alone = len(found._schema.returns) == 1 and not listed
        return _Step(found, tuple(args), tuple(keywords), tuple(outputs), alone, written)

    def _output_places(self, output: Mapping[str, Any]) -> list[int]:
        match output:
            case {"as_tensor": {"name": str(name)}} | {
                "as_optional_tensor": {"as_tensor": {"name": str(name)}}
            }:
                return [self._place(name)]
            case {"as_tensors": [*parts]}:
                return [self._place(str(part["name"])) for part in parts]
            case (
                {"as_sym_int": {"as_name": str(name)}}
                | {"as_sym_bool": {"as_name": str(name)}}
                | {"as_sym_float": {"as_name": str(name)}}
            ):
                return [self._place(name)]
            case {"as_none": _}:
                return [self._place("")]  # which nothing refers to
        raise BadArchive(f"a node of it gives {', '.join(output)[:80]}")

    def _operator(
        self, target: str, args: Sequence[Any], keywords: Sequence[tuple[str, Any]]
    ) -> tuple[Any, tuple[int, ...]]:
        """The operator, and the places whose tensors it changes."""
        import torch

        written: list[int] = []
        found = operator_of(target)
        if torch.Tag.nondeterministic_seeded in found.tags:
            self.random = True
        given = dict(keywords)
        for at, argument in enumerate(found._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[at] if at < len(args) else given.get(argument.name)
                refs = [ref for ref in (value if isinstance(value, list) else [value]) if type(ref) is _Ref]
                written += [ref.place for ref in refs]
                if self._frozen.intersection(written):
                    words = "changes a weight or an input, so calls would not be alike"
                    raise BadArchive(f"{target[:80]} {words}")
        return found, tuple(written)

    def _argument(self, argument: Mapping[str, Any]) -> Any:
        """What a node is given: values as they are, and references."""
        ((kind, value),) = argument.items()
        match kind:
            case "as_none":
                return None
            case "as_tensor":
                return self._ref(value["name"])
            case "as_tensors":
                return [self._ref(part["name"]) for part in value]
            case "as_optional_tensor":
                return self._argument(value)
            case "as_optional_tensors":
                return [self._argument(part) for part in value]
            case "as_nested_tensors":
                return [[self._ref(part["name"]) for part in parts] for parts in value]
            case "as_sym_int" | "as_sym_bool" | "as_sym_float":
                return self._symbol(value)
            case "as_sym_ints" | "as_sym_bools" | "as_sym_floats":
                return [self._symbol(part) for part in value]
            case "as_int" | "as_float" | "as_bool" | "as_string":
                return _plain(value)
            case "as_ints" | "as_floats" | "as_bools" | "as_strings":
                return [_plain(part) for part in value]
            case "as_int_lists" | "as_float_lists":
                return [[_plain(part) for part in parts] for parts in value]
            case "as_complex":
                return complex(float(value["real"]), float(value["imag"]))
            case "as_scalar_type":
                return _dtype(value)
            case "as_memory_format":
                return _memory_format(value)
            case "as_layout" if value == STRIDED:
                return _strided()
            case "as_device":
                return self._device
        words = "a graph inside of its graph (torch.cond, torch.no_grad)" if kind == "as_graph" else kind[:40]
        raise BadArchive(f"a node of it takes {words}, which is not served")

    def _ref(self, name: str) -> _Ref:
        if name not in self._places:
            raise BadArchive(f"a node of it takes {str(name)[:80]!r}, which was not computed before")
        return _Ref(self._places[name])

    def _symbol(self, value: Mapping[str, Any]) -> Any:
        ((kind, part),) = value.items()
        return self._ref(part) if kind == "as_name" else _plain(part)

    def _user_outputs(self) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = []
        for spec in self._signature["output_specs"]:
            match spec:
                case {"user_output": {"arg": {**argument}}}:
                    found.append({str(kind): value for kind, value in argument.items()})
                case _:
                    raise BadArchive(f"it keeps state from call to call ({', '.join(spec)[:80]})")
        return found

    # --- what it takes and gives ---

    def _port(self, name: str, tensor: str) -> Port:
        meta = self._meta[tensor]
        dtype = SCALAR_TYPES.get(meta["dtype"], "")
        if not dtype:
            raise BadArchive(f"{name[:80]!r} is of a dtype that no caller can send")
        sizes = tuple(size.get("as_int") for size in meta["sizes"])
        if any(size is not None and (type(size) is not int or not 0 <= size < 1 << 40) for size in sizes):
            raise BadArchive(f"{name[:80]!r} has no sound shape")
        return Port(name, dtype, sizes)

    def _out_ports(self, archive: Archive) -> tuple[Port, ...]:
        outputs = self._user_outputs()
        ports: list[Port] = []
        for name, argument in zip(_out_names(archive, len(outputs)), outputs, strict=True):
            match argument:
                case {"as_tensor": {"name": str(tensor)}}:
                    ports.append(self._port(name, tensor))
                case _:
                    ports.append(Port(name, "", None))
        return tuple(ports)


def _resolve(argument: Any, values: Sequence[Any]) -> Any:
    if type(argument) is _Ref:
        return values[argument.place]
    if type(argument) is list:
        return [_resolve(part, values) for part in argument]
    return argument


def _memory(tensor: torch.Tensor) -> int:
    """Where its numbers lie; 0 where it has none."""
    return tensor.untyped_storage().data_ptr() if tensor.numel() else 0


def _is_number(argument: object) -> bool:
    """Of an argument, or a list of them: not a word, which could be multiplied without end."""
    if isinstance(argument, list):
        return all(_is_number(part) for part in argument)
    return isinstance(argument, _Ref | int | float)


def _plain(value: object) -> int | float | bool | str:
    """A number or a word of JSON; infinities and NaN are written as words."""
    if value in ("Infinity", "-Infinity", "NaN"):
        return float(str(value))
    if not isinstance(value, int | float | str):
        raise BadArchive("an argument of a node is neither number nor word")
    return value


def _dtype(number: int) -> torch.dtype:
    import torch

    if number not in SCALAR_TYPES:
        raise BadArchive(f"it computes in a dtype that is not served ({str(number)[:8]})")
    found: torch.dtype = getattr(torch, SCALAR_TYPES[number])
    return found


def _memory_format(number: int) -> torch.memory_format:
    import torch

    known = (
        torch.contiguous_format,
        torch.channels_last,
        torch.channels_last_3d,
        torch.preserve_format,
    )
    if type(number) is not int or not 1 <= number <= len(known):
        raise BadArchive("it asks for an unknown order of dimensions")
    return known[number - 1]


def _strided() -> torch.layout:
    import torch

    return torch.strided


def _out_names(archive: Archive, count: int) -> list[str]:
    """By the keys of the map that the module gave, or by their numbers."""
    numbered = ["output"] if count == 1 else [f"output.{at}" for at in range(count)]
    try:
        spec = archive.model["graph_module"]["module_call_graph"][0]["signature"]["out_spec"]
        tree = json.loads(spec)[1]
        keys = json.loads(tree["context"]) if tree["type"] == "builtins.dict" else []
    except (LookupError, TypeError, ValueError, RecursionError):
        return numbered
    if len(keys) != count or not all(isinstance(key, str) for key in keys) or len(set(keys)) != count:
        return numbered
    return [str(key)[:200] for key in keys]
