"""Values at the edge of the shell: read from files and arguments, written as JSON or for people.

A tensor is `{"dtype", "shape", "data": [flat, C order]}`, bytes are `{"base64"}`, and a float that
JSON has no number for is its name as a string. numpy is imported only where a tensor is met.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import math
import os
import sys
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from modelnet_p2p.errors import Code, LocalError

if TYPE_CHECKING:
    import numpy as np

Value = Any  # a value of the wire: None, bool, int, float, str, bytes, list, dict or array
NPY_MAGIC = b"\x93NUMPY"
MAX_INPUT_BYTES = 1 << 30  # as much as one frame may carry
_SUMMARY_CHARS = 2000  # of JSON shown to people; --json prints all of it


def is_tensor(value: Value) -> bool:
    """Whether `value` is a numpy array, without importing numpy: none was made if it is not there."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def to_json(value: Value) -> Any:  # Any: what json.dumps takes
    """A value as strict JSON knows it."""
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if is_tensor(value):
        flat = value.reshape(-1)
        flat = flat.astype("float32") if flat.dtype.kind == "V" or _is_small_float(flat) else flat
        return {"dtype": str(value.dtype), "shape": list(value.shape), "data": to_json(flat.tolist())}
    return value


def from_json(value: Any) -> Value:  # Any: what json.loads gave
    """The inverse of `to_json`; raises LocalError (bad-input) for a tensor whose parts do not fit."""
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"dtype", "shape", "data"}:
        return _tensor_of(value)
    if value.keys() == {"base64"} and isinstance(value["base64"], str):
        try:
            return base64.b64decode(value["base64"], validate=True)
        except binascii.Error as error:
            raise LocalError(Code.BAD_INPUT, f"this is not base64: {error}") from error
    return {key: from_json(item) for key, item in value.items()}


def _tensor_of(parts: dict[str, Any]) -> np.ndarray[Any, Any]:
    import ml_dtypes
    import numpy as np

    name = parts["dtype"]
    try:
        if not isinstance(name, str):
            raise TypeError("dtype is no string")
        kind = np.dtype(getattr(ml_dtypes, name, name))
        if kind.hasobject:
            raise TypeError("a tensor holds numbers")
        return np.asarray([_number(item) for item in parts["data"]], dtype=kind).reshape(parts["shape"])
    except (TypeError, ValueError, OverflowError) as error:
        raise LocalError(Code.BAD_INPUT, f"this JSON is not a tensor: {error}") from error


def _number(item: Any) -> Any:  # Any: a number, or the name of one
    names = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
    return names[item] if isinstance(item, str) and item in names else item


def _is_small_float(array: np.ndarray[Any, Any]) -> bool:
    """Whether its elements are of ml_dtypes, which `tolist` would not turn into floats."""
    return str(array.dtype).startswith(("bfloat", "float8", "float6", "float4"))


def read_input(text: str | None, source: str | None) -> Value:
    """The input of `invoke`: TEXT itself, or what --input names (`-` is stdin)."""
    if (text is None) == (source is None):
        raise LocalError(
            Code.BAD_INPUT,
            "give the input once: as TEXT or by --input",
            hint="modelnet-peer invoke MODEL 'some text', or --input FILE.npy, --input FILE.json, --input -",
        )
    if source is None:
        return text
    data = _read_source(source)
    if source.endswith(".npy") or data.startswith(NPY_MAGIC):
        return _load_npy(source, data)
    try:
        decoded = data.decode()
    except UnicodeDecodeError as error:
        raise LocalError(
            Code.BAD_INPUT, f"{source} is neither a .npy tensor nor UTF-8 text: {error.reason}"
        ) from error
    return parse_json(decoded, f"{source} is not JSON") if source.endswith(".json") else decoded


def parse_json(text: str, what: str, hint: str = "") -> Value:
    """A value written as JSON; raises LocalError (bad-input) beginning with `what`."""
    try:
        return from_json(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise LocalError(Code.BAD_INPUT, f"{what}: {error}", hint=hint) from error


def parse_params(pairs: tuple[str, ...]) -> dict[str, Value]:
    """`--param K=JSON`, each key once."""
    params: dict[str, Value] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key or key in params:
            raise LocalError(
                Code.BAD_INPUT,
                f"--param {pair!r} is not KEY=JSON, or its key is there twice",
                hint="--param n=3",
            )
        hint = f"a string needs its quotes: --param {quote(f'{key}={json.dumps(text)}')}"
        params[key] = parse_json(text, f"the value of --param {key} is not JSON", hint)
    return params


def _read_source(source: str) -> bytes:
    try:
        if source == "-":
            data = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
        else:
            with open(source, "rb") as file:
                data = file.read(MAX_INPUT_BYTES + 1)
    except OSError as error:
        raise LocalError(
            Code.BAD_INPUT,
            f"cannot read {source}: {error.strerror or error}",
            hint="--input takes a file's path, or - for what is piped in",
        ) from error
    if len(data) > MAX_INPUT_BYTES:
        raise LocalError(Code.TOO_LARGE, f"{source} has more than {MAX_INPUT_BYTES} bytes")
    return data


def _load_npy(source: str, data: bytes) -> Value:
    import numpy as np

    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it holds several arrays")
        return array
    except (ValueError, EOFError, OSError) as error:
        raise LocalError(
            Code.BAD_INPUT,
            f"{source} is not a .npy tensor: {error}",
            hint="numpy.save writes them; pickled objects are not read",
        ) from error


def check_out(path: str | None) -> None:
    """Refuse an --out that cannot be written before any work is done for it."""
    if path is None:
        return
    if not path.endswith(".npy"):
        raise LocalError(
            Code.BAD_INPUT, f"--out {path} does not end in .npy", hint=f"--out {quote(path + '.npy')}"
        )
    directory = Path(path).parent
    if not directory.is_dir() or not os.access(directory, os.W_OK):
        raise LocalError(Code.BAD_INPUT, f"cannot write into the directory {directory}")


def write_out(path: str, output: Value) -> str:
    """Write the one tensor in `output` to `path`; what it is, in words."""
    import numpy as np

    tensors = list(_tensors_in(output))
    if len(tensors) != 1:
        raise LocalError(
            Code.BAD_INPUT,
            f"--out takes one tensor, and the answer holds {len(tensors)}",
            hint="without --out all of it is printed, as JSON with --json",
        )
    tensor = tensors[0]
    note = ""
    if tensor.dtype.kind == "V" or _is_small_float(tensor):
        note = f" (it was {tensor.dtype}, which .npy cannot say)"
        tensor = tensor.astype(np.float32)
    temporary = Path(f"{path}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.save(file, tensor, allow_pickle=False)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise LocalError(Code.BAD_INPUT, f"cannot write {path}: {error.strerror or error}") from error
    return f"wrote {path}: {tensor.dtype} {list(tensor.shape)}{note}"


def _tensors_in(value: Value) -> list[Any]:
    if is_tensor(value):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for item in value for tensor in _tensors_in(item)] if isinstance(value, list) else []


def for_people(value: Value) -> str:
    """A value as a person wants to see it: text plain, tensors and bytes summarised."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and value:
        return "\n".join(f"{key}: {_short(item)}" for key, item in value.items())
    return _short(value)


def _short(value: Value) -> str:
    if isinstance(value, str):
        return value
    if is_tensor(value):
        return _tensor_summary(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} bytes"
    text = json.dumps(to_json(value), ensure_ascii=False)
    if len(text) <= _SUMMARY_CHARS:
        return text
    return f"{text[:_SUMMARY_CHARS]}… ({len(text)} characters, all of them with --json)"


def _tensor_summary(tensor: np.ndarray[Any, Any]) -> str:
    head = f"tensor {tensor.dtype} {list(tensor.shape)}"
    if not tensor.size:
        return head
    flat = tensor.reshape(-1)
    shown = flat.astype("float32") if _is_small_float(flat) else flat
    if tensor.size <= 12:
        return f"{head} {[round(x, 6) if isinstance(x, float) else x for x in shown.tolist()]}"
    return f"{head} min {shown.min():.6g} mean {shown.mean():.6g} max {shown.max():.6g}"
