"""The library of the demo `search`, with vectors of its own making instead of an encoder's."""

from __future__ import annotations

import numpy as np
import pytest

from demos import search
from demos.library import MOST, Library, read
from modelnet_p2p.node.serving.backends.callable import _specs

TITLES = [passage.title for passage in read()]
VECTORS = np.eye(len(TITLES), 384, dtype=np.float32)  # every passage in a direction of its own


def near(*rows: int) -> np.ndarray:
    """A question that is about the passages of these rows, most about the first."""
    vector = np.zeros((1, 384), np.float32)
    for place, row in enumerate(rows):
        vector[0, row] = 1 / (1 + place)
    return vector


def test_the_corpus_has_some_sixty_passages_and_every_title_once() -> None:
    assert 50 <= len(TITLES) <= 80
    assert len(set(TITLES)) == len(TITLES)
    assert set(search.QUESTIONS.values()) <= set(TITLES)
    assert all(len(passage.text) > 40 for passage in read())


def test_the_nearest_passages_come_first() -> None:
    library = Library(VECTORS, "sha256:abc")
    answer = library(near(5, 0, 9) * 7, k=2)  # a vector's length does not count
    assert answer["encoder"] == "sha256:abc"
    found = answer["found"]
    assert isinstance(found, list)
    assert [passage["title"] for passage in found] == [TITLES[5], TITLES[0]]
    assert found[0]["score"] > found[1]["score"] > 0
    assert library(near(3)[0], k=1) == library(near(3), k=1)


@pytest.mark.parametrize(
    ("question", "k", "words"),
    [
        (np.zeros((1, 384), np.float32), 3, "one vector of 384 numbers"),
        (np.full((1, 384), np.nan, np.float32), 3, "one vector of 384 numbers"),
        (np.ones((2, 384), np.float32), 3, "one vector of 384 numbers"),
        (np.ones(10, np.float32), 3, "one vector of 384 numbers"),
        (near(1), 0, "k of 1 to 20"),
        (near(1), MOST + 1, "k of 1 to 20"),
        (near(1), True, "k of 1 to 20"),
    ],
)
def test_wrong_questions_are_named(question: np.ndarray, k: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Library(VECTORS)(question, k)


def test_it_says_that_it_takes_a_tensor() -> None:
    import inspect

    inputs, _ = _specs(inspect.signature(Library(VECTORS).__call__))
    assert [(spec.name, spec.kind) for spec in inputs] == [("question", "tensor")]
