"""A request of /v1/responses as one of /v1/chat/completions, as far as the two say the same; the rest is
refused by name.

Nothing is stored here, so whatever refers to something stored (`previous_response_id`, `conversation`)
cannot be answered, and is no silent half-answer either.
"""

from __future__ import annotations

from typing import Any

from modelnet_p2p.node.gateway.errors import BadRequest
from modelnet_p2p.node.gateway.pieces import Json

MAX_ITEMS = 4096  # of an input

_SAME = ("model", "stream", "temperature", "top_p", "parallel_tool_calls", "seed", "stop", "user")
_IGNORED = frozenset(
    {
        "metadata",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "service_tier",
        "stream_options",
    }
)
_TAKEN = frozenset({*_SAME, *_IGNORED}) | {
    "input", "instructions", "max_output_tokens", "tools", "tool_choice", "text", "reasoning", "store",
    "include", "truncation", "background",
}  # fmt: skip
_ROLES = {"developer": "system"}


def chat_body(body: Json) -> Json:
    """The same request in the form of /v1/chat/completions; raises BadRequest for what that cannot say."""
    _check(body)
    chat: Json = {name: body[name] for name in _SAME if body.get(name) is not None}
    chat["messages"] = _messages(body.get("instructions"), body.get("input"))
    if body.get("max_output_tokens") is not None:
        chat["max_tokens"] = body["max_output_tokens"]
    if tools := body.get("tools"):
        chat["tools"] = [_tool(tool, at) for at, tool in enumerate(_list(tools, "tools"))]
    if (choice := body.get("tool_choice")) is not None and tools:
        chat["tool_choice"] = _choice(choice)
    if (wanted := _format(body.get("text"))) is not None:
        chat["response_format"] = wanted
    effort = _object(body.get("reasoning"), "reasoning").get("effort")
    if effort is not None:
        chat["reasoning_effort"] = effort
    return chat


def _check(body: Json) -> None:
    for name, value in body.items():
        if name not in _TAKEN and value is not None:
            raise BadRequest(f"{name!r} is not supported here", name, kind="unsupported_parameter")
    for name in ("store", "background"):
        if body.get(name):
            words = f"{name!r} is not supported: nothing is stored here; send the whole conversation"
            raise BadRequest(words, name, kind="unsupported_parameter")
    if body.get("truncation") not in (None, "disabled"):
        raise BadRequest("'truncation' is not supported but for 'disabled'", "truncation")
    include = body.get("include") or []
    if not isinstance(include, list) or set(map(str, include)) - {"reasoning.encrypted_content"}:
        raise BadRequest("'include' is not supported", "include")


def _messages(instructions: object, given: object) -> list[Json]:
    messages: list[Json] = []
    if instructions is not None:
        if not isinstance(instructions, str):
            raise BadRequest("'instructions' must be text", "instructions")
        messages.append({"role": "system", "content": instructions})
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    items = _list(given, "input")
    if not items or len(items) > MAX_ITEMS:
        raise BadRequest(f"'input' must be text, or a list of 1 to {MAX_ITEMS} items", "input")
    for at, item in enumerate(items):
        _add(messages, item, f"input[{at}]")
    return messages


def _add(messages: list[Json], item: object, where: str) -> None:
    match item:
        case {"type": "function_call", "name": str(name), "arguments": str(arguments), **rest}:
            call = {
                "id": str(rest.get("call_id") or rest.get("id") or ""),
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            }
            if messages and messages[-1]["role"] == "assistant" and messages[-1].get("tool_calls"):
                messages[-1]["tool_calls"].append(call)
            else:
                messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        case {"type": "function_call_output", "call_id": str(call_id), "output": output}:
            content = output if isinstance(output, str) else _content(output, where)
            messages.append({"role": "tool", "tool_call_id": call_id, "content": content})
        case {"type": "reasoning"}:
            pass  # what a model thought before it answered; what it said follows
        case {"role": str(role), "content": content, **rest} if rest.get("type") in (None, "message"):
            messages.append({"role": _ROLES.get(role, role), "content": _content(content, where)})
        case _:
            kind = item.get("type") if isinstance(item, dict) else None
            raise BadRequest(f"an input item of type {str(kind)[:40]!r} is not supported", where)


def _content(content: object, where: str) -> str | list[Json]:
    if isinstance(content, str):
        return content
    parts = [_part(part, where) for part in _list(content, where)]
    if all(part["type"] == "text" for part in parts):
        return "".join(part["text"] for part in parts)
    return parts


def _part(part: object, where: str) -> Json:
    match part:
        case {"type": "input_text" | "output_text" | "text", "text": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "refusal", "refusal": str(text)}:
            return {"type": "text", "text": text}
        case {"type": "input_image", "image_url": str(url), **rest}:
            return {"type": "image_url", "image_url": {"url": url, "detail": rest.get("detail") or "auto"}}
    kind = part.get("type") if isinstance(part, dict) else None
    raise BadRequest(f"content of type {str(kind)[:40]!r} is not supported", where)


def _tool(tool: object, at: int) -> Json:
    match tool:
        case {"type": "function", "name": str(name), **rest}:
            known = ("description", "parameters", "strict")
            given = {key: rest[key] for key in known if rest.get(key) is not None}
            return {"type": "function", "function": {"name": name, **given}}
    kind = tool.get("type") if isinstance(tool, dict) else None
    raise BadRequest(f"a tool of type {str(kind)[:40]!r} is not supported: functions are", f"tools[{at}]")


def _choice(choice: object) -> Any:  # Any: OpenAI's two forms of it
    match choice:
        case "auto" | "none" | "required":
            return choice
        case {"type": "function", "name": str(name)}:
            return {"type": "function", "function": {"name": name}}
    raise BadRequest("'tool_choice' is auto, none, required or a function", "tool_choice")


def _format(text: object) -> Json | None:
    wanted = _object(text, "text").get("format")
    match wanted:
        case None | {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return {"type": "json_object"}
        case {"type": "json_schema", "schema": dict(schema), **rest}:
            known = ("name", "strict", "description")
            named = {key: rest[key] for key in known if rest.get(key) is not None}
            return {"type": "json_schema", "json_schema": {**named, "schema": schema}}
    raise BadRequest("'text.format' is text, json_object or json_schema", "text.format")


def _list(value: object, name: str) -> list[Any]:  # Any: of JSON's types
    if not isinstance(value, list):
        raise BadRequest(f"{name!r} must be a list", name)
    return value


def _object(value: object, name: str) -> Json:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadRequest(f"{name!r} must be an object", name)
    return value
