"""FILE.onnx: a model in ONNX Runtime, with the tensors that its file names.

An ONNX file is data: operators that the runtime has itself, and weights. What it might reach beyond that is
refused before the runtime sees it: weights in files that are not beside it (`..`, absolute paths, links out
of its directory), operators from libraries, compiled programs. Its session never has more threads than
THREADS, and they do not spin while nobody calls. A graph may loop for ever; a first run that takes too long
is ended, and a call's worker is ended with its deadline.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.contract import Description
from modelnet_p2p.node.serving.backends.files import named_after, needing
from modelnet_p2p.node.serving.backends.onnx_file import OnnxFile, read_onnx
from modelnet_p2p.node.serving.backends.ports import Port
from modelnet_p2p.node.serving.backends.tensor_model import (
    INT8,
    QUANTISE,
    TASK,
    Opened,
    TensorBackend,
    error_metric,
    quantised,
    worded,
)
from modelnet_p2p.node.serving.backends.warming import Warmth, warm_up
from modelnet_p2p.node.serving.guarding import guard
from modelnet_p2p.node.serving.source import SAMPLE
from modelnet_p2p.node.weights.hashing import artifact_of
from modelnet_p2p.payload import Value
from modelnet_p2p.tensor import Array

if TYPE_CHECKING:
    import onnxruntime

THREADS = 4  # of one model: a peer serves several, and others use the machine, too
FIRST_RUN_SECONDS = 20.0  # of a generated input; then the run is ended, and the offer tells no latency

_DTYPES = {
    "float": "float32",
    "double": "float64",
    "float16": "float16",
    "bool": "bool",
    **{name: name for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
}
_CLASSIFIERS = frozenset({"TreeEnsembleClassifier", "LinearClassifier", "SVMClassifier"})
_REGRESSORS = frozenset({"TreeEnsembleRegressor", "LinearRegressor", "SVMRegressor"})


class OnnxBackend(TensorBackend):
    """On the first GPU if the installed onnxruntime knows one, else on the CPU."""

    suffix = ".onnx"
    options: ClassVar[frozenset[str]] = frozenset({SAMPLE, QUANTISE})
    _session: onnxruntime.InferenceSession
    _original: onnxruntime.InferenceSession | None = None  # beside its variant, until that is measured

    def open(self, path: Path) -> Opened:
        with needing(self.source, "onnxruntime", "onnx"):
            import onnxruntime
        onnxruntime.set_default_logger_severity(4)  # what it raises is told; its lines would be told twice
        told = read_onnx(path)
        hashed = artifact_of(path)
        digest, size = hashed.root, hashed.size
        session = _open_session(str(path), str(path))
        precision, files = told.precision, str(path.resolve())
        if quantised(self):
            from modelnet_p2p.node.serving.backends.onnx_int8 import quantised_bytes

            data, digest = quantised_bytes(path, digest)
            self._original, session = session, _open_session(data, f"the int8 variant of {path}")
            size, precision, files = len(data), INT8, ""  # it is in no file
        self._session = session
        inputs = tuple(_port(node, str(path), is_input=True) for node in session.get_inputs())
        outputs = tuple(_port(node, str(path), is_input=False) for node in session.get_outputs())
        self._names = [port.name for port in inputs]
        description = Description(
            name=named_after(path),
            task=_likely_task(told),
            framework="onnx",
            precision=precision,
            parameters=told.parameters,
            digest=digest,
            size_bytes=size,
            files=files,
        )
        # what is quantised as it comes is scaled by all rows of a step: they would change each other's
        # answers
        return Opened(worded(description, told.properties), inputs, outputs, batches=not quantised(self))

    def run(self, arrays: list[Array]) -> Sequence[Value]:
        return self._run(self._session, arrays)

    def warm(self, arrays: list[Array]) -> Sequence[Value]:
        return self._bounded(self._session, arrays)

    def warmed(self, warmth: Warmth) -> None:
        original, self._original = self._original, None
        if original is None:
            return
        opened = self._opened
        reference = warm_up(
            self.source.spec,
            lambda arrays: self._bounded(original, arrays),
            opened.inputs,
            opened.outputs,
            warmth.inputs,
            again=lambda arrays: self._run(original, arrays),
        )
        if warmth.is_cold and not reference.is_cold:
            words = f"the int8 variant of {self.source.spec} does not run (the worker's log says why)"
            raise LocalError(Code.BAD_INPUT, words, hint="publish it without --quantise")
        self.tell(metrics=error_metric(reference, warmth))

    def _bounded(self, session: onnxruntime.InferenceSession, arrays: list[Array]) -> Sequence[Value]:
        import onnxruntime

        options = onnxruntime.RunOptions()

        def end() -> None:
            options.terminate = True

        timer = threading.Timer(FIRST_RUN_SECONDS, end)
        timer.daemon = True
        timer.start()
        try:
            return self._run(session, arrays, options)
        finally:
            timer.cancel()

    def _run(
        self,
        session: onnxruntime.InferenceSession,
        arrays: list[Array],
        options: onnxruntime.RunOptions | None = None,
    ) -> Sequence[Value]:
        outputs = session.run(None, dict(zip(self._names, arrays, strict=True)), options)
        return [_plain(output) for output in outputs]


def _open_session(model: str | bytes, words: str) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = min(THREADS, os.cpu_count() or 1)
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    known = onnxruntime.get_available_providers()
    providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in known]
    with guard(Code.BAD_INPUT, f"onnxruntime cannot load {words}: "):
        return onnxruntime.InferenceSession(model, options, providers=providers)


def _port(node: Any, path: str, *, is_input: bool) -> Port:  # Any: onnxruntime's NodeArg
    kind = str(node.type)
    dtype = _DTYPES.get(kind.removeprefix("tensor(").removesuffix(")"), "") if "tensor(" in kind[:7] else ""
    if is_input and not dtype:
        words = f"{path}: its input {node.name[:80]!r} is a {kind[:80]}, which no caller can send"
        raise LocalError(Code.BAD_INPUT, words, hint="export it with tensors of numbers as inputs")
    shape = node.shape
    sizes = None if shape is None else tuple(size if isinstance(size, int) else None for size in shape)
    return Port(str(node.name), dtype, sizes)


def _plain(output: object) -> Value:
    """Tensors as they are; words, and the maps that classifiers of scikit-learn give, as JSON has them."""
    if isinstance(output, np.ndarray):
        return output.tolist() if output.dtype == object else output
    if isinstance(output, list):
        return [_plain(item) for item in output]
    if isinstance(output, dict):
        return {str(key): _plain(item) for key, item in output.items()}
    return output


def _likely_task(told: OnnxFile) -> str:
    """What its operators can only be for."""
    if told.operators & _CLASSIFIERS:
        return "tabular-classification"
    return "tabular-regression" if told.operators & _REGRESSORS else TASK
