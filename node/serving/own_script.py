"""A function of the program that publishes it, as a worker process can import it.

A worker imports what it runs by name, so a function of the running script needs that script's file as a
module. Importing it must not run it again (each run would publish, and start a worker, and so on), which
is what `if __name__ == "__main__":` says; this is checked before anything is started.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.callable import spec_of


def importable(function: Callable[..., object], environ: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """`MODULE:NAME` of `function`, and an environment whose PYTHONPATH leads to that module.

    The directory of the running script comes first on the path, as it does in the script itself. Raises
    LocalError (bad-input) for what no other process can import.
    """
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    mine = function.__module__ == "__main__"
    spec = _of_the_script(function, script) if mine else spec_of(function)
    if script is None:
        return spec, dict(environ)
    path = [str(Path(script).resolve().parent), *filter(None, [environ.get("PYTHONPATH")])]
    return spec, {**environ, "PYTHONPATH": os.pathsep.join(path)}


def _of_the_script(function: Callable[..., object], script: str | None) -> str:
    name = getattr(function, "__qualname__", "")
    if script is None:  # a notebook, or a prompt
        raise LocalError(
            Code.BAD_INPUT,
            f"{name or function!r} was written at a prompt: no worker process can import it",
            hint="write it to a file (in a notebook: %%writefile mymodels.py), then publish 'mymodels:NAME'",
        )
    file = Path(script)
    if not (name.isidentifier() and file.stem.isidentifier() and file.suffix == ".py"):
        raise LocalError(
            Code.BAD_INPUT,
            f"{name or function!r} of {file.name} cannot be imported by a worker process",
            hint="put it at the top level of a module of its own, and publish 'MODULE:NAME'",
        )
    if not _is_guarded(file):
        raise LocalError(
            Code.BAD_INPUT,
            f"{file.name} would run again in the worker process, which imports {name!r} from it",
            hint=f'put all of {file.name} that acts under `if __name__ == "__main__":`',
        )
    return f"{file.stem}:{name}"


def _is_guarded(file: Path) -> bool:
    """Whether the script asks at its top level who runs it."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):  # changed or gone since it was started
        return False
    return any(isinstance(part, ast.If) and "__name__" in ast.unparse(part.test) for part in tree.body)
