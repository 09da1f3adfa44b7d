"""Which backend serves a source: every one is an entry point in the group `modelnet.backends`.

Another package adds a kind of model by an entry point that names a subclass of `Backend`. It is looked
up in the worker, so in the publisher's own environment. Nobody takes `builtin:` or a file of ours by
being installed: those are asked first. `MODULE:NAME` is asked last, for many a spec looks like one.
"""

from __future__ import annotations

import logging
import re
from importlib.metadata import EntryPoint, entry_points

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.names import is_model_name
from modelnet_p2p.node.serving.backends.contract import Backend
from modelnet_p2p.node.serving.guarding import MAX_FAULT_CHARS, guard
from modelnet_p2p.node.serving.policy.safety import check_safe

log = logging.getLogger(__name__)

GROUP = "modelnet.backends"
OURS = "modelnet_p2p."
_SUFFIX = re.compile(r"\.[A-Za-z]\w*\Z", re.ASCII)  # of a file; `llama-3.2` has none
LAST = "modelnet_p2p.node.serving.backends.callable:CallableBackend"


def find_backend(spec: str) -> type[Backend]:
    """The backend for `spec`; raises LocalError: unsafe, or bad-input when there is none.

    One of another package's that fails is left out, and named in the log and in that error.
    """
    check_safe(spec)
    broken: list[str] = []
    for point in sorted(entry_points(group=GROUP), key=_order):
        try:
            with guard(Code.BAD_INPUT, f"the backend {point.name!r} is left out: ", level=logging.WARNING):
                found = point.load()
                if not (isinstance(found, type) and issubclass(found, Backend)):
                    raise TypeError(f"{point.value} is not a subclass of Backend")
                if found.claims(spec):
                    return found
        except LocalError as error:
            broken.append(error.message)
    raise LocalError(
        Code.BAD_INPUT,
        "; ".join([f"nothing here serves {spec[:200]!r}", *broken])[:MAX_FAULT_CHARS],
        hint=_instead(spec),
    )


def _instead(spec: str) -> str:
    """What can be published, beginning with what was probably meant."""
    module = spec.removesuffix(".py").replace("/", ".")
    is_file = spec.endswith(".py")  # what else has a dot may be any kind of file
    if spec.isidentifier() or (is_file and all(part.isidentifier() for part in module.split("."))):
        hint = f"name the function in it: modelnet-peer publish {module}:NAME"
        return hint if is_file else f"{hint}; {_pull(spec)}"
    if is_model_name(spec.partition("@")[0]) and not _SUFFIX.search(spec):
        return _pull(spec)
    files = "FILE.onnx, FILE.tflite, FILE.gguf, FILE.pt2, FILE.keras"
    weights = "FILE.safetensors --module MODULE:CLASS"
    return f"publish builtin:digits, MODULE:NAME, ./DIRECTORY, {files}, or {weights}"


def _pull(name: str) -> str:
    return f"a model of the network is fetched first: modelnet-peer pull {name}"


def _order(point: EntryPoint) -> tuple[int, str]:
    if point.value == LAST:
        return 2, point.name
    return (0 if point.value.startswith(OURS) else 1), point.name
