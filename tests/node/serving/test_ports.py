"""What callers may send a tensor model, and what they are told of anything else."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.ports import Port, answer, gather, specs
from modelnet_p2p.records import Spec

X = Port("x", "float32", (None, 4))
IDS = Port("ids", "int64", (None, None))
MASK = Port("mask", "bool", (None, None))
ONES = np.ones((2, 4), np.float32)


@pytest.mark.parametrize("value", [ONES, {"x": ONES}, ONES.tolist(), [[1, 1, 1, 1], [1, 1, 1, 1]]])
def test_one_input_is_a_tensor_or_lists_of_numbers(value: Any) -> None:
    (array,) = gather([X], value, "toy")
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, ONES)


def test_several_inputs_are_a_map_by_name() -> None:
    ids, mask = gather([IDS, MASK], {"mask": [[True, False]], "ids": [[7, 8]]}, "bert")
    assert (ids.dtype.name, mask.dtype.name) == ("int64", "bool")


@pytest.mark.parametrize(
    ("ports", "value", "words"),
    [
        ([X], ONES.astype(np.float64), "expected a tensor float32 [n,4], got float64 [2,4]"),
        ([X], ONES.T, "expected a tensor float32 [n,4], got float32 [4,2]"),
        ([X], ONES[0], "got float32 [4]"),
        ([X], ONES.astype(ml_dtypes.bfloat16), "got bfloat16 [2,4]"),
        ([X], "four", "got a text"),
        ([X], None, "got nothing"),
        ([X], b"1234", "got bytes"),
        ([X], {"y": ONES}, "got a map of y"),
        ([X], [[1, 2], [3]], "got lists of different lengths"),
        ([X], [["a", "b", "c", "d"]], "got a list of something else than numbers"),
        ([X], [[None] * 4], "got a list of something else than numbers"),
        ([X], [[True] * 4], "got a list of true and false"),
        ([IDS], [[0.5]], "got a list of numbers with fractions"),
        ([IDS], [[1 << 70]], "got a list of something else than numbers"),
        ([Port("b", "uint8", (None,))], [256], "got numbers that uint8 cannot hold"),
        ([Port("b", "uint8", (None,))], [-1], "got numbers that uint8 cannot hold"),
        ([MASK], [[0, 1]], "got a list of whole numbers"),
        ([IDS, MASK], ONES, "has 2 inputs and expected a map of tensors by name, got float32 [2,4]"),
        ([IDS, MASK], {"ids": [[1]]}, "misses mask"),
        ([IDS, MASK], {"ids": [[1]], "mask": [[True]], "more": 1}, "has no input more"),
        (
            [IDS, MASK],
            {"ids": [[1]], "mask": [True]},
            "for 'mask' a tensor bool [n,n], got bool [1]",
        ),
    ],
)
def test_what_does_not_fit_is_told_with_what_would(ports: list[Port], value: Any, words: str) -> None:
    with pytest.raises(LocalError) as caught:
        gather(ports, value, "toy")
    assert caught.value.code is Code.BAD_INPUT
    assert words in caught.value.message


def test_an_empty_list_is_no_rows_of_nothing() -> None:
    assert gather([Port("v", "float32", (None,))], [], "toy")[0].shape == (0,)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(st.lists(st.sampled_from([X, IDS, MASK]), min_size=1, max_size=2, unique=True), JSON)
def test_whatever_comes_fits_or_is_bad_input(ports: list[Port], value: Any) -> None:
    try:
        arrays = gather(ports, value, "toy")
    except LocalError:
        return
    assert [array.dtype.name for array in arrays] == [port.dtype for port in ports]


def test_one_output_is_itself_and_several_have_names() -> None:
    assert answer([X], [ONES]) is ONES
    assert answer([X, IDS], [ONES, "b"]) == {"x": ONES, "ids": "b"}


def test_an_offer_takes_what_fits_of_names_and_shapes() -> None:
    deep = Port("x" * 60 + "\n", "float32", (None,) * 9)
    assert specs([deep]) == (Spec("x" * 48, "tensor", "float32", None),)
    assert specs([Port("", "", None)]) == (Spec("value", "json"),)
    assert len(specs([X] * 20)) == 8
