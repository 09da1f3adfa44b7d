"""ONNX models: what is read of their files, what is refused, and what they answer."""

from __future__ import annotations

import logging
import struct
import sys
import warnings
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

import toys
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends import onnx_model
from modelnet_p2p.node.serving.backends.onnx_file import read_onnx
from modelnet_p2p.node.serving.backends.onnx_int8 import quantised_bytes
from modelnet_p2p.node.serving.backends.onnx_model import OnnxBackend
from modelnet_p2p.node.serving.models import Models
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.node.weights.hashing import artifact_of
from modelnet_p2p.payload import Value
from modelnet_p2p.records import Spec

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

Load = Callable[..., Awaitable[OnnxBackend]]


async def at_once(step: Callable[[], Any]) -> Any:  # Any: each step's own result
    return step()


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """`await load("toy.onnx", quantise="int8")`: the toy is there, other files are written before."""
    (tmp_path / "toy.onnx").write_bytes(toys.onnx_bytes(properties={"license": "MIT", "task": "x-toys/toy"}))

    async def run(spec: str, **options: str) -> OnnxBackend:
        source = Source(spec, cwd=str(tmp_path), interpreter=sys.executable, options=options)
        backend = OnnxBackend(source, at_once)
        await backend.load()
        return backend

    return run


def floats(name: str, *shape: int | str | None) -> Any:  # Any: onnx's own messages
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


async def test_the_toy_and_its_description(load: Load, tmp_path: Path) -> None:
    backend = await load("toy.onnx")
    told = backend.describe()
    assert (told.name, told.framework, told.precision, told.task) == ("toy", "onnx", "float32", "x-toys/toy")
    assert told.inputs == (Spec("x", "tensor", "float32", (None, toys.INPUTS)),)
    assert told.outputs == (Spec("y", "tensor", "float32", (None, toys.OUTPUTS)),)
    assert told.parameters == sum(array.size for array in toys.tensors().values())
    assert (told.licence, told.size_bytes) == ("MIT", (tmp_path / "toy.onnx").stat().st_size)
    assert told.digest == artifact_of(tmp_path / "toy.onnx").root
    assert told.files == str(tmp_path / "toy.onnx")
    assert told.latency_us is not None
    assert told.batches > 1
    assert told.idempotent
    assert not told.deterministic  # rows beside others take other kernels
    np.testing.assert_allclose(np.asarray(await backend.invoke(toys.X, {})), toys.expected(toys.X), atol=1e-5)


async def test_the_int8_variant_is_smaller_and_says_how_far_off_it_is(load: Load, tmp_path: Path) -> None:
    big = helper.make_node("MatMul", ["x", "w"], ["y"])
    weights = numpy_helper.from_array(toys.sines(64, 256, start=0), "w")
    (tmp_path / "big.onnx").write_bytes(
        toys.onnx_bytes([big], [floats("x", None, 64)], [floats("y", None, 256)], [weights])
    )
    original, backend = await load("big.onnx"), await load("big.onnx", quantise="int8")
    was, told = original.describe(), backend.describe()
    assert (was.precision, told.precision) == ("float32", "int8")
    assert was.size_bytes is not None
    assert told.size_bytes is not None
    assert told.size_bytes < was.size_bytes / 2
    assert 0 < told.metrics["int8_relative_error"] < 50_000  # of a million
    assert told.digest not in (None, was.digest)
    assert told.files == ""
    assert told.batches == 1  # its scale is of all rows: they would change each other's answers
    assert (await load("big.onnx", quantise="int8")).describe().digest == told.digest
    x = toys.sines(3, 64, start=9)
    reference = np.asarray(await original.invoke(x, {}))
    off = np.linalg.norm(np.asarray(await backend.invoke(x, {})) - reference) / np.linalg.norm(reference)
    assert off < 0.05
    with pytest.raises(LocalError, match="no variant 'int4'"):
        await load("big.onnx", quantise="int4")


def test_a_variant_has_seven_bits_which_no_processor_clips(tmp_path: Path) -> None:
    """With eight its answers would depend on the machine: see onnx_int8."""
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    weights = numpy_helper.from_array(toys.sines(64, 256, start=0), "w")
    path = tmp_path / "big.onnx"
    path.write_bytes(toys.onnx_bytes([node], [floats("x", None, 64)], [floats("y", None, 256)], [weights]))
    data, _ = quantised_bytes(path, b"")
    tensors = onnx.load_from_string(data).graph.initializer
    [whole] = [
        numpy_helper.to_array(t) for t in tensors if t.data_type == TensorProto.INT8 and t.dims == [64, 256]
    ]
    assert 60 <= np.abs(whole.astype(int)).max() <= 64


async def test_what_has_no_matrices_has_no_variant(load: Load, tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"])
    (tmp_path / "relu.onnx").write_bytes(toys.onnx_bytes([node], [floats("x", 2)], [floats("y", 2)]))
    with pytest.raises(LocalError, match="has no matrix products") as caught:
        await load("relu.onnx", quantise="int8")
    assert caught.value.code is Code.BAD_INPUT


async def test_several_inputs_and_outputs_have_names(load: Load, tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["rest"])]
    model = toys.onnx_bytes(
        nodes, [floats("a", "n", 2), floats("b", "n", 2)], [floats("sum", "n", 2), floats("rest", "n", 2)]
    )
    (tmp_path / "two.onnx").write_bytes(model)
    backend = await load("two.onnx")
    both: dict[str, Value] = {"a": [[3, 4]], "b": [[1, 1]]}
    found = await backend.invoke(both, {})
    assert isinstance(found, dict)
    assert {name: np.asarray(part).tolist() for name, part in found.items()} == {
        "sum": [[4, 5]],
        "rest": [[2, 3]],
    }
    with pytest.raises(LocalError, match="misses b"):
        await backend.invoke({"a": [[3, 4]]}, {})
    with pytest.raises(LocalError, match="takes no parameter 'exit'"):
        await backend.invoke(both, {"exit": 1})


async def test_a_classifier_of_scikit_learn_gives_words_and_maps(load: Load, tmp_path: Path) -> None:
    scores = helper.make_node(
        "LinearClassifier",
        ["x"],
        ["label", "scores"],
        domain="ai.onnx.ml",
        coefficients=[1.0, 0.0, 0.0, 1.0],
        intercepts=[0.0, 0.0],
        classlabels_strings=["cat", "dog"],
    )
    zipped = helper.make_node(
        "ZipMap", ["scores"], ["odds"], domain="ai.onnx.ml", classlabels_strings=["cat", "dog"]
    )
    odds = helper.make_sequence_type_proto(
        helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    )
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.STRING, [None]),
        helper.make_value_info("odds", odds),
    ]
    model = onnx.load_from_string(toys.onnx_bytes([scores, zipped], [floats("x", None, 2)], outputs))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    (tmp_path / "animals.onnx").write_bytes(model.SerializeToString())
    backend = await load("animals.onnx")
    assert backend.describe().task == "tabular-classification"
    assert [spec.kind for spec in backend.describe().outputs] == ["json", "json"]
    assert backend.describe().batches == 1
    found = await backend.invoke([[0.25, 0.75]], {})
    assert found == {"label": ["dog"], "odds": [{"cat": 0.25, "dog": 0.75}]}


def external(location: str) -> bytes:
    """A model whose weights lie at `location`."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    weight.dims.extend([4])
    for key, value in (("location", location), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    return toys.onnx_bytes(
        [helper.make_node("Add", ["x", "w"], ["y"])], [floats("x", 4)], [floats("y", 4)], [weight]
    )


async def test_weights_beside_the_file_belong_to_it(load: Load, tmp_path: Path) -> None:
    (tmp_path / "big.onnx").write_bytes(external("big.onnx.data"))
    with pytest.raises(LocalError, match=r"needs 'big\.onnx\.data' beside it") as caught:
        await load("big.onnx")
    assert caught.value.code is Code.BAD_INPUT
    (tmp_path / "big.onnx.data").write_bytes(struct.pack("<4f", 1, 2, 3, 4))
    backend = await load("big.onnx")
    assert np.asarray(await backend.invoke([0, 0, 0, 1], {})).tolist() == [1, 2, 3, 5]
    first = backend.describe()
    assert first.size_bytes == len(external("big.onnx.data")) + 16
    (tmp_path / "big.onnx.data").write_bytes(struct.pack("<4f", 1, 2, 3, 5))
    assert (await load("big.onnx")).describe().digest != first.digest


@pytest.mark.parametrize(
    "location",
    [
        "../secret.data",
        "/etc/passwd",
        "a/../../secret.data",
        "link.data",
        "*/_ORT_MEM_ADDR_/*",
        "~/x.data",
        "",
    ],
)
async def test_weights_from_elsewhere_are_unsafe(load: Load, tmp_path: Path, location: str) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "secret.data").write_bytes(bytes(16))
    (home / "link.data").symlink_to(tmp_path / "secret.data")
    (home / "thief.onnx").write_bytes(external(location))
    with pytest.raises(LocalError, match="which is not beside it") as caught:
        await load("home/thief.onnx")
    assert caught.value.code is Code.UNSAFE


async def test_what_comes_from_libraries_is_not_loaded(load: Load, tmp_path: Path) -> None:
    node = helper.make_node("Steal", ["x"], ["y"], domain="com.evil")
    (tmp_path / "custom.onnx").write_bytes(toys.onnx_bytes([node], [floats("x", 4)], [floats("y", 4)]))
    with pytest.raises(LocalError, match=r"operators of 'com\.evil', which come from a library"):
        await load("custom.onnx")
    context = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="x.so")
    (tmp_path / "compiled.onnx").write_bytes(toys.onnx_bytes([context], [floats("x", 4)], [floats("y", 4)]))
    with pytest.raises(LocalError, match="a compiled program") as caught:
        await load("compiled.onnx")
    assert caught.value.code is Code.UNSAFE


async def test_giants_fail_alone(load: Load, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shape = numpy_helper.from_array(np.array([1 << 20, 1 << 25], np.int64), "s")
    nodes = [helper.make_node("ConstantOfShape", ["s"], ["c"]), helper.make_node("Add", ["x", "c"], ["y"])]
    (tmp_path / "bomb.onnx").write_bytes(
        toys.onnx_bytes(nodes, [floats("x", "n")], [floats("y", None, None)], [shape])
    )
    backend = await load("bomb.onnx")
    assert backend.describe().latency_us is None
    assert "Failed to allocate memory" in caplog.text
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, raw_data=b"1234")
    weight.dims.extend([1 << 30, 1 << 30])
    add = helper.make_node("Add", ["x", "w"], ["y"])
    (tmp_path / "lie.onnx").write_bytes(toys.onnx_bytes([add], [floats("x", 4)], [floats("y", 4)], [weight]))
    with pytest.raises(LocalError, match="onnxruntime cannot load"):
        await load("lie.onnx")


async def test_a_graph_that_loops_for_ever_is_ended(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onnx_model, "FIRST_RUN_SECONDS", 0.2)
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            floats("v", 4),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), floats("w", 4)],
    )
    loop = helper.make_node("Loop", ["", "true", "x"], ["y"], body=body)
    true = numpy_helper.from_array(np.array(True), "true")
    (tmp_path / "loop.onnx").write_bytes(toys.onnx_bytes([loop], [floats("x", 4)], [floats("y", 4)], [true]))
    with caplog.at_level(logging.WARNING):
        backend = await load("loop.onnx")
    assert backend.describe().latency_us is None
    assert "was not warmed up" in caplog.text


async def test_words_as_inputs_cannot_be_served(load: Load, tmp_path: Path) -> None:
    words = helper.make_tensor_value_info("x", TensorProto.STRING, [1])
    out = helper.make_tensor_value_info("y", TensorProto.STRING, [1])
    (tmp_path / "words.onnx").write_bytes(
        toys.onnx_bytes([helper.make_node("Identity", ["x"], ["y"])], [words], [out])
    )
    with pytest.raises(LocalError, match=r"a tensor\(string\), which no caller can send"):
        await load("words.onnx")


JUNK = [b"", b"not onnx at all", b"\x3a\xff\xff\xff\xff\x7f", Random(64).randbytes(64)]


@pytest.mark.parametrize("data", JUNK)
async def test_junk_is_named(load: Load, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "junk.onnx").write_bytes(data)
    with pytest.raises(LocalError, match=r"junk\.onnx") as caught:
        await load("junk.onnx")
    assert caught.value.code is Code.BAD_INPUT
    with pytest.raises(LocalError, match="there is no file"):
        await load("nowhere.onnx")


TOY = toys.onnx_bytes()


@given(data=st.data())
def test_a_broken_file_raises_its_own_error_and_ends(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "broken.onnx"
    broken = bytearray(TOY[: data.draw(st.integers(0, len(TOY)))])
    for at in data.draw(st.lists(st.integers(0, len(TOY) - 1), max_size=3)):
        if at < len(broken):
            broken[at] = data.draw(st.integers(0, 255))
    path.write_bytes(broken)
    with suppress(LocalError):
        read_onnx(path)


@pytest.mark.live
async def test_in_its_worker(models: Models, source: Any, call: Any, shop: Path) -> None:
    (shop / "toy.onnx").write_bytes(TOY)
    served = await models.add(source("toy.onnx"))
    answer, _ = await call(served, toys.X)
    np.testing.assert_allclose(answer, toys.expected(toys.X), atol=1e-5)
    with pytest.raises(LocalError, match=r"expected a tensor float32 \[n,4\], got float32 \[5,3\]") as caught:
        await call(served, toys.X[:, :3])
    assert caught.value.code is Code.BAD_INPUT
    found: dict[int, Any] = {}

    async def ask(number: int) -> None:
        found[number], _ = await call(served, toys.X[: number % 5 + 1] * number)

    async with trio.open_nursery() as nursery:  # some of them share steps
        for number in range(16):
            nursery.start_soon(ask, number)
    for number, answer in found.items():
        np.testing.assert_allclose(answer, toys.expected(toys.X[: number % 5 + 1] * number), atol=1e-4)
    with pytest.raises(LocalError, match="is no model that takes --speed") as caught:
        await models.add(source("toy.onnx", options={"speed": "high"}))
    assert caught.value.hint == "of its own options it has --quantise, --sample"


@pytest.mark.slow
async def test_handwritten_digits_as_onnx_and_as_int8(load: Load, tmp_path: Path) -> None:
    """A classifier that scikit-learn trained: the same labels from the runtime, nearly all of them from
    int8."""
    datasets = pytest.importorskip("sklearn.datasets")
    from sklearn.neural_network import MLPClassifier

    images, labels = datasets.load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is not trained to the end
        net = MLPClassifier((64,), max_iter=20, random_state=0).fit(images[:1200], labels[:1200])
    tensors = []
    for number, (weight, bias) in enumerate(zip(net.coefs_, net.intercepts_, strict=True)):
        tensors += [numpy_helper.from_array(weight.astype(np.float32), f"w{number}")]
        tensors += [numpy_helper.from_array(bias.astype(np.float32), f"b{number}")]
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w1", "b1"], ["z"]),
        helper.make_node("Softmax", ["z"], ["scores"], axis=1),
    ]
    (tmp_path / "digits.onnx").write_bytes(
        toys.onnx_bytes(nodes, [floats("x", None, 64)], [floats("scores", None, 10)], tensors)
    )
    test, truth = images[1200:], labels[1200:]
    whole, small = await load("digits.onnx"), await load("digits.onnx", quantise="int8")
    scores = [np.asarray(await backend.invoke(test, {})) for backend in (whole, small)]
    np.testing.assert_allclose(scores[0], net.predict_proba(test), atol=1e-4)
    right = [float((score.argmax(axis=1) == truth).mean()) for score in scores]
    assert right[0] > 0.8
    assert abs(right[0] - right[1]) < 0.02
    assert (small.describe().size_bytes or 0) < (whole.describe().size_bytes or 0) / 2
