"""builtin:digits: what it promises, and what it says to wrong input."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any

import numpy as np
import pytest

from modelnet_p2p.digest import Listing, listing_of
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.builtin import ROWS
from modelnet_p2p.node.serving.models import Models
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.payload import Value
from modelnet_p2p.records import open_manifest

Call = Callable[..., Awaitable[tuple[Any, list[Any]]]]  # Any: the output of digits

HOME = files("modelnet_p2p.node.serving.backends") / "digits"
DIGITS = Source("builtin:digits")

# A seven and a zero of the data set, darkest pixel 16.
SEVEN = [
    [0, 0, 7, 8, 13, 16, 15, 1],
    [0, 0, 7, 7, 4, 11, 12, 0],
    [0, 0, 0, 0, 8, 13, 1, 0],
    [0, 4, 8, 8, 15, 15, 6, 0],
    [0, 2, 11, 15, 15, 4, 0, 0],
    [0, 0, 0, 16, 5, 0, 0, 0],
    [0, 0, 9, 15, 1, 0, 0, 0],
    [0, 0, 13, 5, 0, 0, 0, 0],
]
ZERO = [
    [0, 0, 5, 13, 9, 1, 0, 0],
    [0, 0, 13, 15, 10, 15, 5, 0],
    [0, 3, 15, 2, 0, 11, 8, 0],
    [0, 4, 12, 0, 0, 8, 8, 0],
    [0, 5, 8, 0, 0, 9, 8, 0],
    [0, 4, 11, 0, 1, 12, 7, 0],
    [0, 2, 14, 5, 10, 12, 0, 0],
    [0, 0, 6, 13, 10, 0, 0, 0],
]
IMAGES = np.array([SEVEN, ZERO], np.float32)


async def test_it_tells_digits_apart_at_every_exit(models: Models, call: Call) -> None:
    served = await models.add(DIGITS)
    for exit in (1, 2, 3):
        answer, items = await call(served, IMAGES, exit=exit)
        assert answer["label"] == [7, 0]
        assert items == []
        scores = answer["scores"]
        assert (scores.dtype, scores.shape) == (np.float32, (2, 10))
        np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)


async def test_what_it_offers_is_what_its_owner_sealed(models: Models) -> None:
    description = (await models.add(DIGITS)).description
    assert description.name == "modelnet/digits"
    assert description.task == "image-classification"
    assert description.parameters == 58_750
    assert description.exits == (1, 2, 3)
    assert description.inputs[0].to_map()["shape"] == [None, 8, 8]
    assert description.outputs[1].to_map()["shape"] == [None, 10]
    assert description.manifest_envelope is not None
    manifest = open_manifest(description.manifest_envelope)
    assert manifest.digest == description.digest
    assert 950_000 < manifest.metrics["accuracy"] < 1_000_000
    listing = Listing.decode((HOME / "digits.listing").read_bytes())
    assert listing == listing_of((HOME / "digits.safetensors").read_bytes())
    assert listing.root == manifest.digest


async def test_under_another_name_or_task_the_owners_seal_is_not_claimed(models: Models) -> None:
    mine = (await models.add(Source("builtin:digits", model="alice/digits"))).description
    assert (mine.name, mine.version, mine.manifest_envelope) == ("alice/digits", "", None)
    same = (await models.add(Source("builtin:digits", model="modelnet/digits"))).description
    assert same.manifest_envelope is not None


async def test_no_images_and_many(models: Models, call: Call) -> None:
    served = await models.add(DIGITS)
    answer, _ = await call(served, np.zeros((0, 8, 8), np.float32))
    assert answer["label"] == []
    assert answer["scores"].shape == (0, 10)
    many = np.repeat(IMAGES, ROWS // 2 + 1, axis=0)
    answer, _ = await call(served, many)
    assert answer["label"] == [7] * (ROWS // 2 + 1) + [0] * (ROWS // 2 + 1)


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (IMAGES.astype(np.float64), "got float64 [2,8,8]"),
        (IMAGES[0], "got float32 [8,8]"),
        (IMAGES.reshape(2, 64), "got float32 [2,64]"),
        (IMAGES.tolist(), "got list"),
        ("seven", "got str"),
        (None, "got NoneType"),
        (IMAGES * 16, "got values 0 to 256"),
        (-IMAGES, "got values -16 to 0"),
        (np.full((1, 8, 8), np.nan, np.float32), "got values nan"),
    ],
)
async def test_bad_input_names_what_was_expected_and_what_came(
    models: Models, call: Call, value: Value, got: str
) -> None:
    served = await models.add(DIGITS)
    with pytest.raises(LocalError) as caught:
        await call(served, value)
    assert caught.value.code is Code.BAD_INPUT
    assert "expected a tensor float32 [n,8,8] with values 0 to 16" in caught.value.message
    assert got in caught.value.message


@pytest.mark.parametrize("params", [{"exit": 0}, {"exit": 4}, {"exit": "2"}, {"exit": True}, {"depth": 1}])
async def test_bad_parameters(models: Models, call: Call, params: dict[str, Value]) -> None:
    served = await models.add(DIGITS)
    with pytest.raises(LocalError) as caught:
        await call(served, IMAGES, **params)
    assert caught.value.code is Code.BAD_INPUT


@pytest.mark.slow  # to import scikit-learn
async def test_its_accuracy_is_what_the_manifest_says(models: Models, call: Call) -> None:
    """On the 450 images that were held out; needs scikit-learn for the images alone."""
    datasets = pytest.importorskip("sklearn.datasets")
    data = datasets.load_digits()
    order = np.random.default_rng(20240229).permutation(len(data.target))[1347:]
    images, labels = data.images[order].astype(np.float32), data.target[order]
    served = await models.add(DIGITS)
    metrics = served.description.metrics
    for key, params in [("accuracy", {}), *((f"accuracy.exit{n}", {"exit": n}) for n in (1, 2, 3))]:
        answer, _ = await call(served, images, **params)
        hits = (np.array(answer["label"]) == labels).mean()
        assert abs(round(hits * 1_000_000) - metrics[key]) <= 2_300  # one image: another BLAS may round so
