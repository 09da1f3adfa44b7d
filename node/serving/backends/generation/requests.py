"""What a caller may ask a model that generates text: OpenAI's fields, checked, as one frozen value.

The input of a call is a text, a map with `prompt` (completions) or a map with `messages` (chat). A text
brings its options as parameters of the call, a map brings them as OpenAI's clients send them. Fields that ask
for something which a local model cannot do are refused, and so are unknown ones; those that clients send as a
matter of course and that mean nothing to it are left alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeVar

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.payload import Value

T = TypeVar("T")

MAX_PROMPT_CHARS = 1 << 22  # a million tokens; who sends more waits for the tokenizer alone
CHARS_PER_TOKEN = 64  # beyond any tokenizer's average: such a text overflows, and is not read for that
MAX_MESSAGES = 4096  # of one chat: each costs the template a turn
MAX_TOOLS = 128  # OpenAI's bound
MAX_STOPS = 16  # OpenAI takes 4; each is looked for in every piece
MAX_STOP_CHARS = 256  # text is held back for as long as a stop string may be coming
MAX_TOP_LOGPROBS = 20  # OpenAI's bound
MAX_BIASES = 1024  # OpenAI's bound
TEXT_TOKENS = 256  # for a plain text without max_tokens: a page, and no endless call
MIN_TEMPERATURE = 1e-3  # below it is 0: logits divided by less are no numbers any more
COMPLETION_TOKENS = 16  # for completions without max_tokens: OpenAI's

OPTIONS = frozenset(
    {"max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "seed", "stop", "logit_bias"}
    | {"frequency_penalty", "presence_penalty", "logprobs", "top_logprobs", "tools", "tool_choice"}
    | {"chat_template_kwargs"}
)
REFUSED = frozenset(  # unless they ask for nothing, see `_refuse`
    {"n", "best_of", "echo", "suffix", "audio", "prediction", "functions", "function_call", "response_format"}
)
LEFT_ALONE = frozenset(  # of the caller's account, of how the answer travels, and hints that bind nobody
    {"model", "stream", "stream_options", "user", "store", "metadata", "service_tier", "safety_identifier"}
    | {"prompt_cache_key", "prompt_cache_retention", "parallel_tool_calls", "reasoning_effort", "verbosity"}
    | {"modalities"}
)
ROLES = ("system", "developer", "user", "assistant", "tool", "function")


class Form(Enum):
    """How the caller speaks, and so how it is answered."""

    TEXT = auto()  # a plain text; plain pieces of text come back
    COMPLETION = auto()  # OpenAI's /v1/completions
    CHAT = auto()  # OpenAI's /v1/chat/completions


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. Temperature 0 takes the best one and draws nothing."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    seed: int | None = None  # None: another one for each call
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)  # by token


@dataclass(frozen=True, slots=True)
class Request:
    """One call. `prompt` is a text or tokens, and empty for a chat."""

    form: Form
    prompt: str | tuple[int, ...] = ""
    messages: tuple[Mapping[str, Value], ...] = ()
    tools: tuple[Mapping[str, Value], ...] = ()  # what the chat template is to show the model
    max_tokens: int | None = None  # None: as many as there is room for
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    logprobs: int | None = None  # how many others are told beside each token; None: nothing is told
    template: Mapping[str, Value] = field(default_factory=dict)  # further variables of the chat template


def read_request(value: Value, params: Mapping[str, Value], default: Sampling) -> Request:
    """The request of a call; `default` is how the model's maker wants it sampled.

    Raises LocalError (bad-input, too-large) that names the field.
    """
    if isinstance(value, str):
        return _read(Form.TEXT, params, default, prompt=_prompt(value))
    if not isinstance(value, dict):
        words = f"expected a text, or a map with messages or prompt, got {type(value).__name__}"
        raise _bad(words, 'such as {"messages": [{"role": "user", "content": "Hello"}]}')
    fields = dict(params) | value
    if "messages" in fields:
        messages = _messages(fields["messages"])
        return _read(Form.CHAT, fields, default, messages=messages, tools=_tools(fields))
    if "prompt" in fields:
        return _read(Form.COMPLETION, fields, default, prompt=_prompt(fields["prompt"]))
    raise _bad("the map has neither messages nor prompt")


def _read(
    form: Form,
    fields: Mapping[str, Value],
    default: Sampling,
    *,
    prompt: str | tuple[int, ...] = "",
    messages: tuple[Mapping[str, Value], ...] = (),
    tools: tuple[Mapping[str, Value], ...] = (),
) -> Request:
    _refuse(fields)
    limit = _optional(fields, "max_completion_tokens", _whole(1, 1 << 31))
    if limit is None:
        limit = _optional(fields, "max_tokens", _whole(1, 1 << 31))
    if limit is None:
        limit = {Form.TEXT: TEXT_TOKENS, Form.COMPLETION: COMPLETION_TOKENS, Form.CHAT: None}[form]
    template = fields.get("chat_template_kwargs") or {}
    if not isinstance(template, dict) or template.keys() & {"messages", "tools", "chat_template", "tokenize"}:
        raise _bad("chat_template_kwargs is no map of variables of the template")
    return Request(
        form,
        prompt,
        messages,
        tools,
        limit,
        _sampling(fields, default),
        _stops(fields.get("stop")),
        _logprobs(form, fields),
        template,
    )


def _sampling(fields: Mapping[str, Value], default: Sampling) -> Sampling:
    def number(name: str, low: float, high: float, otherwise: float) -> float:
        found = _optional(fields, name, _number(low, high))
        return otherwise if found is None else found

    top_k = _optional(fields, "top_k", _whole(-1, 1 << 31))  # -1 is vLLM's word for all
    temperature = number("temperature", 0, 2, default.temperature)
    return Sampling(
        temperature if temperature >= MIN_TEMPERATURE else 0.0,
        number("top_p", 0, 1, default.top_p) or 1e-9,  # 0 leaves the best one
        default.top_k if top_k is None else max(top_k, 0),
        _optional(fields, "seed", _whole(-(1 << 63), (1 << 63) - 1)),
        number("frequency_penalty", -2, 2, 0.0),
        number("presence_penalty", -2, 2, 0.0),
        _biases(fields.get("logit_bias")),
    )


def _refuse(fields: Mapping[str, Value]) -> None:
    """What would be answered otherwise than it was asked."""
    known = OPTIONS | REFUSED | LEFT_ALONE | {"messages", "prompt"}
    unknown = sorted(str(name) for name, field in fields.items() if name not in known and field is not None)
    if unknown:
        hint = f"it takes {', '.join(sorted(OPTIONS))}"
        raise _bad(f"this model takes no parameter {unknown[0][:40]!r}", hint)
    for name, word in (("n", "one answer"), ("best_of", "one answer")):
        if fields.get(name) not in (None, 1):
            raise _bad(f"{name}={str(fields[name])[:20]}: a call gives {word}", "call it several times")
    for name in ("echo", "suffix", "audio", "prediction"):
        if fields.get(name):
            raise _bad(f"{name} is not served by a local model")
    for name, harmless in (("functions", "tools"), ("function_call", "tool_choice")):
        if fields.get(name):
            raise _bad(f"{name} is not understood any more", f"send {harmless}")
    match fields.get("response_format"):
        case None | {"type": "text"}:
            pass
        case wanted:
            kind = wanted.get("type") if isinstance(wanted, dict) else wanted
            hint = "ask for JSON in the prompt, and check what comes"
            raise _bad(f"response_format {str(kind)[:40]!r} cannot be held to by this model", hint)


def _prompt(value: Value) -> str | tuple[int, ...]:
    """A text, or tokens; OpenAI's list of one of them as well."""
    match value:
        case [str() | list() as only]:
            return _prompt(only)
        case str():
            if len(value) > MAX_PROMPT_CHARS:
                raise LocalError(
                    Code.TOO_LARGE,
                    f"the prompt has {len(value)} characters, {MAX_PROMPT_CHARS} at most are read",
                )
            return value
        case [int(), *_] if all(type(token) is int and token >= 0 for token in value):
            tokens: list[int] = [token for token in value if isinstance(token, int)]
            if len(value) > MAX_PROMPT_CHARS:
                raise LocalError(Code.TOO_LARGE, f"the prompt has {len(value)} tokens")
            return tuple(tokens)
        case list():
            raise _bad("prompt is several prompts, or none", "send one prompt in a call")
    raise _bad(f"prompt is {type(value).__name__}, and neither text nor tokens")


def _messages(value: Value) -> tuple[Mapping[str, Value], ...]:
    """Messages whose contents are plain texts, as chat templates expect them."""
    if not isinstance(value, list) or not value:
        raise _bad("messages is no list of messages, or an empty one")
    if len(value) > MAX_MESSAGES:
        raise LocalError(Code.TOO_LARGE, f"{len(value)} messages, {MAX_MESSAGES} at most are read")
    messages = tuple(_message(number, message) for number, message in enumerate(value))
    size = sum(len(text) for message in messages if isinstance(text := message["content"], str))
    if size > MAX_PROMPT_CHARS:
        raise LocalError(
            Code.TOO_LARGE, f"the messages have {size} characters, {MAX_PROMPT_CHARS} at most are read"
        )
    return messages


def _message(number: int, message: Value) -> Mapping[str, Value]:
    where = f"messages[{number}]"
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        raise _bad(f"{where} has no role out of {', '.join(ROLES)}")
    role = "system" if message["role"] == "developer" else message["role"]
    found: dict[str, Value] = {"role": role, "content": _content(where, message.get("content"))}
    for name in ("name", "tool_call_id"):
        if isinstance(message.get(name), str):
            found[name] = message[name]
    if message.get("tool_calls"):
        found["tool_calls"] = _past_calls(where, message["tool_calls"])
    elif message.get("content") is None:
        raise _bad(f"{where} has no content")
    return found


def _content(where: str, content: Value) -> str:
    match content:
        case None:
            return ""
        case str():
            return content
        case [*parts]:
            texts: list[str] = []
            for part in parts:
                match part:
                    case {"type": "text" | "input_text" | "output_text", "text": str(text)}:
                        texts.append(text)
                    case _:
                        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
                        raise _bad(
                            f"{where} holds a part of type {str(kind)[:40]!r}", "this model reads text"
                        )
            return "".join(texts)
    raise _bad(f"the content of {where} is {type(content).__name__}, and neither text nor parts")


def _past_calls(where: str, calls: Value) -> list[Value]:
    """Calls that the model has made before. Templates write their arguments as a map, OpenAI sends a text."""
    from json import loads

    if not isinstance(calls, list) or len(calls) > MAX_TOOLS:
        raise _bad(f"the tool_calls of {where} are no list of at most {MAX_TOOLS}")
    found: list[Value] = []
    for call in calls:
        match call:
            case {"function": {"name": str(name), "arguments": arguments}}:
                if isinstance(arguments, str):
                    try:
                        arguments = loads(arguments or "{}")
                    except (ValueError, RecursionError):
                        raise _bad(f"the arguments of a tool call of {where} are not JSON") from None
                function: Value = {"name": name, "arguments": arguments}
                found.append({"id": call.get("id", ""), "type": "function", "function": function})
            case _:
                raise _bad(f"a tool call of {where} names no function with arguments")
    return found


def _tools(fields: Mapping[str, Value]) -> tuple[Mapping[str, Value], ...]:
    tools, choice = fields.get("tools") or [], fields.get("tool_choice")
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        raise _bad(f"tools is no list of at most {MAX_TOOLS}")
    for tool in tools:
        match tool:
            case {"type": "function", "function": {"name": str()}}:
                pass
            case _:
                raise _bad("a tool is no function with a name")
    if choice not in (None, "auto", "none"):
        raise _bad("a tool call cannot be forced from this model", 'tool_choice is "auto" or "none"')
    return () if choice == "none" else tuple(tools)


def _stops(value: Value) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise _bad(f"stop is no text or list of at most {MAX_STOPS} texts")
    found: list[str] = []
    for stop in stops:
        if not isinstance(stop, str) or not 0 < len(stop) <= MAX_STOP_CHARS:
            raise _bad(f"a stop string has 1 to {MAX_STOP_CHARS} characters")
        found.append(stop)
    return tuple(found)


def _logprobs(form: Form, fields: Mapping[str, Value]) -> int | None:
    """Chat says `logprobs: true, top_logprobs: 5`, completions say `logprobs: 5`."""
    wanted = fields.get("logprobs")
    if wanted is None or wanted is False:
        return None
    if form is Form.CHAT:
        return _optional(fields, "top_logprobs", _whole(0, MAX_TOP_LOGPROBS)) or 0
    return 0 if wanted is True else _whole(0, MAX_TOP_LOGPROBS)("logprobs", wanted)


def _biases(value: Value) -> Mapping[int, float]:
    if not value:
        return {}
    if not isinstance(value, dict) or len(value) > MAX_BIASES:
        raise _bad(f"logit_bias is no map of at most {MAX_BIASES} tokens")
    if not all(str(token).isdecimal() for token in value):
        raise _bad("logit_bias names something that is no token's number")
    return {int(token): _number(-100, 100)("logit_bias", bias) for token, bias in value.items()}


def _optional(fields: Mapping[str, Value], name: str, check: Callable[[str, Value], T]) -> T | None:
    return None if fields.get(name) is None else check(name, fields[name])


def _whole(low: int, high: int) -> Callable[[str, Value], int]:
    def check(name: str, value: Value) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _bad(f"{name} is {str(value)[:40]}, not a whole number from {low} to {high}")
        return value

    return check


def _number(low: float, high: float) -> Callable[[str, Value], float]:
    def check(name: str, value: Value) -> float:
        sound = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not (sound and isinstance(value, int | float) and low <= value <= high):
            raise _bad(f"{name} is {str(value)[:40]}, not a number from {low:g} to {high:g}")
        return float(value)

    return check


def overflow(context: int, prompt: int, wanted: int | None) -> LocalError:
    """That a request does not fit into the model's context; the numbers are tokens."""
    asked = f"{prompt} in the prompt" + (f" and {wanted} to generate" if wanted is not None else "")
    return LocalError(
        Code.BAD_INPUT,
        f"the model's maximum context length is {context} tokens, "
        f"and the request has {prompt + (wanted or 0)}: {asked}",
        hint="shorten the prompt, or ask for fewer tokens",
    )


def plain_prompt(messages: Sequence[Mapping[str, Value]]) -> str:
    """What a model without a chat template is shown: lines `Role: content`, and `Assistant:` at the end."""
    lines = [f"{str(message['role']).capitalize()}: {message['content']}" for message in messages]
    return "\n".join([*lines, "Assistant:"])


PLAIN_STOPS = ("\nUser:", "\nSystem:")  # where such a model would go on with the caller's part


def _bad(words: str, hint: str = "") -> LocalError:
    return LocalError(Code.BAD_INPUT, words, hint=hint)
