"""A causal language model that answers many callers: their rows share its steps, each gets its own text.

One task drives the steps, each in the model's thread; callers wait in the loop for what their rows have
drawn. A caller that leaves marks its row, which is out before the next step.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.contract import Offload
from modelnet_p2p.node.serving.backends.generation.chunks import Chance, Chunks
from modelnet_p2p.node.serving.backends.generation.requests import (
    CHARS_PER_TOKEN,
    PLAIN_STOPS,
    Form,
    Request,
    Sampling,
    overflow,
    plain_prompt,
)
from modelnet_p2p.node.serving.backends.generation.text import Detokeniser, Stops
from modelnet_p2p.node.serving.backends.pretrained.engine import Engine, Row
from modelnet_p2p.node.serving.backends.pretrained.sampling import Drawn, Sampler
from modelnet_p2p.node.serving.guarding import guarded, last_line
from modelnet_p2p.payload import Value

log = logging.getLogger(__name__)

END = "end"  # stands in a call's news after the last item


class Generation:
    """One call: what its row draws becomes items. `on_token` runs in the model's thread."""

    def __init__(self, request: Request, prompt: Sequence[int], limit: int, tokenizer: Tokenizer) -> None:
        self._request = request
        self._tokenizer = tokenizer
        self._prompt_tokens = len(prompt)
        self._limit = limit
        self._count = 0
        self._text = Detokeniser(tokenizer.decode, prompt)
        extra = PLAIN_STOPS if request.form is Form.CHAT and not tokenizer.has_template else ()
        self._stops = Stops((*request.stop, *extra))
        self._chunks = Chunks(request)
        self.news: deque[Value] = deque()  # items, then END or a LocalError; bounded by the context's length
        self.wake = asyncio.Event()
        sampler = Sampler(request.sampling, request.logprobs)
        self.row = Row(list(prompt), sampler, self.on_token, on_fault=self.news.append)

    def on_token(self, drawn: Drawn) -> bool:
        """Takes the next token; True when it was the last."""
        self._count += 1
        if drawn.token in self._tokenizer.ends:
            return self._end("stop")
        chances = () if self._request.logprobs is None else (self._chance(drawn),)
        self.news += self._chunks.piece(self._stops.feed(self._text.feed(drawn.token)), chances)
        if self._stops.found:
            return self._end("stop")
        return self._count >= self._limit and self._end("length")

    def _end(self, reason: str) -> bool:
        rest = self._stops.feed(self._text.end())
        if self._stops.found:
            reason = "stop"
        self.news += self._chunks.piece(rest + self._stops.end())
        self.news += self._chunks.end(reason, self._prompt_tokens, self._count)
        self.news.append(END)
        return True

    def _chance(self, drawn: Drawn) -> Chance:
        text = self._tokenizer.text_of
        others = tuple(Chance(text(token), logprob) for token, logprob in drawn.best)
        return Chance(text(drawn.token), drawn.logprob, others)


class Tokenizer:
    """The tokenizer of a model as generation needs it. Used in the model's thread."""

    def __init__(self, tokenizer: Any, ends: frozenset[int], size: int) -> None:
        # Any: what transformers makes has no types here
        self._tokenizer = tokenizer
        self._size = size  # of the model's vocabulary
        self.ends = ends  # tokens after which nothing follows
        self.has_template = bool(getattr(tokenizer, "chat_template", None))

    def decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def text_of(self, token: int) -> str:
        """Of one token alone, special ones by their names."""
        text: str = self._tokenizer.decode([token])
        return text

    def encode(self, request: Request, context: int) -> list[int]:
        """The tokens of a request's prompt; raises LocalError (bad-input)."""
        if isinstance(request.prompt, tuple):
            return self._checked(request.prompt)
        text, special = request.prompt, True
        if request.form is Form.CHAT:
            text, special = self._chat(request)
        if len(text) > context * CHARS_PER_TOKEN:
            raise overflow(context, len(text) // CHARS_PER_TOKEN, request.max_tokens)
        tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=special)
        return tokens

    def _checked(self, tokens: tuple[int, ...]) -> list[int]:
        if max(tokens) >= self._size:
            words = f"the prompt has a token {max(tokens)}, and the model knows {self._size}"
            raise LocalError(Code.BAD_INPUT, words)
        return list(tokens)

    def _chat(self, request: Request) -> tuple[str, bool]:
        """A chat as one text, and whether special tokens are still to be added."""
        if not self.has_template:
            if request.tools:
                raise LocalError(
                    Code.BAD_INPUT, "this model has no chat template, so it cannot be shown tools"
                )
            return plain_prompt(request.messages), True
        from jinja2.exceptions import TemplateError

        try:
            text: str = self._tokenizer.apply_chat_template(
                [dict(message) for message in request.messages],
                tools=[dict(tool) for tool in request.tools] or None,
                add_generation_prompt=True,
                tokenize=False,
                **request.template,
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            words = f"the model's chat template does not take these messages: {last_line(error)}"
            raise LocalError(Code.BAD_INPUT, words) from error
        return text, False


class Generator:
    """A model, its tokenizer and its steps, from `open` to `close`, in one loop."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, context: int, offload: Offload) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self.context = context  # tokens
        self._offload = offload
        self._calls: set[Generation] = set()
        self._arrived: list[Generation] = []
        self._wake = asyncio.Event()
        self._driver: asyncio.Task[None] | None = None

    def open(self) -> None:
        self._driver = asyncio.get_running_loop().create_task(self._drive())

    async def close(self) -> None:
        if self._driver is not None:
            self._driver.cancel()
            await asyncio.wait({self._driver})
        if self._engine.drawn:
            log.info("of %d tokens %d were the best by less than 1e-4", self._engine.drawn, self._engine.near)

    async def stream(self, request: Request) -> AsyncGenerator[Value, None]:
        """The items of one call; raises LocalError."""
        call = await self._offload(lambda: self._begin(request))
        self._calls.add(call)
        self._arrived.append(call)
        self._wake.set()
        try:
            while True:
                await call.wake.wait()
                call.wake.clear()
                while call.news:
                    item = call.news.popleft()
                    if item is END:
                        return
                    if isinstance(item, LocalError):
                        raise item
                    yield item
        finally:
            call.row.left = True
            self._calls.discard(call)
            self._wake.set()

    def _begin(self, request: Request) -> Generation:
        """In the model's thread: read the prompt."""
        prompt = self._tokenizer.encode(request, self.context)
        if not prompt:
            raise LocalError(Code.BAD_INPUT, "the prompt is empty", hint="send at least one character")
        room = self.context - len(prompt)
        if room < (request.max_tokens if request.form is not Form.TEXT and request.max_tokens else 1):
            raise overflow(self.context, len(prompt), request.max_tokens)
        limit = min(room, request.max_tokens) if request.max_tokens else room
        return Generation(request, prompt, limit, self._tokenizer)

    async def _drive(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._arrived or not self._engine.is_idle:
                arrived, self._arrived = self._arrived, []
                for call in arrived:
                    self._engine.add(call.row)
                try:
                    await guarded(self._offload(self._engine.step))
                except LocalError as error:
                    self._engine.clear()
                    for call in self._calls:
                        call.news.append(error)
                for call in self._calls:
                    call.wake.set()


def maker_sampling(config: Any) -> Sampling:  # Any: a GenerationConfig
    """How the model's maker wants it sampled: greedily unless generation_config.json says `do_sample`."""
    if not config.do_sample:
        return Sampling()
    return Sampling(_or(config.temperature, 1.0), _or(config.top_p, 1.0), int(_or(config.top_k, 0)))


def _or(value: object, otherwise: float) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else otherwise


def end_tokens(config: Any, tokenizer: Any) -> frozenset[int]:  # Any: a GenerationConfig, a tokenizer
    """The tokens that end an answer."""
    found = config.eos_token_id
    ends = {found} if isinstance(found, int) else set(found or ())
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    return frozenset(ends)
