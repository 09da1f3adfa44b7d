"""TFLite models: what is read of their files, what is refused, and what they answer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toys
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.tflite import TfliteBackend, _told
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.node.weights.hashing import artifact_of
from modelnet_p2p.records import Spec

pytest.importorskip("ai_edge_litert")

TOY = Path(__file__).with_name("toy.tflite")


async def at_once(step: Callable[[], Any]) -> Any:  # Any: each step's own result
    return step()


async def load(path: Path, **options: str) -> TfliteBackend:
    backend = TfliteBackend(Source(str(path), interpreter=sys.executable, options=options), at_once)
    await backend.load()
    return backend


async def test_the_toy_and_its_description() -> None:
    backend = await load(TOY)
    told = backend.describe()
    assert (told.name, told.framework, told.precision) == ("toy", "tflite", "float32")
    assert told.inputs == (Spec("x", "tensor", "float32", (None, toys.INPUTS)),)
    assert told.outputs == (Spec("y", "tensor", "float32", (None, toys.OUTPUTS)),)
    assert told.parameters == sum(array.size for array in toys.tensors().values())
    assert (told.size_bytes, told.digest) == (TOY.stat().st_size, artifact_of(TOY).root)
    assert told.batches > 1
    for rows in (5, 1, 3, 3, 5):  # it is resized between calls
        x = toys.X[:rows]
        np.testing.assert_allclose(np.asarray(await backend.invoke(x, {})), toys.expected(x), atol=1e-5)
    with pytest.raises(LocalError, match=r"expected a tensor float32 \[n,4\], got float32 \[5,3\]") as caught:
        await backend.invoke(toys.X[:, :3], {})
    assert caught.value.code is Code.BAD_INPUT
    np.testing.assert_allclose(np.asarray(await backend.invoke(toys.X, {})), toys.expected(toys.X), atol=1e-5)


async def test_no_rows_are_no_end_of_the_model() -> None:
    backend = await load(TOY)
    with suppress(RuntimeError, ValueError, LocalError):
        await backend.invoke(toys.X[:0], {})
    np.testing.assert_allclose(np.asarray(await backend.invoke(toys.X, {})), toys.expected(toys.X), atol=1e-5)


@pytest.mark.parametrize("data", [b"", b"junk", bytes(64), TOY.read_bytes()[:900]])
async def test_junk_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "junk.tflite").write_bytes(data)
    with pytest.raises(LocalError, match=r"junk\.tflite") as caught:
        await load(tmp_path / "junk.tflite")
    assert caught.value.code is Code.BAD_INPUT


async def test_operators_from_libraries_are_not_loaded(tmp_path: Path) -> None:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(TOY.read_bytes())
    code = model.operatorCodes[0]
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode = b"Steal"
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    (tmp_path / "custom.tflite").write_bytes(bytes(builder.Output()))
    with pytest.raises(LocalError, match="its operator 'Steal' comes from a library"):
        await load(tmp_path / "custom.tflite")


async def test_a_variant_is_made_when_it_is_converted() -> None:
    assert TfliteBackend.options == {"sample"}  # so --quantise is refused before it is loaded


@settings(max_examples=60)
@given(data=st.data())
def test_a_broken_file_raises_its_own_error(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = TOY.read_bytes()
    path = tmp_path_factory.getbasetemp() / "broken.tflite"
    broken = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=3)):
        if at < len(broken):
            broken[at] = data.draw(st.integers(0, 255))
    path.write_bytes(broken)
    with suppress(LocalError):
        _told(path)
