"""Tool calls in what a model writes: told apart from text where their form is known, else left as text.

Known are `<tool_call>{…}</tool_call>` (Hermes, Qwen and others) and an answer that is JSON as a whole, one
call or a list of them (Llama 3, Mistral): each a map with `name` and `arguments` or `parameters`. Only calls
of tools that the caller offered count.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from modelnet_p2p.node.serving.backends.generation.text import overlap

OPEN = "<tool_call>"
_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
MAX_CALLS = 128  # in one answer: what more there is stays text


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One function to call, its arguments as JSON text."""

    name: str
    arguments: str


class ToolReader:
    """Reads an answer in pieces: text goes on at once, what may be a call is held until the end."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._began = False  # something else than white space has come
        self._holding = False
        self._held = ""

    def feed(self, piece: str) -> str:
        """What may be sent on."""
        text = self._held + piece
        if not self._holding:
            if not self._began:
                if not text.strip():
                    self._held = text
                    return ""
                self._began = True
                self._holding = text.lstrip()[0] in "{["
            if not self._holding and (at := text.find(OPEN)) >= 0:
                self._holding, self._held = True, text[at:]
                return text[:at]
        keep = len(text) if self._holding else overlap(text, OPEN)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> tuple[str, list[ToolCall]]:
        """The text that was held and is no call, or the calls that it was."""
        held, self._held = self._held, ""
        marked = [body for body in _CALL.findall(held)][:MAX_CALLS]
        calls = [call for body in marked or [held] for call in self._calls(body)]
        return ("", calls) if calls else (held, [])

    def _calls(self, text: str) -> Iterator[ToolCall]:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return
        for entry in (found if isinstance(found, list) else [found])[:MAX_CALLS]:
            match entry:
                case {"name": str(name), "arguments": dict(arguments)} if name in self._names:
                    yield ToolCall(name, json.dumps(arguments, ensure_ascii=False))
                case {"name": str(name), "parameters": dict(arguments)} if name in self._names:
                    yield ToolCall(name, json.dumps(arguments, ensure_ascii=False))
