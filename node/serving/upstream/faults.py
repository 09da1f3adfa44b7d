"""What a server's refusal means to the caller of its model: each answer becomes one typed fault.

A server's own words are passed on, on one bounded line, where they are about the request; not where they may
be about its publisher: the refusal of a key quotes that key.
"""

from __future__ import annotations

from collections.abc import Mapping

from modelnet_p2p.errors import Code, LocalError

MAX_WORDS = 300  # characters of a server's message
MAX_RETRY_AFTER = 3600  # seconds that a hint names; what asks for more asks to go away
SERVER = "the server behind this model"


def fault_of(status: int, body: object, headers: Mapping[str, str]) -> LocalError:
    """Of an answer with that status (not 200), whose body was this JSON or text."""
    words = words_of(body)
    said = f": {words}" if words else ""
    match status:
        case 401 | 403:
            hint = "only its publisher can help: set MODELNET_UPSTREAM_KEY, and publish it again"
            return LocalError(Code.FORBIDDEN, f"{SERVER} does not accept its publisher's key", hint=hint)
        case 404:
            return LocalError(Code.NOT_FOUND, f"{SERVER} does not have it any more{said}")
        case 413:
            return LocalError(Code.TOO_LARGE, f"{SERVER} takes no request of that size{said}")
        case 400 | 405 | 409 | 415 | 422:
            return LocalError(Code.BAD_INPUT, words or f"{SERVER} refuses the request ({status})")
        case 501:
            return LocalError(Code.UNKNOWN_METHOD, words or f"{SERVER} does not do that with this model")
        case 408 | 425 | 429 | 502 | 503 | 504 | 529:
            return LocalError(Code.BUSY, f"{SERVER} is busy ({status}){said}", hint=_later(headers))
        case _ if 300 <= status < 400:
            words = f"{SERVER} sends elsewhere ({status}), where this peer does not go"
            return LocalError(Code.MODEL_ERROR, words, hint="its publisher should name the other URL")
    return LocalError(Code.MODEL_ERROR, f"{SERVER} failed ({status}){said}")


def fault_in_stream(body: object) -> LocalError:
    """Of an error that came where the next part of an answer was due."""
    fields = _error_of(body)
    code = fields.get("code") if isinstance(fields, dict) else None
    if isinstance(code, str) and code.isdecimal() and len(code) == 3:
        code = int(code)
    if type(code) is int and 400 <= code < 600 and code not in (401, 403, 404):
        return fault_of(code, body, {})
    words = words_of(body)
    return LocalError(Code.MODEL_ERROR, f"{SERVER} broke off{f': {words}' if words else ''}")


def words_of(body: object) -> str:
    """The message in an error as these servers write it: `{"error": {"message"}}`, `{"error": "…"}`,
    `{"message"}`, `{"detail"}`, or a line of text."""
    found = _error_of(body)
    if isinstance(found, dict):
        found = next((found[key] for key in ("message", "detail", "error", "type") if found.get(key)), "")
    if isinstance(found, list):  # FastAPI's list of what is wrong with a request
        first = found[0] if found else ""
        found = first.get("msg", "") if isinstance(first, dict) else first
    text = found if isinstance(found, str) else ""
    if text.lstrip().startswith("<"):  # a proxy's page for browsers
        return ""
    line = " ".join("".join(char if char.isprintable() else " " for char in text[: 4 * MAX_WORDS]).split())
    return line if len(line) <= MAX_WORDS else f"{line[: MAX_WORDS - 1]}…"


def _error_of(body: object) -> object:
    return body["error"] if isinstance(body, dict) and body.get("error") else body


def _later(headers: Mapping[str, str]) -> str:
    seconds = headers.get("retry-after", "").strip()
    if seconds.isascii() and seconds.isdecimal() and len(seconds) < 6 and int(seconds) <= MAX_RETRY_AFTER:
        return f"try again in {int(seconds)} s, or another provider"
    return "try again later, or another provider"
