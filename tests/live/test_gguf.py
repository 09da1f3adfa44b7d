"""A GGUF file from one end to the other: published, called by its neighbours, and through the gateway.

Skipped where llama-cpp-python is not installed.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import openai
import psutil
import pytest
from openai import OpenAI

from modelnet_p2p import Swarm
from tiny_gguf import STORY, TEMPLATE, TICKS, save_tiny_gguf

pytest.importorskip("llama_cpp")
pytestmark = [pytest.mark.live, pytest.mark.slow]

Shell = Any  # of conftest.py, which tests cannot import
HELLO: Any = [{"role": "user", "content": "Hello"}]  # Any: the client's own types of messages
BEGUN = "Once upon"
REST = STORY.removeprefix(f" {BEGUN}")


class Net(NamedTuple):
    """Alice, who serves `tiny`; bob, who has a gateway; a shell beside them."""

    shell: Shell
    gateway: OpenAI
    alice: dict[str, Any]  # her ready line
    published: tuple[list[Any], list[Any]]  # what `publish --dry-run` and `publish` told


@pytest.fixture(scope="module")
def net(lasting_shell: Shell) -> Iterator[Net]:
    shell = lasting_shell
    save_tiny_gguf(shell.base / "tiny.gguf", template=TEMPLATE, context=4096)
    with shell.join("alice") as (_, alice), shell.join("bob", "--gateway", "127.0.0.1:0") as (_, bob):
        told = []
        for options in (["--dry-run"], []):
            status, lines, stderr = shell.run("alice", "publish", "tiny.gguf", *options)
            assert status == 0, stderr
            told.append(lines)
        client = OpenAI(base_url=f"{bob['gateway']}/v1", api_key="none", max_retries=0, timeout=60)
        yield Net(shell, client, alice, (told[0], told[1]))


def test_a_dry_run_says_what_is_published_then(net: Net) -> None:
    dry, published = (lines[-1] for lines in net.published)
    assert dry["digest"] == published["digest"]
    assert json.dumps(dry).count("llama.cpp") == 1


def test_commands_of_a_neighbour(net: Net) -> None:
    status, lines, stderr = net.shell.run("bob", "invoke", "tiny", BEGUN)
    assert (status, "".join(line["item"] for line in lines[:-1])) == (0, REST), stderr
    (net.shell.base / "chat.json").write_text(json.dumps({"messages": HELLO}))
    status, lines, stderr = net.shell.run("bob", "invoke", "tiny", "--input", "chat.json")
    deltas = [line["item"]["choices"][0]["delta"] for line in lines[:-2]]
    assert (status, "".join(delta.get("content", "") for delta in deltas)) == (0, STORY), stderr
    status, _, stderr = net.shell.run("bob", "invoke", "tiny", "tick " * 5000)
    assert status == 5
    assert "maximum context length is 4096 tokens" in stderr


def text_of(pieces: object) -> str:
    assert isinstance(pieces, list)
    return "".join(pieces)


def test_a_program(net: Net) -> None:
    network = net.shell.env["MODELNET_NETWORK"]
    with Swarm.open(network=network, bootstrap=net.alice["addrs"], listen=[]) as swarm:
        assert text_of(swarm.invoke("tiny", BEGUN)) == REST
        for number, piece in enumerate(swarm.stream("tiny", "tick", params={"max_tokens": 4000})):
            assert str(piece) in TICKS
            if number == 9:
                break
        assert text_of(swarm.invoke("tiny", BEGUN, params={"temperature": 1.5, "top_k": 1})) == REST


def test_the_openai_client(net: Net) -> None:
    client = net.gateway
    answer = client.chat.completions.create(model="tiny", messages=HELLO)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (STORY, "stop")
    stream = client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == STORY
    completion = client.completions.create(model="tiny", prompt=BEGUN, max_tokens=3)
    assert (completion.choices[0].text, completion.choices[0].finish_reason) == (" a time some", "length")
    hot: Any = {"model": "tiny", "prompt": BEGUN, "max_tokens": 20, "temperature": 2, "seed": 5}
    texts = {client.completions.create(**hot).choices[0].text for _ in range(2)}
    assert len(texts) == 1
    with pytest.raises(openai.BadRequestError, match="maximum context length is 4096 tokens"):
        client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=5000)


def test_several_at_once_and_one_who_leaves(net: Net) -> None:
    endless = net.gateway.completions.create(model="tiny", prompt="tick", max_tokens=4000, stream=True)
    next(iter(endless))

    def ask(_: int) -> str:
        return net.gateway.completions.create(model="tiny", prompt=BEGUN, max_tokens=99).choices[0].text

    with ThreadPoolExecutor(8) as pool:
        others = pool.map(ask, range(8))
        endless.close()
        assert list(others) == [REST] * 8


def worker_of(net: Net) -> int:
    """The process in which alice's one model runs."""
    children = psutil.Process(net.alice["pid"]).children(recursive=True)
    found: list[int] = [child.pid for child in children if any("serving.child" in w for w in child.cmdline())]
    return found[0]


def test_a_worker_that_is_killed_comes_back(net: Net) -> None:
    killed = worker_of(net)
    os.kill(killed, signal.SIGKILL)
    until = time.monotonic() + 60
    while True:
        try:
            answer = net.gateway.chat.completions.create(model="tiny", messages=HELLO)
            break
        except openai.APIStatusError:
            assert time.monotonic() < until
            time.sleep(0.1)
    assert answer.choices[0].message.content == STORY
    assert worker_of(net) != killed
