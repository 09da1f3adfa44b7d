"""Torch modules from safetensors, where torch is installed; what is said where it is not."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from modelnet_p2p.digest import listing_of
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.models import Models
from modelnet_p2p.node.serving.source import Source

Call = Callable[..., Awaitable[tuple[Any, list[Any]]]]  # Any: each test knows what its model gives
MakeSource = Callable[..., Source]

HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed")

NETS = """
import torch

class Line(torch.nn.Module):
    def __init__(self, inputs: int = 3, outputs: int = 2):
        super().__init__()
        self.linear = torch.nn.Linear(inputs, outputs)
        self.noise = torch.nn.Dropout(0.9)  # `eval` turns it off

    def forward(self, x, scale=1.0):
        assert not torch.is_grad_enabled()
        return self.noise(self.linear(x)) * scale

class Several(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def forward(self, batch):
        return {"sum": batch["a"] + batch["b"], "pair": (batch["a"], self.weight)}

def not_a_class(): ...
"""
WEIGHT = np.arange(6, dtype=np.float32).reshape(2, 3)
BIAS = np.array([1, -1], np.float32)


@pytest.fixture
def nets(shop: Path) -> Path:
    (shop / "nets.py").write_text(NETS)
    save_file({"linear.weight": WEIGHT, "linear.bias": BIAS}, shop / "line.safetensors")
    return shop


@pytest.mark.skipif(HAS_TORCH, reason="torch is installed")
async def test_without_torch_the_hint_says_what_to_install(
    models: Models, source: MakeSource, nets: Path
) -> None:
    with pytest.raises(LocalError, match="needs torch") as caught:
        await models.add(source("line.safetensors", module="nets:Line"))
    assert caught.value.code is Code.BAD_STATE
    assert caught.value.hint == "pip install 'modelnet-p2p[torch]'"


async def test_a_file_that_is_not_there_is_told_before_what_it_would_need(
    models: Models, source: MakeSource
) -> None:
    with pytest.raises(LocalError, match="there is no file"):
        await models.add(source("nowhere.safetensors", module="nets:Line"))


@needs_torch
@pytest.mark.live
async def test_a_module_and_its_description(
    models: Models, source: MakeSource, call: Call, nets: Path
) -> None:
    served = await models.add(source("line.safetensors", module="nets:Line"))
    description = served.description
    assert (description.name, description.framework, description.precision) == ("line", "torch", "float32")
    assert description.parameters == 8
    assert description.digest == listing_of((nets / "line.safetensors").read_bytes()).root
    x = np.array([[1, 2, 3]], np.float32)
    answer, _ = await call(served, x, scale=2)
    np.testing.assert_allclose(answer, (x @ WEIGHT.T + BIAS) * 2)
    with pytest.raises(LocalError) as caught:
        await call(served, np.zeros((1, 4), np.float32))
    assert caught.value.code is Code.BAD_INPUT
    assert caught.value.message == "nets:Line expected a tensor float32 [n,3], got float32 [1,4]"
    answer, _ = await call(served, [[1, 2, 3]])
    np.testing.assert_allclose(answer, x @ WEIGHT.T + BIAS)
    with pytest.raises(LocalError) as caught:
        await call(served, x, depth=2)
    assert caught.value.code is Code.BAD_INPUT
    assert "depth" in caught.value.message


@needs_torch
@pytest.mark.live
async def test_why_a_model_has_no_latency_is_told_its_publisher_alone(open_town: Any, nets: Path) -> None:
    save_file({"weight": np.array([7, 8], np.float32)}, nets / "several.safetensors")
    async with open_town() as town:
        alice = await town.peer("alice")
        here = {"module": "nets:Several", "interpreter": sys.executable, "cwd": str(nets)}
        for more in ({"dry_run": True}, {}):
            told = await alice.publish("several.safetensors", **here, **more)
            why = "no latency was measured: nobody knows what it takes (give an input with --sample FILE.npy)"
            assert (told["notes"], told["limits"].get("latency_us")) == ([why], None)
        (offer,) = await alice.find(model="several")
        assert b"nobody knows" not in offer.envelope
        told = await alice.publish("line.safetensors", **{**here, "module": "nets:Line"})
        assert told["notes"] == []


@needs_torch
@pytest.mark.live
async def test_bfloat16_all_the_way(models: Models, source: MakeSource, call: Call, nets: Path) -> None:
    weights = {
        "linear.weight": WEIGHT.astype(ml_dtypes.bfloat16),
        "linear.bias": BIAS.astype(ml_dtypes.bfloat16),
    }
    save_file(weights, nets / "half.safetensors")
    served = await models.add(source("half.safetensors", module="nets:Line"))
    assert served.description.precision == "bfloat16"
    x = np.array([[1, 2, 3]], ml_dtypes.bfloat16)
    answer, _ = await call(served, x)
    assert answer.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(answer.astype(np.float32), x.astype(np.float32) @ WEIGHT.T + BIAS)


@needs_torch
@pytest.mark.live
async def test_trees_of_tensors_and_a_config_beside_the_file(
    models: Models, source: MakeSource, call: Call, nets: Path
) -> None:
    save_file({"weight": np.array([7, 8], np.float32)}, nets / "several.safetensors")
    served = await models.add(source("several.safetensors", module="nets:Several"))
    a, b = np.array([1.5], np.float32), np.array([2], np.int64)
    answer, _ = await call(served, {"a": a, "b": b})
    assert answer["sum"] == [3.5]
    assert isinstance(answer["pair"], list)
    np.testing.assert_array_equal(answer["pair"][1], [7, 8])
    wide = {"linear.weight": np.ones((1, 5), np.float32), "linear.bias": np.zeros(1, np.float32)}
    save_file(wide, nets / "wide.safetensors")
    (nets / "wide.json").write_text(json.dumps({"inputs": 5, "outputs": 1}))
    served = await models.add(source("wide.safetensors", module="nets:Line"))
    assert (await call(served, np.ones((1, 5), np.float32)))[0] == [[5]]


@needs_torch
@pytest.mark.live
async def test_what_does_not_fit_is_named(models: Models, source: MakeSource, nets: Path) -> None:
    save_file({"linear.weight": WEIGHT}, nets / "part.safetensors")
    save_file({"linear.weight": WEIGHT.T.copy(), "linear.bias": BIAS}, nets / "turned.safetensors")
    (nets / "junk.safetensors").write_bytes(b"not safetensors at all")
    (nets / "void.safetensors").write_bytes(b"")
    cases = [
        ("part.safetensors", "nets:Line", "linear.bias"),
        ("turned.safetensors", "nets:Line", "size mismatch"),
        ("junk.safetensors", "nets:Line", "junk.safetensors"),
        ("void.safetensors", "nets:Line", "void.safetensors"),
        ("absent.safetensors", "nets:Line", "absent.safetensors"),
        ("line.safetensors", "nets:not_a_class", "not a class of torch.nn.Module"),
        ("line.safetensors", "nowhere:Line", "nowhere"),
        ("line.safetensors", None, "no code"),
    ]
    for spec, module, text in cases:
        with pytest.raises(LocalError) as caught:
            await models.add(source(spec, module=module))
        assert caught.value.code is Code.BAD_INPUT
        assert text in caught.value.message
