"""/v1/embeddings: texts to vectors, as numbers or as base64 of float32, which OpenAI's clients ask for
unasked."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import trio

from modelnet_p2p.errors import Code, RemoteError
from modelnet_p2p.node.calls.outcome import Begun
from modelnet_p2p.node.calls.router import Fit
from modelnet_p2p.node.gateway.calling import Calling, Gateway, all_headers
from modelnet_p2p.node.gateway.errors import BadRequest, to_bytes
from modelnet_p2p.node.gateway.forms import Form, cannot, form_of
from modelnet_p2p.node.gateway.http import Http
from modelnet_p2p.node.gateway.pieces import Json
from modelnet_p2p.offers import Offer
from modelnet_p2p.payload import Value
from modelnet_p2p.tensor import Array

MAX_TEXTS = 2048  # in one request, as at OpenAI


async def embeddings(gateway: Gateway, http: Http) -> None:
    """POST /v1/embeddings"""
    body = await http.json()
    texts, dimensions = _texts(body.get("input")), _dimensions(body.get("dimensions"))
    coding = body.get("encoding_format") or "float"
    if coding not in ("float", "base64"):
        raise BadRequest("'encoding_format' is float or base64", "encoding_format")
    calling = Calling(gateway, http, body.get("model"))
    offer: Offer | None = None
    answer: Value = None

    async def begin(begun: Begun) -> None:
        nonlocal offer
        offer = begun.offer

    async def keep(item: Value) -> None:
        nonlocal answer
        answer = item  # the one that there is

    outcome = await calling.run(_fit(texts, dimensions), begin, keep)
    assert offer is not None
    vectors, usage = _vectors(answer, len(texts), offer)
    if dimensions not in (None, vectors.shape[1]):
        words = f"{offer.model} gives {vectors.shape[1]} dimensions, which cannot be cut to {dimensions}"
        raise BadRequest(words, "dimensions")
    gateway.gauges.counted(outcome.model, usage)
    rows = [await _row(at, row, coding) for at, row in enumerate(vectors)]
    tail = to_bytes({"model": offer.model, "usage": usage})[1:]
    whole = b'{"object":"list","data":[' + b",".join(rows) + b"]," + tail
    await http.respond(200, whole, headers=all_headers(outcome))


def _texts(given: object) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise BadRequest("'input' must be a text, or a list of texts", "input")
    if len(texts) > MAX_TEXTS:
        raise BadRequest(f"'input' has more than {MAX_TEXTS} texts", "input")
    if not all(isinstance(text, str) for text in texts):
        words = "'input' must be text; tokens mean something else to each model"
        raise BadRequest(f"{words} (LangChain sends them unless check_embedding_ctx_length=False)", "input")
    return texts


def _dimensions(given: object) -> int | None:
    if given is None or (isinstance(given, int) and not isinstance(given, bool) and given > 0):
        return given
    raise BadRequest("'dimensions' must be a whole number above 0", "dimensions")


def _fit(texts: list[str], dimensions: int | None) -> Fit:
    def fit(offer: Offer) -> tuple[Value, Mapping[str, Value]]:
        if form_of(offer) is not Form.EMBEDDING:
            raise cannot(offer, "turn texts into vectors")
        if not _counts(offer):
            return texts, {}
        wanted = {} if dimensions is None else {"dimensions": dimensions}
        return {"input": texts, **wanted}, {}

    return fit


def _counts(offer: Offer) -> bool:
    """Whether it takes OpenAI's form, and then tells how many tokens it read: transformers do, and servers
    behind a peer. A function, and a model that takes a text, get the list alone."""
    takes_json = any(spec.kind == "json" for spec in offer.inputs)
    return offer.framework == "transformers" or (takes_json and offer.framework != "python")


def _vectors(answer: Value, count: int, offer: Offer) -> tuple[Array, Json]:
    """The vectors as float32 [count, d] and what was counted; raises RemoteError for anything else."""
    given, usage = (
        (answer.get("embeddings"), answer.get("usage")) if isinstance(answer, dict) else (answer, None)
    )
    try:
        array = np.asarray(given, dtype=np.float32) if isinstance(given, np.ndarray | list) else None
    except (TypeError, ValueError):
        array = None
    if array is not None and array.ndim == 1 and count == 1:
        array = array[np.newaxis]
    if array is None or array.ndim != 2 or len(array) != count or not np.isfinite(array).all():
        raise RemoteError(
            Code.MODEL_ERROR, f"{offer.model} gave no vector for each text", peer=offer.provider
        )
    return array, _usage(usage)


def _usage(told: object) -> Json:
    given = told if isinstance(told, dict) else {}
    numbers = {name: given.get(name) for name in ("prompt_tokens", "total_tokens")}
    return {name: number if isinstance(number, int) else 0 for name, number in numbers.items()}


async def _row(at: int, row: Array, coding: str) -> bytes:
    await trio.lowlevel.checkpoint()  # thousands of them must not hold up the peer
    vector: Sequence[Any] | str = (
        base64.b64encode(np.ascontiguousarray(row, "<f4").data).decode()
        if coding == "base64"
        else row.tolist()
    )
    return to_bytes({"object": "embedding", "index": at, "embedding": vector})
