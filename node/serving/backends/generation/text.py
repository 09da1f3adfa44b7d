"""From tokens to text that can be sent on: whole characters only, and nothing of a stop string.

Two small machines, fed with what has come and asked for what may go. A token may be a part of a character,
and a piece of text may be the beginning of a stop string: both are held until that is sure.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

BROKEN = "\N{REPLACEMENT CHARACTER}"  # what decoders write for bytes that are no character, or none yet
LOOK_BACK = 6  # tokens before the first one: decoders drop the space before a text's first word
MAX_HELD = 8  # tokens: no character has more than 4 bytes, so what is still broken then stays so


class Detokeniser:
    """Decodes a growing list of tokens. `decode` is the tokenizer's, without special tokens."""

    def __init__(self, decode: Callable[[list[int]], str], prompt: Sequence[int] = ()) -> None:
        self._decode = decode
        self._tokens = list(prompt[-LOOK_BACK:])
        self._known = len(self._tokens)  # tokens whose text was given
        self._text = decode(self._tokens) if self._tokens else ""
        if self._text.endswith(BROKEN):  # the look-back begins or ends within a character
            self._tokens, self._known, self._text = [], 0, ""

    def feed(self, token: int) -> str:
        """What text `token` completes, possibly none."""
        self._tokens.append(token)
        text = self._decode(self._tokens)
        held = len(self._tokens) - self._known
        if text.endswith(BROKEN) and held < MAX_HELD:
            return ""
        return self._advance(text)

    def end(self) -> str:
        """The rest, when no token follows: half a character is nothing."""
        return self._advance(self._decode(self._tokens).rstrip(BROKEN)) if self._tokens else ""

    def _advance(self, text: str) -> str:
        new = text[len(self._text) :] if len(text) > len(self._text) else ""
        if not new and len(self._tokens) - self._known < MAX_HELD:
            return ""  # a special token, or a space whose word follows
        self._tokens = self._tokens[self._known :]
        self._known = len(self._tokens)
        self._text = self._decode(self._tokens)
        return new


class Stops:
    """Looks for the first of several strings in a text that comes in pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def feed(self, piece: str) -> str:
        """What may be sent on; once a stop string is `found`, all before it and nothing after."""
        if self.found or not self._stops:
            return "" if self.found else piece
        text = self._held + piece
        places = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if places:
            self.found = True
            self._held = ""
            return text[: min(places)]
        keep = max(overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """What was held back, when nothing follows."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, mark: str) -> int:
    """How many characters at the end of `text` may be the beginning of `mark`."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0
