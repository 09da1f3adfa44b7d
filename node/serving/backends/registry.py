"""Which backend serves a source: every one is an entry point in the group `modelnet.backends`.

Another package adds a kind of model by an entry point that names a subclass of `Backend`. It is looked
up in the worker, so in the publisher's own environment; our own ones are asked first.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from pathlib import PurePath

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.contract import Backend

GROUP = "modelnet.backends"
UNSAFE_SUFFIXES = frozenset({".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib"})


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
    for point in sorted(entry_points(group=GROUP), key=_order):
        found = point.load()
        if isinstance(found, type) and issubclass(found, Backend) and found.claims(spec):
            return found
    raise LocalError(
        Code.BAD_INPUT,
        f"nothing here serves {spec[:200]!r}",
        hint="publish builtin:digits, MODULE:NAME, or FILE.safetensors --module MODULE:CLASS",
    )


def _order(point: EntryPoint) -> tuple[bool, str]:
    """Ours first: nobody takes `builtin:` or a callable from us by being installed."""
    return not point.value.startswith("modelnet_p2p."), point.name
