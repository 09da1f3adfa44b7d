"""What is remembered of a model: good for as long as its files are as they were, and for nothing else."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from modelnet_p2p.errors import Code, LocalError, ModelnetError
from modelnet_p2p.node.serving.description import Description
from modelnet_p2p.node.serving.models import Models
from modelnet_p2p.node.serving.remembering import (
    MAX_STAMPS,
    Remembered,
    Stamp,
    read_stamps,
    stamps_of,
)
from modelnet_p2p.node.serving.served import Served
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.records import Spec

Call = Callable[..., Awaitable[tuple[Any, list[Any]]]]  # Any: each test knows what its model gives
MakeSource = Callable[..., Source]
HANG = 60

DESCRIPTION = Description(
    "acme/sums",
    "x-test/sums",
    "numpy",
    inputs=(Spec("rows", "tensor", "float32", (None, 4)),),
    digest=bytes(range(32)),
    metrics={"accuracy": 970_000},
    manifest_envelope=b"sealed",
    exits=(1, 2),
    batches=8,
)


def remembered(*paths: Path) -> Remembered:
    stamps = [Stamp.of(str(path)) for path in paths]
    return Remembered(DESCRIPTION, tuple(stamp for stamp in stamps if stamp is not None))


def test_it_survives_a_file_of_json(tmp_path: Path) -> None:
    mine = remembered(tmp_path)
    assert Remembered.from_map(json.loads(json.dumps(mine.to_map()))) == mine
    assert mine.is_current


def test_any_change_of_a_file_ends_it(tmp_path: Path) -> None:
    file = tmp_path / "model.npz"
    file.write_bytes(b"weights")
    changes: list[Callable[[], object]] = [
        lambda: file.write_bytes(b"weights!"),
        lambda: os.utime(file, ns=(1, 7)),
        lambda: file.unlink(),
    ]
    for change in changes:
        mine = remembered(file)
        assert mine.is_current
        change()
        assert not mine.is_current


def test_another_version_of_ours_believes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this version"):
        Remembered.from_map(remembered(tmp_path).to_map() | {"version": "0.0.1"})


WHOLE = json.loads(json.dumps(Remembered(DESCRIPTION, (Stamp("/x", 1, 2),)).to_map()))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_whatever_the_file_holds_is_read_or_refused(junk: Any) -> None:
    for fields in (junk, *({**WHOLE, key: junk} for key in WHOLE)):
        try:
            assert isinstance(Remembered.from_map(fields), Remembered)
        except ValueError:
            pass


@given(st.sampled_from(sorted(WHOLE["description"])), JSON)
def test_whatever_a_description_holds_is_read_or_refused(name: str, junk: Any) -> None:
    fields = {**WHOLE, "description": {**WHOLE["description"], name: junk}}
    try:
        Remembered.from_map(fields)
    except ValueError:
        pass


def test_too_many_files_are_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        read_stamps([["/x", 1, 2]] * (MAX_STAMPS + 1))


def test_the_files_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "net.safetensors").write_bytes(b"weights")
    (tmp_path / "net.json").write_text("{}")
    (tmp_path / "other.txt").write_text("not of it")
    stamps = stamps_of(Source("net.safetensors", cwd=str(tmp_path)), "")
    assert stamps is not None
    names = {Path(stamp.path).name for stamp in stamps}
    assert {"net.safetensors", "net.json"} <= names
    assert "other.txt" not in names
    assert str(Path(__file__)) in {stamp.path for stamp in stamps}  # a module that came with no package
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    stamps = stamps_of(Source("model", cwd=str(tmp_path)), "")
    assert stamps is not None
    assert str(folder / "config.json") in {stamp.path for stamp in stamps}


def test_what_is_behind_a_url_or_made_of_too_many_files_is_not_remembered(tmp_path: Path) -> None:
    assert stamps_of(Source("http://127.0.0.1:11434/v1", cwd=str(tmp_path)), "") is None
    for number in range(MAX_STAMPS + 1):
        (tmp_path / f"{number}").touch()
    assert stamps_of(Source(str(tmp_path)), "") is None


# --- models that are served from memory; real processes ---


async def known(models: Models, source: Source) -> Remembered:
    served = await models.add(source)
    found = served.remembered
    assert found is not None
    await models.remove(served.description.name)
    return found


async def refused(call: Call, served: Served, value: Any) -> ModelnetError:
    with pytest.raises(ModelnetError) as caught:
        await call(served, value)
    return caught.value


async def test_a_remembered_model_is_served_at_once_and_starts_with_its_first_call(
    models: Models, source: MakeSource, call: Call, shop: Path
) -> None:
    found = await known(models, source("shop:upper"))
    assert str(shop / "shop.py") in {stamp.path for stamp in found.stamps}
    assert sys.executable in {stamp.path for stamp in found.stamps}
    served = await models.add(source("shop:upper"), found)
    assert served.pid is None
    assert served.description == found.description
    assert (await call(served, "hello"))[0] == "HELLO"
    assert served.pid is not None
    assert served.remembered == found


async def test_one_that_cannot_be_loaded_any_more_says_why(
    models: Models, source: MakeSource, call: Call, shop: Path
) -> None:
    found = await known(models, source("shop:upper"))
    (shop / "shop.py").unlink()
    served = await models.add(source("shop:upper"), found)
    with pytest.raises(LocalError, match="No module named 'shop'"):
        await served.warm()


async def test_what_is_not_as_it_was_told_answers_nobody(
    models: Models, source: MakeSource, call: Call
) -> None:
    found = await known(models, source("shop:upper"))
    other = Remembered(replace(found.description, idempotent=True, latency_us=7), found.stamps)
    changed: list[Served] = []
    models.on_changed = changed.append
    served = await models.add(source("shop:upper"), other)
    error = await refused(call, served, "hello")
    assert error.code is Code.BUSY
    assert error.retryable
    assert "has changed" in error.message
    assert changed == [served]
    same = Remembered(replace(found.description, latency_us=7), found.stamps)  # a quicker machine
    served = await models.add(source("shop:upper"), same)
    with trio.fail_after(HANG):
        assert (await call(served, "hello"))[0] == "HELLO"
    assert changed == [changed[0]]
