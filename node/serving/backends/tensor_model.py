"""What the backends of tensor models share: tensors in, tensors out, and a runtime that knows both by name.

A subclass opens its file and says what is in it; checking inputs, warming up and the parts of the
description that follow from it are here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.names import check_task
from modelnet_p2p.node.serving.backends.contract import Backend, Description
from modelnet_p2p.node.serving.backends.files import the_file
from modelnet_p2p.node.serving.backends.ports import Port, answer, gather, specs
from modelnet_p2p.node.serving.backends.warming import Warmth, difference, sample_arrays, warm_up
from modelnet_p2p.node.serving.source import SAMPLE
from modelnet_p2p.payload import Value
from modelnet_p2p.tensor import Array

TASK = "x-modelnet/tensor"  # what a model does whose file does not say
QUANTISE = "quantise"
INT8 = "int8"
ERROR_METRIC = "int8_relative_error"  # millionths: of the original's output, see warming.difference


@dataclass(frozen=True, slots=True)
class Opened:
    """A model in its runtime: what its file tells of it, its inputs and outputs, and whether they run
    together."""

    description: Description
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    batches: bool = True  # False: rows together are known not to give what they give alone


class TensorBackend(Backend):
    """Runs in a worker process, one call after the other."""

    blocks = True
    options: ClassVar[frozenset[str]] = frozenset({SAMPLE})
    suffix: ClassVar[str]  # of its files, in lower case
    _opened: Opened
    _description: Description

    @classmethod
    def claims(cls, spec: str) -> bool:
        return spec.lower().endswith(cls.suffix)

    async def load(self) -> None:
        await self.offload(self._load)

    def _load(self) -> None:
        self._opened = self.open(the_file(self.source))
        opened = self._opened
        given = sample_arrays(sample_path(self), opened.inputs, self.source.spec)
        warmth = warm_up(self.source.spec, self.warm, opened.inputs, opened.outputs, given, again=self.run)
        self._description = replace(
            opened.description,
            inputs=specs(opened.inputs),
            outputs=specs(opened.outputs),
            latency_us=warmth.latency_us,
            notes=warmth.notes,
            batches=warmth.batches if opened.batches else 1,
            idempotent=True,  # fixed weights and nothing else
        )
        self.warmed(warmth)

    @abstractmethod
    def open(self, path: Path) -> Opened:
        """Load the model; raises LocalError that names the file in trouble, and what of it is refused."""

    @abstractmethod
    def run(self, arrays: list[Array]) -> Sequence[Value]:
        """The outputs for inputs that fit the ports, both in their order."""

    def warm(self, arrays: list[Array]) -> Sequence[Value]:
        """`run`, before anybody calls: to be ended, where the runtime can, when it takes too long."""
        return self.run(arrays)

    def warmed(self, warmth: Warmth) -> None:
        """After the first runs."""

    def tell(self, **changes: object) -> None:
        """The description says something else from now on."""
        self._description = replace(self._description, **changes)  # type: ignore[arg-type] # real fields

    def describe(self) -> Description:
        return self._description

    async def invoke(self, value: Value, params: Mapping[str, Value]) -> Value:
        """A tensor, or a map of them by name where there are several; there are no parameters."""
        if params:
            words = f"{self.source.spec} takes no parameter {min(params)[:40]!r}"
            raise LocalError(Code.BAD_INPUT, words)
        return await self.offload(lambda: self._invoke(value))

    def _invoke(self, value: Value) -> Value:
        arrays = gather(self._opened.inputs, value, self.source.spec)
        return answer(self._opened.outputs, self.run(arrays))


def sample_path(backend: Backend) -> Path | None:
    """The publisher's own input, if there is one."""
    named = backend.source.options.get(SAMPLE)
    return Path(backend.source.cwd or ".", named) if named else None


def quantised(backend: Backend) -> bool:
    """Whether the int8 variant is asked for; raises LocalError (bad-input) for any other."""
    wanted = backend.source.options.get(QUANTISE)
    if wanted not in (None, INT8):
        raise LocalError(Code.BAD_INPUT, f"no variant {wanted[:40]!r} of a model", hint="--quantise int8")
    return wanted is not None


def worded(description: Description, words: Mapping[str, str]) -> Description:
    """`description` with the task and the licence that the words in a file say, where they say any."""
    task = description.task
    for key in ("task", "pipeline_tag"):
        try:
            task = check_task(words.get(key, ""))
            break
        except LocalError:
            continue
    licence = words.get("license") or words.get("licence") or ""
    fits = len(licence.encode()) <= 64 and licence.isprintable()
    return replace(description, task=task, licence=licence if fits else "")


def error_metric(reference: Warmth, found: Warmth) -> dict[str, int]:
    """How far a variant is from its original, as a metric of its manifest; empty where nothing was
    compared."""
    if reference.is_cold or found.is_cold:
        return {}
    error = difference(reference.outputs, found.outputs)
    return {} if error is None else {ERROR_METRIC: error}
