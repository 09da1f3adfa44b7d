"""Programs that a person writes with `Swarm`, as real processes and over real sockets.

The question of each: does what he leaves, interrupts or forgets end, here and at the far side too?
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

from modelnet_p2p import RemoteError, Swarm
from modelnet_p2p.errors import Code
from modelnet_p2p.node.swarm.notebook import Offers

pytestmark = pytest.mark.live
EXAMPLES = Path(__file__).resolve().parents[2] / "scripts" / "examples"
Shell = Any  # of conftest.py, which tests cannot import

# notes each step, and how it ended, in a file: so the test sees what the far side did
TICKS = """
import pathlib, time
LOG = pathlib.Path(__file__).with_name("ticks.log")

def ticks(name):
    steps = 0
    try:
        while True:
            yield steps
            steps += 1
            time.sleep(0.01)
    except GeneratorExit:
        with LOG.open("a") as log:
            log.write(f"{name} left\\n")
        raise
"""


@pytest.fixture
def alone(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> str:
    """A network and a runtime directory of this test's own, for swarms in its own process; the name."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", shell.env["XDG_RUNTIME_DIR"])
    return str(shell.env["MODELNET_NETWORK"])


@pytest.fixture
def alice(shell: Shell) -> Iterator[dict[str, Any]]:
    """A peer that serves ticks; its ready line."""
    (shell.base / "ticking.py").write_text(TICKS)
    with shell.join("alice", "--publish", "ticking:ticks") as (_, ready):
        yield ready


def wait_for(shell: Shell, name: str) -> None:
    """Until the model has noted that `name` left."""
    log = shell.base / "ticks.log"
    until = time.monotonic() + 10
    while f"{name} left" not in (log.read_text() if log.exists() else ""):
        assert time.monotonic() < until, "the far side goes on"
        time.sleep(0.01)


def program(shell: Shell, text: str) -> subprocess.Popen[str]:
    (shell.base / "program.py").write_text(text)
    return subprocess.Popen(
        [sys.executable, "-W", "error", "program.py"],
        env=shell.env,
        cwd=shell.base,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_leaving_a_loop_closing_and_a_timeout_end_the_model(
    shell: Shell, alice: dict[str, Any], alone: str
) -> None:
    with Swarm.open(network=alone, listen=[], bootstrap=alice["addrs"]) as swarm:
        for item in swarm.stream("ticks", "a loop"):
            if item == 2:
                break
        wait_for(shell, "a loop")
        items = swarm.stream("ticks", "one that is held")
        assert next(items) == 0
        items.close()
        wait_for(shell, "one that is held")

        def generator() -> Generator[object, None, None]:
            yield from swarm.stream("ticks", "a generator")

        outer = generator()
        assert next(outer) == 0
        outer.close()  # GeneratorExit
        wait_for(shell, "a generator")
        with pytest.raises(RemoteError) as caught:
            swarm.invoke("ticks", "a timeout", timeout=0.5)
        assert caught.value.code is Code.DEADLINE
        wait_for(shell, "a timeout")

        async def cancelled() -> None:
            task = asyncio.create_task(swarm.aio.invoke("ticks", "a task"))
            await asyncio.sleep(0.3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(cancelled())
        wait_for(shell, "a task")


def test_ctrl_c_ends_the_program_and_the_model(shell: Shell, alice: dict[str, Any]) -> None:
    text = f"""
from modelnet_p2p import Swarm
with Swarm.open(network={shell.env["MODELNET_NETWORK"]!r}, bootstrap={alice["addrs"]!r}, listen=[]) as swarm:
    for item in swarm.stream("ticks", "a program"):
        if item == 1:
            print("begun", flush=True)
"""
    with program(shell, text) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=20)
        finally:
            process.kill()
    assert stderr.rstrip().endswith("KeyboardInterrupt")
    wait_for(shell, "a program")


def test_a_swarm_that_was_never_closed_leaves_at_exit_and_says_nothing(shell: Shell) -> None:
    text = f"""
from modelnet_p2p import Swarm
swarm = Swarm(network={shell.env["MODELNET_NETWORK"]!r})
swarm.publish("builtin:digits")
print(swarm.find(task="image-classification"))
"""
    with program(shell, text) as process:
        try:
            stdout, stderr = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, stderr) == (0, "")
    assert stdout.startswith("1 offer\n  modelnet/digits@1  image-classification")


def example(shell: Shell, name: str, *argv: str) -> tuple[str, str]:
    """stdout and stderr of an example, run as a reader does, but with a runtime directory of the test's."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *argv],
        env=shell.env,
        cwd=shell.base,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def test_the_example_that_publishes_its_own_function(shell: Shell) -> None:
    assert example(shell, "publish_function.py") == ("HELLO, WORLD?\n", "")


def test_the_example_that_asks_the_network(shell: Shell) -> None:
    with shell.join("alice", "--publish", "builtin:digits", "--network", "public") as (_, alice):
        stdout, _ = example(shell, "query_dht.py", "image-classification", *alice["addrs"])
        offer, answer = stdout.splitlines()
        assert offer.startswith(f"modelnet/digits@1  by {alice['peer']}  alive")
        assert f"says {alice['peer']}" in answer
    stdout, stderr = example(shell, "query_dht.py")
    assert stdout == ""
    assert "image-classification" in stderr


@pytest.mark.usefixtures("alone")
def test_the_notebooks_cells_run_in_a_running_loop() -> None:
    """As Jupyter runs them: one after the other in its own loop, the value of the last line shown."""
    cells = json.loads((EXAMPLES / "notebook.ipynb").read_text())["cells"]
    sources = {cell["id"]: "".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"}

    async def run() -> dict[str, Any]:
        names: dict[str, Any] = {"__name__": "__main__"}
        return {name: await run_cell(source, names) for name, source in sources.items()}

    shown = asyncio.run(run())
    assert shown["publish"] == "modelnet/digits@1"
    assert isinstance(shown["find"], Offers)
    assert "modelnet/digits@1</td>" in shown["find"]._repr_html_()
    assert shown["call"] == [1]
    assert shown["aio"] == [[1]] * 4


async def run_cell(source: str, names: dict[str, Any]) -> object:
    """The value of the cell's last line, None where that is a statement; `await` may stand anywhere."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    await _run(tree, "exec", names)
    return await _run(ast.Expression(last.value), "eval", names) if isinstance(last, ast.Expr) else None


async def _run(tree: ast.Module | ast.Expression, mode: str, names: dict[str, Any]) -> object:
    code: CodeType = compile(tree, "<cell>", mode, flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    value = FunctionType(code, names)()
    return await value if inspect.iscoroutine(value) else value
