"""An agent with the network's models as tools: the official client, and `modelnet-peer mcp` as a process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from mcp import Client, StdioServerParameters

from modelnet_p2p import Peer
from modelnet_p2p.node.gateway.settings import GatewaySettings

pytestmark = pytest.mark.live

# under trio, HTTP clients leave generators behind when a stream is cancelled
clients_warn = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

PROGRAM = "from modelnet_p2p.node.cli import main; main()"
TALK = """
import time
from pathlib import Path

def words(text):
    print("a model may print")
    for word in text.split():
        yield word + " "

def endless(text):
    try:
        while True:
            yield "on "
            time.sleep(0.02)
    finally:
        Path(text).write_text("stopped")
"""
WITHOUT_SDK = """
import sys
from importlib.abc import MetaPathFinder
class Gone(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ("mcp", "mcp_types"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Gone())
"""


def started_by_agent(shell: Any, who: str) -> StdioServerParameters:  # Any: the Shell of conftest.py
    env = {name: shell.env[name] for name in ("XDG_RUNTIME_DIR", "MODELNET_NETWORK")}
    arguments = ["-c", PROGRAM, "mcp", "--home", str(shell.base / who)]
    return StdioServerParameters(command=sys.executable, args=arguments, env=env, cwd=shell.base)


async def call(agent: Client, **asked: object) -> tuple[str, list[str | None]]:
    """The answer of `invoke_model` as text, and what its progress said."""
    told: list[str | None] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        told.append(message)

    result = await agent.call_tool("invoke_model", asked, progress_callback=on_progress)
    (block,) = result.content
    assert block.type == "text"
    assert not result.is_error, block.text
    return block.text, told


async def test_an_agent_calls_models_through_whichever_peer_is_there(shell: Any) -> None:
    (shell.base / "talk.py").write_text(TALK)
    with trio.fail_after(120):
        async with Client(started_by_agent(shell, "mine")) as agent:
            nobody = await agent.call_tool("find_models", {"task": "text-generation"})
            assert nobody.is_error
            assert nobody.structured_content["error"]["code"] == "unreachable"

            with shell.join("alice", "--publish", "talk:words", "--publish", "talk:endless"):
                # no peer on my own home yet: a temporary one asks
                assert await call(agent, target="words", input="a b c") == ("a b c ", ["a ", "b ", "c "])
                with shell.join("mine"):
                    found = await agent.call_tool("find_models", {"model": "words"})
                    assert [line["name"] for line in found.structured_content["models"]] == ["words"]
                    assert await call(agent, target="words", input="d e") == ("d e ", ["d ", "e "])
                    await cancelled(agent, shell.base / "first")
                await cancelled(agent, shell.base / "second")  # mine is gone again, in the middle of it all


async def cancelled(agent: Client, mark: Path) -> None:
    """Let a model talk, cancel the call, and see that the model has stopped."""
    with trio.CancelScope() as scope:

        async def on_progress(progress: float, total: float | None, message: str | None) -> None:
            if progress >= 3:
                scope.cancel()

        asked = {"target": "endless", "input": str(mark)}
        result = await agent.call_tool("invoke_model", asked, progress_callback=on_progress)
        raise AssertionError(result)
    while not mark.exists():
        await trio.sleep(0.05)


@clients_warn
@pytest.mark.parametrize("mode", ["auto", "legacy"])  # the newer edition of the protocol, and the older one
async def test_an_agent_calls_models_over_http(
    shell: Any, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shell.base / "talk.py").write_text(TALK)
    for name in ("XDG_RUNTIME_DIR", "MODELNET_NETWORK"):
        monkeypatch.setenv(name, shell.env[name])
    network = shell.env["MODELNET_NETWORK"]
    with trio.fail_after(120):
        async with Peer.open(network=network, gateway="127.0.0.1:0") as peer:
            for name in ("words", "endless"):
                await peer.publish(f"talk:{name}", cwd=str(shell.base))
            async with Client(f"{peer.gateway}/mcp", mode=mode) as agent:
                found = await agent.call_tool("find_models", {})
                assert {line["name"] for line in found.structured_content["models"]} == {"words", "endless"}
                assert await call(agent, target="words", input="a b c") == ("a b c ", ["a ", "b ", "c "])
                nobody = await agent.call_tool("invoke_model", {"target": "word", "input": "a"})
                assert "did you mean words?" in nobody.structured_content["error"]["hint"]
                await cancelled(agent, shell.base / "stopped")


@clients_warn
async def test_a_web_page_may_not_ask_for_tools(shell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", shell.env["XDG_RUNTIME_DIR"])
    network, key = shell.env["MODELNET_NETWORK"], "a key of many characters"
    async with (
        Peer.open(network=network, gateway=GatewaySettings(port=0, key=key)) as peer,
        httpx.AsyncClient(base_url=str(peer.gateway)) as page,
    ):
        asked = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        assert (await page.post("/mcp", json=asked)).status_code == 401
        told = {"authorization": f"Bearer {key}", "origin": "https://evil.example"}
        assert (await page.post("/mcp", json=asked, headers=told)).status_code == 403


@pytest.mark.parametrize("end", ["stdin", signal.SIGINT])
def test_it_ends_with_its_agent_or_by_a_signal(shell: Any, end: Any) -> None:
    command = [sys.executable, "-c", PROGRAM, "mcp", "--home", str(shell.base / "mine")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=shell.env, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        initialize = {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        }
        asked = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": initialize}
        process.stdin.write("this is no message\n" + json.dumps(asked) + "\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        assert (answer["id"], answer["result"]["serverInfo"]["name"]) == (1, "modelnet")
        if end == "stdin":
            process.stdin.close()
        else:
            process.send_signal(end)
        assert process.wait(30) == 0
        assert process.stdout.read() == ""


def test_without_the_sdk_it_says_what_to_install(shell: Any) -> None:
    command = [sys.executable, "-c", WITHOUT_SDK + PROGRAM, "mcp", "--home", str(shell.base / "mine")]
    done = subprocess.run(command, env=shell.env, capture_output=True, text=True, timeout=60, input="")
    assert (done.returncode, done.stdout) == (6, "")
    assert "needs mcp, which" in done.stderr
    assert "hint: pip install 'modelnet-p2p[mcp]'" in done.stderr


def test_what_to_write_into_an_agents_configuration(shell: Any) -> None:
    status, (configuration,), _ = shell.run("mine", "mcp", "--config")
    assert status == 0
    server = configuration["mcpServers"]["modelnet"]
    assert server["args"][:3] == ["mcp", "--home", str(shell.base / "mine")]
    assert server["env"] == {"XDG_RUNTIME_DIR": str(shell.base)}
