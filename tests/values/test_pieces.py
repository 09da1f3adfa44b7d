"""The weights protocol's bytes: what was asked comes back in order, and nothing else gets through."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelnet_p2p.pieces import (
    ASK_BYTES,
    MAX_ASKS,
    MAX_WORDS_BYTES,
    Answer,
    Answers,
    Ask,
    Asks,
    BadPieces,
    Kind,
    Status,
    answer_head,
)

ROOT = bytes(range(32))
VECTORS = json.loads((Path(__file__).parent / "vectors" / "pieces.json").read_text())


def feed(machine: Answers | Asks, data: bytes, step: int = 1 << 20) -> list[Answer | Ask]:
    """What these bytes become, however they are cut."""
    found: list[Answer | Ask] = []
    while data:
        buffer = machine.buffer()
        count = min(len(buffer), step, len(data))
        buffer[:count] = data[:count]
        data = data[count:]
        if (event := machine.received(count)) is not None:
            found.append(event)
    return found


def test_golden_vectors() -> None:
    for vector in VECTORS["asks"]:
        ask = Ask(Kind[vector["kind"]], bytes.fromhex(vector["digest"]), vector["index"])
        assert ask.encode().hex() == vector["hex"]
        assert Ask.decode(bytes.fromhex(vector["hex"])) == ask
    for vector in VECTORS["answers"]:
        body = bytes.fromhex(vector["body"])
        assert (answer_head(Status[vector["status"]], len(body)) + body).hex() == vector["hex"]


@given(st.integers(1, 50))
def test_answers_come_in_the_order_of_asks(step: int) -> None:
    answers, asks = Answers(), Asks()
    wishes = [Ask(Kind.LISTING, ROOT), Ask(Kind.PIECE, ROOT, 0), Ask(Kind.PIECE, ROOT, 1 << 31)]
    sent = answers.ask(wishes[0], 100, exact=False) + answers.ask(wishes[1], 5) + answers.ask(wishes[2], 7)
    assert feed(asks, sent, step) == wishes
    assert answers.in_flight == 3
    data = answer_head(Status.HERE, 60) + b"l" * 60 + answer_head(Status.HERE, 5) + b"piece"
    data += answer_head(Status.GONE, 4) + b"away"
    found = feed(answers, data, step)
    assert [(one.ask, one.status, bytes(one.body)) for one in found if isinstance(one, Answer)] == [
        (wishes[0], Status.HERE, b"l" * 60),
        (wishes[1], Status.HERE, b"piece"),
        (wishes[2], Status.GONE, b"away"),
    ]
    assert answers.in_flight == 0


@pytest.mark.parametrize(
    "data",
    [
        answer_head(Status.HERE, 4),  # shorter than the piece
        answer_head(Status.HERE, 6),
        answer_head(Status.HERE, 1 << 31),
        answer_head(Status.BUSY, MAX_WORDS_BYTES + 1),
        b"\x07" + answer_head(Status.HERE, 5)[1:],
        b"\0\1\0\0\0\0\0\5",
    ],
)
def test_answers_that_are_none(data: bytes) -> None:
    answers = Answers()
    answers.ask(Ask(Kind.PIECE, ROOT, 3), 5)
    with pytest.raises(BadPieces):
        feed(answers, data)


def test_unasked_answers_and_ends_in_the_middle() -> None:
    with pytest.raises(BadPieces, match="nothing that was asked"):
        feed(Answers(), b"x")
    answers = Answers()
    answers.ask(Ask(Kind.PIECE, ROOT), 5)
    with pytest.raises(BadPieces, match="ended"):
        answers.received(0)
    for _ in range(MAX_ASKS - 1):
        answers.ask(Ask(Kind.PIECE, ROOT), 5)
    with pytest.raises(ValueError, match="in flight"):
        answers.ask(Ask(Kind.PIECE, ROOT), 5)


@given(st.binary(min_size=ASK_BYTES, max_size=ASK_BYTES))
def test_asks_that_are_none(data: bytes) -> None:
    try:
        ask = Ask.decode(data)
    except BadPieces:
        return
    assert ask.encode() == data


@given(st.integers(0, ASK_BYTES - 33), st.integers(1, 255))
def test_every_byte_of_an_ask_counts(at: int, flip: int) -> None:
    data = bytearray(Ask(Kind.LISTING, ROOT).encode())
    data[at] ^= flip
    try:
        assert Ask.decode(data) == Ask(Kind.PIECE, ROOT)
    except BadPieces:
        return
