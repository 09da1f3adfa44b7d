"""The int8 variant of an ONNX model: its matrices become whole numbers, what they meet is quantised as it
comes.

By onnxruntime's own dynamic quantisation, which needs the package onnx, and no data. Convolutions are left as
they are: the runtime has no kernel for them with signed weights. Weights have seven bits: with eight, an x86
processor with AVX2 and without VNNI clips sums at 16 bits, and the same file answers well on one machine and
17 % off on the next.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from modelnet_p2p.artifact import Artifact, FileHashes
from modelnet_p2p.digest import CHUNK_BYTES
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.guarding import guard

OPERATORS = ["MatMul", "Gemm", "Gather", "Attention", "LSTM"]
MAX_BYTES = 2_000_000_000  # of the model, which is one protobuf message while it is quantised


def quantised_bytes(path: Path, original: bytes) -> tuple[bytes, bytes]:
    """The int8 variant of the model at `path`, as a file's bytes, and their digest.

    Raises LocalError: bad-state without onnx, bad-input for a model that has nothing to quantise, or that
    is too large. `original` is the digest of the model: a variant that equals it is none.
    """
    try:
        import onnx  # noqa: F401 # before onnxruntime's own, less helpful words
        from onnxruntime.quantization import QuantType, quantize_dynamic
    except ImportError as error:
        words = f"an int8 variant of {path.name} needs onnx, which this Python does not have"
        raise LocalError(Code.BAD_STATE, words, hint="pip install onnx") from error
    if path.stat().st_size > MAX_BYTES:
        words = f"{path} is too large to be quantised as it is loaded"
        raise LocalError(Code.BAD_INPUT, words, hint="quantise it beforehand, and publish the smaller file")
    with TemporaryDirectory(prefix="modelnet-int8-") as folder:
        made = Path(folder) / "int8.onnx"
        disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)  # it recommends another tool on the root logger
        try:
            with guard(Code.BAD_INPUT, f"onnxruntime cannot quantise {path}: "):
                quantize_dynamic(
                    path,
                    made,
                    weight_type=QuantType.QInt8,
                    reduce_range=True,
                    per_channel=True,
                    op_types_to_quantize=OPERATORS,
                )
        finally:
            logging.disable(disabled)
        data = made.read_bytes()
    digest = _digest(data)
    if digest == original or b"Quant" not in data:
        words = f"{path} has no matrix products with weights to quantise"
        raise LocalError(Code.BAD_INPUT, words, hint="publish it without --quantise")
    return data, digest


def _digest(data: bytes) -> bytes:
    """What the variant's digest would be, were it a file."""
    view = memoryview(data)
    chunks = (view[at : at + CHUNK_BYTES] for at in range(0, len(view), CHUNK_BYTES))
    hashes = tuple(hashlib.sha256(chunk).digest() for chunk in chunks)
    return Artifact((FileHashes("model.onnx", len(data), hashes),)).root
