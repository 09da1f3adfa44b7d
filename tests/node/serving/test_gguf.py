"""GGUF files: what their headers say, and that nothing unsound gets past."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gguf_writer import write_gguf
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends import gguf
from modelnet_p2p.node.serving.backends.gguf import GgufBackend, read_in_a_step, threads
from modelnet_p2p.node.serving.backends.gguf_card import replace_words
from modelnet_p2p.node.serving.backends.gguf_file import BadGguf, read_gguf
from modelnet_p2p.node.serving.backends.registry import find_backend
from modelnet_p2p.node.serving.description import Description
from modelnet_p2p.node.serving.source import Source

FIELDS: dict[str, object] = {
    "general.architecture": "llama",
    "general.name": "Tiny",
    "general.license": "apache-2.0",
    "general.languages": ["en", "de", "not one"],
    "general.tags": ["tiny", "Not A Tag"],
    "general.basename": "acme",
    "llama.context_length": 2048,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.scores": [0.5] * 1000,
    "tokenizer.ggml.tokens": [f"token {n}" for n in range(1000)],
    "tokenizer.ggml.flags": [True, False],
}
TENSORS = {"a": np.zeros((4, 8), np.float32), "b": np.zeros(16, np.float32)}


async def at_once(step: Callable[[], Any]) -> Any:  # Any: each step's own result
    return step()


def test_a_header_is_read(tmp_path: Path) -> None:
    found = read_gguf(write_gguf(tmp_path / "tiny.gguf", FIELDS, TENSORS))
    assert (found.context_length, found.parameters, found.precision) == (2048, 48, "float32")
    assert found.text("general.name") == "Tiny"
    assert found.text("llama.context_length") == found.text("nowhere") == ""
    assert found.fields["tokenizer.ggml.flags"] == [True, False]
    assert found.texts("tokenizer.ggml.tokens")[:2] == ["token 0", "token 1"]
    assert len(found.texts("tokenizer.ggml.tokens")) == 64  # of 1,000
    told = replace_words(Description("tiny", "text-generation", "llama.cpp"), found)
    assert (told.licence, told.family) == ("Apache-2.0", "acme")
    assert (told.languages, told.tags) == (("en", "de"), ("tiny",))
    assert Description.from_map(told.to_map()) == told


def test_nothing_else_than_bad_gguf_leaves_a_broken_header(tmp_path: Path) -> None:
    whole = write_gguf(tmp_path / "whole.gguf", FIELDS, TENSORS).read_bytes()
    path = tmp_path / "broken.gguf"
    for cut in range(0, 600, 7):
        path.write_bytes(whole[:cut])
        with pytest.raises(BadGguf):
            read_gguf(path)


@given(at=st.integers(0, 900), byte=st.integers(0, 255))
def test_a_changed_byte_is_a_file_or_bad_gguf(
    tmp_path_factory: pytest.TempPathFactory, at: int, byte: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.gguf"
    data = bytearray(write_gguf(path, FIELDS, TENSORS).read_bytes())
    data[at] = byte
    path.write_bytes(data)
    try:
        read_gguf(path)
    except BadGguf:
        pass


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"GGML",
        b"GGUF" + struct.pack("<I", 1),
        b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 60),
        b"GGUF" + struct.pack("<IQQQsI", 3, 0, 1, 1, b"a", 99),
        b"GGUF" + struct.pack("<IQQQsIIQ", 3, 0, 1, 1, b"a", 9, 0, 1 << 60),
        b"GGUF" + struct.pack("<IQQQsIIQIQ", 3, 0, 1, 1, b"a", 9, 9, 1, 9, 1),
        b"GGUF" + struct.pack("<IQQQsII", 3, 1, 0, 1, b"a", 99, 1),
        b"GGUF" + struct.pack("<IQQQsIQQIQ", 3, 1, 0, 1, b"a", 2, 1 << 62, 1 << 62, 0, 0),
    ],
)
def test_what_is_beyond_all_measure_is_refused(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(head)
    with pytest.raises(BadGguf):
        read_gguf(path)


async def test_what_cannot_be_served_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refusal(path: Path) -> LocalError:
        with pytest.raises(LocalError) as caught:
            await GgufBackend(Source(path.name, cwd=str(tmp_path)), at_once).load()
        return caught.value

    assert find_backend("models/Tiny.GGUF") is GgufBackend
    assert "there is no file" in (await refusal(tmp_path / "nowhere.gguf")).message
    (tmp_path / "junk.gguf").write_bytes(b"junk")
    assert "does not begin as a GGUF file" in (await refusal(tmp_path / "junk.gguf")).message
    encoder = write_gguf(tmp_path / "enc.gguf", FIELDS | {"general.architecture": "bert"})
    assert "bert" in (await refusal(encoder)).message
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    error = await refusal(write_gguf(tmp_path / "tiny.gguf", FIELDS, TENSORS))
    assert error.code is Code.BAD_STATE
    assert error.hint.startswith("pip install 'modelnet-p2p[gguf]'")
    for fields, words in (
        ({"split.count": 3}, "one of 3 parts"),
        ({"llama.attention.causal": False}, "does not generate"),
        ({"llama.pooling_type": 3}, "does not generate"),
    ):
        assert words in (await refusal(write_gguf(tmp_path / "odd.gguf", FIELDS | fields, TENSORS))).message


def test_a_step_reads_as_much_as_takes_a_fifth_of_a_second() -> None:
    found = [read_in_a_step(seconds, 512) for seconds in (0, 1e-5, 1e-3, 0.01, 0.025, 0.3, 9)]
    assert found == [512, 512, 128, 16, 8, 4, 4]
    assert read_in_a_step(1e-5, 64) == 64


def test_its_threads_leave_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    assert 1 <= threads() <= max(1, cores // 2)
    for wish, found in (("3", 3), ("0", threads()), ("many", threads()), ("99999", threads())):
        monkeypatch.setenv("OMP_NUM_THREADS", wish)
        assert threads() == found
