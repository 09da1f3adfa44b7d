"""Files that run code when they are read: refused by their names, before anybody opens them.

Asked wherever a source enters: by the command that takes it, the peer that serves it and the worker
that would load it.
"""

from __future__ import annotations

from modelnet_p2p.errors import Code, LocalError

UNSAFE_SUFFIXES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib")


def check_safe(spec: str) -> None:
    """Raises LocalError (unsafe) for files that run code when they are loaded."""
    name = spec.lower().rstrip("/")
    suffix = next((suffix for suffix in UNSAFE_SUFFIXES if name.endswith(suffix)), None)
    if suffix is not None:
        raise LocalError(
            Code.UNSAFE,
            f"{spec[:200]}: a {suffix} file may hold a pickle, which runs code when it is loaded",
            hint="save the weights with safetensors.torch.save_file and publish the .safetensors file",
        )
