"""Models of the transformers library from a directory, on tiny ones made here: generation above all."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from shutil import copytree
from typing import Any, TypeVar

import numpy as np
import pytest
import trio
from safetensors.numpy import load_file, save_file

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.hosting import remarks
from modelnet_p2p.node.serving.backends.pretrained.backend import TransformersBackend
from modelnet_p2p.node.serving.models import Models
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.payload import Value

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from modelnet_p2p.node.serving.backends import torch_packing  # noqa: E402
from modelnet_p2p.node.serving.backends.generation.requests import Sampling  # noqa: E402
from modelnet_p2p.node.serving.backends.pretrained import engine as engine_module  # noqa: E402
from modelnet_p2p.node.serving.backends.pretrained.cache import RowCache  # noqa: E402
from modelnet_p2p.node.serving.backends.pretrained.engine import Engine, Row  # noqa: E402
from modelnet_p2p.node.serving.backends.pretrained.sampling import Drawn, Sampler  # noqa: E402
from tiny_models import CORPUS, as_sentence_transformer, save_bert, save_llama  # noqa: E402

T = TypeVar("T")
PATIENCE = 600.0  # seconds: a worker imports torch and transformers, which takes long where others build
HELLO = [{"role": "user", "content": "Hello"}]

pytestmark = pytest.mark.slow  # importing transformers takes seconds


class Stage:
    """Backends in one asyncio loop, as the worker has them."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self.runner = runner

    def run(self, awaitable: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(awaitable)

    def open(self, folder: Path, **options: str) -> TransformersBackend:
        async def load() -> TransformersBackend:
            lock = asyncio.Lock()

            async def offload(step: Callable[[], Any]) -> Any:  # Any: each step's own result
                async with lock:
                    return await asyncio.to_thread(step)

            backend = TransformersBackend(Source(str(folder), options=options), offload)
            await backend.load()
            return backend

        return self.run(load())

    def texts(self, backend: TransformersBackend, prompts: list[str], **params: Value) -> list[str]:
        """What becomes of several prompts at once."""

        async def one(prompt: str) -> str:
            return "".join([str(piece) async for piece in backend.stream(prompt, params)])

        async def every() -> list[str]:
            return await asyncio.gather(*(one(prompt) for prompt in prompts))

        return self.run(every())

    def items(self, backend: TransformersBackend, value: Value, **params: Value) -> list[Any]:
        async def every() -> list[Any]:
            return [item async for item in backend.stream(value, params)]

        return self.run(every())


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with asyncio.Runner() as runner:
        yield Stage(runner)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def llama(stage: Stage, folder: Path) -> Iterator[TransformersBackend]:
    backend = stage.open(folder)
    yield backend
    stage.run(backend.close())


def test_the_record_is_the_models_own(llama: TransformersBackend, folder: Path) -> None:
    told = llama.describe()
    assert (told.name, told.task, told.framework) == ("tiny-teller", "text-generation", "transformers")
    assert (told.licence, told.languages, told.family) == ("Apache-2.0", ("en", "de"), "acme/base")
    assert (told.precision, told.context_length) == ("float32", 256)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert told.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert told.size_bytes == (folder / "model.safetensors").stat().st_size
    assert told.digest is not None
    assert (told.streams, told.slots, told.deterministic, told.idempotent) == (True, 8, True, True)
    assert [spec.kind for spec in told.inputs] == ["json"]
    assert told.latency_us


def test_what_its_card_says_in_vain_is_told(stage: Stage, tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "encoder")
    (folder / "README.md").write_text("---\nlicense: [mit, apache-2.0]\n---\n")
    backend = stage.open(folder)
    told = backend.describe()
    stage.run(backend.close())
    note = "the licence in README.md is not one name, none is told: ['mit', 'apache-2.0']"
    assert (told.licence, told.notes) == ("", (note,))
    assert remarks(told, Source(str(folder)), None) == {"replaces": None, "notes": [note]}


def test_a_text_goes_on_in_pieces(llama: TransformersBackend, stage: Stage) -> None:
    pieces = stage.items(llama, "Once upon")
    assert len(pieces) > 10
    assert "Once upon" + "".join(pieces) == CORPUS[0]


def test_characters_of_several_bytes_come_whole(llama: TransformersBackend, stage: Stage) -> None:
    pieces = stage.items(llama, CORPUS[2][:9])
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert "日本語" in "".join(pieces)


def test_a_chat_uses_the_models_template_and_tells_its_usage(
    llama: TransformersBackend, stage: Stage
) -> None:
    items = stage.items(llama, {"messages": HELLO})
    choices = [item["choices"][0] for item in items[:-1]]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == CORPUS[0]
    assert choices[0]["delta"]["role"] == "assistant"
    assert [choice["finish_reason"] for choice in choices[-2:]] == [None, "stop"]
    usage = items[-1]["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] > 10


def test_completions_end_at_their_length_and_tell_chances(llama: TransformersBackend, stage: Stage) -> None:
    asked = {"prompt": "Once upon", "max_tokens": 3, "logprobs": 2}
    items = stage.items(llama, asked)
    assert items[-2]["choices"][0]["finish_reason"] == "length"
    assert items[-1]["usage"]["completion_tokens"] == 3
    told = items[0]["choices"][0]["logprobs"]
    assert told["tokens"][0] in told["top_logprobs"][0]
    assert all(chance <= 0 for chance in told["token_logprobs"])


def test_nothing_of_a_stop_string_comes(llama: TransformersBackend, stage: Stage) -> None:
    items = stage.items(llama, {"prompt": "Once upon", "max_tokens": 99, "stop": ["peer who", "never"]})
    text = "".join(item["choices"][0]["text"] for item in items[:-1])
    assert text == " a time there was a little "
    assert items[-2]["choices"][0]["finish_reason"] == "stop"


def test_batched_is_token_for_token_what_unbatched_is(llama: TransformersBackend, stage: Stage) -> None:
    prompts = [line[:length] for line in CORPUS for length in (1, 4, 5, 13, 29)]
    alone = [stage.texts(llama, [prompt], max_tokens=60)[0] for prompt in prompts]
    assert stage.texts(llama, prompts, max_tokens=60) == alone


def test_a_seed_repeats_a_draw_beside_others(llama: TransformersBackend, stage: Stage) -> None:
    hot: dict[str, Value] = {"temperature": 1.5, "top_p": 0.95, "max_tokens": 30}
    first = stage.texts(llama, ["zq"], seed=7, **hot)
    again = stage.texts(llama, ["zq", "It asked", "Ein"], seed=7, **hot)
    assert again[0] == first[0]
    assert len({stage.texts(llama, ["zq"], seed=seed, **hot)[0] for seed in range(6)}) > 1
    assert len({stage.texts(llama, ["zq"], **hot)[0] for _ in range(6)}) > 1


def test_penalties_and_biases_change_what_comes(llama: TransformersBackend, stage: Stage) -> None:
    plain = stage.items(llama, "Once upon", max_tokens=20)
    space = llama._generator._tokenizer._tokenizer.encode(" a")[0]
    biased = stage.items(llama, "Once upon", max_tokens=20, logit_bias={str(space): -100})
    assert plain[0] == " a"
    assert biased[0] != " a"
    wild = {"max_tokens": 60, "logit_bias": {"1": -100}}  # goes on beyond its end, and then in circles
    assert stage.items(llama, "Once upon", **wild, frequency_penalty=2) != stage.items(
        llama, "Once upon", **wild
    )


def test_what_does_not_fit_names_the_numbers(llama: TransformersBackend, stage: Stage) -> None:
    beyond: list[Value] = [
        {"messages": HELLO, "max_tokens": 300},
        {"prompt": "x" * 600},
        {"prompt": "x" * 99_999},
        {"prompt": [5] * 256},
    ]
    for value in beyond:
        with pytest.raises(LocalError, match="maximum context length is 256 tokens") as caught:
            stage.items(llama, value)
        assert caught.value.code is Code.BAD_INPUT
    wrong: list[Value] = [{"prompt": [9999]}, {"prompt": ""}, ""]
    for value in wrong:
        with pytest.raises(LocalError) as caught:
            stage.items(llama, value)
        assert caught.value.code is Code.BAD_INPUT
    assert len(stage.items(llama, {"prompt": [5] * 250, "max_tokens": 6})) > 1


def test_a_template_that_refuses_is_the_callers_mistake(llama: TransformersBackend, stage: Stage) -> None:
    tokenizer = llama._generator._tokenizer._tokenizer
    before, tokenizer.chat_template = tokenizer.chat_template, "{{ raise_exception('users first') }}"
    try:
        with pytest.raises(LocalError, match="users first") as caught:
            stage.items(llama, {"messages": HELLO})
    finally:
        tokenizer.chat_template = before
    assert caught.value.code is Code.BAD_INPUT


def test_a_caller_that_leaves_frees_its_row_and_disturbs_nobody(
    llama: TransformersBackend, stage: Stage
) -> None:
    async def leave_early() -> tuple[list[Any], str]:
        stream = llama.stream("Once upon", {"max_tokens": 200, "logit_bias": {"1": -100}})
        other = asyncio.create_task(whole())
        got = [await anext(stream) for _ in range(3)]
        await stream.aclose()
        return got, await other

    async def whole() -> str:
        return "".join([str(piece) async for piece in llama.stream("It asked", {})])

    got, other = stage.run(leave_early())
    assert len(got) == 3
    assert "It asked" + other == CORPUS[1]

    async def settle() -> None:
        while not llama._generator._engine.is_idle:
            await asyncio.sleep(0.01)

    stage.run(asyncio.wait_for(settle(), 60))
    assert not llama._generator._calls


def test_what_one_caller_asks_for_ends_no_other_call(
    llama: TransformersBackend, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    hot: dict[str, Value] = {"temperature": 1e-300, "max_tokens": 9}
    assert stage.texts(llama, ["Once upon"], **hot) == stage.texts(llama, ["Once upon"], max_tokens=9)

    def broken(self: Sampler, logits: object) -> Drawn:
        raise RuntimeError("probability tensor contains nan")

    async def both() -> tuple[object, str]:
        async def text(prompt: str, params: dict[str, Value]) -> str:
            return "".join([str(piece) async for piece in llama.stream(prompt, params)])

        odd = text("Once upon", {"temperature": 1})
        failed, other = await asyncio.gather(odd, text("It asked", {}), return_exceptions=True)
        return failed, str(other)

    with monkeypatch.context() as patch:
        patch.setattr(Sampler, "draw", broken)
        failed, other = stage.run(both())
    assert isinstance(failed, LocalError)
    assert "contains nan" in failed.message
    assert "It asked" + other == CORPUS[1]


def test_a_failing_step_ends_the_calls_and_not_the_model(
    llama: TransformersBackend, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(llama._generator._engine, "_read_prompts", broken)
        with pytest.raises(LocalError, match="out of memory") as caught:
            stage.items(llama, "Once")
    assert caught.value.code is Code.MODEL_ERROR
    assert stage.items(llama, "Once upon")[0] == " a"


def test_code_that_a_directory_brings_is_not_run(stage: Stage, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "evil.py").write_text("raise SystemExit('it was run')")
    save_file({"a": np.zeros(1, np.float32)}, folder / "model.safetensors")
    config = {"architectures": ["EvilForCausalLM"], "model_type": "evil"}
    for fields, code, words in (
        ({"auto_map": {"AutoModelForCausalLM": "evil.Evil"}}, Code.UNSAFE, "brings the code of its model"),
        ({}, Code.BAD_INPUT, "knows no model_type 'evil'"),
    ):
        (folder / "config.json").write_text(json.dumps(config | fields))
        with pytest.raises(LocalError, match=words) as caught:
            stage.open(folder)
        assert caught.value.code is code


def test_files_that_are_cut_off_are_named(stage: Stage, folder: Path, tmp_path: Path) -> None:
    for name, code in (("model.safetensors", "is cut off or damaged"), ("tokenizer.json", "its tokenizer")):
        broken = tmp_path / name.partition(".")[0]
        copytree(folder, broken)
        (broken / name).write_bytes((folder / name).read_bytes()[:1000])
        with pytest.raises(LocalError, match=code) as caught:
            stage.open(broken)
        assert caught.value.code is Code.BAD_INPUT
        assert str(broken) in caught.value.message


def test_weights_that_are_missing_are_not_made_up(stage: Stage, folder: Path, tmp_path: Path) -> None:
    copytree(folder, tmp_path / "part")
    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "part" / "model.safetensors", {"format": "pt"})
    with pytest.raises(LocalError, match=r"model\.norm\.weight") as caught:
        stage.open(tmp_path / "part")
    assert caught.value.code is Code.BAD_INPUT


def test_with_packed_weights_comes_the_same_text(
    llama: TransformersBackend, stage: Stage, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for bound in ("LARGE", "SMALL", "LEAST_SIDE"):
        monkeypatch.setattr(torch_packing, bound, 1)
    backend = stage.open(folder)
    try:
        model = backend._generator._engine._model
        layers = [part for part in model.modules() if isinstance(part, torch.nn.Linear)]
        assert {type(layer) for layer in layers} == {torch_packing.PackedLinear}
        assert backend._generator._engine.batches
        prompts = [line[:length] for line in CORPUS for length in (1, 5, 13)]
        assert stage.texts(backend, prompts, max_tokens=60) == stage.texts(llama, prompts, max_tokens=60)
        told, was = backend.describe(), llama.describe()
        assert (told.parameters, told.precision) == (was.parameters, was.precision)
        assert (told.size_bytes, told.digest) == (was.size_bytes, was.digest)
        assert {type(layer) for layer in layers} == {torch_packing.PackedLinear}  # nobody read a weight
    finally:
        stage.run(backend.close())


# --- the engine alone ---


def engine_of(model: Any, slots: int = 4, budget: int = 1 << 30) -> Engine:
    return Engine(model, slots, budget)


def outcome(
    engine: Engine, prompts: list[list[int]], length: int, rows: list[int] | None = None
) -> list[list[int]]:
    """The tokens for each prompt; a prompt comes with each step, and `rows` hears how many are on."""
    drawn: list[list[int]] = [[] for _ in prompts]

    def taker(at: int) -> Callable[[Drawn], bool]:
        def take(found: Drawn) -> bool:
            drawn[at].append(found.token)
            return len(drawn[at]) == length

        return take

    for at, prompt in enumerate(prompts):
        engine.add(Row(list(prompt), Sampler(Sampling(), None), taker(at)))
        engine.step()
    while not engine.is_idle:
        engine.step()
        if rows is not None:
            rows.append(len(engine._rows))
    return drawn


SMALL: dict[str, int] = {"vocab_size": 200, "hidden_size": 64, "num_hidden_layers": 2}
HEADS: dict[str, int] = {"num_attention_heads": 4, "intermediate_size": 96}
PROMPTS = [[5, 6, 7], list(range(10, 40)), [9], [8, 7, 6, 5, 4, 3, 2, 1, 11, 12, 13], [50, 51]]


@pytest.mark.parametrize(
    ("config", "fields", "batches"),
    [
        ("MistralConfig", SMALL | HEADS | {"num_key_value_heads": 2, "sliding_window": 12}, True),
        ("MambaConfig", SMALL, False),
    ],
)
def test_other_architectures_give_what_they_give_without_a_cache(
    config: str, fields: dict[str, Any], batches: bool
) -> None:
    torch.manual_seed(0)
    made = getattr(transformers, config)(**fields, initializer_range=0.2)
    model = transformers.AutoModelForCausalLM.from_config(made).eval()
    engine = engine_of(model)
    assert engine.batches is batches
    found = outcome(engine, PROMPTS, 30)
    for prompt, tokens in zip(PROMPTS, found, strict=True):
        wanted = uncached(model, prompt, 30)
        assert tokens == wanted or engine.near, f"{engine.near} near ties among {engine.drawn}"


def uncached(model: Any, prompt: list[int], length: int) -> list[int]:
    """What comes without any cache, each token from all before it."""
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(length):
            logits = model(input_ids=torch.tensor([tokens]), use_cache=False).logits
            tokens.append(int(logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_rows_that_outgrow_their_memory_take_turns(
    llama: TransformersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llama._generator._engine._model
    cell = llama._generator._engine._cell_bytes
    engine = engine_of(model, slots=8, budget=cell * 100)
    assert engine.most_tokens == 100
    monkeypatch.setattr(engine_module, "HEADROOM", 5)
    most: list[int] = []
    prompts = [[5 + at] * 10 for at in range(4)]
    wide = outcome(engine_of(model, slots=8), prompts, 40)
    assert outcome(engine, prompts, 40, most) == wide  # though some gave way to others, and read twice
    assert max(most) == 4
    assert 2 in most  # of 50 tokens each at last: a third one would be beyond 100


def test_a_long_prompt_does_not_hold_up_the_others(llama: TransformersBackend) -> None:
    engine = engine_of(llama._generator._engine._model)
    steps: list[str] = []
    engine.add(Row([5, 6], Sampler(Sampling(), None), noted(steps, "short")))
    engine.step()
    long = Row([7] * 700, Sampler(Sampling(), None), noted(steps, "long"))
    engine.add(long)
    for _ in range(3):
        engine.step()
    assert steps == ["short"] * 4 + ["long"] + ["short"]


def noted(steps: list[str], name: str) -> Callable[[Drawn], bool]:
    def take(drawn: Drawn) -> bool:
        steps.append(name)
        return name == "long"

    return take


def test_columns_do_not_grow_for_ever() -> None:
    cache = RowCache(1)
    for width in (3, *[1] * 500):
        cache.reserve(width)
        cache.update(torch.ones(1, 2, width, 4), torch.ones(1, 2, width, 4), 0)
        cache.advance(width)
        if cache.columns.width > 20:  # as if a longer row had left
            cache.columns.start = cache.columns.end - 5
    assert cache.columns.capacity <= 128
    assert cache.cell_bytes == 2 * 2 * 4 * 4


# --- encoders and classifiers ---


def test_an_encoder_gives_the_mean_of_its_states(stage: Stage, tmp_path: Path) -> None:
    folder = save_bert(tmp_path / "enc")
    backend = stage.open(folder)
    assert backend.describe().task == "feature-extraction"
    vectors = stage.run(invoked(backend, CORPUS))
    assert (vectors.shape, vectors.dtype) == ((3, 32), np.float32)
    assert backend.describe().outputs[0].shape == (None, 32)
    np.testing.assert_allclose(vectors[1:2], stage.run(invoked(backend, CORPUS[1])), atol=1e-5)
    tokens = backend._encoder.tokens([CORPUS[1]])[0]
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    with torch.inference_mode():
        states = model(input_ids=torch.tensor([tokens.fields["input_ids"]])).last_hidden_state
    np.testing.assert_allclose(vectors[1], states[0].mean(0).numpy(), atol=1e-5)
    openai = stage.run(invoked(backend, {"input": CORPUS[:2], "encoding_format": "float"}))
    np.testing.assert_allclose(openai["embeddings"], vectors[:2], atol=1e-5)
    assert openai["usage"]["prompt_tokens"] == openai["usage"]["total_tokens"] > 10
    both = stage.run(backend.invoke_many([(CORPUS[0], {}), (CORPUS[1:], {})]))
    np.testing.assert_allclose(np.concatenate(both), vectors, atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("pooling", ["cls_token", "max_tokens", "mean_sqrt_len_tokens", "lasttoken"])
def test_sentence_transformers_say_how_they_pool(stage: Stage, tmp_path: Path, pooling: str) -> None:
    folder = save_bert(tmp_path / "st")
    as_sentence_transformer(folder, pooling=pooling)
    backend = stage.open(folder)
    assert backend.describe().context_length == 32
    vectors = stage.run(invoked(backend, [CORPUS[0], "It"]))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors[1:], stage.run(invoked(backend, "It")), atol=1e-5)


def test_a_classifier_gives_labels_with_scores(stage: Stage, tmp_path: Path) -> None:
    backend = stage.open(save_bert(tmp_path / "cls", labels=("good", "bad", "odd")))
    assert backend.describe().task == "text-classification"
    one = stage.run(invoked(backend, CORPUS[0]))
    assert {entry["label"] for entry in one} == {"good", "bad", "odd"}
    assert sum(entry["score"] for entry in one) == pytest.approx(1)
    assert one == sorted(one, key=lambda entry: -entry["score"])
    several = stage.run(invoked(backend, [CORPUS[0], {"text": "a", "text_pair": "b"}], top_k=1))
    assert [len(entries) for entries in several] == [1, 1]
    assert several[0][0]["label"] == one[0]["label"]
    both: list[Any] = stage.run(backend.invoke_many([("a", {}), (["a", "b"], {})]))
    assert both[0] == both[1][0]
    for value in ([], [7], "", {"text": "a"}):
        with pytest.raises(LocalError) as caught:
            stage.run(invoked(backend, value))
        assert caught.value.code is Code.BAD_INPUT


async def invoked(backend: TransformersBackend, value: Value, **params: Value) -> Any:
    # Any: each test knows what its model gives
    return await backend.invoke(value, params)


# --- in a worker process ---


@pytest.mark.live
async def test_a_worker_that_is_killed_in_an_answer_ends_it_and_comes_back(
    patient_models: Models, source: Callable[..., Source], folder: Path
) -> None:
    served = await patient_models.add(source(str(folder), model="acme/teller"))
    assert served.description.tags == ("tiny", "story-teller")
    items: list[Any] = []

    async def take(item: Value) -> None:
        items.append(item)
        if len(items) == 3 and served.pid is not None:
            os.kill(served.pid, signal.SIGKILL)

    deadline = trio.current_time() + PATIENCE
    endless: dict[str, Value] = {"max_tokens": 200, "logit_bias": {"1": -100}}
    with pytest.raises(LocalError) as caught:
        await served.run("stream", "Once upon", endless, take, deadline)
    assert caught.value.code is Code.MODEL_ERROR
    assert "died" in caught.value.message
    items.clear()
    texts: dict[str, list[Any]] = {line[:9]: [] for line in CORPUS}

    async def ask(prompt: str) -> None:
        async def keep(item: Value) -> None:
            texts[prompt].append(item)

        await served.run("stream", prompt, {}, keep, trio.current_time() + PATIENCE)

    async with trio.open_nursery() as nursery:  # it is back, and answers several at once
        for prompt in texts:
            nursery.start_soon(ask, prompt)
    assert [prompt + "".join(pieces) for prompt, pieces in texts.items()] == CORPUS
