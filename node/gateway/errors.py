"""Our errors as OpenAI's error objects: one table, so that every client of theirs raises what it should.

`x-should-retry` is what their clients obey before they look at the status: a call that failed for good is
not made three times.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from modelnet_p2p.errors import Code, LocalError, ModelnetError


class Kind(NamedTuple):
    """How one code of ours looks over HTTP."""

    status: int
    type: str
    code: str | None


_INVALID, _SERVER = "invalid_request_error", "server_error"

KINDS: Mapping[Code, Kind] = {
    Code.NOT_FOUND: Kind(404, _INVALID, "model_not_found"),
    Code.AMBIGUOUS: Kind(400, _INVALID, "model_ambiguous"),  # 409 would be tried again, and again in vain
    Code.UNREACHABLE: Kind(503, _SERVER, "model_unreachable"),
    Code.DEADLINE: Kind(504, _SERVER, "timeout"),
    Code.BUSY: Kind(429, "rate_limit_error", "rate_limit_exceeded"),
    Code.BAD_INPUT: Kind(400, _INVALID, None),
    Code.UNKNOWN_METHOD: Kind(400, _INVALID, "unsupported_method"),
    Code.MODEL_ERROR: Kind(500, _SERVER, "model_error"),
    Code.TOO_LARGE: Kind(413, _INVALID, "request_too_large"),
    Code.FORBIDDEN: Kind(403, "permission_error", "forbidden"),
    Code.CANCELLED: Kind(503, _SERVER, "cancelled"),
    Code.UNSAFE: Kind(400, _INVALID, "unsafe"),
    Code.BAD_RECORD: Kind(502, _SERVER, "bad_record"),
    Code.BAD_STATE: Kind(500, _SERVER, "bad_state"),
    Code.IN_USE: Kind(500, _SERVER, "in_use"),
    Code.NOT_RUNNING: Kind(503, _SERVER, "not_running"),
    Code.SLOW_READER: Kind(503, _SERVER, "slow_reader"),
    Code.INTERNAL: Kind(500, _SERVER, "internal_error"),
}

_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)

# A model that is given more than it can take says so in words of its own; this is what they have in common.
_CONTEXT = re.compile(r"context[ _-]?(length|window|size)|maximum context|n_ctx", re.IGNORECASE)
CONTEXT = Kind(400, _INVALID, "context_length_exceeded")
UNAUTHORIZED = Kind(401, "authentication_error", "invalid_api_key")
WRONG_METHOD = Kind(405, _INVALID, "method_not_allowed")
NO_ROUTE = Kind(404, _INVALID, "unknown_url")
FOREIGN_HOST = Kind(421, _INVALID, "foreign_host")
FOREIGN_ORIGIN = Kind(403, "permission_error", "foreign_origin")
RETRY_AFTER = b"1"  # seconds: what is busy now is mostly free soon


class BadRequest(LocalError):
    """A request that is not as the interface has it; `param` names what of it."""

    def __init__(self, message: str, param: str | None = None, *, kind: str | None = None) -> None:
        super().__init__(Code.BAD_INPUT, message)
        self.param = param
        self.kind = kind  # OpenAI's code for it, where there is one


def kind_of(error: ModelnetError) -> Kind:
    """Status, type and code of an error."""
    kind = KINDS[error.code]
    if error.code in (Code.BAD_INPUT, Code.TOO_LARGE) and _CONTEXT.search(error.message):
        return CONTEXT
    if isinstance(error, BadRequest) and error.kind is not None:
        return kind._replace(code=error.kind)
    return kind


def error_object(error: ModelnetError) -> dict[str, object]:
    """OpenAI's object, with ours beside it: which peer, what to do, whether to try again."""
    kind = kind_of(error)
    words = f"{error.message} ({error.hint})" if error.hint else error.message
    return {
        "error": {
            "message": words,
            "type": kind.type,
            "param": getattr(error, "param", None),
            "code": kind.code,
            "modelnet": error.to_map(),
        }
    }


def plain_object(kind: Kind, message: str) -> dict[str, object]:
    """The same for what is no error of ours."""
    return {"error": {"message": message, "type": kind.type, "param": None, "code": kind.code}}


def to_bytes(value: object) -> bytes:
    """JSON, as short as it gets; raises LocalError (model-error) for what JSON cannot say."""
    try:
        return _JSON.encode(value).encode()
    except (TypeError, ValueError) as error:  # a stranger's model gave it: a tensor, a NaN, half a surrogate
        raise LocalError(Code.MODEL_ERROR, f"the model's answer is not JSON: {error}") from error
