"""Keras files: what of them is refused, without Keras; and, where it is installed, what they answer."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toys
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.keras_file import check_config
from modelnet_p2p.node.serving.backends.keras_model import KerasBackend
from modelnet_p2p.node.serving.source import Source

DENSE = {
    "module": "keras.layers",
    "class_name": "Dense",
    "config": {"units": 3, "activation": "relu", "kernel_initializer": {"module": "keras.initializers"}},
    "registered_name": None,
}


async def at_once(step: Callable[[], Any]) -> Any:  # Any: each step's own result
    return step()


def written(path: Path, *layers: object) -> Path:
    config = {
        "module": "keras.src.models.functional",
        "class_name": "Functional",
        "config": {"layers": layers},
    }
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("config.json", json.dumps(config))
    return path


def test_layers_of_keras_itself_pass(tmp_path: Path) -> None:
    add = {"module": "keras.src.ops.numpy", "class_name": "Add", "config": {}}
    policy = {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float32"}}
    lookup = {"module": "keras.layers", "class_name": "StringLookup", "config": {"vocabulary": ["a", "b"]}}
    check_config(written(tmp_path / "m.keras", DENSE, add, policy, lookup))


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (DENSE | {"class_name": "Lambda"}, "its Lambda holds code"),
        (DENSE | {"config": {"activation": {"class_name": "__lambda__"}}}, "its __lambda__ holds code"),
        (DENSE | {"class_name": "TorchModuleWrapper"}, "holds code"),
        (DENSE | {"class_name": "TFSMLayer"}, "holds code"),
        (
            {
                "class_name": "__typespec__",
                "module": "keras.layers",
                "spec_name": "TFSMLayer",
                "config": ["x"],
            },
            "its __typespec__ holds code",
        ),
        (
            {"module": "keras", "class_name": "config.enable_unsafe_deserialization"},
            "which is no class",
        ),
        ({"module": "keras", "class_name": ["Lambda"]}, "which is no class"),
        ({"module": "os", "class_name": "system"}, "it names 'os'"),
        ({"module": "keras.utils", "class_name": "get_file"}, "it names 'keras.utils'"),
        ({"module": "keras.src.saving", "class_name": "load"}, "it names 'keras.src.saving'"),
        ({"module": "builtins", "class_name": "eval"}, "it names 'builtins'"),
        ({"module": ["keras"], "class_name": "x"}, "which is no part of Keras"),
        (DENSE | {"registered_name": "mine>Layer"}, "a class of somebody's own"),
        (
            DENSE | {"class_name": "StringLookup", "config": {"vocabulary": "/etc/passwd"}},
            "reads words from the file '/etc/passwd'",
        ),
    ],
)
async def test_what_could_run_code_is_unsafe(tmp_path: Path, layer: object, words: str) -> None:
    path = written(tmp_path / "evil.keras", DENSE, {"inner": [layer]})
    with pytest.raises(LocalError) as caught:
        await KerasBackend(Source(str(path)), at_once).load()
    assert caught.value.code is Code.UNSAFE
    assert words in caught.value.message


@pytest.mark.parametrize("data", [b"", b"junk", b"PK\x05\x06" + bytes(18)])
def test_junk_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "junk.keras").write_bytes(data)
    with pytest.raises(LocalError, match=r"junk\.keras") as caught:
        check_config(tmp_path / "junk.keras")
    assert caught.value.code is Code.BAD_INPUT


async def test_without_the_extra_the_hint_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(LocalError, match="needs keras") as caught:
        await KerasBackend(Source(str(written(tmp_path / "m.keras", DENSE))), at_once).load()
    assert caught.value.code is Code.BAD_STATE
    assert caught.value.hint == "pip install 'modelnet-p2p[keras]'"


async def test_the_toy(tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    model = keras.Sequential(
        [
            keras.Input((toys.INPUTS,), name="x"),
            keras.layers.Dense(toys.HIDDEN, activation="relu"),
            keras.layers.Dense(toys.OUTPUTS),
        ]
    )
    model.set_weights([toys.W1, toys.B1, toys.W2, toys.B2])
    model.save(tmp_path / "toy.keras")
    backend = KerasBackend(Source(str(tmp_path / "toy.keras")), at_once)
    await backend.load()
    told = backend.describe()
    assert (told.name, told.framework, told.precision) == ("toy", "keras", "float32")
    assert [spec.shape for spec in told.inputs] == [(None, toys.INPUTS)]
    assert told.batches > 1
    found = np.asarray(await backend.invoke(toys.X, {}))
    np.testing.assert_allclose(found, toys.expected(toys.X), atol=1e-5)
