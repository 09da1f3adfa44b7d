"""Which backend serves a source: our own ones first, then what is installed beside us.

Another package adds a kind of model by an entry point in the group `modelnet.backends` that names a
subclass of `Backend`; it is looked up in the worker, so in the publisher's own environment.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import PurePath

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.builtin import BuiltinBackend
from modelnet_p2p.node.serving.backends.callable import CallableBackend
from modelnet_p2p.node.serving.backends.contract import Backend
from modelnet_p2p.node.serving.backends.torch_module import TorchModuleBackend

GROUP = "modelnet.backends"
UNSAFE_SUFFIXES = frozenset({".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib"})

_OURS: tuple[type[Backend], ...] = (BuiltinBackend, TorchModuleBackend, CallableBackend)


def check_safe(spec: str) -> None:
    """Raises LocalError (unsafe) for files that run code when they are loaded."""
    suffix = PurePath(spec).suffix.lower()
    if suffix in UNSAFE_SUFFIXES:
        raise LocalError(
            Code.UNSAFE,
            f"{spec[:200]}: a {suffix} file may hold a pickle, which runs code when it is loaded",
            hint="save the weights with safetensors.torch.save_file and publish the .safetensors file",
        )


def find_backend(spec: str) -> type[Backend]:
    """The backend for `spec`; raises LocalError: unsafe, or bad-input when there is none."""
    check_safe(spec)
    for backend in _OURS:
        if backend.claims(spec):
            return backend
    for point in entry_points(group=GROUP):
        if point.value.startswith("modelnet_p2p."):
            continue
        found = point.load()
        if isinstance(found, type) and issubclass(found, Backend) and found.claims(spec):
            return found
    raise LocalError(
        Code.BAD_INPUT,
        f"nothing here serves {spec[:200]!r}",
        hint="publish builtin:digits, MODULE:NAME, or FILE.safetensors --module MODULE:CLASS",
    )
