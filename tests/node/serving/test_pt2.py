"""Exported torch programs: the same answers as their modules, and nothing of a file that could run code."""

from __future__ import annotations

import io
import json
import sys
import warnings
import zipfile
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
from modelnet_p2p.node.serving.backends.pt2_archive import read_archive
from modelnet_p2p.node.serving.backends.pt2_model import ExportedBackend
from modelnet_p2p.node.serving.backends.pt2_program import Program
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.records import Spec

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"


async def at_once(step: Callable[[], Any]) -> Any:  # Any: each step's own result
    return step()


async def load(path: Path) -> ExportedBackend:
    backend = ExportedBackend(Source(str(path), interpreter=sys.executable), at_once)
    await backend.load()
    return backend


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(toys.INPUTS, toys.HIDDEN), nn.Linear(toys.HIDDEN, toys.OUTPUTS)
        self.load_state_dict({name: torch.from_numpy(array) for name, array in toys.tensors().items()})

    def forward(self, x: Any) -> Any:
        return self.b(torch.relu(self.a(x)))


def exported(module: Any, *inputs: Any, dynamic: bool = True) -> bytes:
    """The bytes of a .pt2 file, its first dimension free."""
    rows = torch.export.Dim("rows", min=1, max=4096)
    shapes = tuple({0: rows} for _ in inputs) if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own
        program = torch.export.export(module.eval(), inputs, dynamic_shapes=shapes)
        data = io.BytesIO()
        torch.export.save(program, data)
    return data.getvalue()


@pytest.fixture(scope="module")
def toy() -> bytes:
    return exported(Toy(), torch.ones(2, toys.INPUTS))


def changed(data: bytes, change: Callable[[str, bytes], bytes | None], **more: bytes) -> bytes:
    """The archive with its entries changed or (None) left out, and with `more` of them."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        root = old.namelist()[0].partition("/")[0]
        for name in old.namelist():
            content = change(name.partition("/")[2], old.read(name))
            if content is not None:
                new.writestr(name, content)
        for name, content in more.items():
            new.writestr(f"{root}/{name}", content)
    return out.getvalue()


def edited(data: bytes, name: str, edit: Callable[[Any], object]) -> bytes:
    """The archive with one of its JSON files edited in place."""

    def change(entry: str, content: bytes) -> bytes:
        if entry != name:
            return content
        found = json.loads(content)
        edit(found)
        return json.dumps(found).encode()

    return changed(data, change)


async def test_the_toy_and_its_description(tmp_path: Path, toy: bytes) -> None:
    (tmp_path / "toy.pt2").write_bytes(toy)
    backend = await load(tmp_path / "toy.pt2")
    told = backend.describe()
    assert (told.name, told.framework, told.precision) == ("toy", "torch.export", "float32")
    assert told.inputs == (Spec("x", "tensor", "float32", (None, toys.INPUTS)),)
    assert told.outputs == (Spec("output", "tensor", "float32", (None, toys.OUTPUTS)),)
    assert told.parameters == sum(array.size for array in toys.tensors().values())
    assert told.digest is not None
    assert told.batches > 1
    np.testing.assert_allclose(np.asarray(await backend.invoke(toys.X, {})), toys.expected(toys.X), atol=1e-5)
    with pytest.raises(LocalError, match=r"expected a tensor float32 \[n,4\], got float32 \[5,3\]"):
        await backend.invoke(toys.X[:, :3], {})


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.register_buffer("scale", torch.tensor([0.5, 2.0, 1.0]))
        self.shift = torch.arange(3.0)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        h = nn.functional.gelu(self.norm(self.conv(x)), approximate="tanh")
        h = nn.functional.max_pool2d(h, 2).mean((2, 3))
        y = self.out(h).reshape(x.shape[0] * 1, 3) * self.scale + self.shift
        return {"scores": y, "best": torch.topk(y, 2)[1], "sorted": y.sort(dim=1).values}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.out = nn.Linear(16, 50, bias=False)
        self.out.weight = self.table.weight  # shared

    def forward(self, ids: Any, mask: Any) -> Any:
        h = self.layer(self.table(ids), src_key_padding_mask=~mask)
        halves = torch.chunk(h, 2, dim=-1)
        return self.out(torch.cat(halves, dim=-1)), torch.where(mask, ids, 0).to(torch.float64)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.gru = nn.LSTM(4, 6, batch_first=True), nn.GRU(6, 5, batch_first=True)

    def forward(self, x: Any) -> Any:
        h, (last, _) = self.lstm(x)
        return self.gru(h)[0] + torch.einsum("lbh->b", last)[:, None, None]


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (Convolutions, {"x": torch.rand(2, 3, 16, 16)}),
        (Attention, {"ids": torch.randint(0, 50, (2, 7)), "mask": torch.ones(2, 7, dtype=torch.bool)}),
        (Recurrent, {"x": torch.rand(2, 5, 4)}),
    ],
)
async def test_real_layers_answer_as_their_modules_do(
    tmp_path: Path, make: Callable[[], Any], inputs: dict[str, Any]
) -> None:
    torch.manual_seed(3)
    module = make().eval()
    (tmp_path / "m.pt2").write_bytes(exported(module, *inputs.values()))
    backend = await load(tmp_path / "m.pt2")
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    given: Any = arrays if len(arrays) > 1 else next(iter(arrays.values()))
    found = await backend.invoke(given, {})
    with torch.inference_mode():
        expected = module(*inputs.values())
    if isinstance(expected, tuple):
        expected = {f"output.{at}": part for at, part in enumerate(expected)}
    elif not isinstance(expected, dict):
        found, expected = {"output": found}, {"output": expected}
    assert isinstance(found, dict)
    assert found.keys() == expected.keys()
    for name, part in expected.items():
        np.testing.assert_allclose(np.asarray(found[name]), part.numpy(), atol=1e-5)


async def test_sample_inputs_are_never_opened(tmp_path: Path, toy: bytes) -> None:
    bomb = b"cos\nsystem\n(S'touch pwned'\ntR."
    samples = changed(toy, lambda name, content: bomb if "sample_inputs" in name else content)
    assert samples.count(bomb) == 1
    (tmp_path / "toy.pt2").write_bytes(samples)
    backend = await load(tmp_path / "toy.pt2")
    assert np.asarray(await backend.invoke(toys.X, {})).shape == (5, toys.OUTPUTS)
    (tmp_path / "none.pt2").write_bytes(changed(toy, lambda n, c: None if "sample_inputs" in n else c))
    assert (await load(tmp_path / "none.pt2")).describe().latency_us is not None


def pickled(name: str) -> Callable[[Any], object]:
    return lambda config: config["config"][name].update(use_pickle=True)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda toy: edited(toy, WEIGHTS, pickled("a.weight")), "its weight 'a.weight' is a pickle"),
        (
            lambda toy: edited(
                toy, WEIGHTS, lambda c: c["config"]["a.bias"].update(path_name="opaque_obj_0")
            ),
            "is a pickle",
        ),
        (lambda toy: changed(toy, lambda _, c: c, **{"data/weights/model.pt": b"x"}), "is a pickle"),
        (lambda toy: changed(toy, lambda _, c: c, **{"data.pkl": b"x"}), "is a pickle"),
        (lambda toy: changed(toy, lambda _, c: c, **{"serialized_state_dict.pt": b"x"}), "is a pickle"),
        (lambda toy: changed(toy, lambda _, c: c, **{"data/aotinductor/model/m.so": b"x"}), "compiled code"),
        (lambda toy: changed(toy, lambda _, c: c, **{"code/model.py": b"x"}), "compiled code"),
    ],
)
async def test_what_would_run_code_is_unsafe(
    tmp_path: Path, toy: bytes, make: Callable[[bytes], bytes], words: str
) -> None:
    (tmp_path / "evil.pt2").write_bytes(make(toy))
    with pytest.raises(LocalError, match=words) as caught:
        await load(tmp_path / "evil.pt2")
    assert caught.value.code is Code.UNSAFE
    assert "torch.export.save" in caught.value.hint


def string(name: str, text: str) -> dict[str, object]:
    return {"name": name, "arg": {"as_string": text}, "kind": 1}


def retarget(target: str, *inputs: object) -> Callable[[Any], object]:
    def edit(model: Any) -> None:
        node = model["graph_module"]["graph"]["nodes"][0]
        node["target"] = target
        if inputs:
            node["inputs"] = list(inputs)

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (retarget("torch.os.system", string("c", "touch pwned")), "'torch.os.system' is not served"),
        (retarget("torch.ops.aten.save.default", string("f", "pwned")), "save.default' is not served"),
        (retarget("torch.ops.aten.from_file.default", string("f", "/etc/passwd")), "is not served"),
        (retarget("torch.ops.aten.__init__.default"), "is not served"),
        (retarget("torch.ops.aten.nothing.default"), "is not served"),
        (retarget("torch.ops.aten.set_.source_Tensor"), "is not served"),
        (retarget("torch.ops.load_library", string("p", "evil.so")), "is not served"),
        (retarget("torch.ops.higher_order.cond"), "is not served"),
        (retarget("#evil:Op"), "is not served"),
        (retarget("torch.ops.aten._unsafe_index.Tensor"), "an inner one of torch's"),
        (
            retarget("_operator.mul", string("a", "x"), {"name": "b", "arg": {"as_int": 10**12}}),
            "for numbers",
        ),
        (retarget("torch.ops.aten.relu_.default"), "changes a weight or an input"),
        (lambda model: model["graph_module"]["graph"]["nodes"].reverse(), "not computed before"),
        (
            lambda model: model["graph_module"]["signature"].update(
                output_specs=[{"buffer_mutation": {"arg": {"name": "x"}, "buffer_name": "b"}}]
            ),
            "keeps state from call to call",
        ),
        (lambda model: model.clear(), "cannot serve"),
    ],
)
async def test_what_a_program_may_not_do(
    tmp_path: Path, toy: bytes, edit: Callable[[Any], object], words: str
) -> None:
    (tmp_path / "odd.pt2").write_bytes(edited(toy, MODEL, edit))
    with pytest.raises(LocalError) as caught:
        await load(tmp_path / "odd.pt2")
    assert caught.value.code is Code.BAD_INPUT
    assert words in caught.value.message
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "meta",
    [
        {"sizes": [{"as_int": 1 << 60}, {"as_int": 4}]},
        {"sizes": [{"as_int": 64}, {"as_int": 64}]},
        {"strides": [{"as_int": 1 << 30}, {"as_int": 1}]},
        {"storage_offset": {"as_int": -1}},
        {"storage_offset": {"as_int": 1 << 20}},
        {"storage_offset": {"as_int": "1"}},
        {"dtype": 99},
        {"layout": 1},
        {"sizes": None},
    ],
)
async def test_weights_stay_inside_of_their_bytes(tmp_path: Path, toy: bytes, meta: dict[str, Any]) -> None:
    def edit(config: Any) -> None:
        config["config"]["a.weight"]["tensor_meta"].update(meta)

    (tmp_path / "odd.pt2").write_bytes(edited(toy, WEIGHTS, edit))
    with pytest.raises(LocalError) as caught:
        await load(tmp_path / "odd.pt2")
    assert caught.value.code is Code.BAD_INPUT


async def test_packed_weights_are_refused(tmp_path: Path, toy: bytes) -> None:
    with (
        zipfile.ZipFile(io.BytesIO(toy)) as old,
        zipfile.ZipFile(tmp_path / "bomb.pt2", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(LocalError, match="is compressed"):
        await load(tmp_path / "bomb.pt2")


@pytest.mark.parametrize("data", [b"", b"junk", b"PK\x05\x06" + bytes(18)])
async def test_junk_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "junk.pt2").write_bytes(data)
    with pytest.raises(LocalError, match=r"junk\.pt2") as caught:
        await load(tmp_path / "junk.pt2")
    assert caught.value.code is Code.BAD_INPUT


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 1 << 65) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_broken_program_raises_one_of_a_few_errors(
    data: st.DataObject, toy: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Those that the backend turns into bad-input: any part of either JSON file replaced by anything."""

    def edit(found: Any) -> None:
        at = found
        while True:
            keys = [*at] if isinstance(at, dict) else [*range(len(at))]
            key = data.draw(st.sampled_from(keys))
            inner = at[key]
            if not isinstance(inner, dict | list) or not inner or data.draw(st.integers(0, 5)) == 0:
                at[key] = data.draw(JSON)
                return
            at = inner

    path = tmp_path_factory.getbasetemp() / "broken.pt2"
    path.write_bytes(edited(toy, data.draw(st.sampled_from([MODEL, WEIGHTS])), edit))
    with suppress(LocalError, ValueError, LookupError, TypeError, AttributeError, RuntimeError):
        Program(read_archive(path), "cpu")


async def test_a_weight_is_not_changed_by_another_name(toy: bytes, tmp_path: Path) -> None:
    def edit(model: Any) -> None:
        """The first two nodes: a view of a weight, and one that writes to it."""
        graph = model["graph_module"]["graph"]
        first = next(
            spec["parameter"]["arg"]["name"]
            for spec in model["graph_module"]["signature"]["input_specs"]
            if "parameter" in spec
        )
        tensor = {"arg": {"as_tensor": {"name": first}}, "name": "self", "kind": 1}
        shape = {"arg": {"as_ints": [-1]}, "name": "size", "kind": 1}
        view = {"arg": {"as_tensor": {"name": "viewed"}}, "name": "self", "kind": 1}
        graph["nodes"][:0] = [
            node("torch.ops.aten.view.default", [tensor, shape], "viewed"),
            node("torch.ops.aten.zero_.default", [view], "zeroed"),
        ]

    def node(target: str, inputs: list[Any], output: str) -> Any:
        named = [{"as_tensor": {"name": output}}]
        return {"target": target, "inputs": inputs, "outputs": named, "metadata": {}}

    def change(name: str, data: bytes) -> bytes:
        if not name.endswith(MODEL):
            return data
        model = json.loads(data)
        edit(model)
        return json.dumps(model).encode()

    path = tmp_path / "sly.pt2"
    path.write_bytes(changed(toy, change))
    program = Program(read_archive(path), "cpu")
    before = [value.clone() for value in program._values if value is not None]
    with pytest.raises(ValueError, match="changes a weight"):
        program.run([torch.ones(2, toys.INPUTS)])
    assert all(map(torch.equal, before, [value for value in program._values if value is not None]))
