"""What the header of a GGUF file says to people, and why a file is not served.

The first becomes the record: licence, languages, tags, the model that it was made of. The second is known
before llama.cpp sees the file.
"""

from __future__ import annotations

import re
from dataclasses import replace

from modelnet_p2p.errors import LocalError
from modelnet_p2p.names import check_tag
from modelnet_p2p.node.serving.backends.gguf_file import GgufFile
from modelnet_p2p.node.serving.backends.pretrained.card import licence_of
from modelnet_p2p.node.serving.description import Description
from modelnet_p2p.records.kinds import MAX_LANGUAGES, MAX_TAGS

ENCODERS = frozenset(
    {"bert", "nomic-bert", "nomic-bert-moe", "jina-bert-v2", "jina-bert-v3", "neo-bert", "modern-bert"}
    | {"clip", "whisper", "t5", "t5encoder"}  # t5 has an encoder beside, which nothing here runs
)
_LANGUAGE = re.compile(r"[a-z]{2,3}", re.ASCII)


def trouble_with(header: GgufFile) -> tuple[str, str] | None:
    """Why such a file is not served, and what to do about it."""
    kind = header.text("general.architecture")
    looks_both_ways = header.fields.get(f"{kind}.attention.causal") is False
    if kind in ENCODERS or looks_both_ways or header.fields.get(f"{kind}.pooling_type"):
        return f"holds a model of the kind {kind}, which does not generate text", ""
    parts = header.fields.get("split.count")
    if isinstance(parts, int) and parts > 1:
        hint = "put them together: llama-gguf-split --merge FIRST.gguf WHOLE.gguf"
        return f"is one of {parts} parts of a model", hint
    return None


def replace_words(description: Description, header: GgufFile) -> Description:
    """`description` with what the file says in words: licence, languages, tags, the model it is of."""
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
