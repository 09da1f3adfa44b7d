"""DIRECTORY: a model of Hugging Face's transformers library, as `save_pretrained` writes it.

What it does follows from its architecture: generate text, classify texts, or turn them into vectors. Its
model card becomes the record. torch and transformers are imported when a model is loaded, in the worker.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import psutil

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.contract import Backend, Description
from modelnet_p2p.node.serving.backends.generation.requests import Sampling, read_request
from modelnet_p2p.node.serving.backends.minilm import TOKENIZED, batches
from modelnet_p2p.node.serving.backends.pretrained.folder import (
    TASKS,
    Folder,
    Kind,
    looks_like_folder,
    open_folder,
    read_json,
)
from modelnet_p2p.node.serving.backends.pretrained.loading import (
    check_installed,
    load_generation_config,
    load_model,
    load_tokenizer,
)
from modelnet_p2p.node.serving.backends.rows import Rows
from modelnet_p2p.node.serving.source import SLOTS, check_no_slots, slots_of
from modelnet_p2p.payload import Value
from modelnet_p2p.records import Spec

if TYPE_CHECKING:
    from modelnet_p2p.node.serving.backends.pretrained.encoder import Classifier, Encoder, Text
    from modelnet_p2p.node.serving.backends.pretrained.generator import Generator

DEFAULT_SLOTS = 8  # that generate at once: on two cores a step of 8 rows takes about as long as two of one
MAX_SLOTS = 32
CACHE_SHARE = 4  # keys and values may take a quarter of the memory that is free when the model is loaded
MAX_TEXTS = 4096  # in one call
MAX_TEXT_CHARS = 1 << 20  # of one text: the tokenizer reads all of it
SHARED_TEXTS = 64  # of several callers in one step
WARM_UPS = 3  # calls; the first pass of a model is not like the others
UNBOUNDED = 1 << 17  # tokens, where a model names no bound of its own


class TransformersBackend(Backend):
    """Runs in a worker process, on the first GPU if torch sees one, else on the CPU."""

    options: ClassVar[frozenset[str]] = frozenset({SLOTS})
    _folder: Folder
    _generator: Generator
    _encoder: Encoder
    _classifier: Classifier
    _default: Sampling
    _description: Description

    @classmethod
    def claims(cls, spec: str) -> bool:
        return looks_like_folder(spec)

    async def load(self) -> None:
        path = Path(self.source.cwd or ".", Path(self.source.spec).expanduser())
        self._folder = await self.offload(lambda: open_folder(path))
        kind = self._folder.kind
        if kind is not Kind.GENERATES:
            check_no_slots(self.source, "texts of several callers share its steps")
        check_installed(self.source)
        match kind:
            case Kind.GENERATES:
                await self.offload(self._load_generator)
                self._generator.open()
                await self._warm_up("Once", {"max_tokens": 2, "temperature": 0})
            case Kind.EMBEDS:
                await self.offload(self._load_encoder)
                await self._warm_up("Once", {})
            case Kind.CLASSIFIES:
                await self.offload(self._load_classifier)
                await self._warm_up("Once", {})

    async def close(self) -> None:
        if hasattr(self, "_generator"):
            await self._generator.close()

    # --- loading ---

    def _load_generator(self) -> None:
        from modelnet_p2p.node.serving.backends.pretrained.engine import Engine
        from modelnet_p2p.node.serving.backends.pretrained.generator import (
            Generator,
            Tokenizer,
            end_tokens,
            maker_sampling,
        )

        folder, slots = self._folder, slots_of(self.source, DEFAULT_SLOTS, MAX_SLOTS)
        model, tokenizer, config = load_model(folder), load_tokenizer(folder), load_generation_config(folder)
        engine = Engine(model, slots, psutil.virtual_memory().available // CACHE_SHARE)
        context = min(folder.context_length or UNBOUNDED, engine.most_tokens)
        self._default = maker_sampling(config)
        reader = Tokenizer(tokenizer, end_tokens(config, tokenizer), int(model.config.vocab_size))
        self._generator = Generator(engine, reader, context, self.offload)
        self._describe(
            context,
            Spec("messages", "json"),
            Spec("text", "text"),
            streams=True,
            slots=slots,
            deterministic=True,  # of a greedy call, or one with a seed
        )

    def _load_encoder(self) -> None:
        from modelnet_p2p.node.serving.backends.pretrained.encoder import Encoder

        folder = self._folder
        model, tokenizer = load_model(folder), load_tokenizer(folder)
        context = _most_read(folder, tokenizer)
        self._encoder = Encoder(model, tokenizer, folder, context)
        vectors = Spec("vectors", "tensor", "float32", (None, self._encoder.width))
        self._describe(context, Spec("text", "text"), vectors, batches=SHARED_TEXTS)

    def _load_classifier(self) -> None:
        from modelnet_p2p.node.serving.backends.pretrained.encoder import Classifier

        folder = self._folder
        model, tokenizer = load_model(folder), load_tokenizer(folder)
        context = _most_read(folder, tokenizer)
        self._classifier = Classifier(model, tokenizer, context)
        self._describe(context, Spec("text", "text"), Spec("labels", "json"), batches=SHARED_TEXTS)

    def _describe(self, context: int, takes: Spec, gives: Spec, **more: Any) -> None:
        # Any: fields of Description, whose types it checks
        folder = self._folder
        weights, card = folder.weights, folder.card
        self._description = Description(
            name=folder.name,
            task=card.task if card.task and folder.kind is not Kind.GENERATES else TASKS[folder.kind],
            framework="transformers",
            precision=weights.precision,
            inputs=(takes,),
            outputs=(gives,),
            parameters=weights.parameters,
            context_length=context,
            languages=card.languages,
            tags=card.tags,
            digest=weights.digest,
            licence=card.licence,
            family=card.base_model,
            idempotent=True,
            size_bytes=weights.size_bytes,
            files=str(folder.path.resolve()),
            notes=card.notes,
            **more,
        )

    async def _warm_up(self, value: Value, params: Mapping[str, Value]) -> None:
        times: list[float] = []
        for _ in range(WARM_UPS):
            began = perf_counter()
            if self._description.streams:
                async for _ in self.stream(value, params):
                    pass
            else:
                await self.invoke(value, params)
            times.append(perf_counter() - began)
        self._description = replace(self._description, latency_us=round(sorted(times)[WARM_UPS // 2] * 1e6))

    def describe(self) -> Description:
        return self._description

    @property
    def blocks(self) -> bool:
        return self._folder.kind is not Kind.GENERATES

    # --- calls ---

    def stream(self, value: Value, params: Mapping[str, Value]) -> AsyncGenerator[Value, None]:
        """See `generation.requests` for what it takes; gives pieces of text, or OpenAI's chunks."""
        if self._folder.kind is not Kind.GENERATES:
            return super().stream(value, params)
        return self._generator.stream(read_request(value, params, self._default))

    async def invoke(self, value: Value, params: Mapping[str, Value]) -> Value:
        """Of an encoder float32 [texts, width], of a classifier a list of labels with scores for each."""
        match value:
            case {"input": wanted, **others} if self._folder.kind is Kind.EMBEDS:
                self._check_dimensions(others.get("dimensions"))
                texts, _ = _texts(wanted)
                vectors, count = await self._embed(texts)
                return {"embeddings": vectors, "usage": {"prompt_tokens": count, "total_tokens": count}}
        texts, is_one = _texts(value)
        if self._folder.kind is Kind.EMBEDS:
            _no_params(params)
            return (await self._embed(texts))[0]
        labels = await self._classify(texts, params)
        return labels[0] if is_one else labels

    def rows(self, value: Value, params: Mapping[str, Value]) -> Rows | None:
        match value:
            case str() if value and not params:
                return Rows("texts", 1)
            case [_, *_] if not params:
                return Rows("texts", len(value))
        return None

    async def invoke_many(
        self, calls: Sequence[tuple[Value, Mapping[str, Value]]]
    ) -> list[Value | LocalError]:
        asked = [_texts(value) for value, _ in calls]
        every = [text for texts, _ in asked for text in texts]
        answers: list[Value | LocalError] = []
        at = 0
        if self._folder.kind is Kind.EMBEDS:
            vectors, _ = await self._embed(every)
            for texts, _ in asked:
                answers.append(vectors[at : at + len(texts)].copy())
                at += len(texts)
            return answers
        labels = await self._classify(every, {})
        for texts, is_one in asked:
            answers.append(labels[at] if is_one else labels[at : at + len(texts)])
            at += len(texts)
        return answers

    def _check_dimensions(self, wanted: Value) -> None:
        if wanted not in (None, self._encoder.width):
            words = f"dimensions={str(wanted)[:20]}: the vectors of this model have {self._encoder.width}"
            raise LocalError(Code.BAD_INPUT, words)

    async def _embed(self, texts: Sequence[Text]) -> tuple[Any, int]:
        # Any: an array; the number is of tokens
        encoder = self._encoder
        encoded = [one for part in _parts(texts) for one in await self.offload(partial(encoder.tokens, part))]
        vectors = np.empty((len(texts), encoder.width), np.float32)
        for rows in batches([len(one) for one in encoded]):
            vectors[rows] = await self.offload(partial(encoder.encode, [encoded[row] for row in rows]))
        return vectors, sum(len(one) for one in encoded)

    async def _classify(self, texts: Sequence[Text], params: Mapping[str, Value]) -> list[Value]:
        _no_params(params, {"top_k"})
        top = params.get("top_k")
        if top is not None and (type(top) is not int or top < 1):
            raise LocalError(Code.BAD_INPUT, f"top_k is {str(top)[:20]}, not a whole number from 1")
        reader = self._classifier
        encoded = [one for part in _parts(texts) for one in await self.offload(partial(reader.tokens, part))]
        labels: list[Value] = [None] * len(texts)
        for rows in batches([len(one) for one in encoded]):
            found = await self.offload(partial(reader.classify, [encoded[row] for row in rows]))
            for row, answer in zip(rows, found, strict=True):
                labels[row] = answer[:top] if isinstance(top, int) else answer
        return labels


def _parts(texts: Sequence[Text]) -> list[Sequence[Text]]:
    return [texts[at : at + TOKENIZED] for at in range(0, len(texts), TOKENIZED)]


def _most_read(folder: Folder, tokenizer: Any) -> int:
    """Tokens of a text that count, by the strictest of the files that say it."""
    path = folder.path / "sentence_bert_config.json"
    from modelnet_p2p.node.serving.backends.pretrained.encoder import MAX_TOKENS

    said: list[object] = [folder.context_length, getattr(tokenizer, "model_max_length", None)]
    if path.is_file():
        said.append(read_json(path).get("max_seq_length"))
    return min([MAX_TOKENS, *(n for n in said if isinstance(n, int) and n > 0)])


def _texts(value: Value) -> tuple[list[Text], bool]:
    """The texts in a call's input, and whether it is one alone; raises LocalError."""
    is_one = not isinstance(value, list)
    entries: list[Value] = value if isinstance(value, list) else [value]
    if not 0 < len(entries) <= MAX_TEXTS:
        raise LocalError(Code.BAD_INPUT, f"expected a text or 1 to {MAX_TEXTS} of them, got {len(entries)}")
    texts: list[Text] = []
    for place, entry in enumerate(entries):
        where = "" if is_one else f" at place {place}"
        match entry:
            case str():
                text: Text = entry
            case {"text": str(first), "text_pair": str(second)}:
                text = (first, second)
            case _:
                words = (
                    f"expected a text, or a map with text and text_pair, got {type(entry).__name__}{where}"
                )
                raise LocalError(Code.BAD_INPUT, words)
        size = len(text) if isinstance(text, str) else len(text[0]) + len(text[1])
        if not size:
            raise LocalError(Code.BAD_INPUT, f"expected a text, got an empty one{where}")
        if size > MAX_TEXT_CHARS:
            words = f"a text of {size} characters{where}, {MAX_TEXT_CHARS} at most are read"
            raise LocalError(Code.TOO_LARGE, words)
        texts.append(text)
    return texts, is_one


def _no_params(params: Mapping[str, Value], known: frozenset[str] | set[str] = frozenset()) -> None:
    unknown = sorted(params.keys() - known)
    if unknown:
        hint = f"it takes {', '.join(sorted(known))}" if known else ""
        raise LocalError(Code.BAD_INPUT, f"this model takes no parameter {unknown[0][:40]!r}", hint=hint)
