"""The transformers library, asked for what lies in a directory: offline, safetensors only, no other code."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from importlib.util import find_spec
from typing import Any

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.serving.backends.files import lacking
from modelnet_p2p.node.serving.backends.pretrained.folder import Folder, Kind
from modelnet_p2p.node.serving.guarding import guard
from modelnet_p2p.node.serving.source import Source

NEEDED = ("torch", "transformers", "yaml")  # the last for the model card
CLASSES = {
    Kind.GENERATES: "AutoModelForCausalLM",
    Kind.CLASSIFIES: "AutoModelForSequenceClassification",
    Kind.EMBEDS: "AutoModel",
}
# Threads that share the steps of so small a model wait for each other, and spin: with 100,000 weights two of
# them took ten times the CPU of one.
SHARED_PARAMETERS = 20_000_000
SWITCHES = {  # of the Hugging Face libraries, read when they are imported: nothing is ever fetched
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "USE_HUB_KERNELS": "NO",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",  # its threads beside torch's are too many
}


def check_installed(source: Source) -> None:
    """Raises LocalError (bad-state) that names what is missing."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise lacking(source, " and ".join(missing), "transformers")


def load_model(folder: Folder) -> Any:  # Any: what transformers makes has no types here
    """The model, ready to be called, on the first GPU if torch sees one; raises LocalError."""
    os.environ.update(SWITCHES)
    import torch
    import transformers

    from modelnet_p2p.node.serving.backends.torch_packing import pack

    transformers.utils.logging.disable_progress_bar()
    _check_known(folder)
    loader = getattr(transformers, CLASSES[folder.kind])
    with _named(folder, "its weights"):
        try:
            model, told = _loaded(loader, folder, "sdpa")
        except ValueError as error:
            if "scaled_dot_product_attention" not in str(error):
                raise
            model, told = _loaded(loader, folder, "eager")
    _check_whole(folder, told["missing_keys"])
    if model.num_parameters() < SHARED_PARAMETERS:
        torch.set_num_threads(1)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    pack(model)
    return model


def load_tokenizer(folder: Folder) -> Any:  # Any: what transformers makes has no types here
    """Raises LocalError."""
    os.environ.update(SWITCHES)
    import transformers

    with _named(folder, "its tokenizer"):
        return _from_pretrained(transformers.AutoTokenizer, folder)


def load_generation_config(folder: Folder) -> Any:  # Any: what transformers makes has no types here
    """How the model's maker wants it sampled and stopped, from generation_config.json if there is one."""
    import transformers

    if not (folder.path / "generation_config.json").is_file():
        return transformers.GenerationConfig()
    with _named(folder, "its generation_config.json"):
        return transformers.GenerationConfig.from_pretrained(str(folder.path), local_files_only=True)


def _from_pretrained(loader: Any, folder: Folder, **options: object) -> Any:
    if loader.__name__ != "AutoTokenizer":
        options["use_safetensors"] = True
    return loader.from_pretrained(str(folder.path), local_files_only=True, trust_remote_code=False, **options)


def _loaded(loader: Any, folder: Folder, attention: str) -> Any:
    """The model, and what the library tells of its weights."""
    return _from_pretrained(
        loader, folder, dtype="auto", attn_implementation=attention, output_loading_info=True
    )


def _check_whole(folder: Folder, missing: Iterable[str]) -> None:
    """The library makes up what the files do not hold: such a model would answer with noise. Only the pooler
    of an encoder is not asked for anything here."""
    lost = sorted(name for name in missing if not (folder.kind is Kind.EMBEDS and "pooler." in name))
    if lost:
        raise LocalError(
            Code.BAD_INPUT,
            f"{folder.path} does not hold all weights of its model: {len(lost)} lack, {lost[0][:80]!r} first",
            hint="save the whole model again, with the architecture that its config.json names",
        )


def _check_known(folder: Folder) -> None:
    from transformers import __version__ as version
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    kind = str(folder.config.get("model_type", ""))
    if kind in CONFIG_MAPPING_NAMES:
        return
    if "auto_map" in folder.config:
        raise LocalError(
            Code.UNSAFE,
            f"{folder.path} brings the code of its model, which is not run",
            hint="serve it by a function of your own, where you trust that code: publish MODULE:NAME",
        )
    raise LocalError(
        Code.BAD_INPUT,
        f"transformers {version} knows no model_type {kind[:80]!r}, which {folder.path} names",
        hint="pip install --upgrade transformers",
    )


def _named(folder: Folder, part: str) -> AbstractContextManager[None]:
    """Whatever the library raises for files that are damaged or do not fit together, or for want of a package
    that a tokenizer needs: its parts in Rust raise what is no more than an Exception."""
    return guard(Code.BAD_INPUT, f"cannot load {folder.path}, {part}: ")
