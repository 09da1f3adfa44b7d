"""The model that comes with the peer: `builtin:digits`, handwritten digits on numpy alone (and see echo).

The weights, the listing of their hashes and the manifest that their owner sealed are package data;
what is loaded must match the digest that the owner signed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from modelnet_p2p.digest import BadArtifact, listing_of, metadata_of
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.contract import Backend, Description
from modelnet_p2p.node.serving.backends.digits_net import CLASSES, EXITS, WHITE, DigitsNet, Floats
from modelnet_p2p.node.serving.backends.echo import ECHO
from modelnet_p2p.node.serving.backends.minilm import MINILM
from modelnet_p2p.node.serving.policy.scarcity import is_scarce, no_more
from modelnet_p2p.payload import Value
from modelnet_p2p.records import BadRecord, Spec, open_manifest

PREFIX = "builtin:"
DIGITS = "builtin:digits"
ROWS = 4096  # images in one go: 6 MiB of hidden states, 10 ms, and a cancelled call stops between two
SLOTS = 4  # numpy lets go of the interpreter's lock in its products
SHAPE = "float32 [n,8,8] with values 0 to 16"


class BuiltinBackend(Backend):
    """Runs inside the peer: the code is ours, short and bounded."""

    _net: DigitsNet
    _description: Description
    _default_exit: int

    @classmethod
    def claims(cls, spec: str) -> bool:
        return spec.startswith(PREFIX) and spec != MINILM  # which runs in a worker

    async def load(self) -> None:
        if self.source.spec != DIGITS:
            raise LocalError(
                Code.BAD_INPUT,
                f"no built-in model {self.source.spec[:80]!r}",
                hint=f"there are {DIGITS}, {MINILM} and {ECHO}",
            )
        await self.offload(self._load)

    def _load(self) -> None:
        home = files("modelnet_p2p.node.serving.backends") / "digits"
        try:
            data = (home / "digits.safetensors").read_bytes()
            envelope = (home / "digits.manifest").read_bytes()
            manifest = open_manifest(envelope)
            if listing_of(data).root != manifest.digest:
                raise BadArtifact("the weights are not those that the manifest was sealed for")
            self._default_exit = int(metadata_of(data)["default_exit"])
            self._net = DigitsNet(load(data))
        except (OSError, BadArtifact, BadRecord, SafetensorError) as error:
            if is_scarce(error):
                raise no_more(f"cannot read the built-in model in {home}", error) from error
            raise LocalError(
                Code.BAD_STATE,
                f"the built-in model in {home} is damaged: {error}",
                hint="install modelnet-p2p again",
            ) from error
        self._description = Description(
            name=manifest.name,
            task=manifest.task,
            framework="numpy",
            version=manifest.version,
            precision="float32",
            inputs=(Spec("images", "tensor", "float32", (None, 8, 8)),),
            outputs=(Spec("label", "json"), Spec("scores", "tensor", "float32", (None, CLASSES))),
            parameters=self._net.parameters,
            digest=manifest.digest,
            files=str(home / "digits.safetensors"),
            licence=manifest.licence,
            metrics=manifest.metrics,
            family="modelnet/digits",
            exits=tuple(range(1, EXITS + 1)),
            manifest_envelope=envelope,
            slots=SLOTS,
            idempotent=True,
        )

    def describe(self) -> Description:
        return replace(self._description)

    async def invoke(self, value: Value, params: Mapping[str, Value]) -> Value:
        """{"label": [int], "scores": float32 [n, 10]}; param `exit` 1 to 3, by default the best one."""
        exit = self._exit(params)
        images = _images(value)
        scores = np.empty((len(images), CLASSES), np.float32)
        for at in range(0, len(images), ROWS):
            rows = slice(at, at + ROWS)

            def part(rows: slice = rows) -> Floats:
                _check_range(images[rows])
                return self._net.scores(images[rows], exit)

            scores[rows] = await self.offload(part)
        return {"label": scores.argmax(axis=1).tolist(), "scores": scores}

    def _exit(self, params: Mapping[str, Value]) -> int:
        unknown = sorted(set(params) - {"exit"})
        if unknown:
            raise LocalError(
                Code.BAD_INPUT,
                f"{DIGITS} takes no parameter {unknown[0][:40]!r}",
                hint="it takes exit, 1 to 3",
            )
        exit = params.get("exit", self._default_exit)
        if type(exit) is not int or not 1 <= exit <= EXITS:
            raise LocalError(Code.BAD_INPUT, f"{DIGITS} expected exit 1 to {EXITS}, got {str(exit)[:40]}")
        return exit


def _images(value: Value) -> Floats:
    if not isinstance(value, np.ndarray):
        got = type(value).__name__
    elif value.dtype != np.float32 or value.ndim != 3 or value.shape[1:] != (8, 8):
        got = f"{value.dtype} [{','.join(map(str, value.shape))}]"
    else:
        return value
    raise LocalError(Code.BAD_INPUT, f"{DIGITS} expected a tensor {SHAPE}, got {got}")


def _check_range(images: Floats) -> None:
    low, high = images.min(initial=0) + 0.0, images.max(initial=0) + 0.0  # + 0.0: no minus before a zero
    if not 0 <= low <= high <= WHITE:  # false for NaN, too
        raise LocalError(
            Code.BAD_INPUT, f"{DIGITS} expected a tensor {SHAPE}, got values {low:g} to {high:g}"
        )
