"""Listings of several files: one way to write each, and no path that is not a plain file of data."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from modelnet_p2p.artifact import LONE, MAX_FILES, Artifact, FileHashes, path_trouble
from modelnet_p2p.digest import BadArtifact, listing_of

TENSORS = listing_of(save({"w": np.arange(600, dtype=np.float32)}), 1000)


def hashed(path: str, data: bytes = b"{}", chunk_bytes: int = 1000) -> FileHashes:
    chunks = [data[at : at + chunk_bytes] for at in range(0, len(data), chunk_bytes)]
    return FileHashes(path, len(data), tuple(hashlib.sha256(chunk).digest() for chunk in chunks))


WEIGHTS = FileHashes("model-1.safetensors", TENSORS.size, TENSORS.chunks, TENSORS.tensors)
MODEL = Artifact(
    (hashed("config.json"), hashed("empty.txt", b""), WEIGHTS, hashed("onnx/a.onnx", b"x" * 2500)), 1000
)


def test_a_directory_has_one_digest_and_every_piece_can_be_checked() -> None:
    assert Artifact.decode(MODEL.encoded) == MODEL
    assert MODEL.root == hashlib.sha256(MODEL.encoded).digest()
    assert MODEL.encoded.decode().splitlines()[:5] == [
        "modelnet-files 1",
        "chunk-bytes 1000",
        "file 2 config.json",
        f"chunk {hashlib.sha256(b'{}').hexdigest()}",
        "file 0 empty.txt",
    ]
    assert sum(piece.size for piece in MODEL.pieces) == MODEL.size == 2 + TENSORS.size + 2500
    last = MODEL.pieces[-1]
    assert (last.path, last.offset, last.size) == ("onnx/a.onnx", 2000, 500)
    assert last.check(b"x" * 500)
    assert not last.check(b"x" * 499 + b"y")
    assert not last.check(b"x" * 501)


def test_a_lone_safetensors_file_keeps_its_digest() -> None:
    lone = Artifact.of_listing(TENSORS)
    assert lone.root == TENSORS.root
    assert lone.encoded == TENSORS.encode()
    assert Artifact.decode(TENSORS.encode()) == lone
    assert lone.files[0].path == LONE
    other = MODEL.encoded.replace(b"model-1.safetensors", b"model.safetensors")
    assert Artifact.decode(other).root != lone.root  # it is not alone there
    alone = Artifact((WEIGHTS,), 1000).encoded.replace(b"model-1.", b"model.")
    with pytest.raises(BadArtifact, match="canonical"):  # one artifact, one listing
        Artifact.decode(alone)


REFUSED = (
    "/etc/passwd.json|../a.json|a/../b.json|a//b.json|./a.json|a/./b.json|a\\b.json||.hidden.json|a/.git/a.json"
    "|a.json/|con.json|a/NUL.json|a:b.json|é.json|a\n.json|a.json |a/b/c/d/e/f.json|~/a.json|a\0.json"
    "|model.py|model.bin|model.pt|model.pkl|model.ckpt|model.npy|model.h5|setup|a.so|" + "x" * 250 + ".json"
)


@pytest.mark.parametrize("path", REFUSED.split("|"))
def test_paths_that_are_refused(path: str) -> None:
    assert path_trouble(path)
    with pytest.raises(BadArtifact):
        FileHashes(path, 0, ())


@pytest.mark.parametrize("path", ["LICENSE", "README.md", "a b/model_1.json", "1_Pooling/config.json"])
def test_paths_that_are_taken(path: str) -> None:
    assert not path_trouble(path)


@pytest.mark.parametrize(
    "paths",
    [("A.json", "a.json"), ("X/a.json", "x/b.json"), ("a.json", "a.json/b.json"), ("b.json", "a.json"), ()],
)
def test_paths_that_do_not_go_together(paths: tuple[str, ...]) -> None:
    with pytest.raises(BadArtifact):
        Artifact(tuple(hashed(path) for path in paths))


def test_bounds() -> None:
    with pytest.raises(BadArtifact, match="files"):
        Artifact(tuple(hashed(f"{at:05}.json") for at in range(MAX_FILES + 1)))
    with pytest.raises(BadArtifact, match="chunks have"):
        Artifact((hashed("a.json"),), 64 << 20)
    with pytest.raises(BadArtifact, match="do not make"):
        Artifact((replace(hashed("a.json"), size=5000),), 1000)
    many = b"modelnet-files 1\nchunk-bytes 1000\n" + b"".join(
        b"file 0 %06d.json\n" % at for at in range(9999)
    )
    with pytest.raises(BadArtifact, match="at most"):
        Artifact.decode(many)


@given(st.integers(0, len(MODEL.encoded) - 1), st.binary(min_size=1, max_size=3))
def test_a_damaged_listing_is_refused_or_another_model(at: int, put: bytes) -> None:
    data = MODEL.encoded[:at] + put + MODEL.encoded[at + len(put) :]
    try:
        found = Artifact.decode(data)
    except BadArtifact:
        return
    assert found.encoded == data


@given(st.binary(max_size=400))
def test_anything_else_is_refused(data: bytes) -> None:
    for listing in (data, b"modelnet-files 1\n" + data, b"modelnet-files 1\nchunk-bytes 9\nfile " + data):
        with pytest.raises(BadArtifact):
            Artifact.decode(listing)
