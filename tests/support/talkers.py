"""Small models of every form that the gateway speaks to, without a framework: published as `talkers:NAME`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Json = dict[str, Any]  # Any: OpenAI's JSON


def shout(text: str) -> str:
    return text.upper()


def words(text: str) -> Iterator[str]:
    for word in text.split():
        yield word + " "


def chat(messages: dict[str, Any]) -> Iterator[Json]:
    """Says the last message word by word; calls the first tool where it is given some; counts."""
    if "prompt" in messages:
        yield {"choices": [{"index": 0, "text": messages["prompt"], "finish_reason": "stop"}]}
        yield {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}
        return
    said = str(messages["messages"][-1]["content"])
    spoken = said.split()
    if messages.get("tools"):
        name = messages["tools"][0]["function"]["name"]
        for arguments in ('{"text":', f'"{said}"}}'):
            function = (
                {"name": name, "arguments": arguments} if "{" in arguments else {"arguments": arguments}
            )
            call = {"index": 0, "id": "call_1", "type": "function", "function": function}
            yield {"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]}
        yield {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]}
    else:
        most = messages.get("max_tokens") or len(spoken)
        for word in spoken[:most]:
            yield {"choices": [{"index": 0, "delta": {"content": word + " "}, "finish_reason": None}]}
        ended = "length" if most < len(spoken) else "stop"
        yield {"choices": [{"index": 0, "delta": {}, "finish_reason": ended}]}
    count = {"prompt_tokens": len(messages["messages"]), "completion_tokens": len(spoken)}
    yield {"choices": [], "usage": {**count, "total_tokens": sum(count.values())}}


def embed(texts: list[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array([[len(text), text.count("a"), 0.5] for text in texts], np.float32)


def double(x: np.ndarray[Any, np.dtype[np.float32]], by: float = 2.0) -> Json:
    return {"y": x * np.float32(by)}


def broken(text: str) -> Iterator[str]:
    yield "one "
    raise RuntimeError("it broke")


def nonsense(text: str) -> Iterator[object]:
    yield [1, 2, 3]


def slow(text: str) -> Iterator[str]:
    """A word every 20 ms, for ever; what becomes of the call is written into the file that `text` names."""
    path = Path(text)
    try:
        for number in range(1 << 30):
            path.with_suffix(".count").write_text(str(number))
            yield f"{number} "
            time.sleep(0.02)
    finally:
        path.write_text("stopped")


async def echoes(text: str) -> AsyncIterator[str]:
    """As many numbers as `text` says, with a turn for others after each."""
    for number in range(int(text)):
        yield f"{number} "
        await asyncio.sleep(0)


echoes.slots = 64  # type: ignore[attr-defined]  # a word to whoever serves it


def sleepy(text: str) -> str:
    time.sleep(float(text))
    return "good morning"


def flood(text: str) -> Iterator[str]:
    """A kilobyte at a time, for ever, and how many so far in the file that `text` names."""
    for number in range(1 << 30):
        if number % 64 == 0:
            Path(text).write_text(str(number))
        yield "x" * 1024
