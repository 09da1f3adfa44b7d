"""The laws of the house, read off the syntax tree of every source file.

Imports run downward; the pure packages stay pure; torch stays in its room and libp2p out of the house;
nothing that comes from the network can be unpickled or evaluated; broad excepts stand only in the two
guards. Each law is also shown a file that breaks it, for a law that finds nothing may be one that looks at
nothing.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {"modelnet_p2p": 0, "dht": 1, "node": 2}

# What decides and never acts; a folder that does not exist yet is pure from its first line.
PURE = ("modelnet_p2p/", "dht/", "node/transport/wire/", "node/links/plan/", "node/serving/policy/")
IMPURE_MODULES = frozenset(
    {"trio", "anyio", "asyncio", "libp2p", "time", "datetime", "random", "secrets", "uuid", "os", "socket"}
    | {"threading", "subprocess", "torch"}
)
# libp2p's wheel installs the last four at top level; the first two exist only under modelnet_p2p
AMBIGUOUS_MODULES = frozenset({"node", "dht", "docs", "examples", "interop", "stubs"})
UNSAFE_MODULES = frozenset(
    {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
)
UNSAFE_CALLS = frozenset({"eval", "exec", "__import__", "torch.load", "yaml.load", "os.system"})
UNSAFE_FLAGS = frozenset({"allow_pickle", "shell"})

# The public face hands out `Peer`, which stands on the top floor, lazily.
LAZY_FACE = "modelnet_p2p/__init__.py"

# The two guards where a broad except may stand, place by place and how many: what a stranger's bytes make a
# handler raise ends that stream or connection, what a stranger's model raises that call.
HANDLER_GUARD = {
    "node/control/server.py": 1,  # a command of this machine's user
    "node/gateway/serving.py": 1,  # a connection of the gateway
    "node/transport/registry.py": 1,  # every protocol's handler
}
MODEL_GUARD = {
    "node/serving/guarding.py": 2,  # importing, making and running it
    "node/serving/child/model_thread.py": 1,  # what it raises in its thread, carried to that guard
}
GUARDS = HANDLER_GUARD | MODEL_GUARD


class Source(NamedTuple):
    """A file of the tree: its path below the root with forward slashes, and its syntax tree."""

    path: str
    tree: ast.Module


class Import(NamedTuple):
    line: int
    name: str  # dotted; `from modelnet_p2p import x` is modelnet_p2p.x
    relative: bool


def sources(*folders: str) -> list[Source]:
    """Python files below those folders; the two links inside modelnet_p2p are not followed."""
    found = []
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith(("modelnet_p2p/node/", "modelnet_p2p/dht/")):
                found.append(Source(name, ast.parse(path.read_text(encoding="utf-8"), name)))
    return found


def imports(node: ast.AST) -> Iterator[Import]:
    """Every import that runs, inside functions too; those under `if TYPE_CHECKING` never do."""
    match node:
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            for other in node.orelse:
                yield from imports(other)
        case ast.Import():
            yield from (Import(node.lineno, alias.name, False) for alias in node.names)
        case ast.ImportFrom(module=module, level=level):
            for alias in node.names:
                name = f"{module}.{alias.name}" if module == "modelnet_p2p" else module or alias.name
                yield Import(node.lineno, name, level > 0)
        case _:
            for child in ast.iter_child_nodes(node):
                yield from imports(child)


def floor_of(path: str) -> int:
    return FLOORS[path.split("/", 1)[0]]


def target_floor(name: str) -> int | None:
    match name.split("."):
        case ["modelnet_p2p", "node", *_]:
            return 2
        case ["modelnet_p2p", "dht", *_]:
            return 1
        case ["modelnet_p2p", *_]:
            return 0
    return None


def climbing(source: Source) -> Iterator[str]:
    """Imports run downward only: node -> dht -> modelnet_p2p, absolutely."""
    for line, name, relative in imports(source.tree):
        if relative:
            yield f"{source.path}:{line} imports relatively"
        target = target_floor(name)
        if target is not None and target > floor_of(source.path) and source.path != LAZY_FACE:
            yield f"{source.path}:{line} reaches up to {name}"


def impure(source: Source) -> Iterator[str]:
    """What decides takes time, randomness and messages as arguments."""
    if source.path.startswith(PURE):
        for line, name, _ in imports(source.tree):
            if name.split(".")[0] in IMPURE_MODULES:
                yield f"{source.path}:{line} imports {name}"


def misplaced(source: Source) -> Iterator[str]:
    """The stock libp2p is what tests compare ours with; torch lives in the backends."""
    for line, name, _ in imports(source.tree):
        head = name.split(".")[0]
        if head == "libp2p":
            yield f"{source.path}:{line} imports libp2p"
        if head == "torch" and not source.path.startswith("node/serving/backends/"):
            yield f"{source.path}:{line} imports torch outside node/serving/backends"


def ambiguous(source: Source) -> Iterator[str]:
    """A bare `node` would be a second copy of every class, or somebody else's package."""
    for line, name, relative in imports(source.tree):
        if not relative and name.split(".")[0] in AMBIGUOUS_MODULES:
            yield f"{source.path}:{line} imports {name}"


def unsafe(source: Source) -> Iterator[str]:
    """Nothing that arrives can become code."""
    for line, name, _ in imports(source.tree):
        if name.split(".")[0] in UNSAFE_MODULES:
            yield f"{source.path}:{line} imports {name}"
    for node in ast.walk(source.tree):
        match node:
            case ast.Call(func=function) if ast.unparse(function) in UNSAFE_CALLS:
                yield f"{source.path}:{node.lineno} calls {ast.unparse(function)}"
            case ast.keyword(arg=str(flag), value=ast.Constant(value=True)) if flag in UNSAFE_FLAGS:
                yield f"{source.path}:{node.value.lineno} says {flag}=True"


def broad_excepts(source: Source) -> Iterator[int]:
    """Lines of `except:`, `except Exception` and `except BaseException`, alone or in a tuple or group.

    One that ends in a bare `raise` only cleans up on the way and is none.
    """
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ExceptHandler):
            kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            broad = any(kind is None or ast.unparse(kind) in ("Exception", "BaseException") for kind in kinds)
            if broad and ast.unparse(node.body[-1]) != "raise":
                yield node.lineno


def check(law: Callable[[Source], Iterator[str]], files: list[Source]) -> None:
    assert [broken for source in files for broken in law(source)] == []


HOUSE = sources("modelnet_p2p", "dht", "node")


def test_the_house_is_being_read() -> None:
    assert {floor_of(source.path) for source in HOUSE} == {0, 1, 2}
    assert len(HOUSE) > 20


def test_imports_run_downward_and_are_absolute() -> None:
    check(climbing, HOUSE)


def test_pure_packages_are_pure() -> None:
    check(impure, HOUSE)


def test_torch_stays_in_its_room_and_libp2p_out_of_the_house() -> None:
    check(misplaced, HOUSE)


def test_no_bare_or_shadowed_package_is_imported() -> None:
    check(ambiguous, HOUSE + sources("scripts", "tests"))


def test_nothing_received_can_become_code() -> None:
    check(unsafe, HOUSE + sources("scripts"))


def test_broad_excepts_stand_only_in_the_guards() -> None:
    found = Counter({source.path: len(list(broad_excepts(source))) for source in HOUSE})
    assert +found == Counter(GUARDS)


@pytest.mark.parametrize(
    ("law", "path", "code"),
    [
        (climbing, "dht/walk.py", "def f():\n    from modelnet_p2p.node.peer import Peer"),
        (climbing, "modelnet_p2p/kad.py", "from modelnet_p2p import dht"),
        (climbing, "node/peer.py", "from . import state"),
        (impure, "dht/walk.py", "import time"),
        (impure, "node/serving/policy/ranking.py", "from random import Random"),
        (impure, "modelnet_p2p/__init__.py", "import os.path"),
        (misplaced, "node/transport/upgrade.py", "import libp2p.host"),
        (misplaced, "node/serving/models.py", "import torch"),
        (ambiguous, "node/peer.py", "from dht.lookup import Lookup"),
        (unsafe, "node/disk/state.py", "import pickle"),
        (unsafe, "node/disk/state.py", "eval('1')"),
        (unsafe, "node/disk/state.py", "np.load(file, allow_pickle=True)"),
        (unsafe, "node/disk/state.py", "torch.load(file)"),
    ],
)
def test_each_law_sees_what_breaks_it(law: Callable[[Source], Iterator[str]], path: str, code: str) -> None:
    assert len(list(law(Source(path, ast.parse(code))))) == 1


@pytest.mark.parametrize("clause", ["except:", "except Exception:", "except (OSError, BaseException) as e:"])
def test_a_broad_except_is_seen(clause: str) -> None:
    source = Source("node/peer.py", ast.parse(f"try:\n    pass\n{clause}\n    pass"))
    assert list(broad_excepts(source)) == [3]
    cleanup = Source("node/peer.py", ast.parse(f"try:\n    pass\n{clause}\n    undo()\n    raise"))
    assert list(broad_excepts(cleanup)) == []


def test_imports_for_types_alone_do_not_count() -> None:
    code = "if TYPE_CHECKING:\n    import torch\nelse:\n    import time"
    assert [found.name for found in imports(ast.parse(code))] == ["time"]
