"""What goes into a tensor model and comes out: named tensors, checked before any runtime sees them.

One tensor where a model has one input, a map by name where it has several; the same for outputs. A
runtime's own words for a wrong shape are a page of its source lines, and some runtimes have none: they read
past the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.payload import Value
from modelnet_p2p.records import Spec
from modelnet_p2p.records.manifest import MAX_DIMENSIONS, MAX_SPECS
from modelnet_p2p.tensor import DTYPES, Array

MAX_LISTED = 16  # names in one message


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of a model. A dimension is None where it is free, the shape where even the rank is;
    `dtype` is empty for an output that is no tensor (labels that are words, maps)."""

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None

    @property
    def spec(self) -> Spec:
        """What the offer says of it: names are cut, and shapes left out that no spec can hold."""
        name = "".join(char for char in self.name if char.isprintable())
        while len(name.encode()) > 48:
            name = name[:-1]
        if not self.dtype:
            return Spec(name or "value", "json")
        fits = self.shape is not None and len(self.shape) <= MAX_DIMENSIONS
        return Spec(name or "value", "tensor", self.dtype, self.shape if fits else None)

    @property
    def has_rows(self) -> bool:
        """Whether its first dimension may be as long as one likes."""
        return bool(self.shape) and self.shape is not None and self.shape[0] is None

    def __str__(self) -> str:
        return f"{self.dtype} {_shape_words(self.shape)}"


def _shape_words(shape: Sequence[int | None] | None) -> str:
    if shape is None:
        return "of any shape"
    return f"[{','.join('n' if size is None else str(size) for size in shape)}]"


def specs(ports: Sequence[Port]) -> tuple[Spec, ...]:
    """Those that an offer has room for."""
    return tuple(port.spec for port in ports[:MAX_SPECS])


def gather(ports: Sequence[Port], value: Value, model: str) -> list[Array]:
    """The arrays in a call's input, in the order of `ports`; raises LocalError (bad-input) that says what was
    expected and what came. Lists of numbers, as JSON has them, become tensors."""
    if len(ports) == 1 and not (isinstance(value, dict) and value.keys() == {ports[0].name}):
        return [_checked(ports[0], value, f"{model} expected a tensor {ports[0]}")]
    names = [port.name for port in ports]
    if not isinstance(value, dict):
        words = f"{model} has {len(ports)} inputs and expected a map of tensors by name, got {_words(value)}"
        raise LocalError(Code.BAD_INPUT, words, hint=f"they are {_listed(names)}")
    if value.keys() != set(names):
        missing = [name for name in names if name not in value]
        unknown = [str(name)[:40] for name in value if name not in names]
        words = f"misses {_listed(missing)}" if missing else f"has no input {_listed(unknown)}"
        raise LocalError(Code.BAD_INPUT, f"{model} {words}", hint=f"its inputs are {_listed(names)}")
    return [
        _checked(port, value[port.name], f"{model} expected for {port.name!r} a tensor {port}")
        for port in ports
    ]


def answer(ports: Sequence[Port], outputs: Sequence[Value]) -> Value:
    """One output as it is, several as a map by name."""
    if len(ports) == 1:
        return outputs[0]
    return {port.name: output for port, output in zip(ports, outputs, strict=True)}


def offered(port: Port, value: Value, model: str, floats: str) -> tuple[Value, LocalError | None]:
    """For a model that may take more than `port` says: what to run it on, and what its caller is told if it
    raises then (bad-input, the words of `gather`). None: the input fits, so it is the model's own fault."""
    expected = f"{model} expected a tensor {port}"
    if isinstance(value, dict) and value.keys() == {port.name}:
        value = value[port.name]
    try:
        if isinstance(value, list) and not _is_numbers(value):
            got = "a list of something else than numbers"
            raise LocalError(Code.BAD_INPUT, f"{expected}, got {got}")
        array = _array(port, value, expected)
    except LocalError as misfit:
        return with_arrays(value, floats), misfit
    return array, _misfit(port, array, expected)


def with_arrays(value: Value, floats: str) -> Value:
    """`value` with lists of numbers as arrays, for a model of which nobody knows what it takes: int64, or of
    the dtype `floats` where one has a fraction, or bool. Other lists stay lists, and so do those of lists of
    different lengths and empty ones; numbers alone stay numbers."""
    if isinstance(value, dict):
        return {name: with_arrays(part, floats) for name, part in value.items()}
    if not isinstance(value, list):
        return value
    if not _is_numbers(value):
        return [with_arrays(part, floats) for part in value]
    try:
        array = np.array(value)
    except ValueError:  # lists of different lengths
        return value
    if not array.size or array.dtype.kind not in "bif":
        return value
    return array.astype(DTYPES[floats]) if array.dtype.kind == "f" else array


def has_rank(port: Port, value: Value) -> bool:
    """Whether an input for `port` has as many dimensions as it; of nested lists the first ones are asked."""
    if isinstance(value, dict):
        return value.keys() == {port.name} and has_rank(port, value[port.name])
    rank = 0
    while isinstance(value, list) and value:
        value, rank = value[0], rank + 1
    if rank == 0 and isinstance(value, np.ndarray):
        rank = value.ndim
    elif not isinstance(value, int | float):
        return False
    return port.shape is not None and rank == len(port.shape)


def _is_numbers(value: list[Value]) -> bool:
    return all(
        _is_numbers(item) if isinstance(item, list) else isinstance(item, int | float) for item in value
    )


def _checked(port: Port, value: Value, expected: str) -> Array:
    array = _array(port, value, expected)
    if (misfit := _misfit(port, array, expected)) is not None:
        raise misfit
    return array


def _misfit(port: Port, array: Array, expected: str) -> LocalError | None:
    fits = port.shape is None or (
        array.ndim == len(port.shape)
        and all(want is None or want == got for want, got in zip(port.shape, array.shape, strict=True))
    )
    if fits and array.dtype.name == port.dtype:
        return None
    return LocalError(Code.BAD_INPUT, f"{expected}, got {_words(array)}")


def _array(port: Port, value: Value, expected: str) -> Array:
    if isinstance(value, np.ndarray):
        return value
    if not isinstance(value, list | int | float):
        raise LocalError(Code.BAD_INPUT, f"{expected}, got {_words(value)}")
    try:
        array = np.array(value)
    except ValueError as error:  # lists of different lengths
        raise LocalError(Code.BAD_INPUT, f"{expected}, got lists of different lengths") from error
    wanted = DTYPES[port.dtype]
    if array.size == 0 and array.dtype.kind == "f":  # an empty list has no numbers to tell its dtype
        return array.astype(wanted)
    kinds = {"b": "b", "i": "iu", "u": "iu"}.get(wanted.kind, "iuf")
    if array.dtype.kind not in kinds:
        raise LocalError(Code.BAD_INPUT, f"{expected}, got {_kind_words(array)}")
    with np.errstate(over="ignore"):
        cast = array.astype(wanted)
    if wanted.kind in "iu" and not np.array_equal(cast, array):
        raise LocalError(Code.BAD_INPUT, f"{expected}, got numbers that {port.dtype} cannot hold")
    return cast


def _kind_words(array: Array) -> str:
    kinds = {"f": "numbers with fractions", "i": "whole numbers", "u": "whole numbers", "b": "true and false"}
    return f"a list of {kinds.get(array.dtype.kind, 'something else than numbers')}"


def _words(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype.name} {_shape_words(value.shape)}"
    if isinstance(value, Mapping):
        return f"a map of {_listed([str(key)[:40] for key in value])}"
    return {"str": "a text", "bytes": "bytes", "NoneType": "nothing", "list": "a list"}.get(
        type(value).__name__, type(value).__name__
    )


def _listed(names: Sequence[str]) -> str:
    more = [f"and {len(names) - MAX_LISTED} more"] if len(names) > MAX_LISTED else []
    return ", ".join([*(name[:80] for name in names[:MAX_LISTED]), *more]) or "nothing"
