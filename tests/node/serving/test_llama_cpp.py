"""GGUF files in llama.cpp itself, on tiny ones made here. Skipped where llama-cpp-python is not installed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from gguf_writer import write_gguf
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.gguf import GgufBackend
from modelnet_p2p.node.serving.backends.gguf_file import read_gguf
from modelnet_p2p.node.serving.models import Models
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.node.weights.hashing import artifact_of
from modelnet_p2p.payload import Value
from tiny_gguf import RULE, STORY, TEMPLATE, TICKS, save_byte_pairs, save_tiny_gguf

pytest.importorskip("llama_cpp")

HELLO: list[Value] = [{"role": "user", "content": "Hello"}]
PATIENCE = 600.0  # seconds: where others build, a worker is long in coming
BEGUN = "Once upon"
REST = STORY.removeprefix(f" {BEGUN}")


async def at_once(step: Callable[[], Any]) -> Any:  # Any: each step's own result
    return step()


async def opened(path: Path, offload: Any = at_once) -> GgufBackend:  # Any: an Offload
    backend = GgufBackend(Source(str(path)), offload)
    await backend.load()
    return backend


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_tiny_gguf(folder / "Plain-Teller.gguf")
    save_tiny_gguf(folder / "chatty.gguf", template=TEMPLATE)
    return folder


@pytest.fixture
async def plain(folder: Path) -> GgufBackend:
    return await opened(folder / "Plain-Teller.gguf")


@pytest.fixture
async def chatty(folder: Path) -> GgufBackend:
    return await opened(folder / "chatty.gguf")


async def items(
    backend: GgufBackend, value: Value, **params: Value
) -> list[Any]:  # Any: as the form has them
    return [item async for item in backend.stream(value, params)]


async def text(backend: GgufBackend, prompt: str, **params: Value) -> str:
    return "".join(await items(backend, prompt, **params))


def said(chunks: list[Any]) -> str:
    return "".join(item["choices"][0]["delta"].get("content", "") for item in chunks[:-1])


async def refusal(backend: GgufBackend, value: Value, **params: Value) -> LocalError:
    with pytest.raises(LocalError) as caught:
        await items(backend, value, **params)
    return caught.value


async def test_the_record_is_the_files_own(plain: GgufBackend, folder: Path) -> None:
    told, path = plain.describe(), folder / "Plain-Teller.gguf"
    assert (told.name, told.task, told.framework) == ("plain-teller", "text-generation", "llama.cpp")
    assert (told.licence, told.languages, told.precision) == ("Apache-2.0", ("en",), "float32")
    assert told.parameters == read_gguf(path).parameters > 50_000
    assert (told.digest, told.size_bytes) == (artifact_of(path).root, path.stat().st_size)
    assert (told.streams, told.slots, told.idempotent) == (True, 1, True)
    assert told.context_length == 200  # the library makes room for 256
    assert told.latency_us


async def test_a_text_goes_on_in_pieces_of_whole_characters(plain: GgufBackend) -> None:
    pieces = await items(plain, BEGUN)
    assert "".join(pieces) == REST
    assert pieces[:3] == [" a", " time", " some"]
    assert {"é", "😀", RULE} <= set(pieces)


async def test_a_chat_uses_the_files_template_and_tells_its_usage(chatty: GgufBackend) -> None:
    chunks = await items(chatty, {"messages": HELLO})
    assert said(chunks) == STORY
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [item["choices"][0]["finish_reason"] for item in chunks[-3:-1]] == [None, "stop"]
    usage = chunks[-1]["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert await items(chatty, {"messages": HELLO}) == chunks
    more = await items(chatty, {"messages": HELLO, "chat_template_kwargs": {"start": f" {BEGUN}"}})
    assert said(more) == REST
    tool: Value = {"type": "function", "function": {"name": "look"}}
    assert (await items(chatty, {"messages": HELLO, "tools": [tool]}))[-1]["usage"] != usage


async def test_the_first_token_stands_there_once(chatty: GgufBackend, plain: GgufBackend) -> None:
    import llama_cpp

    for backend, value in ((chatty, {"messages": HELLO}), (plain, {"messages": HELLO}), (plain, BEGUN)):
        steps = backend._begin(_request(value))
        next(steps)
        begun = backend._llama.input_ids[: backend._llama.n_tokens].tolist()
        assert begun.count(llama_cpp.llama_vocab_bos(backend._vocab)) == 1
        assert begun[0] == llama_cpp.llama_vocab_bos(backend._vocab)


def _request(value: Any) -> Any:
    from modelnet_p2p.node.serving.backends.generation.requests import Sampling, read_request

    return read_request(value, {}, Sampling())


async def test_a_byte_level_tokenizer_is_as_good(tmp_path: Path) -> None:
    backend = await opened(save_byte_pairs(tmp_path / "pairs.gguf", template=TEMPLATE))
    pieces = await items(backend, f" {BEGUN}")
    assert "".join(pieces) == REST
    assert {"é", "😀", RULE} <= set(pieces)
    assert said(await items(backend, {"messages": HELLO})) == STORY
    assert said(await items(backend, {"messages": [{"role": "user", "content": STORY + "日本"}]})) == STORY
    for empty in ("", {"prompt": ""}):
        assert "the prompt is empty" in (await refusal(backend, empty)).message


async def test_what_a_caller_writes_is_no_token_of_the_models_own(plain: GgufBackend) -> None:
    short = await items(plain, {"prompt": "a", "max_tokens": 1})
    long = await items(plain, {"prompt": "a<|assistant|>", "max_tokens": 1})
    assert long[-1]["usage"]["prompt_tokens"] > short[-1]["usage"]["prompt_tokens"] + 5
    chat = await items(plain, {"messages": [{"role": "user", "content": "<|assistant|>"}]})
    assert chat[-1]["usage"]["prompt_tokens"] > 20


async def test_completions_end_at_their_length(plain: GgufBackend) -> None:
    found = await items(plain, {"prompt": BEGUN, "max_tokens": 3})
    assert "".join(item["choices"][0]["text"] for item in found[:-1]) == " a time some"
    assert found[-2]["choices"][0]["finish_reason"] == "length"
    assert found[-1]["usage"]["completion_tokens"] == 3


async def test_nothing_of_a_stop_string_comes(plain: GgufBackend) -> None:
    found = await items(plain, {"prompt": BEGUN, "max_tokens": 99, "stop": ["peers met", "never"]})
    assert "".join(item["choices"][0]["text"] for item in found[:-1]) == " a time some "
    assert found[-2]["choices"][0]["finish_reason"] == "stop"


async def test_a_seed_repeats_a_draw_whoever_came_between(plain: GgufBackend) -> None:
    hot: dict[str, Value] = {"temperature": 2, "max_tokens": 30}
    for seed in (7, 0, -1, 1 << 40):
        first = await text(plain, BEGUN, seed=seed, **hot)
        await text(plain, " tick", max_tokens=20)
        assert await text(plain, BEGUN, seed=seed, **hot) == first
    assert len({await text(plain, BEGUN, seed=seed, **hot) for seed in range(6)}) > 1
    assert len({await text(plain, BEGUN, **hot) for _ in range(6)}) > 1
    assert await text(plain, BEGUN, top_k=1, **hot) == REST
    assert await text(plain, BEGUN, top_p=0.0, **hot) == REST


async def test_penalties_and_biases_change_what_comes(plain: GgufBackend) -> None:
    token = plain._llama.tokenize(b"a", add_bos=False)[0]
    biased = await items(plain, BEGUN, logit_bias={str(token): -100, "99999999": 5})
    assert biased[:1] != [" a"]
    assert await text(plain, "x", max_tokens=3, logit_bias={str(token): 100}) == " a a a"
    assert await text(plain, "tick", max_tokens=150) == " tock tick" * 75
    for option in ("frequency_penalty", "presence_penalty"):
        assert "tock tick tock" not in await text(
            plain, "tick", max_tokens=150, **{option: 2}, **_wild(plain)
        )
        assert await text(plain, "tick", max_tokens=4, **{option: -2}) == " tock tick tock tick"
    # of a whole answer: a hundred times as little is enough after a hundred words
    slow: dict[str, Any] = {"max_tokens": 190, "logit_bias": {"2": -100}}
    assert await text(plain, "tick", **slow) == " tock tick" * 95
    late = await text(plain, "tick", frequency_penalty=0.1, **slow)
    assert late.startswith(" tock tick" * 50)
    assert late != " tock tick" * 95


def _wild(backend: GgufBackend) -> dict[str, Any]:
    """That what comes again is by less than a penalty the best, and no end comes."""
    tick, tock = (backend._llama.tokenize(word, add_bos=False)[0] for word in (b"tick", b"tock"))
    return {"logit_bias": {str(tick): -7, str(tock): -7, "2": -100}}


async def test_what_does_not_fit_names_the_numbers(plain: GgufBackend) -> None:
    for value in (
        {"messages": HELLO, "max_tokens": 300},
        {"prompt": "x" * 600},
        {"prompt": "x" * 99_999},
        {"prompt": [5] * 200},
        {"prompt": [5] * 195, "max_tokens": 6},
    ):
        error = await refusal(plain, value)
        assert "maximum context length is 200 tokens" in error.message
        assert error.code is Code.BAD_INPUT
    for value in ({"prompt": [9999]}, {"prompt": "a", "logprobs": 2}):
        assert (await refusal(plain, value)).code is Code.BAD_INPUT
    assert len(await items(plain, {"prompt": [5] * 194, "max_tokens": 6})) > 1
    to_the_end = await items(plain, {"messages": [{"role": "user", "content": "tick"}], "max_tokens": None})
    assert to_the_end


async def test_a_template_that_refuses_is_the_callers_mistake(chatty: GgufBackend) -> None:
    error = await refusal(chatty, {"messages": [{"role": "tool", "content": "x"}]})
    assert "no tools here" in error.message
    assert error.code is Code.BAD_INPUT
    error = await refusal(chatty, {"messages": HELLO, "chat_template_kwargs": {"bos_token": "x"}})
    assert error.code is Code.BAD_INPUT
    assert said(await items(chatty, {"messages": HELLO})) == STORY


async def test_who_leaves_is_out_before_the_next_part_of_the_prompt(folder: Path) -> None:
    left = 10_000

    async def leaving(step: Callable[[], Any]) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise asyncio.CancelledError
        return step()

    backend = await opened(folder / "Plain-Teller.gguf", leaving)
    backend._part = 32
    left = 4  # it is begun, and two parts are read
    with pytest.raises(asyncio.CancelledError):
        await items(backend, {"prompt": [5] * 190, "max_tokens": 5})
    assert backend._llama.n_tokens == 64
    assert await text(backend, BEGUN) == REST


@pytest.mark.parametrize("part", [1, 3, 512])
async def test_the_same_comes_in_whatever_parts_a_prompt_is_read(plain: GgufBackend, part: int) -> None:
    prompt = " ".join(["tick tock"] * 30) + f" {BEGUN}"
    plain._part = part
    assert await text(plain, prompt) == REST


async def test_what_the_library_cannot_load_is_told_with_its_reason(folder: Path, tmp_path: Path) -> None:
    async def trouble(path: Path) -> str:
        with pytest.raises(LocalError) as caught:
            await opened(path)
        assert caught.value.code is Code.BAD_INPUT
        return caught.value.message

    whole = (folder / "chatty.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[:-9000])
    assert "corrupted or incomplete" in await trouble(tmp_path / "cut.gguf")
    new = write_gguf(tmp_path / "new.gguf", {"general.architecture": "nova"}, {"a": np.zeros(4, np.float32)})
    assert "nova" in await trouble(new)
    broken = save_tiny_gguf(tmp_path / "broken.gguf", template="{% for %}")
    assert "chat template" in await trouble(broken)


async def test_files_of_the_formats_own_package(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = save_tiny_gguf(tmp_path / "ours.gguf", template=TEMPLATE)
    theirs = gguf.GGUFReader(path)
    assert {tensor.name for tensor in theirs.tensors} >= {"token_embd.weight", "blk.1.ffn_down.weight"}
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "llama")
    for name, field in theirs.fields.items():
        if not name.startswith(("GGUF.", "general.architecture")):
            kind, inner = field.types[0], field.types[-1] if len(field.types) > 1 else None
            writer.add_key_value(name, field.contents(), kind, sub_type=inner)
    for tensor in theirs.tensors:
        data = tensor.data.reshape(tensor.shape[::-1])
        kind = gguf.GGMLQuantizationType.Q8_0 if data.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(tensor.name, gguf.quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_gguf(tmp_path / "theirs.gguf")
    assert (found.precision, found.parameters) == ("q8_0", read_gguf(path).parameters)
    backend = await opened(tmp_path / "theirs.gguf")
    assert said(await items(backend, {"messages": HELLO})) == STORY


# --- in a worker process ---


@pytest.mark.live
async def test_a_worker_that_is_killed_in_an_answer_ends_it_and_comes_back(
    patient_models: Models, source: Callable[..., Source], folder: Path
) -> None:
    served = await patient_models.add(source(str(folder / "Plain-Teller.gguf"), model="acme/teller"))
    got: list[Any] = []

    async def take(item: Value) -> None:
        got.append(item)
        if len(got) == 3 and served.pid is not None:
            os.kill(served.pid, signal.SIGKILL)

    with pytest.raises(LocalError) as caught:
        await served.run("stream", "tick", {"max_tokens": 190}, take, trio.current_time() + PATIENCE)
    assert caught.value.code is Code.MODEL_ERROR
    assert "died" in caught.value.message
    told: dict[str, list[Any]] = {BEGUN: [], "tick": [], "Once": []}

    async def ask(prompt: str) -> None:
        async def keep(item: Value) -> None:
            told[prompt].append(item)

        await served.run("stream", prompt, {"max_tokens": 150}, keep, trio.current_time() + PATIENCE)

    async with trio.open_nursery() as nursery:  # it is back, and answers one after the other
        for prompt in told:
            nursery.start_soon(ask, prompt)
    assert "".join(told[BEGUN]) == REST
    assert "".join(told["Once"]) == STORY.removeprefix(" Once")
    assert "".join(told["tick"]) == TICKS.replace("tick tock", "tock tick") * 75


@pytest.mark.live
async def test_a_caller_who_leaves_makes_room_for_the_next(
    patient_models: Models, source: Callable[..., Source], tmp_path: Path
) -> None:
    long = save_tiny_gguf(tmp_path / "long.gguf", context=8192)
    served = await patient_models.add(source(str(long)))
    got: list[Any] = []

    with trio.CancelScope() as scope:

        async def take(item: Value) -> None:
            got.append(item)
            if len(got) == 5:
                scope.cancel()

        await served.run("stream", "tick", {"max_tokens": 8000}, take, trio.current_time() + PATIENCE)
    pid = served.pid
    told: list[Any] = []

    async def keep(item: Value) -> None:
        told.append(item)

    await served.run("stream", BEGUN, {}, keep, trio.current_time() + PATIENCE)
    assert "".join(told) == REST
    assert served.pid == pid  # and it was no new one
    assert len(got) < 50
