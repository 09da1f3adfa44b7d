"""What stands in a model's directory and in its card, and what of it is refused before anything is loaded."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.pretrained import loading
from modelnet_p2p.node.serving.backends.pretrained.backend import TransformersBackend
from modelnet_p2p.node.serving.backends.pretrained.card import Card, parse_card
from modelnet_p2p.node.serving.backends.pretrained.folder import Kind, looks_like_folder, open_folder
from modelnet_p2p.node.serving.backends.registry import find_backend
from modelnet_p2p.node.serving.description import Description
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.node.weights.hashing import artifact_of

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "max_position_embeddings": 64}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory that looks like a model's; nothing can be computed with it."""
    path = tmp_path / "My Llama"
    path.mkdir()
    save_file({"a": np.zeros((2, 3), np.float16), "b": np.zeros(1, np.float32)}, path / "model.safetensors")
    configure(path)
    return path


def configure(folder: Path, **fields: object) -> None:
    (folder / "config.json").write_text(json.dumps(LLAMA | fields))


def test_a_folder_says_what_it_holds(folder: Path) -> None:
    found = open_folder(folder)
    assert (found.kind, found.name, found.context_length) == (Kind.GENERATES, "my-llama", 64)
    assert (found.weights.parameters, found.weights.precision) == (7, "float16")
    assert found.weights.digest == artifact_of(folder).root
    assert found.weights.size_bytes == (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, Kind.GENERATES),
        ({"architectures": ["BertForSequenceClassification"]}, Kind.CLASSIFIES),
        ({"architectures": ["BertModel"]}, Kind.EMBEDS),
    ],
)
def test_an_architecture_says_what_a_model_does(folder: Path, fields: dict[str, Any], kind: Kind) -> None:
    configure(folder, **fields)
    assert open_folder(folder).kind is kind


@pytest.mark.parametrize(
    "fields",
    [
        {"architectures": ["T5ForConditionalGeneration"]},
        {"architectures": ["T5Model"], "is_encoder_decoder": True},
        {"architectures": []},
        {"architectures": "LlamaForCausalLM"},
    ],
)
def test_other_architectures_are_named_in_the_refusal(folder: Path, fields: dict[str, Any]) -> None:
    configure(folder, **fields)
    with pytest.raises(LocalError, match="architecture") as caught:
        assert open_folder(folder).kind
    assert caught.value.code is Code.BAD_INPUT


def test_weights_in_several_files_are_those_that_the_index_names(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name in (*shards, "another.safetensors"):
        save_file({name[-12]: np.zeros(5, np.float32)}, folder / name)
    index = {"weight_map": {"a": shards[0], "b": shards[1]}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    found = open_folder(folder)
    assert [path.name for path in found.shards] == shards
    assert found.weights.parameters == 10
    (folder / shards[1]).unlink()
    refused(folder, Code.BAD_INPUT, shards[1])


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "model.bin", ""])
def test_an_index_names_nothing_else(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    refused(folder, Code.UNSAFE, "model.safetensors.index.json")


def refused(folder: Path, code: Code, words: str) -> LocalError:
    with pytest.raises(LocalError) as caught:
        assert open_folder(folder).kind
    assert caught.value.code is code, caught.value.message
    assert words in caught.value.message
    return caught.value


def test_what_may_run_code_is_refused(folder: Path) -> None:
    (folder / "vocab.pkl").write_bytes(b"")
    refused(folder, Code.UNSAFE, "vocab.pkl")
    (folder / "vocab.pkl").unlink()
    configure(folder, transformers_weights="other.safetensors")
    refused(folder, Code.UNSAFE, "transformers_weights")
    configure(folder, quantization_config={"quant_method": "bitsandbytes"})
    refused(folder, Code.BAD_INPUT, "quantised")
    configure(folder)
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, Code.BAD_INPUT, "adapter")


def test_pickles_alone_are_refused_with_a_way_out(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "training_args.bin").write_bytes(b"")
    refused(folder, Code.BAD_INPUT, "holds no model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"")
    error = refused(folder, Code.UNSAFE, "pytorch_model.bin")
    assert "save_pretrained" in error.hint
    assert str(folder) in error.hint


def test_what_is_missing_or_broken_is_named(tmp_path: Path, folder: Path) -> None:
    refused(tmp_path / "nowhere", Code.BAD_INPUT, "nowhere")
    refused(tmp_path, Code.BAD_INPUT, "config.json")
    for text in ("", "[]", "{", "[" * 100_000):
        (folder / "config.json").write_text(text)
        refused(folder, Code.BAD_INPUT, "config.json")


@pytest.mark.parametrize("left", [0, 5, 40, -1])
def test_a_download_that_broke_off_is_told_by_its_file(folder: Path, left: int) -> None:
    for name in ("model.safetensors", "model-00001-of-00001.safetensors"):
        weights = folder / "model.safetensors"
        weights.rename(folder / name)
        places = {"weight_map": {"a": name}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(places))
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:left])
        error = refused(folder, Code.BAD_INPUT, f"{folder / name} is cut off or damaged")
        assert error.hint == "download it again"
        weights.write_bytes(data)


def test_a_directory_is_claimed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    for spec in (str(folder), "./My Llama", "My Llama", "My Llama/", "./nowhere", "/no/llama-3.2"):
        assert looks_like_folder(spec), spec
        assert find_backend(spec) is TransformersBackend
    for spec in (
        "builtin:digits",
        "module:name",
        "http://localhost/v1",
        "./model.onnx",
        "/a/model.gguf",
        "x",
    ):
        assert not looks_like_folder(spec), spec


@pytest.mark.parametrize("card", ["", "---\nlicense: mit\n---\n# My Llama\n"])
async def test_what_is_not_installed_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, card: str
) -> None:
    """Nothing of the extra is there: nor what reads the card."""

    async def at_once(step: Callable[[], Any]) -> Any:  # Any: each step's own result
        return step()

    (folder / "README.md").write_text(card)
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    for name in ("torch", "transformers", "yaml"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it raises ModuleNotFoundError
    with pytest.raises(LocalError, match="needs torch and transformers and yaml") as caught:
        await TransformersBackend(Source(str(folder)), at_once).load()
    assert (caught.value.code, caught.value.hint) == (
        Code.BAD_STATE,
        "pip install 'modelnet-p2p[transformers]'",
    )


# --- cards ---


def test_a_card_becomes_fields_of_a_record() -> None:
    text = """---
license: apache-2.0
language: [en, "de", "a language"]
tags: [tiny, Story-Teller, "license:mit", not a tag]
pipeline_tag: text-generation
base_model: acme/base
model_name: Tiny Teller
---
# Tiny"""
    assert parse_card(text) == Card(
        name="Tiny Teller",
        task="text-generation",
        licence="Apache-2.0",
        languages=("en", "de"),
        tags=("tiny", "story-teller"),
        base_model="acme/base",
    )
    other = parse_card("---\r\nlicense: other\r\nlicense_name: llama3\r\nlanguage: no\r\n---\r\n")
    assert (other.licence, other.languages) == ("llama3", ("no",))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# no front matter",
        "---\nnever ended",
        "---\n- a\n- list\n---\n",
        "---\nlanguage: 7\ntags: x y\npipeline_tag: [a, b]\n---\n",
        f"---\nlicense: {'x' * 100_000}\n---\n",
    ],
)
def test_a_sloppy_card_says_nothing(text: str) -> None:
    assert parse_card(text) == Card()


@pytest.mark.parametrize(
    ("matter", "note"),
    [
        ("{: broken", "the front matter of README.md is not sound YAML, nothing of it is told: "),
        ("license: !!python/object/apply:os.system [id]", "the front matter of README.md is not sound YAML"),
        (f"a: {'[' * 5000}", "the front matter of README.md is not sound YAML"),
        ("license: {a: b}", "the licence in README.md is not one name, none is told: {'a': 'b'}"),
        (
            "license: [mit, apache-2.0]",
            "the licence in README.md is not one name, none is told: ['mit', ",
        ),
        ("license: a long story", "the licence in README.md is not one name, none is told: a long story"),
        (f"license: [{'ä' * 500}, b]", "the licence in README.md is not one name"),
    ],
)
def test_what_a_card_says_in_vain_is_told_its_publisher(matter: str, note: str) -> None:
    card = parse_card(f"---\n{matter}\n---\n")
    assert replace(card, notes=()) == Card()
    [told] = card.notes
    assert told.startswith(note)
    told_of = Description("x", "x-a/b", "transformers", notes=card.notes)
    assert Description.from_map(told_of.to_map()) == told_of


@given(st.text(max_size=200))
def test_no_card_raises(text: str) -> None:
    parse_card(f"---\n{text}\n---\n")
