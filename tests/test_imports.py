"""What starts quickly must stay quick: the public face and `--help` import nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("libp2p", "torch", "trio", "sklearn")

FACE = "import modelnet_p2p"
# sys.argv as the console entry `modelnet-peer` gets it; click ends by SystemExit
HELP = """
import contextlib, sys
from modelnet_p2p.node.cli import main
sys.argv = ["modelnet-peer", {arguments}]
with contextlib.suppress(SystemExit):
    main()
"""
LIST = "\nimport sys; print('LOADED', *sorted({{n.split('.')[0] for n in sys.modules}} & set({heavy!r})))"


def run(code: str) -> tuple[str, str]:
    """What `code` printed in a fresh interpreter, and which of HEAVY it had loaded when it ended."""
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", code + LIST.format(heavy=HEAVY)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    output, _, loaded = process.stdout.rpartition("LOADED")
    return output, loaded.strip()


def test_the_public_face_is_lazy() -> None:
    assert run(FACE) == ("", "")


@pytest.mark.parametrize("arguments", ['"--help"', '"join", "--help"', '"invoke", "--help"', '"--version"'])
def test_help_imports_nothing_heavy(arguments: str) -> None:
    output, loaded = run(HELP.format(arguments=arguments))
    assert output.startswith(("Usage: modelnet-peer", "modelnet-peer 0.", "modelnet-peer, "))
    assert loaded == ""


def test_the_face_hands_out_what_it_lists() -> None:
    output, loaded = run("import modelnet_p2p as m; print(all(getattr(m, name) for name in m.__all__))")
    assert output.strip() == "True"
    assert "trio" in loaded  # Peer is real, and only now imported
    assert "libp2p" not in loaded  # the stock one is for tests alone


def test_bare_floors_refuse_to_be_imported() -> None:
    code = (
        "import sys; sys.path.insert(0, {root!r})\n"
        "for name in ('node', 'dht'):\n"
        "    try: __import__(name)\n"
        "    except ImportError as error: print(error)\n"
    )
    root = __file__.rpartition("/tests/")[0]
    output, _ = run(code.format(root=root))
    assert output.split("\n")[:2] == [
        "import modelnet_p2p.node, not 'node'",
        "import modelnet_p2p.dht, not 'dht'",
    ]
