"""The official openai client, unmodified, over real sockets: bob's gateway, and alice, who serves models."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import openai
import pytest
import trio
from openai import AsyncOpenAI, OpenAI

from modelnet_p2p import Swarm

pytestmark = [pytest.mark.live, pytest.mark.slow]

SUPPORT = Path(__file__).parent.parent / "support"
TASKS = {
    "chat": "text-generation",
    "embed": "feature-extraction",
    "echoes": "text2text-generation",
    "slow": "summarization",
    "sleepy": "summarization",
    "flood": "translation",
}
TOOL: Any = {"type": "function", "function": {"name": "say", "parameters": {"type": "object"}}}
STREAMS, LENGTH = 60, 40  # at once, and words of each
Shell = Any  # the fixture, see conftest.py


class Gate(NamedTuple):
    """A running gateway."""

    url: str
    base: Path  # where the models write what becomes of their calls
    process: subprocess.Popen[str]
    provider: str

    def client(self, **options: Any) -> OpenAI:
        return OpenAI(
            base_url=f"{self.url}/v1", api_key="none", **{"max_retries": 0, "timeout": 60, **options}
        )

    def async_client(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def gate(lasting_shell: Shell) -> Iterator[Gate]:
    shell = lasting_shell
    shutil.copy(SUPPORT / "talkers.py", shell.base)
    with shell.join("alice") as (_, alice), shell.join("bob", "--gateway", "127.0.0.1:0") as (process, bob):
        commands = [shell.command("alice", "publish", f"talkers:{n}", "--task", t) for n, t in TASKS.items()]
        pipe = subprocess.PIPE
        running = [
            subprocess.Popen(c, env=shell.env, cwd=shell.base, stdout=pipe, stderr=pipe, text=True)
            for c in commands
        ]
        told = [one.communicate(timeout=90) for one in running]
        assert [one.returncode for one in running] == [0] * len(running), told
        yield Gate(bob["gateway"], shell.base, process, alice["peer"])


def hi(text: str) -> Any:  # Any: the client's own types of messages
    return [{"role": "user", "content": text}]


def until(path: Path, text: str = "") -> None:
    """Wait until a model has written that there."""
    end = time.monotonic() + 60
    while not path.exists() or text not in path.read_text():
        assert time.monotonic() < end, f"{path} does not say {text!r}"
        time.sleep(0.02)


def test_chat_and_completions(gate: Gate) -> None:
    client = gate.client()
    whole = client.chat.completions.with_raw_response.create(model="chat", messages=hi("one two"))
    assert whole.headers["x-modelnet-peer"] == gate.provider
    answer = whole.parse()
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("one two ", "stop")
    assert answer.usage is not None
    assert answer.usage.total_tokens == 3
    options: Any = {"include_usage": True}
    stream = client.chat.completions.create(
        model="task:text-generation", messages=hi("one two"), stream=True, stream_options=options
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "one two "
    assert chunks[-1].usage is not None
    called = client.chat.completions.create(model="chat", messages=hi("hi"), tools=[TOOL]).choices[0]
    assert called.message.tool_calls is not None
    function: Any = called.message.tool_calls[0]
    assert (function.function.name, json.loads(function.function.arguments)) == ("say", {"text": "hi"})
    with client.chat.completions.stream(model="chat", messages=hi("hi"), tools=[TOOL]) as events:
        final = events.get_final_completion().choices[0]
    assert final.message.tool_calls is not None
    assert final.message.tool_calls[0].function.arguments == '{"text":"hi"}'
    completion = client.completions.create(model="echoes", prompt="3")
    assert completion.choices[0].text == "0 1 2 "
    pieces = client.completions.create(model="echoes", prompt="3", stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == "0 1 2 "


def test_responses(gate: Gate) -> None:
    client = gate.client()
    answer = client.responses.create(model="chat", input="one two", instructions="be kind")
    assert (answer.output_text, answer.status) == ("one two ", "completed")
    with client.responses.stream(model="chat", input="one two") as events:
        kinds = [event.type for event in events]
        assert events.get_final_response().output_text == "one two "
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert kinds.count("response.output_text.delta") == 2
    tool: Any = {"type": "function", "name": "say", "parameters": {"type": "object"}, "strict": False}
    with client.responses.stream(model="chat", input="hi", tools=[tool]) as events:
        call: Any = events.get_final_response().output[0]
    assert (call.type, call.name, call.arguments) == ("function_call", "say", '{"text":"hi"}')
    follow: Any = [{"role": "user", "content": "hi"}, call.model_dump(exclude_none=True)]
    follow.append({"type": "function_call_output", "call_id": call.call_id, "output": "done it"})
    assert client.responses.create(model="chat", input=follow).output_text == "done it "


def test_embeddings_and_models(gate: Gate) -> None:
    client = gate.client()
    vectors = client.embeddings.create(model="embed", input=["banana", "x"])  # asks for base64
    assert [row.embedding for row in vectors.data] == [[6.0, 3.0, 0.5], [1.0, 0.0, 0.5]]
    plain = client.embeddings.create(model="embed", input="banana", encoding_format="float")
    assert plain.data[0].embedding == [6.0, 3.0, 0.5]
    assert {model.id for model in client.models.list()} >= set(TASKS)
    chat = client.models.retrieve("chat")
    assert chat.owned_by == gate.provider
    told: Any = chat.model_extra  # what OpenAI's own has not, the client keeps and passes over
    assert told["modelnet"]["provider"] == gate.provider


def test_errors_are_raised_as_what_they_are(gate: Gate) -> None:
    client = gate.client()
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nobody-has-this", messages=hi("x"))
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as twice:
        client.chat.completions.create(model="chat", messages=hi("x"), n=2)
    assert twice.value.param == "n"
    with pytest.raises(openai.InternalServerError, match="ValueError"):
        client.chat.completions.create(model="sleepy", messages=hi("not a number"))
    with pytest.raises(openai.APITimeoutError):
        gate.client(timeout=0.5).chat.completions.create(model="sleepy", messages=hi("30"))
    with pytest.raises(openai.InternalServerError) as late:
        client.chat.completions.create(
            model="sleepy", messages=hi("30"), extra_headers={"x-modelnet-timeout": "0.5"}
        )
    assert late.value.status_code == 504
    refused = gate.client(default_headers={"host": "evil.example"})
    with pytest.raises(openai.APIStatusError) as foreign:
        refused.models.list()
    assert foreign.value.status_code == 421
    with pytest.raises(openai.PermissionDeniedError):
        gate.client(default_headers={"origin": "https://evil.example"}).models.list()


async def one_stream(client: AsyncOpenAI, length: int = LENGTH) -> str:
    stream = await client.chat.completions.create(model="echoes", messages=hi(str(length)), stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def expected(length: int = LENGTH) -> str:
    return "".join(f"{number} " for number in range(length))


def test_many_streams_at_once_from_asyncio(gate: Gate) -> None:
    async def main() -> list[str]:
        async with gate.async_client() as client:
            return await asyncio.gather(*(one_stream(client) for _ in range(STREAMS)))

    assert asyncio.run(main()) == [expected()] * STREAMS  # no word lost


# the client's own generators are left to the collector, of which trio warns
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_the_same_from_trio(gate: Gate) -> None:
    texts: list[str] = []

    async with gate.async_client() as client, trio.open_nursery() as nursery:

        async def ask() -> None:
            texts.append(await one_stream(client, 10))

        for _ in range(10):
            nursery.start_soon(ask)
    assert texts == [expected(10)] * 10


def test_too_many_at_once_are_told_so(gate: Gate) -> None:
    async def ask(client: AsyncOpenAI) -> str:
        try:
            await client.chat.completions.create(model="sleepy", messages=hi("0.05"))
        except openai.RateLimitError as error:
            return error.response.headers["retry-after"]
        return "answered"

    async def main() -> list[str]:
        async with gate.async_client() as client:
            return await asyncio.gather(*(ask(client) for _ in range(25)))

    # who gave up on it before holds its slot for a second, until the model has been stopped
    gate.client().chat.completions.create(model="sleepy", messages=hi("0"))
    ends = asyncio.run(main())
    assert set(ends) == {"answered", "1"}  # a slot and a queue of 16, then no more
    assert ends.count("answered") >= 17


def test_a_dropped_connection_stops_the_model(gate: Gate) -> None:
    told = gate.base / "dropped"
    stream = gate.client().chat.completions.create(model="slow", messages=hi(str(told)), stream=True)
    assert next(iter(stream)).choices[0].delta.content == "0 "
    stream.close()
    until(told, "stopped")


def test_a_reader_that_is_slow_slows_the_model(gate: Gate) -> None:
    told = gate.base / "flood"
    body = json.dumps({"model": "flood", "messages": hi(str(told)), "stream": True}).encode()
    host, _, port = gate.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as lazy:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
        lazy.sendall(head.encode() + body)
        until(told)
        before = -1
        while (now := int(told.read_text() or 0)) != before:  # it comes to a stop, as nobody reads
            before = now
            time.sleep(1.0)
        assert now < 64 * 1024  # kilobytes: what sockets and windows hold, and no more


def test_a_program_opens_one_too() -> None:
    with Swarm.open(network=f"test-{uuid.uuid4().hex}", gateway="127.0.0.1:0") as swarm:
        url = swarm.status()["gateway"]
        assert httpx.get(f"{url}/healthz").json() == {"status": "ok"}
        assert httpx.get(f"{url}/v1/models").json() == {"object": "list", "data": []}
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz")


def test_a_port_that_is_taken(gate: Gate, lasting_shell: Shell) -> None:
    code, _, told = lasting_shell.run("carol", "join", "--gateway", gate.url)
    error = json.loads(told.splitlines()[-1])["error"]
    assert (code, error["code"]) == (6, "in-use")
    assert "--gateway 127.0.0.1:0" in error["hint"]


def test_leaving_in_the_middle_of_answers(gate: Gate) -> None:
    """The last test of these: bob goes, whatever his readers do."""
    told = gate.base / "leaving"
    stream = gate.client().chat.completions.create(model="slow", messages=hi(str(told)), stream=True)
    next(iter(stream))
    started = time.monotonic()
    gate.process.send_signal(signal.SIGTERM)
    assert gate.process.wait(30) == 0
    assert time.monotonic() - started < 6
    until(told, "stopped")
