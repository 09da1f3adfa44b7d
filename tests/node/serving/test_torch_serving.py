"""What is told of torch modules before they are called, and their int8 variants."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import toys
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.callable import CallableBackend
from modelnet_p2p.node.serving.backends.contract import Backend
from modelnet_p2p.node.serving.backends.registry import find_backend
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.records import Spec

pytest.importorskip("torch")

ZOO = """
import torch
from torch import nn

class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = nn.Linear(64, 256), nn.Linear(256, 8)
    def forward(self, x):
        return self.b(torch.relu(self.a(x)))

wide = Wide()

class Sums(nn.Module):
    "No layer says what it takes; its rows look at each other."
    example_input_array = torch.ones(2, 5)
    def forward(self, x):
        return {"rows": x.sum(dim=1), "share": x / x.sum()}

class Bare(nn.Module):
    def forward(self, x):
        return x * 2

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.lstm = nn.Embedding(10, 4), nn.LSTM(4, 6, batch_first=True)
        self.out = nn.Linear(6, 2)
    def forward(self, ids):
        return self.out(self.lstm(self.table(ids))[0][:, -1])

class Image(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 9)
    def forward(self, x):
        return self.conv(x).mean(dim=(2, 3))

class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    def forward(self, x):
        return self.layer(x)

class Fussy(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4, bias=False)
        self.a.weight.data.copy_(torch.eye(4))
    def forward(self, x, times=1.0):
        if isinstance(x, dict):
            return x["first"] + x["second"]
        if times == 0:
            raise ValueError("not even once")
        return self.a(x.float()) * times

fussy = Fussy()

class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4, bias=False)
        self.a.weight.data.copy_(torch.eye(4))
    def forward(self, x, times=1.0):
        if times == 0:
            raise ValueError("not even once")
        return self.a(x) * times

class Kinds(nn.Module):
    def forward(self, x):
        if isinstance(x, dict):
            return {name: str(part.dtype) for name, part in x.items()}
        return str(x.dtype) if isinstance(x, torch.Tensor) else [type(part).__name__ for part in x]

class Halves(Kinds):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))

class Picky(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 4)
    def forward(self, x):
        raise ValueError("only on Sundays")

def plain(x):
    return x
"""

Load = Callable[..., Awaitable[Backend]]


async def at_once(step: Callable[[], Any]) -> Any:  # Any: each step's own result
    return step()


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """`await load("zoo:Wide")`, or of files that lie in the same directory."""
    (tmp_path / "zoo.py").write_text(ZOO)
    (tmp_path / "toy_module.py").write_text(toys.MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("zoo", "toy_module"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    async def run(spec: str, module: str | None = None, **options: str) -> Backend:
        source = Source(spec, module, cwd=str(tmp_path), options=options)
        backend = find_backend(spec)(source, at_once)
        await backend.load()
        return backend

    return run


@pytest.mark.parametrize("spec", ["zoo:Wide", "zoo:wide"])
async def test_a_module_or_its_class_by_its_name(load: Load, spec: str) -> None:
    backend = await load(spec)
    assert isinstance(backend, CallableBackend)
    assert backend.blocks
    told = backend.describe()
    assert (told.name, told.framework, told.precision) == ("wide", "torch", "float32")
    assert told.parameters == 64 * 256 + 256 + 256 * 8 + 8
    assert told.size_bytes == 4 * told.parameters
    assert told.inputs == (Spec("x", "tensor", "float32", (None, 64)),)
    assert told.outputs == (Spec("output", "tensor", "float32", (None, 8)),)
    assert told.digest is None  # its code is part of what it is
    assert told.latency_us is not None
    assert told.batches > 1
    assert told.idempotent
    x = np.ones((3, 64), np.float32)
    assert np.asarray(await backend.invoke(x, {})).shape == (3, 8)
    together = await backend.invoke_many([(x[:1], {}), (x[:2], {})])
    assert [np.asarray(part).shape for part in together] == [(1, 8), (2, 8)]
    with pytest.raises(LocalError, match="depth"):
        await backend.invoke(x, {"depth": 2})


async def test_its_own_example_says_what_it_takes(load: Load) -> None:
    told = (await load("zoo:Sums")).describe()
    assert told.inputs == (Spec("x", "tensor", "float32", (None, 5)),)
    assert [spec.name for spec in told.outputs] == ["rows", "share"]
    assert told.batches == 1  # a share is of all rows


@pytest.mark.parametrize(
    ("spec", "dtype", "shape"),
    [
        ("zoo:Words", "int64", (None, None)),
        ("zoo:Image", "float32", (None, 3, None, None)),
    ],
)
async def test_the_first_layer_says_what_it_takes(
    load: Load, spec: str, dtype: str, shape: tuple[int | None, ...]
) -> None:
    told = (await load(spec)).describe()
    assert [(put.dtype, put.shape) for put in told.inputs] == [(dtype, shape)]
    assert told.latency_us is not None
    assert told.batches > 1


async def test_what_nobody_says_stays_open(
    load: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = (await load("zoo:Bare")).describe()
    assert (told.inputs, told.outputs, told.latency_us) == ((Spec("input", "tensor"),), (), None)
    why = "no latency was measured: nobody knows what it takes (give an input with --sample FILE.npy)"
    assert told.notes == (why,)
    np.save(tmp_path / "x.npy", np.ones((2, 7), np.float64))
    told = (await load("zoo:Bare", sample="x.npy")).describe()
    assert told.inputs == (Spec("x", "tensor", "float64", (None, 7)),)
    assert not told.notes
    told = (await load("zoo:Picky")).describe()
    assert told.latency_us is None
    assert "on made-up inputs it raised ValueError: only on Sundays" in told.notes[0]
    assert "zoo:Picky was not warmed up" in caplog.text


@pytest.mark.parametrize("options", [{}, {"quantise": "int8"}])
async def test_lists_of_numbers_are_taken_as_by_an_onnx_model(load: Load, options: dict[str, str]) -> None:
    line = await load("zoo:Line", **options)
    for value in (
        [[1, 2, 3, 4]],
        [[1.0, 2, 3, 4]],
        {"x": [[1, 2, 3, 4]]},
        np.array([[1, 2, 3, 4]], np.float32),
    ):
        answer = np.asarray(await line.invoke(value, {"times": 2}))
        assert answer.dtype == np.float32
        np.testing.assert_allclose(answer, [[2, 4, 6, 8]], rtol=0.02)
    words = await load("zoo:Words", **options)
    assert np.asarray(await words.invoke([[1, 2, 3], [4, 5, 6]], {})).shape == (2, 2)


@pytest.mark.parametrize("options", [{}, {"quantise": "int8"}])
@pytest.mark.parametrize(
    ("value", "got"),
    [
        (np.ones((1, 4), np.float64), "float64 [1,4]"),
        (np.ones((1, 5), np.float32), "float32 [1,5]"),
        ([[1, 2, 3]], "float32 [1,3]"),
        ([[1, 2], [3]], "lists of different lengths"),
        ([["a", "b", "c", "d"]], "a list of something else than numbers"),
        ([np.ones(3)], "a list of something else than numbers"),
        ({"y": [[1, 2, 3, 4]]}, "a map of y"),
        ("four", "a text"),
        (None, "nothing"),
    ],
)
async def test_what_it_does_not_take_is_the_callers_mistake(
    load: Load, value: Any, got: str, options: dict[str, str]
) -> None:
    line = await load("zoo:Line", **options)
    with pytest.raises(LocalError) as caught:
        await line.invoke(value, {})
    assert caught.value.code is Code.BAD_INPUT
    assert caught.value.message == f"zoo:Line expected a tensor float32 [n,4], got {got}"


async def test_what_it_takes_beyond_that_is_not_refused(load: Load) -> None:
    """A first layer's shape is a guess: the module itself has the last word."""
    fussy = await load("zoo:fussy")
    assert fussy.describe().inputs == (Spec("x", "tensor", "float32", (None, 4)),)
    one = np.array([1, 2, 3, 4], np.float64)
    for value in (one, one.tolist(), one[None, None], one.astype(np.int32)):
        np.testing.assert_array_equal(np.ravel(np.asarray(await fussy.invoke(value, {}))), one)
    both = {"first": [[1, 2]], "second": [[0.5, 0.5]]}
    np.testing.assert_array_equal(np.asarray(await fussy.invoke(both, {})), [[1.5, 2.5]])
    with pytest.raises(ValueError, match="not even once"):
        await fussy.invoke([[1, 2, 3, 4]], {"times": 0})  # it fits: the module's own fault


async def test_only_whole_rows_share_a_step(load: Load) -> None:
    """Two halves of a row are not one."""
    line = await load("zoo:Line")
    assert line.describe().batches > 1
    row = np.ones((1, 4), np.float32)
    for value in (row, row.tolist(), {"x": row}):
        assert line.rows(value, {}) is not None
    half = np.ones(2, np.float32)
    for part in (half, half.tolist(), {"x": half}, {"y": row}, [half], [], None):
        assert line.rows(part, {}) is None


async def test_where_nobody_knows_numbers_tell_their_dtype(load: Load) -> None:
    kinds = await load("zoo:Kinds")
    for value, found in [
        ([[1, 2], [3, 4]], "torch.int64"),
        ([[1, 2], [3, 4.5]], "torch.float32"),
        ([True, False], "torch.bool"),
        ({"a": [1], "b": [0.5]}, {"a": "torch.int64", "b": "torch.float32"}),
        ([[1, 2], [3]], ["list", "list"]),
        (["a", [1]], ["str", "Tensor"]),
        ([np.ones(2), np.ones(2)], ["Tensor", "Tensor"]),
        ([], []),
    ]:
        assert await kinds.invoke(value, {}) == found
    assert await (await load("zoo:Halves")).invoke([0.5], {}) == "torch.bfloat16"


async def test_the_int8_variant_says_how_far_off_it_is(load: Load, tmp_path: Path) -> None:
    was, variant = (await load("zoo:Wide")).describe(), await load("zoo:Wide", quantise="int8")
    told = variant.describe()
    assert (told.precision, told.batches, told.parameters) == ("int8", 1, was.parameters)
    assert was.size_bytes is not None
    assert told.size_bytes is not None
    assert told.size_bytes < was.size_bytes / 2
    assert 0 < told.metrics["int8_relative_error"] < 50_000  # of a million
    assert np.asarray(await variant.invoke(np.ones((3, 64), np.float32), {})).shape == (3, 8)
    save_file(toys.tensors(), tmp_path / "toy.safetensors", {"license": "MIT", "task": "x-toys/toy"})
    whole = (await load("toy.safetensors", "toy_module:Toy")).describe()
    small = (await load("toy.safetensors", "toy_module:Toy", quantise="int8")).describe()
    again = (await load("toy.safetensors", "toy_module:Toy", quantise="int8")).describe()
    assert (whole.licence, whole.task) == (small.licence, small.task) == ("MIT", "x-toys/toy")
    assert whole.digest != small.digest == again.digest
    assert (bool(whole.files), small.files) == (True, "")
    assert (await load("zoo:Words", quantise="int8")).describe().metrics["int8_relative_error"] < 100_000


async def test_what_cannot_be_quantised_is_told(load: Load) -> None:
    with pytest.raises(LocalError, match="no linear or recurrent layer") as caught:
        await load("zoo:Image", quantise="int8")
    assert caught.value.code is Code.BAD_INPUT
    with pytest.raises(LocalError, match="no torch module: it takes no --quantise"):
        await load("zoo:plain", quantise="int8")
    assert (await load("zoo:Encoder", quantise="int8")).describe().precision == "int8"
