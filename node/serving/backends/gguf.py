"""FILE.gguf: a quantised language model, run by llama.cpp through llama-cpp-python.

It takes what models of the transformers library take (see generation/requests), and gives the same chunks.
One call runs at a time: the library has one context for a model. The file's metadata becomes the record.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from secrets import randbits
from typing import Any

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.names import check_tag
from modelnet_p2p.node.serving.backends.contract import Backend, Description
from modelnet_p2p.node.serving.backends.files import lacking, the_file
from modelnet_p2p.node.serving.backends.generation.chunks import Chunks
from modelnet_p2p.node.serving.backends.generation.requests import (
    PLAIN_STOPS,
    Form,
    Request,
    Sampling,
    overflow,
    plain_prompt,
    read_request,
)
from modelnet_p2p.node.serving.backends.generation.text import Detokeniser, Stops
from modelnet_p2p.node.serving.backends.gguf_file import BadGguf, GgufFile, read_gguf
from modelnet_p2p.node.serving.backends.pretrained.card import licence_of
from modelnet_p2p.node.serving.guarding import last_line
from modelnet_p2p.node.weights.hashing import artifact_of
from modelnet_p2p.payload import Value
from modelnet_p2p.records import Spec
from modelnet_p2p.records.kinds import MAX_LANGUAGES, MAX_TAGS

SUFFIX = ".gguf"
TASK = "text-generation"
CONTEXT = 8192  # tokens at most: keys and values of so many fit beside the weights of most models
ENCODERS = frozenset({"bert", "nomic-bert", "jina-bert-v2", "clip", "whisper", "t5encoder"})
_LANGUAGE = re.compile(r"[a-z]{2,3}", re.ASCII)
_END = object()


class GgufBackend(Backend):
    """Runs in a worker process, on the CPU or on what llama-cpp-python was compiled for."""

    blocks = True
    _llama: Any  # of llama_cpp, which has no types here
    _template: Callable[..., str] | None
    _context: int
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
        architecture = header.text("general.architecture")
        if architecture in ENCODERS:
            words = f"{path} holds a model of the kind {architecture}, which does not generate text"
            raise LocalError(Code.BAD_INPUT, words)
        if find_spec("llama_cpp") is None:
            hint = " (it is compiled while it is installed)"
            raise lacking(self.source, "llama-cpp-python", "gguf", hint=hint)
        await self.offload(lambda: self._load(path, header))

    def _load(self, path: Path, header: GgufFile) -> None:
        import llama_cpp

        self._context = min(header.context_length or CONTEXT, CONTEXT)
        try:
            # its own logits processor and sampler are used; a GPU takes all layers if it was compiled for one
            self._llama = llama_cpp.Llama(
                str(path), n_ctx=self._context, n_gpu_layers=-1, verbose=False, logits_all=False
            )
        except (ValueError, RuntimeError, AssertionError, OSError) as error:
            raise LocalError(
                Code.BAD_INPUT,
                f"llama.cpp cannot load {path}: {last_line(error)}",
                hint="a newer one may know its architecture: pip install --upgrade llama-cpp-python",
            ) from error
        self._context = int(self._llama.n_ctx())
        self._template = self._find_template(header)
        found = artifact_of(path)
        self._description = replace_words(
            Description(
                name=path.stem.lower().strip("._-") or "model",
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

        def piece(token: int) -> str:
            data: bytes = self._llama.detokenize([token], special=True) if token >= 0 else b""
            return data.decode(errors="replace")

        formatter = Jinja2ChatFormatter(
            template=text, eos_token=piece(self._llama.token_eos()), bos_token=piece(self._llama.token_bos())
        )
        return lambda **fields: str(formatter(**fields).prompt)

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
        text, special = request.prompt, False
        if request.form is Form.CHAT:
            text, special = self._chat(request), True
        begins = not (special and self._template)  # a template writes the first token itself
        tokens: list[int] = self._llama.tokenize(text.encode(), add_bos=begins, special=special)
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
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            words = f"the model's chat template does not take these messages: {last_line(error)}"
            raise LocalError(Code.BAD_INPUT, words) from error

    def _steps(self, request: Request, prompt: list[int], limit: int) -> Iterator[list[Value]]:
        """The items of each token."""
        sampling, chunks = request.sampling, Chunks(request)
        extra = PLAIN_STOPS if request.form is Form.CHAT and self._template is None else ()
        stops, text, count, reason = Stops((*request.stop, *extra)), Detokeniser(self._decode, prompt), 0, ""
        seed = randbits(32) if sampling.seed is None else sampling.seed  # else the last call's would stay
        self._llama.set_seed(seed & 0xFFFFFFFF)
        self._llama.reset()  # nothing of the caller before stays
        for token in self._llama.generate(
            prompt,
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
        import llama_cpp

        return bool(llama_cpp.llama_vocab_is_eog(self._llama._model.vocab, token))

    def _decode(self, tokens: list[int]) -> str:
        data: bytes = self._llama.detokenize(tokens)
        return data.decode(errors="replace")


def replace_words(description: Description, header: GgufFile) -> Description:
    """`description` with what the file says in words: name, licence, languages, tags, the model it is of."""
    licence = licence_of(header.text("general.license"))
    family = header.text("general.base_model.0.name") or header.text("general.basename")
    languages = [text for text in header.texts("general.languages") if _LANGUAGE.fullmatch(text)]
    return replace(
        description,
        licence=licence,
        family=family if len(family.encode()) <= 80 and family.isprintable() else "",
        languages=tuple(dict.fromkeys(languages))[:MAX_LANGUAGES],
        tags=tuple(tag for tag in dict.fromkeys(header.texts("general.tags")) if _is_tag(tag))[:MAX_TAGS],
    )


def _is_tag(text: str) -> bool:
    try:
        return check_tag(text) == text
    except LocalError:
        return False
