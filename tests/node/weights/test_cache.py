"""What the cache keeps: whole and right or not at all, whatever was the last thing before a crash."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from modelnet_p2p.errors import Code, LocalError, NotFound
from modelnet_p2p.identity import KeyPair
from modelnet_p2p.names import digest_text
from modelnet_p2p.node.weights.cache import Cache, Part, spec_of
from modelnet_p2p.node.weights.hashing import OnDisk, artifact_of
from modelnet_p2p.node.weights.kept import may_be_pulled, named, pulled_source
from modelnet_p2p.records import Manifest, seal_manifest

ALICE, BOB = KeyPair(b"a" * 32), KeyPair(b"b" * 32)


@pytest.fixture
def found(tmp_path: Path) -> OnDisk:
    path = tmp_path / "model"
    path.mkdir()
    (path / "model.safetensors").write_bytes(save({"w": np.arange(5000, dtype=np.float32)}))
    (path / "config.json").write_text("{}")
    return artifact_of(path, chunk_bytes=1000)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def piece(found: OnDisk, index: int) -> memoryview:
    wanted = found.artifact.pieces[index]
    data = found.places[wanted.path].read_bytes()
    return memoryview(data)[wanted.offset : wanted.offset + wanted.size]


def fill(cache: Cache, found: OnDisk) -> OnDisk:
    with cache.part(found.artifact) as part:
        for index in set(range(len(found.artifact.pieces))) - part.look():
            assert part.put(index, piece(found, index))
        part.finish()
    whole = cache.whole(found.root)
    assert whole is not None
    return whole


def have(cache: Cache, found: OnDisk) -> set[int]:
    with cache.part(found.artifact) as part:
        return part.look()


def sealed(owner: KeyPair, name: str, root: bytes, version: str = "1") -> bytes:
    return seal_manifest(Manifest(owner.id, name, "x-a/b", 1_700_000_000, version, "MIT", root), owner)


def test_wrong_bytes_are_not_written(cache: Cache, found: OnDisk) -> None:
    with cache.part(found.artifact) as part:
        assert part.look() == set()
        assert not part.put(3, memoryview(b"x" * 1000))
        assert not part.put(3, piece(found, 4))
        assert part.put(3, piece(found, 3))
        assert part.look() == {3}
    assert have(cache, found) == {3}
    assert cache.whole(found.root) is None
    assert named(cache, digest_text(found.root)) is None


@pytest.mark.parametrize(
    "left", ["nothing", "listing cut", "listing other", "files cut", "half a piece", "zeros"]
)
def test_whatever_a_crash_has_left(cache: Cache, found: OnDisk, left: str) -> None:
    with cache.part(found.artifact) as part:
        part.look()
        for index in range(6):
            part.put(index, piece(found, index))
        folder = part.folder
    weights = folder / "files" / "model.safetensors"
    match left:
        case "nothing":
            shutil.rmtree(folder / "files")
        case "listing cut":
            (folder / "listing").write_bytes(found.listing[:100])
        case "listing other":
            (folder / "listing").write_bytes(found.listing.replace(b"config", b"konfig"))
        case "files cut":
            os.truncate(weights, 2500)
        case "half a piece":
            with weights.open("r+b") as file:
                file.seek(500)
                file.write(b"y" * 700)
        case "zeros":
            weights.write_bytes(bytes(found.artifact.files[1].size))
    before = have(cache, found)
    assert before <= set(range(6))
    assert len(before) == {
        "nothing": 0,
        "listing cut": 6,
        "listing other": 6,
        "files cut": 3,
        "zeros": 1,
    }.get(left, 4)
    assert fill(cache, found).artifact == found.artifact
    assert have_files(cache, found)


def have_files(cache: Cache, found: OnDisk) -> bool:
    whole = cache.whole(found.root)
    return whole is not None and all(
        whole.places[name].read_bytes() == place.read_bytes() for name, place in found.places.items()
    )


def test_no_room_is_said_before_anything_is_fetched(tmp_path: Path, found: OnDisk) -> None:
    cache = Cache(tmp_path / "cache", room=lambda folder: 20_000)
    with pytest.raises(LocalError, match="no room") as raised, cache.part(found.artifact) as part:
        part.look()
    assert raised.value.code is Code.BAD_STATE
    assert "are missing, and 20,000 are free" in raised.value.message


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    place = tmp_path / "tiny"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "modelnet-test", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("only root may mount a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_loses_nothing(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "big.safetensors").write_bytes(save({"w": np.arange(30_000, dtype=np.float32)}))
    found = artifact_of(tmp_path / "big.safetensors", chunk_bytes=1000)
    cache = Cache(tiny / "cache", room=lambda folder: 1 << 40)  # that somebody else fills meanwhile
    written = 0
    with pytest.raises(LocalError, match="no room") as raised, cache.part(found.artifact) as part:
        part.look()
        for index in range(len(found.artifact.pieces)):
            part.put(index, piece(found, index))
            written += 1
    assert raised.value.code is Code.BAD_STATE
    assert "pull again" in raised.value.hint
    assert have(cache, found) == set(range(written))


def test_links_in_the_place_of_files_are_not_followed(cache: Cache, found: OnDisk, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    with cache.part(found.artifact) as part:
        files = part.folder / "files"
    files.mkdir()
    (files / "config.json").symlink_to(tmp_path / "precious")
    with pytest.raises(LocalError), cache.part(found.artifact) as part:
        part.look()
    assert (tmp_path / "precious").read_text() == "mine"


def test_names_owners_and_removal(cache: Cache, found: OnDisk) -> None:
    whole = fill(cache, found)
    digest = digest_text(found.root)
    assert pulled_source(cache, digest) == (str(cache.folder(found.root) / "files"), None)
    cache.keep_manifest(found.root, sealed(ALICE, "acme/net", found.root, "1"))
    cache.keep_manifest(found.root, sealed(ALICE, "acme/net", found.root, "1"))
    (kept,) = cache.all()
    assert kept.whole
    assert kept.size == found.size <= kept.here
    assert len(kept.manifests) == 1
    for text in ("acme/net", "acme/net@1", digest, f"modelnet:acme/net@1?digest={digest}"):
        source = pulled_source(cache, text)
        assert source is not None
        assert source[0] == str(spec_of(whole))
        assert source[1] is not None
        assert source[1].manifest.owner == ALICE.id
    assert pulled_source(cache, "acme/other") is None
    with pytest.raises(NotFound, match="not here") as raised:
        pulled_source(cache, "modelnet:acme/other@1")
    assert "pull" in raised.value.hint
    cache.keep_manifest(found.root, sealed(BOB, "acme/net", found.root))
    with pytest.raises(NotFound, match="several owners") as raised:
        pulled_source(cache, "acme/net")
    assert raised.value.code is Code.AMBIGUOUS
    assert pulled_source(cache, f"modelnet:acme/net?owner={BOB.id}") is not None
    (cache.folder(found.root) / "manifests" / "junk").write_bytes(b"damaged")
    assert len(cache.manifests(found.root)) == 2
    assert cache.remove(found.root) == kept.here
    assert cache.all() == []
    assert cache.remove(found.root) == 0


def test_one_name_of_several_weights(cache: Cache, found: OnDisk, tmp_path: Path) -> None:
    fill(cache, found)
    (tmp_path / "net.tflite").write_bytes(b"weights" * 500)
    other = artifact_of(tmp_path / "net.tflite", chunk_bytes=1000)
    whole = fill(cache, other)
    assert spec_of(whole) == cache.folder(other.root) / "files" / "model.tflite"
    for version, root in (("1", found.root), ("2", other.root)):
        cache.keep_manifest(root, sealed(ALICE, "acme/net", root, version))
    with pytest.raises(NotFound, match="several of the weights") as raised:
        named(cache, "acme/net")
    assert raised.value.code is Code.AMBIGUOUS
    kept = named(cache, "acme/net@2")
    assert kept is not None
    assert kept.root == other.root


def test_what_to_publish_is_the_file_or_the_directory(cache: Cache, tmp_path: Path) -> None:
    lone = tmp_path / "lone.safetensors"
    lone.write_bytes(save({"w": np.zeros(3, np.float32)}))
    whole = fill(cache, artifact_of(lone))
    assert spec_of(whole).name == "model.safetensors"
    assert artifact_of(spec_of(whole)).root == whole.root
    folder = tmp_path / "folder"
    (folder / "onnx").mkdir(parents=True)
    (folder / "onnx" / "model.onnx").write_bytes(b"\x08\x09")
    (folder / "README.md").write_text("words")
    whole = fill(cache, artifact_of(folder))
    assert spec_of(whole).name == "files"
    assert artifact_of(spec_of(whole)).root == whole.root


def test_a_part_in_use_is_not_removed(cache: Cache, found: OnDisk) -> None:
    part: Part
    with cache.part(found.artifact) as part:
        part.look()
        with pytest.raises(LocalError) as raised:
            cache.remove(found.root)
    assert raised.value.code is Code.IN_USE
    assert cache.remove(found.root) == 0
    assert cache.all() == []


@pytest.mark.parametrize("may", [True, False])
def test_what_may_mean_something_pulled(may: bool) -> None:
    pulled = ("acme/net", "net@1", "sha256:00", "modelnet:x")
    others = ("builtin:digits", "mymodels:f", "http://127.0.0.1/v1", "./dir/", "weights.d/")
    assert all(may_be_pulled(text) is may for text in (pulled if may else others))
