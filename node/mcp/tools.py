"""The tools that an agent is offered: their names, what is told of them, and the schemas of what they take.

The texts are read by models: they say when to use a tool, in which order, and what a value looks like.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]  # Any: JSON Schema is JSON

FIND, DESCRIBE, INVOKE = "find_models", "describe_model", "invoke_model"

DEFAULT_LIMIT = 10  # models in one answer: what an agent reads, it pays for
MAX_LIMIT = 100
DEFAULT_SECONDS = 60.0  # of a call: a model may have to be loaded first
MAX_SECONDS = 3600.0

INSTRUCTIONS = (
    "modelnet is a network of AI models that many peers serve. Use find_models to see which models there "
    "are for a task, describe_model for all that is known of one of them, and invoke_model to call one by "
    "its name, its modelnet: URI, or as task:TASK (the best provider is chosen, and another one if that "
    "fails). Answers come from other people's machines: they are not verified, and whoever answers sees "
    "the input."
)

_VALUE = (
    'A tensor is {"dtype": "float32", "shape": [2, 3], "data": [six numbers, row by row]}; bytes are '
    '{"base64": "…"}.'
)


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool. `reads` says that it changes nothing anywhere."""

    name: str
    title: str
    description: str
    takes: Schema
    gives: Schema
    reads: bool


def _object(properties: Schema, required: tuple[str, ...] = ()) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required)}


def _text(description: str) -> Schema:
    return {"type": "string", "description": description}


def _number(description: str, default: float, least: float, most: float, kind: str = "number") -> Schema:
    bounds = {"minimum": least, "maximum": most, "default": default}
    return {"type": kind, "description": description, **bounds}


_FIND = Tool(
    FIND,
    "Find models",
    "List models that can be called now, best first: for each its name, uri, task, state (alive, unknown, "
    "suspect, dead), load (0 idle, 1 full), and what goes in and comes out. Give a task, a model's name, a"
    " tag or a query; with nothing given, the models in sight are listed.",
    _object(
        {
            "task": _text("Such as text-generation, text-classification, feature-extraction, summarization."),
            "model": _text(
                "A model's name, such as modelnet/digits, with @VERSION or as a modelnet: URI too."
            ),
            "tag": _text("A tag that its publisher gave it."),
            "query": _text(
                "Conditions with and, or, not and brackets, such as: task:text-generation and (language:de"
                " or language:fr) and parameters<=7B and not licence:gpl*"
            ),
            "limit": _number("At most so many.", DEFAULT_LIMIT, 1, MAX_LIMIT, "integer"),
        }
    ),
    _object(
        {"models": {"type": "array", "items": {"type": "object"}}, "note": {"type": "string"}}, ("models",)
    ),
    reads=True,
)

_DESCRIBE = Tool(
    DESCRIBE,
    "Describe a model",
    "All that is known of one model: who serves it, task, inputs and outputs, parameters that it takes, "
    "context length, languages, licence, tags, limits. Use it before a call whose input is not plain text.",
    _object({"model": _text("Its name, or the uri that find_models gave.")}, ("model",)),
    _object({"offers": {"type": "array", "items": {"type": "object"}}}, ("offers",)),
    reads=True,
)

_INVOKE = Tool(
    INVOKE,
    "Call a model",
    "Call a model of the network and return its answer. A model that answers bit by bit reports each piece"
    " as progress; the whole is returned in the end. Errors say what was wrong and what to do next.",
    _object(
        {
            "target": _text("A model's name, its modelnet: URI, or task:TASK for the best model of a task."),
            # of any type: some clients refuse a list of types, and none refuses this
            "input": {"description": f"What the model takes: a text, or any JSON. {_VALUE}"},
            "params": {
                "type": "object",
                "description": 'Options of the model by name, such as {"max_tokens": 200}.',
            },
            "timeout": _number("Seconds that the call may take.", DEFAULT_SECONDS, 0.1, MAX_SECONDS),
        },
        ("target", "input"),
    ),
    _object(
        {
            "output": {"description": f"A text or JSON. {_VALUE}"},
            "model": {"type": "string"},
            "provider": {"type": "string", "description": "The id of the peer that answered."},
            "attempts": {"type": "integer"},
        },
        ("output", "model", "provider"),
    ),
    reads=False,  # who knows what a stranger's model does
)

TOOLS = (_FIND, _DESCRIBE, _INVOKE)
