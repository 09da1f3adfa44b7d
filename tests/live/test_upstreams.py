"""Another peer's gateway as the server that a peer publishes: over real sockets, killed, and back again."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from openai import OpenAI

pytestmark = [pytest.mark.live, pytest.mark.slow]

SUPPORT = Path(__file__).parent.parent / "support"
TASKS = {"chat": "text-generation", "embed": "feature-extraction", "slow": "summarization"}
Shell = Any  # the fixture, see conftest.py


class Chain(NamedTuple):
    """near's gateway: near publishes what far's gateway has, which is a peer of another network."""

    shell: Any
    far: list[subprocess.Popen[str]]  # the process that runs now
    url: str  # of far's gateway
    client: OpenAI  # of near's


def until(found: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 90
    while not found():
        assert time.monotonic() < end, what
        time.sleep(0.1)


@pytest.fixture(scope="module")
def chain(lasting_shell: Shell) -> Iterator[Chain]:
    shell = lasting_shell
    shutil.copy(SUPPORT / "talkers.py", shell.base)
    beyond = ("--network", f"{shell.env['MODELNET_NETWORK']}-beyond")
    with shell.join("far", "--gateway", "127.0.0.1:0", *beyond) as (far, ready):
        for name, task in TASKS.items():
            status, _, errors = shell.run("far", "publish", f"talkers:{name}", "--task", task, *beyond)
            assert status == 0, errors
        with shell.join("near", "--gateway", "127.0.0.1:0") as (_, near):
            status, lines, errors = shell.run("near", "publish", ready["gateway"])
            assert status == 0, errors
            assert {line["model"]: line["task"] for line in lines} == {
                "chat": "text-generation",
                "embed": "feature-extraction",
                "slow": "text-generation",
            }
            client = OpenAI(base_url=f"{near['gateway']}/v1", api_key="none", max_retries=0, timeout=60)
            yield Chain(shell, [far], ready["gateway"], client)


def test_a_chat_through_two_gateways(chain: Chain) -> None:
    hi: Any = [{"role": "user", "content": "one two three"}]
    options: Any = {"include_usage": True}
    stream = chain.client.chat.completions.create(
        model="chat", messages=hi, stream=True, stream_options=options
    )
    chunks = list(stream)
    assert [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content] == [
        "one ",
        "two ",
        "three ",
    ]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens > 3
    tool: Any = {"type": "function", "function": {"name": "say", "parameters": {"type": "object"}}}
    choice = chain.client.chat.completions.create(model="chat", messages=hi, tools=[tool]).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    vectors = chain.client.embeddings.create(model="embed", input=["banana", "x"]).data
    assert [row.embedding for row in vectors] == [[6, 3, 0.5], [1, 0, 0.5]]
    status, lines, _ = chain.shell.run("near", "invoke", "chat", "one two")
    assert (status, lines[-1]["output"]) == (0, None)
    assert [line["item"] for line in lines[:-1]] == ["one ", "two "]


def test_leaving_reaches_the_model_at_the_far_end(chain: Chain) -> None:
    hi: Any = [{"role": "user", "content": "leaving"}]
    left = chain.shell.base / "leaving"
    with chain.client.chat.completions.create(model="slow", messages=hi, stream=True) as stream:
        next(iter(stream))
    until(left.exists, "the far model was not stopped")


def test_a_killed_server_is_withdrawn_and_comes_back(chain: Chain) -> None:
    shell = chain.shell

    def states() -> set[str]:
        return {line["state"] for line in shell.run("near", "status")[1][0]["models"]}

    assert states() == {"serving"}
    chain.far[0].kill()
    chain.far[0].wait()
    until(lambda: states() == {"upstream away"}, "it is still published")
    assert shell.run("near", "invoke", "chat", "again")[0] in (3, 4)  # nobody has it, or nobody is there
    port = chain.url.rpartition(":")[2]
    beyond = ("--network", f"{shell.env['MODELNET_NETWORK']}-beyond")
    with shell.join("far", "--gateway", f"127.0.0.1:{port}", *beyond):
        until(lambda: states() == {"serving"}, "it is not published again")
        assert shell.run("near", "invoke", "chat", "again")[0] == 0
        status, lines, _ = shell.run("near", "unpublish", chain.url)
        assert (status, sorted(line["model"] for line in lines)) == (0, ["chat", "embed", "slow"])
