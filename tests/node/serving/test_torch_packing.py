"""Layers with packed weights: what plain ones give, for whatever they are given; and who is left alone."""

from __future__ import annotations

import copy
import functools
import logging
import sys
import weakref
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelnet_p2p.node.serving.backends.registry import find_backend
from modelnet_p2p.node.serving.source import Source

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from modelnet_p2p.node.serving.backends import torch_packing  # noqa: E402
from modelnet_p2p.node.serving.backends.torch_packing import PackedLinear, pack, unpack  # noqa: E402

INPUTS, OUTPUTS = 768, 1024  # just large enough
Tensor = Any  # torch's, which has no types where it is not installed

ZOO = """
import torch
from torch import nn

class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.a, self.b = nn.Linear(768, 1024), nn.Linear(1024, 768)
    def forward(self, x):
        return self.b(torch.relu(self.a(x)))

class Asks(nn.Module):
    "Makes tensors that are like its first parameter, which no packed one can do."
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(768, 1024, bias=False)
    def forward(self, x):
        return self.a(x) + next(self.parameters()).new_ones(1024)
"""


@pytest.fixture
def plain() -> Any:
    torch.manual_seed(1)
    return nn.Linear(INPUTS, OUTPUTS).eval()


@pytest.fixture
def packed(plain: Any) -> Any:
    """The same layer."""
    layer = copy.deepcopy(plain)
    assert pack(layer) == 1
    return layer


def rows(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "x",
    [
        *(pytest.param(rows(count, INPUTS), id=f"{count} rows") for count in (0, 1, 2, 3, 16, 65, 300)),
        pytest.param(rows(INPUTS), id="1-D"),
        pytest.param(rows(2, 3, INPUTS), id="3-D"),
        pytest.param(rows(2, 1, 3, INPUTS), id="4-D"),
        pytest.param(rows(3, 0, INPUTS), id="3-D, empty"),
        pytest.param(rows(4, 2 * INPUTS)[:, ::2], id="every other column"),
        pytest.param(rows(8, INPUTS)[::3], id="every third row"),
        pytest.param(rows(INPUTS, 5).t(), id="transposed"),
        pytest.param(rows(1, INPUTS).expand(5, INPUTS), id="one row again and again"),
        pytest.param(rows(5, INPUTS + 3)[:, 1:-2], id="out of the middle"),
        pytest.param(nn.Parameter(rows(2, INPUTS)), id="a parameter"),
        pytest.param(rows(2, INPUTS).to_sparse(), id="sparse"),
        pytest.param(torch.full((2, INPUTS), torch.nan), id="no numbers"),
    ],
)
def test_it_gives_what_the_plain_layer_gives(packed: Any, plain: Any, x: Tensor) -> None:
    with torch.inference_mode():
        found, expected = packed(x), plain(x)
    assert found.shape == expected.shape
    assert found.stride() == expected.stride()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert type(packed) is PackedLinear


@pytest.mark.parametrize(
    "x",
    [
        rows(2, INPUTS - 1),
        rows(2, INPUTS).double(),
        rows(2, INPUTS).bfloat16(),
        torch.ones(2, INPUTS, dtype=torch.int64),
        torch.tensor(1.0),
        [1.0, 2.0],
        None,
    ],
)
def test_a_wrong_input_gets_the_same_words_and_changes_nothing(packed: Any, plain: Any, x: object) -> None:
    with torch.inference_mode():
        with pytest.raises((RuntimeError, TypeError)) as expected:
            plain(x)
        with pytest.raises(expected.type) as found:
            packed(x)
    assert str(found.value) == str(expected.value)
    assert type(packed) is PackedLinear


def test_gradients_other_dtypes_and_transforms_are_what_they_were(plain: Any) -> None:
    x = rows(3, INPUTS)

    def gradient(layer: Any) -> Tensor:
        layer(x).sum().backward()
        return layer.weight.grad

    def automatic(layer: Any) -> Tensor:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return layer(x)

    def mapped(layer: Any) -> Tensor:
        with torch.inference_mode():
            return torch.vmap(layer)(x)

    for use in (gradient, automatic, mapped):
        one, other = copy.deepcopy(plain), copy.deepcopy(plain)
        assert pack(one) == 1
        torch.testing.assert_close(use(one), use(other), rtol=0, atol=0)
        assert type(one) is nn.Linear


def uses() -> dict[str, Callable[[Any], Tensor]]:
    """Ways to the weight that end with it as it was."""

    def assigned(layer: Any) -> Tensor:
        layer.weight = nn.Parameter(layer.weight.detach())
        return layer.weight

    def loaded(layer: Any) -> Tensor:
        layer.load_state_dict({name: tensor.clone() for name, tensor in layer.state_dict().items()})
        return layer.weight

    def called(layer: Any) -> Tensor:
        given = {name: torch.zeros(tensor.shape) for name, tensor in layer.named_parameters()}
        with torch.no_grad():
            assert not torch.func.functional_call(layer, given, (rows(2, INPUTS),)).any()
        return layer.weight

    return {
        "weight": lambda layer: layer.weight,
        "state_dict": lambda layer: layer.state_dict()["weight"],
        "deepcopy": lambda layer: copy.deepcopy(layer).weight,
        "double": lambda layer: layer.double().weight.float(),
        "setting it": assigned,
        "load_state_dict": loaded,
        "functional_call": called,
    }


@pytest.mark.parametrize("way", uses())
def test_who_wants_the_weight_gets_it_and_a_plain_layer(packed: Any, plain: Any, way: str) -> None:
    assert torch.equal(uses()[way](packed), plain.weight)
    assert type(packed) is nn.Linear
    assert [name for name, _ in packed.named_parameters()] == ["weight", "bias"]
    assert all(parameter.requires_grad for parameter in packed.parameters())
    packed.float()
    with torch.inference_mode():
        assert torch.equal(packed(rows(2, INPUTS)), plain(rows(2, INPUTS)))


def test_what_is_told_of_a_packed_layer_is_what_it_was(packed: Any, plain: Any) -> None:
    assert isinstance(packed, nn.Linear)
    found, expected = dict(packed.named_parameters()), dict(plain.named_parameters())
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        for told in ("shape", "dtype", "device", "requires_grad", "nbytes"):
            assert getattr(found[name], told) == getattr(tensor, told)
    assert next(packed.parameters()).new_ones(2).layout is torch.strided  # its bias comes first
    assert type(packed) is PackedLinear


def tied() -> nn.Module:
    module = nn.ModuleDict({"words": nn.Embedding(OUTPUTS, INPUTS), "head": nn.Linear(INPUTS, OUTPUTS)})
    module["head"].weight = module["words"].weight
    return module


def views() -> Any:
    """Two layers whose weights are halves of one tensor."""
    module = nn.ModuleList([nn.Linear(INPUTS, OUTPUTS, bias=False) for _ in range(2)])
    halves = torch.zeros(2, OUTPUTS, INPUTS)
    for layer, half in zip(module, halves, strict=True):
        layer.weight = nn.Parameter(half)
    return module


def hooked() -> nn.Module:
    layer = nn.Linear(INPUTS, OUTPUTS)
    layer.register_forward_pre_hook(lambda layer, args: None)
    return layer


def replaced() -> Any:
    layer: Any = nn.Linear(INPUTS, OUTPUTS)
    layer.forward = functools.partial(F.linear, weight=layer.weight)
    return layer


def compiled() -> nn.Module:
    layer = nn.Linear(INPUTS, OUTPUTS)
    layer._compiled_call_impl = layer._call_impl  # what `compile` sets, which imports all of the compiler
    return layer


def pruned() -> Any:
    prune: Any = import_module("torch.nn.utils.prune")
    return prune.identity(nn.Linear(INPUTS, OUTPUTS), "weight")


class Own(nn.Linear):  # type: ignore[misc, unused-ignore]  # where torch is not installed
    """Of somebody who may do anything with its weight."""


@pytest.mark.parametrize(
    "make",
    [
        tied,
        views,
        hooked,
        replaced,
        compiled,
        lambda: Own(INPUTS, OUTPUTS),
        lambda: nn.Linear(INPUTS, OUTPUTS).double(),
        lambda: nn.Linear(INPUTS, OUTPUTS, device="meta"),
        lambda: nn.Linear(512, 512),
        lambda: nn.Linear(1 << 19, 1),
        lambda: nn.LazyLinear(OUTPUTS),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(INPUTS, OUTPUTS)),
        pruned,
        lambda: nn.TransformerEncoderLayer(512, 4, 2048, batch_first=True),
        lambda: nn.MultiheadAttention(1024, 4),
        lambda: nn.Conv1d(INPUTS, OUTPUTS, 1),
    ],
)
def test_these_are_left_alone(make: Callable[[], Any]) -> None:
    module = make()
    before = [(type(part), dict(part._parameters)) for part in module.modules()]
    assert pack(module) == 0
    assert [(type(part), dict(part._parameters)) for part in module.modules()] == before


def test_a_layer_with_two_places_is_one_layer(plain: Any) -> None:
    twice = nn.Sequential(plain, nn.ModuleList([plain]))
    assert pack(twice) == 1
    assert pack(twice) == 0


def test_small_layers_are_packed_where_they_are_many() -> None:
    few = nn.ModuleList([nn.Linear(256, 256) for _ in range(31)])
    many = nn.ModuleList([nn.Linear(256, 256) for _ in range(32)])
    assert (pack(few), pack(many)) == (0, 32)
    unpack(many)
    assert {type(layer) for layer in many} == {nn.Linear}


def missing(*args: object) -> Tensor:
    raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")


def wrong(x: Tensor, packed: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, packed.to_dense(), bias) * 1.001


@pytest.mark.parametrize("operator", [missing, wrong])
def test_where_the_operator_is_missing_or_wrong_all_stays_plain(
    operator: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch_packing, "apply_packed", operator)
    torch_packing._tell.cache_clear()
    module = nn.Sequential(nn.Linear(INPUTS, OUTPUTS), nn.Linear(OUTPUTS, INPUTS))
    with caplog.at_level(logging.DEBUG, torch_packing.__name__):
        assert pack(module) == 0
    assert [line.levelname for line in caplog.records] == ["DEBUG", "DEBUG"]  # once why, and how many
    assert {type(layer) for layer in module} == {nn.Linear}
    assert [name for name, _ in module.named_parameters()] == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_who_turns_onednn_off_has_plain_layers(plain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert pack(plain) == 0


def test_the_plain_weights_are_let_go_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    module = nn.Sequential(*(nn.Linear(4096, 256) for _ in range(8)))
    weights = [weakref.ref(layer.weight) for layer in module]
    pack_one, plain = torch_packing._pack, []

    def counted(layer: nn.Linear) -> bool:
        packed = pack_one(layer)
        plain.append(sum(weight() is not None for weight in weights))
        return packed

    monkeypatch.setattr(torch_packing, "_pack", counted)
    assert pack(module) == 8
    assert plain == [7, 6, 5, 4, 3, 2, 1, 0]


async def at_once(step: Callable[[], Any]) -> Any:  # Any: each step's own result
    return step()


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "packing_zoo.py").write_text(ZOO)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "packing_zoo", raising=False)
    return tmp_path


def save_wide(path: Path) -> None:
    from safetensors.torch import save_file

    save_file(import_module("packing_zoo").Wide().state_dict(), path)


async def load(spec: str, folder: Path, module: str | None = None, **options: str) -> Any:
    backend = find_backend(spec)(Source(spec, module, cwd=str(folder), options=options), at_once)
    await backend.load()
    return backend


async def test_a_published_module_is_packed_and_its_record_is_what_it_was(
    zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_wide(zoo / "wide.safetensors")
    x = np.random.default_rng(1).standard_normal((5, 768), np.float32)
    for spec, module in (("packing_zoo:Wide", None), ("wide.safetensors", "packing_zoo:Wide")):
        backend = await load(spec, zoo, module)
        assert type(backend._serving.module.a) is PackedLinear
        with monkeypatch.context() as patch:
            patch.setattr(torch_packing, "LARGE", 1 << 30)
            other = await load(spec, zoo, module)
        assert type(other._serving.module.a) is nn.Linear
        told, was = backend.describe(), other.describe()
        names = ("precision", "parameters", "size_bytes", "digest", "inputs", "outputs", "batches")
        assert [getattr(told, name) for name in names] == [getattr(was, name) for name in names]
        assert (told.parameters, told.batches > 1) == (2 * 768 * 1024 + 768 + 1024, True)
        answer = np.asarray(await backend.invoke(x, {}))
        np.testing.assert_allclose(answer, np.asarray(await other.invoke(x, {})), rtol=1e-4, atol=1e-5)
        [one, two] = await backend.invoke_many([(x[:1], {}), (x[1:], {})])
        np.testing.assert_allclose(np.concatenate([one, two]), answer, rtol=1e-4, atol=1e-5)
        assert type(backend._serving.module.a) is PackedLinear


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="/proc tells what is mapped")
async def test_nothing_of_the_file_stays_in_memory_beside_the_packed_weights(zoo: Path) -> None:
    save_wide(zoo / "let-go.safetensors")
    backend = await load("let-go.safetensors", zoo, "packing_zoo:Wide")
    assert "let-go.safetensors" not in Path("/proc/self/maps").read_text()
    assert type(backend._serving.module.a) is PackedLinear


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="/proc tells what is mapped")
def test_tensors_in_a_file_are_taken_in_and_tied_ones_stay_tied(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    def made() -> Any:
        return nn.ModuleDict({"words": nn.Embedding(9, INPUTS), "layer": nn.Linear(INPUTS, OUTPUTS)})

    module, copied = made(), made()
    save_file(module.state_dict(), tmp_path / "taken-in.safetensors")
    copied.load_state_dict(load_file(tmp_path / "taken-in.safetensors"), assign=True)
    copied["head"] = nn.Linear(INPUTS, 9, bias=False)
    copied["head"].weight = copied["words"].weight
    assert "taken-in.safetensors" in Path("/proc/self/maps").read_text()
    assert pack(copied) == 1
    assert "taken-in.safetensors" not in Path("/proc/self/maps").read_text()
    assert copied["head"].weight is copied["words"].weight
    assert torch.equal(copied["words"].weight, module["words"].weight)


async def test_an_int8_variant_is_not_packed(zoo: Path) -> None:
    backend = await load("packing_zoo:Wide", zoo, quantise="int8")
    assert not any(isinstance(part, PackedLinear) for part in backend._serving.module.modules())
    assert backend.describe().metrics["int8_relative_error"] < 50_000  # of a million


async def test_a_module_that_cannot_be_run_packed_is_served_plain(zoo: Path) -> None:
    backend = await load("packing_zoo:Asks", zoo)
    assert type(backend._serving.module.a) is nn.Linear
    assert backend.describe().latency_us is not None
    assert np.asarray(await backend.invoke(np.zeros((2, 768), np.float32), {})).tolist() == [[1.0] * 1024] * 2
