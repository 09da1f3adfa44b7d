"""POST /api/v1/invoke/{model}: any model with any input, not only those that OpenAI's interface knows.

In: JSON `{"input": VALUE, "params": {…}}` in the form of `modelnet-peer invoke --json`; or the input
alone as .npy, safetensors or plain text, its parameters as JSON in `?params=`. Out: the last line of
`invoke --json`, or the answer's tensors as a file where `Accept` asks for that; with `?stream=1` an item
a line, or an event each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlencode

from modelnet_p2p.errors import Code, ModelnetError, RemoteError
from modelnet_p2p.jsonvalue import from_json, to_json
from modelnet_p2p.node.calls.outcome import Begun, Outcome
from modelnet_p2p.node.calls.router import Fit
from modelnet_p2p.node.control.table import outcome_to_map
from modelnet_p2p.node.gateway.calling import (
    MAX_WHOLE_BYTES,
    Calling,
    Gateway,
    all_headers,
    first_headers,
)
from modelnet_p2p.node.gateway.errors import BadRequest, error_object, to_bytes
from modelnet_p2p.node.gateway.http import EVENTS, MAX_JSON_BYTES, Http, parse_object
from modelnet_p2p.node.gateway.sse import DONE, event
from modelnet_p2p.node.gateway.tensors import (
    NPY,
    SAFETENSORS,
    from_npy,
    from_safetensors,
    to_npy,
    to_safetensors,
)
from modelnet_p2p.node.serving.backends.contract import MAX_BODY_BYTES
from modelnet_p2p.offers import Offer
from modelnet_p2p.payload import Value, check_wire

NDJSON = b"application/x-ndjson"
TEXT = "text/plain"
_ALONE = (TEXT, NPY, SAFETENSORS, "application/octet-stream")  # the input by itself
_AS_JSON = ("", "application/json", "text/json", "application/x-www-form-urlencoded")  # the last is curl's
_OF_URIS = frozenset({"owner", "digest", "provider"})
_OF_CALLS = frozenset({"stream", "params", "wire"})
_YES = frozenset({"1", "true", "yes"})


class Asked(NamedTuple):
    """What is to be called with, and in which compact form tensors may travel."""

    value: Value
    params: Mapping[str, Value]
    wire: str = ""


async def invoke(gateway: Gateway, http: Http) -> None:
    query = http.query()
    target = _target(http.param("model"), query)
    asked = await _read(http, query)
    calling = Calling(gateway, http, target, wire=check_wire(asked.wire or query.get("wire", "")))

    def fit(offer: Offer) -> tuple[Value, Mapping[str, Value]]:
        return asked.value, asked.params

    if query.get("stream", "").lower() in _YES:
        await _stream(calling, fit)
    else:
        await _whole(calling, fit)


def _target(model: str, query: Mapping[str, str]) -> str:
    """What is called: of a URI that was written into the path as it is, a part stands behind the `?`.

    Raises BadRequest for what neither a URI nor a call has: left out, a pin would be gone without a word.
    """
    if unknown := query.keys() - _OF_CALLS - _OF_URIS:
        known = ", ".join(sorted(_OF_CALLS))
        raise BadRequest(f"{min(unknown)!r} is not part of a call's URL: it has {known}", min(unknown))
    pins = urlencode({key: query[key] for key in sorted(_OF_URIS & query.keys())})
    return f"{model}?{pins}" if pins else model


async def _read(http: Http, query: Mapping[str, str]) -> Asked:
    kind = http.header(b"content-type").partition(";")[0].strip().lower()
    if kind in _ALONE:
        params = _params(parse_object(query.get("params", "{}").encode(), "'params' in the URL"))
        return Asked(_raw(kind, await http.body(MAX_BODY_BYTES)), params)
    if not (kind in _AS_JSON or kind.endswith("+json")):
        known = ", ".join(("application/json", *_ALONE))
        raise BadRequest(f"a body of the content-type {kind[:80]!r} is not taken: it may be {known}")
    body = await http.json(MAX_JSON_BYTES)
    if unknown := body.keys() - {"input", "params", "wire"}:
        words = f"{min(unknown)!r} is not part of a request: it has 'input', 'params' and 'wire'"
        raise BadRequest(words, min(unknown))
    if "input" not in body:
        raise BadRequest("'input' is missing", "input")
    wire = body.get("wire") or ""
    if not isinstance(wire, str):
        raise BadRequest("'wire' must be text", "wire")
    return Asked(from_json(body["input"]), _params(body.get("params") or {}), wire)


def _params(given: object) -> dict[str, Value]:
    """Raises BadRequest; an object that stands for a tensor is one, and no object."""
    params = from_json(given)
    if not isinstance(params, dict):
        raise BadRequest("'params' must be an object", "params")
    return params


def _raw(kind: str, data: bytes) -> Value:
    match kind:
        case "application/x-npy":
            return from_npy(data)
        case "application/x-safetensors":
            return from_safetensors(data)
        case "text/plain":
            try:
                return data.decode()
            except UnicodeDecodeError as error:
                raise BadRequest(f"the body is not UTF-8 text: {error.reason}") from error
    return data


async def _whole(calling: Calling, fit: Fit) -> None:
    """The answer as one; a streaming model's as the list of its items."""
    items: list[Value] = []
    streams = False
    http = calling.http

    async def begin(begun: Begun) -> None:
        nonlocal streams
        streams = "items" in begun.offer.record.gives

    async def add(item: Value) -> None:
        items.append(item)
        if streams and calling.held > MAX_WHOLE_BYTES:
            words = f"the answer has more than {MAX_WHOLE_BYTES >> 20} MiB in items: ask with ?stream=1"
            raise RemoteError(Code.TOO_LARGE, words)

    outcome = await calling.run(fit, begin, add, repeatable=False)
    output = items if streams else items[-1] if items else outcome.output
    accepted, headers = http.header(b"accept"), all_headers(outcome)
    if NPY in accepted:
        await http.respond(200, to_npy(output), NPY.encode(), headers)
    elif SAFETENSORS in accepted:
        await http.respond(200, to_safetensors(output), SAFETENSORS.encode(), headers)
    else:
        await http.say(_done(outcome, to_json(output)), headers=headers)


async def _stream(calling: Calling, fit: Fit) -> None:
    http = calling.http
    as_events = "text/event-stream" in http.header(b"accept")

    def line(value: object) -> bytes:
        return event(value) if as_events else to_bytes(value) + b"\n"

    async def begin(begun: Begun) -> None:
        await http.start(200, EVENTS if as_events else NDJSON, first_headers(begun))

    async def add(item: Value) -> None:
        await http.write(line({"item": to_json(item)}))

    try:
        outcome = await calling.run(fit, begin, add, repeatable=False)
        last = line(_done(outcome, None)) + (DONE if as_events else b"")
    except ModelnetError as error:
        if not http.answering:
            raise
        last = line(error_object(error))
    await http.finish(last)


def _done(outcome: Outcome, output: object) -> dict[str, object]:
    """As the last line of `modelnet-peer invoke --json`."""
    return {**outcome_to_map(outcome), "output": output}
