"""What an agent asks, taken out of a tool's arguments and checked; whatever is wrong says what was expected.

Agents are models: they write numbers as text and objects as text that holds JSON. Where only one thing can
be meant, that is what it means.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.jsonvalue import from_json
from modelnet_p2p.node.mcp.tools import DEFAULT_LIMIT, DEFAULT_SECONDS, MAX_LIMIT, MAX_SECONDS
from modelnet_p2p.payload import Value

Arguments = Mapping[str, object]
_TENSOR = {"dtype", "shape", "data"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to find; nothing given means whatever is in sight."""

    task: str | None
    model: str | None
    tag: str | None
    query: str | None
    limit: int

    @classmethod
    def of(cls, arguments: Arguments) -> Wanted:
        _known(arguments, ("task", "model", "tag", "query", "limit"))
        task, model, tag, query = (_text(arguments, name) for name in ("task", "model", "tag", "query"))
        return cls(task, model, tag, query, int(_number(arguments, "limit", DEFAULT_LIMIT, MAX_LIMIT)))

    def __str__(self) -> str:
        kinds = (("task", self.task), ("model", self.model), ("tag", self.tag), ("query", self.query))
        return ", ".join(f"{kind} {what!r}" for kind, what in kinds if what)


@dataclass(frozen=True, slots=True)
class Wish:
    """A call: of what, with what, and how long it may take."""

    target: str
    value: Value
    params: dict[str, Value]
    seconds: float

    @classmethod
    def of(cls, arguments: Arguments, seconds: float = DEFAULT_SECONDS) -> Wish:
        _known(arguments, ("target", "input", "params", "timeout"))
        if "input" not in arguments:
            raise _bad("'input' is missing", "give what the model takes: a text, or JSON")
        target = _text(arguments, "target")
        if target is None:
            raise _bad("'target' is missing", "a model's name, its modelnet: URI, or task:TASK")
        timeout = _number(arguments, "timeout", seconds, MAX_SECONDS)
        return cls(target, _value(arguments["input"]), _params(arguments.get("params")), timeout)


def model_of(arguments: Arguments) -> str:
    """The one argument of a description."""
    _known(arguments, ("model",))
    model = _text(arguments, "model")
    if model is None:
        raise _bad("'model' is missing", "its name, or the uri that find_models gave")
    return model


def _bad(message: str, hint: str) -> LocalError:
    return LocalError(Code.BAD_INPUT, message, hint=hint)


def _known(arguments: Arguments, names: Collection[str]) -> None:
    for name in arguments:
        if name not in names:
            raise _bad(f"there is no argument {name[:40]!r}", f"the arguments are {', '.join(names)}")


def _text(arguments: Arguments, name: str) -> str | None:
    value = arguments.get(name)
    if value is None or value == "":  # agents fill in what they were not asked for
        return None
    if not isinstance(value, str):
        raise _bad(f"{name!r} must be a text", f'such as {{"{name}": "…"}}')
    return value


def _number(arguments: Arguments, name: str, default: float, most: float) -> float:
    value = arguments.get(name)
    if value is None:
        return default
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else 0.0
    except (ValueError, OverflowError):
        number = 0.0
    if not 0 < number <= most:
        raise _bad(
            f"{name!r} must be a number above 0, and at most {most:g}", f'such as {{"{name}": {default:g}}}'
        )
    return number


def _value(given: object) -> Value:
    """The input. A text is a text, but for one that holds a tensor as JSON and nothing else."""
    if isinstance(given, str) and given.lstrip()[:1] == "{":
        try:
            inside = json.loads(given)
        except (ValueError, RecursionError):
            return given
        if isinstance(inside, dict) and inside.keys() == _TENSOR:
            given = inside
    return from_json(given)


def _params(given: object) -> dict[str, Value]:
    if isinstance(given, str) and given:
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            pass
    if given is None or given == "":
        return {}
    if not isinstance(given, dict):
        raise _bad("'params' must be an object", 'such as {"params": {"max_tokens": 200}}')
    return {name: from_json(value) for name, value in given.items()}
