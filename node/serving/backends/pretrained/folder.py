"""A model's directory as the transformers library saves it, looked through before any of it is loaded.

What would run code when it is loaded is refused here, by name and by content, and not left to the library's
own switches alone: weights that are pickles, code in the directory, adapters, quantisers that fetch kernels.
This module needs neither torch nor transformers.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from math import prod
from pathlib import Path

from modelnet_p2p.digest import BadArtifact, header_bytes, tensor_places
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.disk.files import reason
from modelnet_p2p.node.serving.backends.pretrained.card import Card, read_card
from modelnet_p2p.node.serving.policy.safety import UNSAFE_SUFFIXES
from modelnet_p2p.node.weights.hashing import artifact_of

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MODULES = "modules.json"  # of sentence-transformers
ADAPTER = "adapter_config.json"
MAX_JSON_BYTES = 64 << 20  # an index names each tensor; a tokenizer's vocabulary is larger, and not read here
MAX_SHARDS = 1024
CONVERT = (
    "python -c 'from transformers import AutoModel as M; "
    'M.from_pretrained("{folder}", weights_only=True).save_pretrained("{folder}")\''
    " writes safetensors: only where you trust who made the weights"
)
_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors")
_SUFFIX = re.compile(r"\.[A-Za-z]\w*\Z", re.ASCII)  # of a file; `llama-3.2` has none
_PRECISIONS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64", "I8": "int8"}


class Kind(Enum):
    """What a model does, and so how it is called."""

    GENERATES = auto()
    CLASSIFIES = auto()
    EMBEDS = auto()


TASKS = {
    Kind.GENERATES: "text-generation",
    Kind.CLASSIFIES: "text-classification",
    Kind.EMBEDS: "feature-extraction",
}


@dataclass(frozen=True)
class Folder:
    """A directory that holds what can be loaded; `config` is its config.json."""

    path: Path
    config: Mapping[str, object]
    shards: tuple[Path, ...]

    @property
    def kind(self) -> Kind:
        """Raises LocalError (bad-input) for an architecture that is none of them."""
        names = self.config.get("architectures") or []
        name = str(names[0]) if isinstance(names, list) and names else ""
        if name.endswith("ForCausalLM") or name.endswith("LMHeadModel"):
            return Kind.GENERATES
        if name.endswith("ForSequenceClassification"):
            return Kind.CLASSIFIES
        if (self.path / MODULES).is_file() or (name.endswith("Model") and not self._has_decoder):
            return Kind.EMBEDS
        raise LocalError(
            Code.BAD_INPUT,
            f"{self.path}: nothing here serves the architecture {name[:80] or 'that it does not name'!r}",
            hint="served are *ForCausalLM, *ForSequenceClassification, and encoders (*Model); "
            "serve others by a function of your own: publish MODULE:NAME",
        )

    @property
    def _has_decoder(self) -> bool:
        return bool(self.config.get("is_encoder_decoder") or self.config.get("is_decoder"))

    @property
    def name(self) -> str:
        """The model's name where its publisher gives none: the card's, else the directory's."""
        return _as_name(self.card.name) or _as_name(self.path.name) or "model"

    @property
    def context_length(self) -> int | None:
        """Tokens, as the configuration says it; None where it does not."""
        for key in ("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx", "seq_length"):
            found = self.config.get(key)
            if type(found) is int and 0 < found < 1 << 31:
                return found
        return None

    @cached_property
    def card(self) -> Card:
        """Needs the package yaml, which the transformers library brings."""
        return read_card(self.path)

    @cached_property
    def weights(self) -> Weights:
        """Read once from beginning to end; raises LocalError (bad-input) for a file that is not sound."""
        found = artifact_of(self.path)
        names = {path.name for path in self.shards}
        counts: Counter[str] = Counter()
        size = 0
        for file in found.artifact.files:
            if file.path in names:
                size += file.size
                for tensor in file.tensors:
                    counts[tensor.dtype] += prod(tensor.shape)
        dtype = counts.most_common(1)[0][0] if counts else ""
        precision = _PRECISIONS.get(dtype, dtype.lower().replace("_", "-"))
        return Weights(found.root, counts.total(), precision, size)


@dataclass(frozen=True, slots=True)
class Weights:
    """What the files of a model say together."""

    digest: bytes  # 32 bytes; of the whole directory, so that its tokenizer is part of it
    parameters: int
    precision: str  # of most parameters
    size_bytes: int


def looks_like_folder(spec: str) -> bool:
    """Whether `spec` is a directory with a config.json, or is written as the path of some directory."""
    path = Path(spec).expanduser()
    if (path / CONFIG).is_file():
        return True
    is_path = spec.startswith(("./", "../", "/", "~/")) or spec.endswith("/")
    return is_path and not path.is_file() and not _SUFFIX.search(spec)


def open_folder(path: Path) -> Folder:
    """Look through `path`; raises LocalError: bad-input for what is missing or damaged, unsafe for what runs
    code."""
    if not path.is_dir():
        hint = "name a directory below the one you are in, or its whole path"
        raise LocalError(Code.BAD_INPUT, f"there is no directory {path}", hint=hint)
    if not (path / CONFIG).is_file():
        raise LocalError(
            Code.BAD_INPUT,
            f"{path} holds no {CONFIG}, so it is no model of the transformers library",
            hint="save one with model.save_pretrained and tokenizer.save_pretrained into the same directory",
        )
    config = read_json(path / CONFIG)
    _refuse_adapters(path)
    _refuse_code(path, config)
    shards = tuple(_shards(path))
    for shard in shards:
        check_sound(shard)
    return Folder(path, config, shards)


def _refuse_adapters(path: Path) -> None:
    if (path / ADAPTER).exists():
        raise LocalError(
            Code.BAD_INPUT,
            f"{path} holds an adapter beside or instead of a model",
            hint="merge it first: model.merge_and_unload().save_pretrained(DIRECTORY)",
        )


def _refuse_code(path: Path, config: Mapping[str, object]) -> None:
    """Code that the directory brings, or names, is never run: where the library has no class of its own
    for the model, it cannot be loaded."""
    pickles = [entry.name for entry in path.iterdir() if entry.suffix.lower() in (".pkl", ".pickle")]
    if pickles:
        raise LocalError(
            Code.UNSAFE,
            f"{path} holds {min(pickles)}, a pickle, which runs code when it is loaded",
            hint="a model of the transformers library needs none: move it away",
        )
    if config.get("transformers_weights") is not None:
        raise LocalError(
            Code.UNSAFE, f"{path / CONFIG} names weights of its own choice (transformers_weights)"
        )
    if config.get("quantization_config") is not None:
        raise LocalError(
            Code.BAD_INPUT,
            f"{path} holds quantised weights, whose quantisers load code of their own",
            hint="publish the model as it was before, or as GGUF",
        )


def _shards(path: Path) -> Iterator[Path]:
    """The safetensors files that hold the weights."""
    if (path / WEIGHTS).is_file():
        yield path / WEIGHTS
        return
    if not (path / INDEX).is_file():
        raise _no_weights(path)
    places = read_json(path / INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise LocalError(Code.BAD_INPUT, f"{path / INDEX} names no weights")
    names = sorted({str(name) for name in places.values()})
    for name in names:
        if not _SHARD.fullmatch(name) or len(names) > MAX_SHARDS:
            raise LocalError(
                Code.UNSAFE, f"{path / INDEX} names {name[:80]!r}, which is no safetensors file beside it"
            )
        if not (path / name).is_file():
            raise LocalError(Code.BAD_INPUT, f"there is no file {path / name}, which {INDEX} names")
        yield path / name


def check_sound(path: Path) -> None:
    """Whether a safetensors file has a header and the bytes that it tells of, which one whose download broke
    off has not; raises LocalError (bad-input)."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
            tensor_places(start + file.read(header_bytes(start, size) - 8), size)
    except OSError as error:
        raise LocalError(Code.BAD_INPUT, f"cannot read {path}: {reason(error)}") from error
    except BadArtifact as error:
        words = f"{path} is cut off or damaged: {error}"
        raise LocalError(Code.BAD_INPUT, words, hint="download it again") from error


def _no_weights(path: Path) -> LocalError:
    unsafe = sorted(entry.name for entry in path.iterdir() if entry.name.lower().endswith(UNSAFE_SUFFIXES))
    weights = [name for name in unsafe if name != "training_args.bin"]
    if weights:
        return LocalError(
            Code.UNSAFE,
            f"{path} holds its weights in {weights[0]} alone, "
            "which may be a pickle and run code when it is loaded",
            hint=CONVERT.format(folder=path),
        )
    return LocalError(
        Code.BAD_INPUT,
        f"{path} holds no {WEIGHTS}",
        hint="save it with model.save_pretrained, which writes safetensors",
    )


def read_json(path: Path) -> Mapping[str, object]:
    """A JSON object; raises LocalError (bad-input) that names the file."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
        if len(data) > MAX_JSON_BYTES:
            raise ValueError(f"it has more than {MAX_JSON_BYTES} bytes")
        fields = json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise LocalError(Code.BAD_INPUT, f"cannot read {path}: {error}") from error
    if not isinstance(fields, dict):
        raise LocalError(Code.BAD_INPUT, f"{path} is not a JSON object")
    return fields


def _as_name(text: str) -> str:
    """`text` as a model's name may be written, empty if nothing of it may."""
    found = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("._-")
    return found[:80].strip("._-")
