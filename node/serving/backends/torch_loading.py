"""From a torch module to what is served: as it is or as its int8 variant, warmed up and described."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.contract import Backend, Description
from modelnet_p2p.node.serving.backends.ports import Port
from modelnet_p2p.node.serving.backends.tensor_model import (
    INT8,
    QUANTISE,
    error_metric,
    quantised,
    sample_path,
)
from modelnet_p2p.node.serving.backends.torch_int8 import digest_of, quantise
from modelnet_p2p.node.serving.backends.torch_serving import TASK, TorchServing
from modelnet_p2p.node.serving.backends.warming import Warmth, given_sample
from modelnet_p2p.node.serving.source import SAMPLE
from modelnet_p2p.records import Spec
from modelnet_p2p.tensor import Array

if TYPE_CHECKING:
    import torch

OPTIONS = frozenset({QUANTISE, SAMPLE})


def serve(module: torch.nn.Module, backend: Backend, words: str) -> tuple[TorchServing, Description]:
    """A module on its device, and what is known of it but its name, digest and licence.

    Raises LocalError (bad-input, bad-state): a sample that cannot be read, a variant that cannot be made.
    """
    path = sample_path(backend)
    sample = None if path is None else given_sample(path)
    serving = TorchServing(module, words, on_cpu=quantised(backend))
    found = serving.sample_port(sample)
    warmth, inputs, outputs = serving.warm(found) if quantised(backend) else _warm_packed(serving, found)
    description = Description(
        name="",
        task=TASK,
        framework="torch",
        precision=serving.precision,
        inputs=inputs,
        outputs=outputs,
        parameters=serving.parameters,
        size_bytes=serving.size_bytes,
        latency_us=warmth.latency_us,
        notes=warmth.notes,
        batches=warmth.batches,
        idempotent=True,  # fixed weights and nothing else
    )
    if not quantised(backend):
        return serving, description
    return _variant(serving, words, description, found, warmth)


def _warm_packed(
    serving: TorchServing, found: tuple[Port, Array | None] | None
) -> tuple[Warmth, tuple[Spec, ...], tuple[Spec, ...]]:
    """With its linear layers packed, unless it cannot be run so."""
    from modelnet_p2p.node.serving.backends.torch_packing import pack, unpack

    packed = pack(serving.module)
    told = serving.warm(found)
    if not packed or found is None or not told[0].is_cold:
        return told
    unpack(serving.module)
    return serving.warm(found)


def _variant(
    serving: TorchServing,
    words: str,
    description: Description,
    found: tuple[Port, Array | None] | None,
    reference: Warmth,
) -> tuple[TorchServing, Description]:
    """Its rows do not share steps: inputs are scaled by all that is in them, so callers would change each
    other's answers."""
    variant = TorchServing(quantise(serving.module, words), words, on_cpu=True)
    warmth, inputs, outputs = variant.warm(_as_float32(found))
    if warmth.is_cold and not reference.is_cold:
        raise LocalError(
            Code.BAD_INPUT,
            f"the int8 variant of {words} does not run (the worker's log says why)",
            hint="publish it without --quantise",
        )
    digest, size = digest_of(variant.module)
    return variant, replace(
        description,
        precision=INT8,
        inputs=inputs,
        outputs=outputs,
        latency_us=warmth.latency_us,
        notes=warmth.notes,
        batches=1,
        digest=digest,
        size_bytes=size,
        metrics=error_metric(reference, warmth),
    )


def _as_float32(found: tuple[Port, Array | None] | None) -> tuple[Port, Array | None] | None:
    """What the variant takes, whose floats are float32 whatever the original's were."""
    if found is None or found[0].dtype not in ("float16", "bfloat16", "float64"):
        return found
    port, example = found
    return replace(port, dtype="float32"), None if example is None else example.astype(np.float32)
