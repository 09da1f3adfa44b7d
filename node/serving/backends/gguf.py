"""FILE.gguf: a quantised language model, run by llama.cpp through llama-cpp-python.

It takes what models of the transformers library take (see generation/requests), and gives the same chunks.
One call runs at a time: the library has one context for a model. The file's metadata becomes the record.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from ctypes import create_string_buffer
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from secrets import randbits
from time import perf_counter
from typing import Any

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.contract import Backend, Description
from modelnet_p2p.node.serving.backends.files import lacking, named_after, the_file
from modelnet_p2p.node.serving.backends.generation.chunks import Chunks
from modelnet_p2p.node.serving.backends.generation.requests import (
    CHARS_PER_TOKEN,
    PLAIN_STOPS,
    Form,
    Request,
    Sampling,
    overflow,
    plain_prompt,
    read_request,
)
from modelnet_p2p.node.serving.backends.generation.text import Detokeniser, Stops
from modelnet_p2p.node.serving.backends.gguf_card import replace_words, trouble_with
from modelnet_p2p.node.serving.backends.gguf_file import BadGguf, GgufFile, read_gguf
from modelnet_p2p.node.serving.backends.llama_log import complaints
from modelnet_p2p.node.serving.guarding import last_line
from modelnet_p2p.node.weights.hashing import artifact_of
from modelnet_p2p.payload import Value
from modelnet_p2p.records import Spec

SUFFIX = ".gguf"
TASK = "text-generation"
CONTEXT = 8192  # tokens at most: keys and values of so many fit beside the weights of most models
STEP_SECONDS = 0.2  # who leaves waits so long at most; a worker that is in a step for a second more is ended
LEAST_READ = 4  # tokens of a prompt in one step: fewer take about as long
CPU_READ, GPU_READ = 64, 512  # at most: what more tokens in a step would not be faster
TRIED = 32  # tokens, to see how fast it reads
PIECE_BYTES = 64  # of a token; few have more
MAX_THREADS = 512  # the library's own bound
ANY_SEED = 0xFFFFFFFF  # stands for one drawn at random, in the library
WARM_UPS = 3  # calls; the first pass of a model is not like the others
_END = object()


class GgufBackend(Backend):
    """Runs in a worker process, on the CPU or on what llama-cpp-python was compiled for."""

    blocks = True
    _llama: Any  # of llama_cpp, which has no types here
    _vocab: Any
    _template: Callable[..., str] | None
    _context: int
    _part: int
    _description: Description

    @classmethod
    def claims(cls, spec: str) -> bool:
        return spec.lower().endswith(SUFFIX)

    async def load(self) -> None:
        path = the_file(self.source)
        try:
            header = await self.offload(lambda: read_gguf(path))
        except (OSError, BadGguf) as error:
            raise LocalError(Code.BAD_INPUT, f"cannot read {path}: {error}") from error
        if trouble := trouble_with(header):
            raise LocalError(Code.BAD_INPUT, f"{path} {trouble[0]}", hint=trouble[1])
        if find_spec("llama_cpp") is None:
            hint = " (it is compiled while it is installed)"
            raise lacking(self.source, "llama-cpp-python", "gguf", hint=hint)
        await self.offload(lambda: self._load(path, header))
        await self._warm_up()
        self._part = await self.offload(self._try_reading)

    def _load(self, path: Path, header: GgufFile) -> None:
        import llama_cpp
        from jinja2.exceptions import TemplateError

        said = complaints()
        self._context = min(header.context_length or CONTEXT, CONTEXT)  # it may make room for some more
        try:
            self._llama = llama_cpp.Llama(
                str(path),
                n_ctx=self._context,
                n_gpu_layers=-1,  # a GPU takes all layers if it was compiled for one
                n_threads=threads(),
                n_threads_batch=threads(),  # all cores by default, of which none may be anybody else's then
                last_n_tokens_size=self._context,  # penalties look at a whole answer
                verbose=False,
            )
            self._vocab = llama_cpp.llama_model_get_vocab(self._llama.model)
            self._template = self._find_template(header)
        except TemplateError as error:
            words = f"the chat template of {path} is none: {last_line(error)}"
            raise LocalError(Code.BAD_INPUT, words) from error
        except (ValueError, RuntimeError, AssertionError, OSError) as error:
            raise LocalError(
                Code.BAD_INPUT,
                f"llama.cpp cannot load {path}: {said.take() or last_line(error)}",
                hint="it may be damaged, or newer than the library: pip install --upgrade llama-cpp-python",
            ) from error
        self._part = LEAST_READ
        found = artifact_of(path)
        self._description = replace_words(
            Description(
                name=named_after(path),
                task=TASK,
                framework="llama.cpp",
                precision=header.precision,
                inputs=(Spec("messages", "json"),),
                outputs=(Spec("text", "text"),),
                parameters=header.parameters,
                context_length=self._context,
                digest=found.root,
                files=str(path.resolve()),
                size_bytes=found.size,
                streams=True,
                idempotent=True,
            ),
            header,
        )

    def _find_template(self, header: GgufFile) -> Callable[..., str] | None:
        """The file's own chat template, in the sandbox that llama-cpp-python runs it in."""
        text = header.text("tokenizer.chat_template")
        if not text:
            return None
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        def name(token: int) -> str:
            return self._piece(token, special=True).decode(errors="replace") if token >= 0 else ""

        formatter = Jinja2ChatFormatter(
            template=text, eos_token=name(self._llama.token_eos()), bos_token=name(self._llama.token_bos())
        )
        return lambda **fields: str(formatter(**fields).prompt)

    async def _warm_up(self) -> None:
        times: list[float] = []
        for _ in range(WARM_UPS):
            began = perf_counter()
            async for _ in self.stream("Once", {"max_tokens": 2}):
                pass
            times.append(perf_counter() - began)
        self._description = replace(self._description, latency_us=round(sorted(times)[WARM_UPS // 2] * 1e6))

    def _try_reading(self) -> int:
        from llama_cpp import llama_supports_gpu_offload

        tokens = self._llama.tokenize(b"Once " * TRIED)[: min(TRIED, self._context)]
        began = perf_counter()
        self._llama.reset()
        self._llama.eval(tokens)
        most = GPU_READ if llama_supports_gpu_offload() else CPU_READ
        return read_in_a_step((perf_counter() - began) / len(tokens), most)

    def describe(self) -> Description:
        return self._description

    async def invoke(self, value: Value, params: Mapping[str, Value]) -> Value:
        raise LocalError(Code.UNKNOWN_METHOD, f"{self.source.spec} streams its answer")

    async def stream(self, value: Value, params: Mapping[str, Value]) -> AsyncGenerator[Value, None]:
        """See `generation.requests` for what it takes; gives pieces of text, or OpenAI's chunks."""
        request = read_request(value, params, Sampling())
        steps = await self.offload(partial(self._begin, request))
        try:
            while (items := await self.offload(partial(next, steps, _END))) is not _END:
                assert isinstance(items, list)
                for item in items:
                    yield item
        finally:
            await self.offload(steps.close)  # type: ignore[attr-defined] # a generator, see _begin

    async def close(self) -> None:
        if hasattr(self, "_llama"):
            await self.offload(self._llama.close)

    # --- in the model's thread ---

    def _begin(self, request: Request) -> Iterator[list[Value]]:
        if request.logprobs is not None:
            raise LocalError(Code.BAD_INPUT, "logprobs are not told by models of this kind")
        prompt = self._tokens(request)
        room = self._context - len(prompt)
        asked = request.max_tokens if request.form is not Form.TEXT else None
        if not prompt:
            raise LocalError(Code.BAD_INPUT, "the prompt is empty", hint="send at least one character")
        if room < (asked or 1):
            raise overflow(self._context, len(prompt), request.max_tokens)
        return self._steps(request, prompt, min(room, request.max_tokens or room))

    def _tokens(self, request: Request) -> list[int]:
        if isinstance(request.prompt, tuple):
            size = int(self._llama.n_vocab())
            if max(request.prompt) >= size:
                words = f"the prompt has a token {max(request.prompt)}, and the model knows {size}"
                raise LocalError(Code.BAD_INPUT, words)
            return list(request.prompt)
        chat = request.form is Form.CHAT
        text = self._chat(request) if chat else request.prompt
        if len(text) > self._context * CHARS_PER_TOKEN:
            raise overflow(self._context, len(text) // CHARS_PER_TOKEN, request.max_tokens)
        templated = chat and self._template is not None  # then special tokens stand in it, the first one too
        tokens: list[int] = self._llama.tokenize(text.encode(), add_bos=not templated, special=templated)
        return tokens

    def _chat(self, request: Request) -> str:
        if self._template is None:
            if request.tools:
                raise LocalError(Code.BAD_INPUT, "this model has no chat template to show it tools with")
            return plain_prompt(request.messages)
        from jinja2.exceptions import TemplateError

        try:
            return self._template(
                messages=[dict(message) for message in request.messages],
                **({"tools": [dict(tool) for tool in request.tools]} if request.tools else {}),
                **request.template,
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            words = f"the model's chat template does not take these messages: {last_line(error)}"
            raise LocalError(Code.BAD_INPUT, words) from error

    def _steps(self, request: Request, prompt: list[int], limit: int) -> Iterator[list[Value]]:
        """The items of each token; none for each part of the prompt, after which the caller may have left."""
        sampling, chunks = request.sampling, Chunks(request)
        extra = PLAIN_STOPS if request.form is Form.CHAT and self._template is None else ()
        stops, text, count, reason = Stops((*request.stop, *extra)), Detokeniser(self._decode, prompt), 0, ""
        seed = randbits(32) if sampling.seed is None else sampling.seed  # else the last call's would stay
        self._llama.set_seed(seed % ANY_SEED)
        self._llama.reset()  # nothing of the caller before stays
        *read, last = prompt
        for at in range(0, len(read), self._part):
            self._llama.eval(read[at : at + self._part])
            yield []
        for token in self._llama.generate(
            [last],
            reset=False,
            temp=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k or 0,
            min_p=0.0,
            repeat_penalty=1.0,
            frequency_penalty=sampling.frequency_penalty,
            presence_penalty=sampling.presence_penalty,
            logits_processor=self._biased(sampling),
        ):
            count += 1
            if self._is_end(token):
                reason = "stop"
                break
            items = chunks.piece(stops.feed(text.feed(int(token))))
            if items:
                yield items
            if stops.found or count >= limit:
                reason = "stop" if stops.found else "length"
                break
        rest = stops.feed(text.end())
        reason = "stop" if stops.found else reason
        yield [*chunks.piece(rest + stops.end()), *chunks.end(reason or "stop", len(prompt), count)]

    def _biased(self, sampling: Sampling) -> Any:  # Any: of llama_cpp
        if not sampling.logit_bias:
            return None
        from llama_cpp import LogitsProcessorList

        def processor(tokens: Any, scores: Any) -> Any:
            for token, bias in sampling.logit_bias.items():
                if token < len(scores):
                    scores[token] += bias
            return scores

        return LogitsProcessorList([processor])

    def _is_end(self, token: int) -> bool:
        """Whether an answer ends with it: a file may name several such tokens."""
        from llama_cpp import llama_vocab_is_eog

        return bool(llama_vocab_is_eog(self._vocab, token))

    def _decode(self, tokens: list[int]) -> str:
        return b"".join(self._piece(token) for token in tokens).decode(errors="replace")

    def _piece(self, token: int, *, special: bool = False) -> bytes:
        """A token's bytes, of any length: the library's own `detokenize` has room for 32 of each."""
        from llama_cpp import llama_token_to_piece

        size = PIECE_BYTES
        while True:
            room = create_string_buffer(size)
            found = int(llama_token_to_piece(self._vocab, token, room, size, 0, special))
            if found >= 0:
                return room.raw[:found]
            size = -found


def read_in_a_step(seconds: float, most: int) -> int:
    """How many tokens of a prompt, each of which takes that long. It stays so while the model is loaded, for
    their number changes the last bits of what comes."""
    found = int(STEP_SECONDS / max(seconds, 1e-9))
    return 1 << (min(max(found, LEAST_READ), most).bit_length() - 1)


def threads() -> int:
    """How many it computes with: OMP_NUM_THREADS, else half of the cores that this process may use.

    They wait for each other by spinning, a hundred times for each token: on cores that others use as well,
    more of them take several times as long.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and 0 < int(wanted) <= MAX_THREADS:
        return int(wanted)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // 2)
