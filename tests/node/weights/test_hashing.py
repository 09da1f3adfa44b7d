"""What of a file or a directory on this disk belongs to its model, and what its digest is."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from modelnet_p2p.artifact import Artifact
from modelnet_p2p.digest import listing_of
from modelnet_p2p.errors import LocalError
from modelnet_p2p.node.weights.hashing import artifact_of, files_of

TENSORS: dict[str, Any] = {  # Any: arrays of several dtypes
    "b": np.arange(600, dtype=np.float32).reshape(20, 30),
    "a": np.array(2.5, np.float64),
    "empty": np.zeros((0, 4), np.int8),
}


def test_a_safetensors_file_keeps_its_digest(tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_bytes(save(TENSORS))
    for chunk_bytes in (7, 1000, 1 << 20):
        found = artifact_of(tmp_path / "mine.safetensors", chunk_bytes=chunk_bytes)
        assert found.root == listing_of(save(TENSORS), chunk_bytes).root
        assert found.listing == listing_of(save(TENSORS), chunk_bytes).encode()


def test_the_digest_of_another_file_does_not_know_its_name(tmp_path: Path) -> None:
    for name in ("a.tflite", "b.tflite", "c.gguf"):
        (tmp_path / name).write_bytes(b"weights" * 100)
    roots = [artifact_of(tmp_path / name).root for name in ("a.tflite", "b.tflite", "c.gguf")]
    assert roots[0] == roots[1] != roots[2]


def make_directory(path: Path) -> Path:
    (path / "onnx").mkdir(parents=True)
    (path / ".git").mkdir()
    (path / "model.safetensors").write_bytes(save(TENSORS))
    for name in ("config.json", "tokenizer.json", "onnx/extra.onnx", ".git/config.json", "LICENSE"):
        (path / name).write_text("{}")
    for name in ("modeling.py", "pytorch_model.bin", "optimizer.pt"):
        (path / name).write_bytes(b"code")
    return path


def test_all_data_of_a_directory_and_nothing_else(tmp_path: Path) -> None:
    root = make_directory(tmp_path / "a")
    found = artifact_of(root)
    assert {file.path for file in found.artifact.files} == {
        "LICENSE", "config.json", "model.safetensors", "onnx/extra.onnx", "tokenizer.json"
    }  # fmt: skip
    assert Artifact.decode(found.listing) == found.artifact
    (root / "modeling.py").write_bytes(b"other code")
    assert artifact_of(root).root == found.root
    (root / "config.json").write_text("{ }")
    assert artifact_of(root).root != found.root


def test_links_that_leave_a_directory(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("key")
    root = make_directory(tmp_path / "a")
    (root / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(LocalError, match="another place"):
        artifact_of(root)
    hub = tmp_path / "models--x" / "snapshots" / "abc"
    hub.mkdir(parents=True)
    (hub.parent.parent / "blobs").mkdir()
    (hub.parent.parent / "blobs" / "f00").write_bytes(save(TENSORS))
    (hub / "model.safetensors").symlink_to("../../blobs/f00")
    assert artifact_of(hub).root == listing_of(save(TENSORS)).root


@pytest.mark.parametrize(
    ("name", "words"),
    [("model.bin", "kind '.bin'"), ("nothing.onnx", "not there"), ("empty", "no file in it")],
)
def test_what_has_no_digest(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LocalError, match=words) as raised:
        artifact_of(tmp_path / name)
    assert name in raised.value.message


def test_a_damaged_file(tmp_path: Path) -> None:
    whole = save(TENSORS)
    for data in (b"", whole[:7], whole[:-1], whole + b"x", b"\xff" * 100):
        (tmp_path / "a.safetensors").write_bytes(data)
        with pytest.raises(LocalError, match="cannot have a digest"):
            artifact_of(tmp_path / "a.safetensors")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    root = make_directory(tmp_path / "a")
    os.mkfifo(root / "vocab.txt")
    assert "vocab.txt" not in files_of(root)


def test_the_external_data_of_an_onnx_file(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper, array = onnx.helper, onnx.numpy_helper.from_array
    inside = helper.make_node("Constant", [], ["c"], value=array(np.ones(900, "f4"), "k"))
    inner = helper.make_graph([inside], "then", [], [helper.make_tensor_value_info("c", 1, [900])])
    graph = helper.make_graph(
        [helper.make_node("If", ["x"], ["z"], then_branch=inner, else_branch=inner)],
        "g",
        [helper.make_tensor_value_info("x", 9, [])],
        [helper.make_tensor_value_info("z", 1, [900])],
        [array(np.arange(1000, dtype=np.float32), "w")],
    )
    model = helper.make_model(graph)
    onnx.save(model, tmp_path / "plain.onnx")
    assert list(files_of(tmp_path / "plain.onnx")) == ["model.onnx"]
    onnx.save(
        model,
        tmp_path / "net.onnx",
        save_as_external_data=True,
        location="net.onnx.data",
        convert_attribute=True,
    )
    assert list(files_of(tmp_path / "net.onnx")) == ["model.onnx", "net.onnx.data"]
    found = artifact_of(tmp_path / "net.onnx")
    assert [file.path for file in found.artifact.files] == ["model.onnx", "net.onnx.data"]
    data = (tmp_path / "net.onnx").read_bytes()
    for name in (b"../onnx.data", b"/tt.onnx.data", b"net.onnx.data"[:-5] + b".json"):
        (tmp_path / "bad.onnx").write_bytes(data.replace(b"net.onnx.data", name))
        with pytest.raises(LocalError):
            artifact_of(tmp_path / "bad.onnx")
    for cut in range(0, len(data), 7):  # whatever is in it
        (tmp_path / "cut.onnx").write_bytes(data[:cut])
        with suppress(LocalError):
            artifact_of(tmp_path / "cut.onnx")
