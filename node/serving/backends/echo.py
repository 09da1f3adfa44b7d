"""`builtin:echo`, the model modelnet/echo: what comes in goes out.

What a call of it costs is what a call costs, so it is the thing to measure with, and the thing to call
when something is wrong: if the echo of a peer answers, the way to that peer is sound. It waits for
nothing and needs no thread. Its owner's key was made to seal its manifest and then thrown away: the echoes
of all peers are one model, which nobody can change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.contract import Backend, Description
from modelnet_p2p.node.serving.description import MAX_SLOTS
from modelnet_p2p.node.serving.policy.scarcity import is_scarce, no_more
from modelnet_p2p.payload import Value
from modelnet_p2p.records import BadRecord, open_manifest

ECHO = "builtin:echo"
_DAMAGED = "install modelnet-p2p again"


class EchoBackend(Backend):
    """Answers in the peer's own event loop, at once."""

    waits = False
    _description: Description

    @classmethod
    def claims(cls, spec: str) -> bool:
        return spec == ECHO

    async def load(self) -> None:
        place = files("modelnet_p2p.node.serving.backends") / "echo.manifest"
        try:
            envelope = place.read_bytes()
            manifest = open_manifest(envelope)
        except (OSError, BadRecord) as error:
            if is_scarce(error):
                raise no_more(f"cannot read {place}", error) from error
            raise LocalError(Code.BAD_STATE, f"{place} is damaged: {error}", hint=_DAMAGED) from error
        self._description = Description(
            name=manifest.name,
            task=manifest.task,
            framework="python",
            licence=manifest.licence,
            manifest_envelope=envelope,
            slots=MAX_SLOTS,
            idempotent=True,
        )

    def describe(self) -> Description:
        return replace(self._description)

    async def invoke(self, value: Value, params: Mapping[str, Value]) -> Value:
        """`value` itself, a tensor too; there are no parameters."""
        if params:
            raise LocalError(Code.BAD_INPUT, f"{ECHO} takes no parameters")
        return value
