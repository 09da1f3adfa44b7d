"""Several inputs as one and back: which may share a step, and that nobody gets another one's rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.callable import CallableBackend
from modelnet_p2p.node.serving.backends.rows import joined, parted, rows_of
from modelnet_p2p.node.serving.source import Source
from modelnet_p2p.payload import Value


def floats(*shape: int) -> Any:  # Any: an array of numpy's
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def kind(value: Value, **params: Value) -> object:
    found = rows_of(value, params)
    assert found is not None
    return found.kind


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (floats(3, 4), 3),
        (floats(1), 1),
        (["a", "b"], 2),
        ({"ids": floats(2, 8), "mask": floats(2, 8)}, 2),
        ({"ids": floats(2, 8), "top": 3}, 2),
    ],
)
def test_what_has_rows(value: Value, count: int) -> None:
    found = rows_of(value, {})
    assert found is not None
    assert found.count == count


@pytest.mark.parametrize(
    "value",
    [
        "one text",
        None,
        7,
        np.float32(1) * floats(1)[0],
        np.array(2.0),
        floats(0, 4),
        [],
        {},
        {"text": "x"},
        {"ids": floats(2, 8), "mask": floats(3, 8)},
        {"ids": floats(2, 8), "scale": np.array(2.0)},
        {"ids": floats(2, 8), "deep": [floats(2)]},
    ],
)
def test_what_shares_a_step_with_nobody(value: Value) -> None:
    assert rows_of(value, {}) is None


def test_only_what_is_alike_shares_a_step() -> None:
    assert kind(floats(3, 4)) == kind(floats(9, 4))
    assert kind(floats(3, 4)) != kind(floats(3, 5))
    assert kind(floats(3, 4)) != kind(floats(3, 4).astype(np.float64))
    assert kind(floats(3, 4)) != kind(floats(3, 4, 1))
    assert kind(floats(3, 4), exit=1) == kind(floats(5, 4), exit=1)
    assert len({kind(floats(3, 4), exit=value) for value in (1, 1.0, True, "1", None)}) == 5
    assert kind(floats(3, 4), exit=1) != kind(floats(3, 4))
    assert kind({"ids": floats(2, 8)}) != kind({"ids": floats(2, 8), "top": 3})
    assert kind({"a": floats(2), "b": floats(2)}) == kind({"b": floats(2), "a": floats(2)})
    assert kind({"ids": floats(2, 8)}) != kind(floats(2, 8))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.sampled_from(["tensor", "list", "map"]))
def test_each_gets_its_own_rows_back(counts: list[int], form: str) -> None:
    inputs: list[Value] = []
    for who, count in enumerate(counts):
        rows = np.full((count, 2), who, np.float32)
        inputs.append({"tensor": rows, "list": rows.tolist(), "map": {"x": rows, "k": 1}}[form])
    before = [str(each) for each in inputs]
    together = joined(inputs)
    for mine, part in zip(inputs, parted(together, counts), strict=True):
        assert str(part) == str(mine)
    assert [str(each) for each in inputs] == before


def test_several_outputs_and_what_is_told_to_all() -> None:
    scores, label = floats(3, 2), ["a", "b", "c"]
    first, second = parted({"scores": scores, "label": label, "model": "m", "of": 3}, [1, 2])
    assert first["label"] == ["a"]  # type: ignore[index] # a map, as its type does not say
    assert second["label"] == ["b", "c"]  # type: ignore[index]
    assert second["scores"].shape == (2, 2)  # type: ignore[index]
    assert second["model"] == "m"  # type: ignore[index]
    for several in ((floats(2, 4), floats(2, 9)), [floats(2, 4), floats(2, 9)]):
        mine, _ = parted(several, [1, 1])
        assert [part.shape for part in mine] == [(1, 4), (1, 9)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("output", [floats(4, 2), ["a"], [], np.array(1.0), {"scores": floats(2)}])
def test_a_model_that_does_not_give_row_for_row_is_found_out(output: Value) -> None:
    with pytest.raises(LocalError) as caught:
        parted(output, [1, 2])
    assert caught.value.code is Code.MODEL_ERROR


taken: list[int] = []  # steps that were carried to the model's thread


async def steps(step: Any) -> Any:  # an Offload in this very task
    taken.append(1)
    return step()


@pytest.fixture
def serve(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A loaded backend of a function in a module of its own."""
    monkeypatch.syspath_prepend(str(tmp_path))

    async def load(name: str, code: str) -> CallableBackend:
        (tmp_path / f"{name}.py").write_text(code)
        backend = CallableBackend(Source(f"{name}:f", cwd=str(tmp_path)), steps)
        await backend.load()
        return backend

    return load


async def test_a_function_that_takes_rows_is_called_once_for_several(serve: Any) -> None:
    code = (
        "sizes = []\ndef f(rows, by=2):\n    sizes.append(len(rows))\n    return rows * by\nf.batches = 8\n"
    )
    backend = await serve("doubling_rows", code)
    assert backend.describe().batches == 8
    answers = await backend.invoke_many([(floats(2, 3), {"by": 3}), (floats(1, 3), {"by": 3})])
    np.testing.assert_array_equal(answers[0], floats(2, 3) * 3)
    np.testing.assert_array_equal(answers[1], floats(1, 3) * 3)
    import doubling_rows  # type: ignore[import-not-found] # written just now

    assert doubling_rows.sizes == [3]


async def test_large_inputs_are_joined_in_the_models_thread(serve: Any) -> None:
    backend = await serve("wide_rows", "def f(rows): return rows\nf.batches = 8\n")
    for width, carried in ((4, 1), (1 << 18, 2)):
        taken.clear()
        one, other = await backend.invoke_many([(floats(1, width), {}), (floats(1, width), {})])
        assert one.shape == other.shape == (1, width)
        assert len(taken) == carried


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def f(x): return x\nf.batches = 0\n", "1 to"),
        ("def f(x): yield x\nf.batches = 8\n", "in items"),
    ],
)
async def test_what_cannot_take_rows_is_refused_at_once(serve: Any, code: str, said: str) -> None:
    with pytest.raises(LocalError, match=said):
        await serve(f"refused_rows_{len(code)}", code)


async def test_batches_is_a_word_of_ours_only_as_a_number(serve: Any) -> None:
    code = "class f:\n    def batches(self): ...\n    def __call__(self, x): return x\n"
    assert (await serve("a_method_batches", code)).describe().batches == 1
