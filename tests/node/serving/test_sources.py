"""Which backend takes which source, what annotations tell, and what state files and workers may hold."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Generator
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.builtin import BuiltinBackend
from modelnet_p2p.node.serving.backends.callable import CallableBackend, _specs
from modelnet_p2p.node.serving.backends.contract import Backend
from modelnet_p2p.node.serving.backends.minilm import MiniLmBackend
from modelnet_p2p.node.serving.backends.onnx_model import OnnxBackend
from modelnet_p2p.node.serving.backends.pt2_model import ExportedBackend
from modelnet_p2p.node.serving.backends.registry import find_backend
from modelnet_p2p.node.serving.backends.tflite import TfliteBackend
from modelnet_p2p.node.serving.backends.torch_module import TorchModuleBackend
from modelnet_p2p.node.serving.description import Description
from modelnet_p2p.node.serving.source import Source, slots_of
from modelnet_p2p.node.serving.terms import Terms
from modelnet_p2p.records import Spec

ALICES = Source(
    "shop:upper",
    None,
    "alice/upper@1",
    "text-generation",
    ("loud",),
    "/usr/bin/python3",
    "/home/alice",
    {"A": "b"},
    options={"quantise": "int8"},
    terms=Terms({"usd_per_call": 2000}, "edge", ("de",), "MIT"),
)


@pytest.mark.parametrize(
    ("spec", "backend"),
    [
        ("builtin:digits", BuiltinBackend),
        ("builtin:other", BuiltinBackend),
        ("builtin:minilm", MiniLmBackend),
        ("shop:upper", CallableBackend),
        ("package.shop:Class.method", CallableBackend),
        ("weights.safetensors", TorchModuleBackend),
        ("model.onnx", OnnxBackend),
        ("program.pt2", ExportedBackend),
        ("models/model.TFLITE", TfliteBackend),
        ("/a dir/weights.safetensors", TorchModuleBackend),
    ],
)
def test_each_source_has_one_backend(spec: str, backend: type[Backend]) -> None:
    assert find_backend(spec) is backend


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ("model.pt", Code.UNSAFE),
        ("a/b/MODEL.PKL", Code.UNSAFE),
        ("a/b.joblib/", Code.UNSAFE),
        ("http://127.0.0.1:8080/v1", Code.BAD_INPUT),
        ("", Code.BAD_INPUT),
        ("shop:", Code.BAD_INPUT),
        ("shop:a;b", Code.BAD_INPUT),
    ],
)
def test_what_nobody_takes(spec: str, code: Code) -> None:
    with pytest.raises(LocalError) as caught:
        find_backend(spec)
    assert caught.value.code is code


EMPTY = inspect.Signature.empty


@pytest.mark.parametrize(
    ("takes", "gives", "kinds"),
    [
        (EMPTY, EMPTY, []),
        (object, bytes, []),
        (str, str | None, ["text", "text"]),
        ("str", "Iterator[str]", ["text", "text"]),
        (str, AsyncIterator[str], ["text", "text"]),
        (str, Generator[dict[str, int], None, None], ["text", "json"]),
        (dict[str, int], list[float], ["json", "json"]),
        ("np.ndarray", "NDArray[np.float32]", ["tensor", "tensor float32"]),
        (np.ndarray, npt.NDArray[np.int8], ["tensor", "tensor int8"]),
        ("no.such[name", "][", []),
    ],
)
def test_annotations_become_specs(takes: object, gives: object, kinds: list[str]) -> None:
    first = inspect.Parameter("x", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=takes)
    inputs, outputs = _specs(inspect.Signature([first], return_annotation=gives))
    assert [f"{spec.kind} {spec.dtype or ''}".strip() for spec in (*inputs, *outputs)] == kinds


def test_a_source_survives_its_map() -> None:
    assert Source.from_map(ALICES.to_map()) == ALICES


def test_a_source_without_terms_is_written_as_before_there_were_any() -> None:
    assert "terms" not in Source("m:f").to_map()
    with pytest.raises(ValueError, match="terms"):
        Source.from_map({**ALICES.to_map(), "terms": {"price": {"usd_per_call": "0.002"}}})


def test_options_are_texts_by_name_and_few() -> None:
    assert "options" not in Source("m:f").to_map()  # as before there were any
    for nonsense in (["int8"], {"quantise": 8}, {1: "int8"}, {f"o{n}": "" for n in range(17)}):
        with pytest.raises(ValueError, match="option"):
            Source.from_map({**ALICES.to_map(), "options": nonsense})


DESCRIPTION = Description(
    "upper",
    "x-modelnet/function",
    "python",
    inputs=(Spec("text", "text"),),
    outputs=(Spec("o", "tensor", "int8", (None, 3)),),
    version="1.2",
    precision="int8",
    parameters=7,
    context_length=256,
    languages=("en", "de"),
    files="/srv/models/tiny.safetensors",
    digest=bytes(32),
    licence="Apache-2.0",
    metrics={"accuracy": 970_000},
    family="acme/shout",
    exits=(1, 4),
    manifest_envelope=b"sealed",
    streams=True,
    slots=3,
    idempotent=True,
    size_bytes=1 << 40,
    latency_us=1200,
    batches=32,
    deterministic=True,
    notes=("its card is odd",),
    tags=("loud",),
)
BARE = Description("upper", "x-modelnet/function", "")


def test_a_description_survives_its_map() -> None:
    for description in (DESCRIPTION, BARE):
        assert Description.from_map(description.to_map()) == description
    names = {field.name for field in fields(Description)}
    assert DESCRIPTION.to_map().keys() == names
    assert all(getattr(DESCRIPTION, name) != getattr(BARE, name) for name in names - {"name", "task"})


def test_a_worker_of_another_version_is_understood() -> None:
    short = {"name": "upper", "task": "x-modelnet/function", "framework": "", "new": 1}
    assert Description.from_map(short) == BARE


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", "x" * 201),
        ("licence", "x" * 65),
        ("licence", "two\nlines"),
        ("metrics", {"accuracy": 0.97}),
        ("metrics", {f"m{n}": n for n in range(17)}),
        ("family", None),
        ("exits", [1, 1]),
        ("exits", list(range(65))),
        ("digest", b"short"),
        ("manifest_envelope", bytes(1537)),
        ("parameters", -1),
        ("parameters", True),
        ("slots", 0),
        ("slots", 65),
        ("streams", 1),
        ("idempotent", "yes"),
        ("size_bytes", -1),
        ("latency_us", 1.5),
        ("batches", 0),
        ("batches", 1 << 20),
        ("deterministic", 1),
        ("notes", ["x" * 401]),
        ("notes", ["two\nlines"]),
        ("inputs", [Spec(f"i{n}", "text").to_map() for n in range(9)]),
    ],
)
def test_a_hostile_worker_describes_nothing_that_an_offer_cannot_carry(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"the {name} of its description"):
        Description.from_map({**DESCRIPTION.to_map(), name: value})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from([Source, Description]), st.data())
def test_broken_maps_raise_their_own_error(
    kind: type[Source] | type[Description], data: st.DataObject
) -> None:
    good = ALICES.to_map() if kind is Source else DESCRIPTION.to_map()
    wire = (
        data.draw(JSON)
        if data.draw(st.booleans())
        else {**good, data.draw(st.sampled_from([*good])): data.draw(JSON)}
    )
    try:
        kind.from_map(wire)
    except ValueError:
        pass


@pytest.mark.parametrize(
    ("before", "after", "told", "alike"),
    [
        ({"spec": "a.onnx"}, {"spec": "a.onnx", "options": {"sample": "x.npy"}}, "a.onnx", True),
        ({"spec": "a.onnx", "share_weights": True}, {"spec": "a.tflite"}, "a.onnx --share-weights", False),
        (
            {"spec": "a.onnx", "options": {"quantise": "int8"}},
            {"spec": "a.onnx"},
            "a.onnx --quantise int8",
            False,
        ),
        (
            {"spec": "w.safetensors", "module": "m:A"},
            {"spec": "w.safetensors", "module": "m:B"},
            "w.safetensors --module m:A",
            False,
        ),
        ({"spec": "m:f"}, {"spec": "m:f", "cwd": "/y"}, "m:f of /x", False),
        ({"spec": "/a.onnx"}, {"spec": "/a.onnx", "cwd": "/y"}, "/a.onnx", True),
        ({"spec": "http://box/v1#a"}, {"spec": "http://box/v1#a", "cwd": "/y"}, "http://box/v1#a", True),
        ({"spec": "builtin:digits"}, {"spec": "builtin:digits", "cwd": "/y"}, "builtin:digits", True),
    ],
)
def test_one_source_takes_the_place_of_another(
    before: dict[str, Any], after: dict[str, Any], told: str, alike: bool
) -> None:
    old, new = Source(**{"cwd": "/x", **before}), Source(**{"cwd": "/x", **after})
    assert (old.told_beside(new), new.is_like(old)) == (told, alike)


def test_calls_at_once_are_a_number_within_bounds() -> None:
    assert slots_of(Source("m:f"), 8, 32) == 8
    assert slots_of(Source("m:f", options={"slots": "3"}), 8, 32) == 3
    for wanted in ("0", "33", "many", "-1", "1.5", "", "\u0663", "9" * 400):
        with pytest.raises(LocalError, match="calls at once, 1 to 32"):
            slots_of(Source("m:f", options={"slots": wanted}), 8, 32)


def test_callers_do_not_hear_where_a_model_lies() -> None:
    assert Source("/home/ann/models/net.onnx").shown == "net.onnx"
    assert Source("/home/ann/models/net.onnx", model="acme/net").shown == "acme/net"
    assert Source("shop:hello").shown == "shop:hello"
