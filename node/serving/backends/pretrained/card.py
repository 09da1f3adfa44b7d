"""A model card: what the front matter of README.md says about a model, as far as a record can carry it.

It is YAML that a publisher wrote by hand or found on a hub: what is not of the expected form is left out, for
a model with a sloppy card is served all the same. Fields: https://huggingface.co/docs/hub/model-cards
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from modelnet_p2p.errors import LocalError
from modelnet_p2p.names import check_tag, check_task
from modelnet_p2p.node.serving.description import as_note
from modelnet_p2p.node.serving.terms import is_language
from modelnet_p2p.records.kinds import MAX_LANGUAGES, MAX_TAGS

log = logging.getLogger(__name__)

MAX_CARD_BYTES = 1 << 18  # README.md; its front matter stands at the beginning
MAX_MATTER_BYTES = 1 << 16
# Tags that say again what other fields say. Each tag is a key of the network, with walks of its own.
_KNOWN = frozenset({"transformers", "pytorch", "safetensors", "torch", "tf", "jax", "onnx", "gguf"})
_LICENCE = re.compile(r"[A-Za-z0-9.+-]{1,64}")
_SPDX = {  # the hub's words for licences that SPDX writes otherwise, those that are met often
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
    "bsd": "BSD-3-Clause",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "gpl-3.0": "GPL-3.0-only",
    "lgpl-3.0": "LGPL-3.0-only",
    "agpl-3.0": "AGPL-3.0-only",
    "mpl-2.0": "MPL-2.0",
    "cc0-1.0": "CC0-1.0",
    "cc-by-4.0": "CC-BY-4.0",
    "cc-by-sa-4.0": "CC-BY-SA-4.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
    "cc-by-nc-sa-4.0": "CC-BY-NC-SA-4.0",
    "unlicense": "Unlicense",
}


@dataclass(frozen=True, slots=True)
class Card:
    """What a card says; empty where it says nothing."""

    name: str = ""  # as its maker wrote it
    task: str = ""
    licence: str = ""  # an SPDX expression where the hub's word is known, else the hub's word
    languages: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    base_model: str = ""
    notes: tuple[str, ...] = ()  # what its publisher should know of it


def read_card(folder: Path) -> Card:
    """The card in `folder`, an empty one where there is none or none that can be read."""
    path = folder / "README.md"
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CARD_BYTES).decode(errors="replace")
    except OSError:
        return Card()
    return parse_card(text)


def parse_card(text: str) -> Card:
    """The card in a README's text."""
    match = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", text, re.DOTALL)
    if match is None or len(match[1]) > MAX_MATTER_BYTES:
        return Card()
    import yaml

    try:
        fields = yaml.safe_load(match[1])
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        why = str(error).splitlines()[0]
        return Card(
            notes=_noted(f"the front matter of README.md is not sound YAML, nothing of it is told: {why}")
        )
    if not isinstance(fields, dict):
        return Card()
    named = fields.get("license_name") or fields.get("license")
    licence = licence_of(_text(named))
    lost = "" if licence or not named else f"the licence in README.md is not one name, none is told: {named}"
    return Card(
        name=_text(fields.get("model_name")),
        task=_task(_text(fields.get("pipeline_tag"))),
        licence=licence,
        languages=tuple(_languages(fields.get("language"))),
        tags=tuple(tag for tag in _tags(fields.get("tags")) if tag != fields.get("pipeline_tag"))[:MAX_TAGS],
        base_model=_printable(_text(fields.get("base_model")), 80),
        notes=_noted(lost),
    )


def _noted(line: str) -> tuple[str, ...]:
    """`line` for the publisher and in the log, if there is one."""
    if not line:
        return ()
    log.warning("%s", line)
    return (as_note(line),)


def licence_of(word: str) -> str:
    """A licence as an SPDX expression where the hub's word is known, else that word; empty if it is none."""
    return _SPDX.get(word.lower(), word if _LICENCE.fullmatch(word) else "")


def _text(value: object) -> str:
    """A text, or the only one of a list."""
    match value:
        case str() | [str()]:
            return (value if isinstance(value, str) else value[0]).strip()
    return ""


def _printable(text: str, most: int) -> str:
    """`text` if a record can carry it, else nothing."""
    return text if text.isprintable() and len(text.encode()) <= most else ""


def _task(text: str) -> str:
    try:
        return text and check_task(text)
    except LocalError:
        return ""


def _several(value: object) -> Iterator[str]:
    for entry in value if isinstance(value, list) else [value]:
        if isinstance(entry, str):
            yield entry.strip()


def _languages(value: object) -> Iterator[str]:
    if value is False:  # YAML 1.1 reads an unquoted `no`, Norwegian, as that
        value = "no"
    found = [entry for entry in _several(value) if is_language(entry)]
    yield from list(dict.fromkeys(found))[:MAX_LANGUAGES]


def _tags(value: object) -> Iterator[str]:
    """Those that can be keys of the network; `license:mit` and its like say again what fields say."""
    for entry in dict.fromkeys(tag.lower() for tag in _several(value)):
        try:
            check_tag(entry)
        except LocalError:
            continue
        if entry not in _KNOWN:
            yield entry
