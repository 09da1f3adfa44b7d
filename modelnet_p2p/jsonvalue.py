"""Values as JSON and back, for the CLI's lines and for anything else that speaks JSON.

A tensor is `{"dtype", "shape", "data": [flat, C order]}`, bytes are `{"base64"}`. JSON has no NaN and no
infinity: inside of a tensor's data they are the strings "NaN", "Infinity" and "-Infinity", elsewhere
`{"float": "NaN"}` and so on. Every number survives the way there and back bit for bit but a NaN's payload.
"""

from __future__ import annotations

import base64
import binascii
import math
from typing import TYPE_CHECKING

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.payload import Value
from modelnet_p2p.tree import MAX_DEPTH

if TYPE_CHECKING:
    from modelnet_p2p.tensor import Array

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_TENSOR_KEYS = {"dtype", "shape", "data"}


def to_json(value: Value) -> object:
    """`value` as what `json.dumps(…, allow_nan=False)` writes; raises LocalError (bad-input)."""
    return _to_json(value, MAX_DEPTH)


def from_json(value: object) -> Value:
    """The value of parsed JSON; raises LocalError (bad-input)."""
    return _from_json(value, MAX_DEPTH)


def _bad(message: str) -> LocalError:
    return LocalError(Code.BAD_INPUT, message)


def _to_json(value: Value, depth: int) -> object:
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return float(value) if math.isfinite(value) else {"float": _float_text(value)}
        case bytes() | bytearray() | memoryview():
            return {"base64": base64.b64encode(value).decode()}
        case list() | tuple() if depth:
            return [_to_json(item, depth - 1) for item in value]
        case dict() if depth:
            if not all(isinstance(key, str) for key in value):
                raise _bad("a map's key is not a string")
            return {key: _to_json(item, depth - 1) for key, item in value.items()}
        case list() | tuple() | dict():
            raise _bad(f"a value is nested deeper than {MAX_DEPTH}")
    import numpy as np  # not at the top: see payload

    if isinstance(value, np.ndarray):
        return _tensor_to_json(value)
    if isinstance(value, np.generic) and not isinstance(number := value.item(), np.generic):
        return _to_json(number, depth)
    raise _bad(f"{type(value).__name__} is no value")


def _float_text(number: float) -> str:
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _tensor_to_json(array: Array) -> object:
    import numpy as np

    from modelnet_p2p.tensor import dtype_name

    name = dtype_name(array.dtype)
    plain = array.astype(np.float32) if name == "bfloat16" else array
    data = plain.reshape(-1).tolist()
    if plain.dtype.kind == "f" and not np.isfinite(plain).all():
        data = [number if math.isfinite(number) else _float_text(number) for number in data]
    return {"dtype": name, "shape": list(array.shape), "data": data}


def _from_json(value: object, depth: int) -> Value:
    match value:
        case {"base64": str(text), **rest} if not rest:
            try:
                return base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError):
                raise _bad("base64 that is none") from None
        case {"float": str(text), **rest} if not rest and text in _NOT_FINITE:
            return _NOT_FINITE[text]
        case dict() if value.keys() == _TENSOR_KEYS:
            return _tensor_from_json(value["dtype"], value["shape"], value["data"])
        case dict() if depth:
            return {str(key): _from_json(item, depth - 1) for key, item in value.items()}
        case list() if depth:
            return [_from_json(item, depth - 1) for item in value]
        case dict() | list():
            raise _bad(f"a value is nested deeper than {MAX_DEPTH}")
        case None | bool() | int() | float() | str():
            return value
    raise _bad(f"{type(value).__name__} is no JSON")


def _tensor_from_json(name: object, shape: object, data: object) -> Array:
    import numpy as np

    from modelnet_p2p.tensor import MAX_DIMS, dtype_of

    dtype = dtype_of(name)
    if not isinstance(shape, list) or not all(type(length) is int and length >= 0 for length in shape):
        raise _bad("a tensor's shape is a list of lengths")
    if not isinstance(data, list) or len(shape) > MAX_DIMS or math.prod(shape) != len(data):
        raise _bad(f"a tensor of shape {str(shape)[:80]} needs a flat list of as many numbers")
    match dtype.kind:
        case "b":
            fits = all(type(item) is bool for item in data)
        case "i" | "u":
            fits = all(type(item) is int for item in data)
        case _:
            data = [_NOT_FINITE.get(item, item) if type(item) is str else item for item in data]
            fits = all(type(item) in (float, int) for item in data)
    if not fits:
        raise _bad(f"a tensor's data has a number that is no {name}")
    try:
        with np.errstate(over="ignore"):  # 1e300 as float32 is infinity, as everywhere
            return np.array(data, dtype=dtype).reshape(shape)
    except (OverflowError, ValueError):
        raise _bad(f"a tensor's data or shape does not fit {name}") from None
