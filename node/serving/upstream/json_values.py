"""JSON that a stranger sent, as values that may travel on: bounded numbers, text that is Unicode, no NaN."""

from __future__ import annotations

import json
import re
from typing import NoReturn

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.upstream.faults import SERVER

MAX_DEPTH = 28  # of what is passed on: a call's values have at most 32 containers inside each other
_LIMIT = 1 << 63
_SURROGATE = re.compile("[\ud800-\udfff]")


def load(data: bytes) -> object:
    """Raises LocalError (model-error) on what is not JSON, or could not be sent on."""
    try:
        value = json.loads(data, parse_constant=_refuse, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise LocalError(Code.MODEL_ERROR, f"{SERVER} sent what is not JSON") from error
    # half of a character that Python's JSON lets through can be written in escapes alone
    return _mended(value, 0) if b"\\u" in data else _checked(value, data)


def _refuse(word: str) -> NoReturn:
    raise ValueError(word)


def _integer(text: str) -> int:
    if len(text) > 20 or not -_LIMIT <= (number := int(text)) < _LIMIT:
        raise ValueError("an integer beyond 64 bits")
    return number


def _checked(value: object, data: bytes) -> object:
    """Only what has enough brackets to be deep is walked."""
    return _mended(value, 0) if data.count(b"[") + data.count(b"{") > MAX_DEPTH else value


def _mended(value: object, depth: int) -> object:
    if depth > MAX_DEPTH:
        raise LocalError(Code.MODEL_ERROR, f"{SERVER} sent an answer nested beyond {MAX_DEPTH}")
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_mended(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {_SURROGATE.sub("\ufffd", key): _mended(item, depth + 1) for key, item in value.items()}
    return value


def dump(value: object, limit: int) -> bytes:
    """A caller's value as JSON; raises LocalError: bad-input for what JSON has no word for, too-large."""
    try:
        data = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        words = "only text, numbers, lists and maps can be sent to this model"
        raise LocalError(Code.BAD_INPUT, words) from error
    if len(data) > limit:
        raise LocalError(Code.TOO_LARGE, f"a request of {len(data)} bytes; this model takes {limit}")
    return data
