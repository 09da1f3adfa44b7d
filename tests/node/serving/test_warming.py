"""What a model's first runs tell, and that their failure is no failure of the model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.ports import Port
from modelnet_p2p.node.serving.backends.warming import (
    ROWS,
    Warmth,
    difference,
    generated,
    sample_arrays,
    warm_up,
)
from modelnet_p2p.node.serving.description import MAX_NOTE_BYTES

X = Port("x", "float32", (None, 4))
Y = Port("y", "float32", (None, 4))


def test_a_model_whose_rows_are_its_own_takes_those_of_several_calls() -> None:
    warmth = warm_up("toy", lambda arrays: [arrays[0] * 2], [X], [Y])
    assert warmth.batches == ROWS
    assert warmth.latency_us is not None
    np.testing.assert_array_equal(warmth.outputs[0], warmth.inputs[0] * 2)


@pytest.mark.parametrize(
    "run",
    [
        lambda arrays: [arrays[0] - arrays[0].mean(axis=0)],  # as a batch norm in training
        lambda arrays: [arrays[0][:1]],
        lambda arrays: [np.float32(7)],
        lambda arrays: [arrays[0].astype(np.float64 if len(arrays[0]) == 3 else np.float32)],
    ],
)
def test_rows_that_look_at_each_other_stay_apart(run: Any) -> None:
    assert warm_up("toy", run, [X], [Y]).batches == 1


def test_fixed_rows_or_words_as_an_output_stay_apart() -> None:
    fixed = Port("x", "float32", (1, 4))
    assert warm_up("toy", lambda arrays: arrays, [fixed], [fixed]).batches == 1
    assert warm_up("toy", lambda arrays: arrays, [X], [Port("y", "", (None,))]).batches == 1


def test_free_sizes_are_tried_until_one_fits() -> None:
    seen = []

    def picky(arrays: Any) -> Any:
        seen.append(arrays[0].shape)
        if arrays[0].shape[2] < 32:
            raise ValueError("a kernel of 7 needs more")
        return [arrays[0].sum(axis=(1, 2))]

    image = Port("x", "float32", (None, 3, None))
    warmth = warm_up("toy", picky, [image], [Port("y", "float32", (None,))])
    assert seen[:2] == [(1, 3, 8), (1, 3, 32)]
    assert warmth.batches == ROWS


def test_what_fails_is_a_warning_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    def broken(arrays: Any) -> Any:
        raise ValueError("only on Sundays")

    with caplog.at_level(logging.WARNING):
        warmth = warm_up("toy", broken, [X], [Y])
    why = "on made-up inputs it raised ValueError: only on Sundays (give an input with --sample FILE.npy)"
    assert warmth == Warmth(notes=(f"no latency was measured: {why}",))
    assert warmth.is_cold
    assert "toy was not warmed up" in caplog.text
    assert "only on Sundays" in caplog.text
    assert "--sample FILE.npy" in caplog.text


def test_what_a_strangers_exception_says_fits_a_line() -> None:
    def broken(arrays: Any) -> Any:
        raise ValueError("\x1b[2J" + "ä" * 10_000)

    (told,) = warm_up("toy", broken, [X], [Y], [np.ones((1, 4), np.float32)]).notes
    assert told.startswith("no latency was measured: on the input given it raised ValueError:  [2Jää")
    assert told.endswith("(give an input with --sample FILE.npy)")
    assert told.isprintable()
    assert len(told.encode()) <= MAX_NOTE_BYTES


class Machine:
    """Its runs take the time that is given; the last one of them for ever after."""

    def __init__(self, *seconds: float) -> None:
        self.now = 7.0
        self.runs = 0
        self._seconds = seconds

    def run(self, arrays: list[Any]) -> list[Any]:
        self.now += self._seconds[min(self.runs, len(self._seconds) - 1)]
        self.runs += 1
        return arrays

    def latency_us(self) -> int | None:
        fixed = Port("x", "float32", (1, 4))
        return warm_up("toy", self.run, [fixed], [fixed], clock=lambda: self.now).latency_us


def test_a_quick_model_held_up_for_a_while_is_still_a_quick_one() -> None:
    """Threads that wake up one after the other, another's turn on the core: the figure is the same."""
    assert Machine(0.3, *[0.004] * 8, 0.0001).latency_us() == 100
    assert Machine(0.0001).latency_us() == 100


def test_measuring_ends() -> None:
    for seconds, runs in ((1e-9, 1001), (0.02, 6), (0.3, 6), (0.9, 3), (1.5, 1)):
        machine = Machine(seconds)
        assert machine.latency_us() == round(seconds * 1e6)
        assert machine.runs == runs, seconds


def test_an_input_that_came_back_once_is_run_as_calls_are() -> None:
    """So what ends a first run that takes too long is not measured with it."""
    machine, bounded = Machine(0.001), Machine(0.5)
    warmth = warm_up("toy", bounded.run, [X], [Y], again=machine.run, clock=lambda: machine.now)
    assert warmth.latency_us == 1000
    assert bounded.runs == 1 + 3  # and those that try rows together


def test_the_same_inputs_are_made_up_at_every_start() -> None:
    ports = [X, Port("ids", "int64", (None, None)), Port("on", "bool", ()), Port("h", "bfloat16", (2,))]
    first, again = generated(ports, 2, 8), generated(ports, 2, 8)
    assert [(array.dtype.name, array.shape) for array in first] == [
        ("float32", (2, 4)),
        ("int64", (2, 8)),
        ("bool", ()),
        ("bfloat16", (2,)),
    ]
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_variant_is_as_far_off_as_its_error_is_long() -> None:
    reference = [np.array([3.0, 4.0]), np.array([1, 2]), "words"]
    assert difference(reference, [np.array([3.0, 4.0]), np.array([1, 3]), "others"]) == 0
    assert difference(reference, [np.array([3.0, 4.5]), np.array([1, 2]), "words"]) == 100_000
    assert difference([np.array([1, 2])], [np.array([1, 2])]) is None
    assert difference([np.zeros(2)], [np.ones(2)]) is None


def test_a_sample_of_the_publishers(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((1, 4), np.float32))
    np.savez(tmp_path / "xy.npz", x=np.ones((1, 4), np.float32), y=np.zeros((2, 4), np.float32))
    assert sample_arrays(None, [X], "toy") == []
    assert [a.shape for a in sample_arrays(tmp_path / "x.npy", [X], "toy")] == [(1, 4)]
    assert [a.shape for a in sample_arrays(tmp_path / "xy.npz", [X, Y], "toy")] == [(1, 4), (2, 4)]
    np.save(tmp_path / "objects.npy", np.array([{}]))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "xy.npz").read_bytes()[:100])
    for name in ("nowhere.npy", "objects.npy", "cut.npz"):
        with pytest.raises(LocalError, match="cannot read the sample") as caught:
            sample_arrays(tmp_path / name, [X], "toy")
        assert caught.value.code is Code.BAD_INPUT
    (tmp_path / "x.json").write_text("[[1, 2]]")
    with pytest.raises(LocalError, match=r"x\.json: it is no \.npy or \.npz file of numbers") as caught:
        sample_arrays(tmp_path / "x.json", [X], "toy")
    assert "numpy.save" in caught.value.hint
    with pytest.raises(LocalError, match="expected a tensor"):
        sample_arrays(tmp_path / "x.npy", [Port("x", "int8", (None,))], "toy")
