"""Values at the edge of the shell: read from files and arguments, written to files or for people.

How a value is JSON is `jsonvalue`'s matter. numpy is imported only where a tensor is met.
"""

from __future__ import annotations

import io
import json
import os
import stat
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.jsonvalue import from_json, to_json
from modelnet_p2p.node.control.wire import MAX_INPUT_BYTES

if TYPE_CHECKING:
    import numpy as np

Value = Any  # a value of the wire: None, bool, int, float, str, bytes, list, dict or array
NPY_MAGIC = b"\x93NUMPY"
READ_BYTES = 1 << 20  # at once, so that the bar moves
# `Output.transfer`: told what is read and how many bytes that has, gives what is told of each piece
Transfer = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]
_SUMMARY_CHARS = 2000  # of JSON shown to people; --json prints all of it


def is_tensor(value: Value) -> bool:
    """Whether `value` is a numpy array, without importing numpy: none was made if it is not there."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def read_input(text: str | None, source: str | None, transfer: Transfer) -> Value:
    """The input of `invoke`: TEXT itself, or what --input names (`-` is stdin).

    Raises LocalError: bad-input, or too-large for what no call can carry.
    """
    if (text is None) == (source is None):
        raise LocalError(
            Code.BAD_INPUT,
            "give the input once: as TEXT or by --input",
            hint="modelnet-peer invoke MODEL 'some text', or --input FILE.npy, --input FILE.json, --input -",
        )
    if source is None:
        return text
    data = _read_source(source, transfer)
    if source.endswith(".npy") or data.startswith(NPY_MAGIC):
        return _load_npy(source, data)
    try:
        decoded = data.decode()
    except UnicodeDecodeError as error:
        raise LocalError(
            Code.BAD_INPUT, f"{source} is neither a .npy tensor nor UTF-8 text: {error.reason}"
        ) from error
    return parse_json(decoded, f"{source} holds no value as JSON") if source.endswith(".json") else decoded


def parse_json(text: str, what: str, hint: str = "") -> Value:
    """A value written as JSON; raises LocalError (bad-input) beginning with `what`."""
    try:
        return from_json(json.loads(text))
    except LocalError as error:
        raise LocalError(error.code, f"{what}: {error.message}", hint=hint or error.hint) from error
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
        params[key] = parse_json(text, f"--param {key} has no value as JSON", hint)
    return params


def _read_source(source: str, transfer: Transfer) -> bytes | bytearray:
    try:
        data = _read_stdin() if source == "-" else _read_file(source, transfer)
    except OSError as error:
        raise LocalError(
            Code.BAD_INPUT,
            f"cannot read {source}: {error.strerror or error}",
            hint="--input takes a file's path, or - for what is piped in",
        ) from error
    if len(data) > MAX_INPUT_BYTES:
        raise _too_large(source)
    return data


def _read_stdin() -> bytes:
    return sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)


def _read_file(path: str, transfer: Transfer) -> bytes | bytearray:
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):  # a pipe, say, whose size nobody knows
            return file.read(MAX_INPUT_BYTES + 1)
        if status.st_size > MAX_INPUT_BYTES:
            raise _too_large(path)
        data = bytearray(status.st_size)
        done = 0
        with transfer(f"reading {path}", len(data)) as on_read, memoryview(data) as view:
            while count := file.readinto(view[done:][:READ_BYTES]):
                done += count
                on_read(count)
        return data if done == len(data) else data[:done]  # cut short meanwhile


def _too_large(source: str) -> LocalError:
    return LocalError(
        Code.TOO_LARGE,
        f"{source} has more than the {MAX_INPUT_BYTES >> 20} MiB that one call can carry",
        hint="cut it into several inputs, and call once for each",
    )


def _load_npy(source: str, data: bytes | bytearray) -> Value:
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


def _is_bfloat16(array: np.ndarray[Any, Any]) -> bool:
    """Whether its elements are of the one kind that numpy itself does not know."""
    return str(array.dtype) == "bfloat16"


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
    if _is_bfloat16(tensor):
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
    shown = flat.astype("float32") if _is_bfloat16(flat) else flat
    if tensor.size <= 12:
        return f"{head} {[round(x, 6) if isinstance(x, float) else x for x in shown.tolist()]}"
    return f"{head} min {shown.min():.6g} mean {shown.mean():.6g} max {shown.max():.6g}"
