"""What may be said of a model that is published: the options of `publish`, which `join --publish` takes, too.

In the help of `join` they do not stand: whoever starts a peer asks other questions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from shlex import join
from typing import Any, TypeVar

import click

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.cli import words
from modelnet_p2p.tiers import TIERS

Function = TypeVar("Function", bound=Callable[..., Any])
Said = Mapping[str, Any]  # what was given, by click's names for the options. Any: as click parsed it


def publishing_options(*, hidden: bool = False) -> Callable[[Function], Function]:
    """A decorator that gives a command those options, `hidden` from its help."""
    option = partial(click.option, hidden=hidden)
    options = (
        option("--model", metavar="NAME[@VERSION]", help="The name to serve it under."),
        option("--task", metavar="T", help="What it does, such as text-classification."),
        option("--tag", "tags", multiple=True, metavar="T", help="Repeatable."),
        option(
            "--price", multiple=True, metavar="NAME=AMOUNT", help="Such as usd_per_call=0.002; repeatable."
        ),
        option("--tier", type=click.Choice(TIERS), help="What kind of machine serves it."),
        option(
            "--language", "languages", multiple=True, metavar="CODE", help="Such as de or pt-BR; repeatable."
        ),
        option("--licence", metavar="SPDX", help="Under which it may be used, such as Apache-2.0."),
        option("--module", metavar="MODULE:CLASS", help="The torch module of a .safetensors file."),
        option(
            "--manifest",
            metavar="FILE",
            shell_complete=words.files,
            help="The seal of the model's owner (owner sign), if that is not you.",
        ),
        option(
            "--quantise",
            type=click.Choice(["int8"]),
            help="Serve a smaller variant of a torch or ONNX model.",
        ),
        option(
            "--sample",
            metavar="FILE",
            shell_complete=words.files,
            help="An input (.npy, or .npz by name) to try a model on, where none can be made up.",
        ),
        option(
            "--slots",
            type=click.IntRange(min=1),
            metavar="N",
            help="Calls at once, of an async function, a directory that generates, or a server's models.",
        ),
        option(
            "--share-weights/--no-share-weights",
            default=None,
            help="Let others fetch its files; default: only those that `pull` fetched.",
        ),
    )

    def decorate(function: Function) -> Function:
        for add in reversed(options):
            function = add(function)
        return function

    return decorate


def publishing_params(said: Said) -> dict[str, Any]:
    """What of it was given, as the control table's `publish` takes it; raises LocalError (bad-input)."""
    slots = said["slots"]
    options = {
        "quantise": said["quantise"],
        "sample": said["sample"],
        "slots": str(slots) if slots else None,
    }
    params = {
        "model": said["model"],
        "task": said["task"],
        "tags": list(said["tags"]),
        **_terms(said["price"], said["tier"], said["languages"], said["licence"]),
        "module": said["module"],
        "share_weights": said["share_weights"],
        "options": {name: text for name, text in options.items() if text},
    }
    if said["manifest"] is not None:
        from modelnet_p2p.node.manifests import read_manifest

        params["manifest"] = read_manifest(said["manifest"])
    return params


def _terms(
    price: tuple[str, ...], tier: str | None, languages: tuple[str, ...], licence: str | None
) -> dict[str, Any]:
    """Checked before the peer is asked."""
    if not (price or tier or languages or licence is not None):
        return {}
    # not at the top: it brings the records, which a plain publish leaves to the peer
    from modelnet_p2p.node.serving.terms import Terms, prices

    amounts = prices(price)
    Terms.given(amounts, tier, languages, licence)
    return {"price": amounts, "tier": tier, "languages": list(languages), "licence": licence}


def check_single(sources: Sequence[str], said: Said) -> None:
    """Raises LocalError (bad-input) where something is said that is not about exactly one of `sources`."""
    typed = list(_typed(said))
    if not typed or len(sources) == 1:
        return
    about = f"there are {len(sources)} --publish" if sources else "there is no --publish"
    raise LocalError(
        Code.BAD_INPUT,
        f"{typed[0]} is said of one model, and {about}",
        hint=f"leave it out, and when the peer runs: {join(['modelnet-peer', 'publish', 'SOURCE', *typed])}",
    )


def _typed(said: Said) -> Iterator[str]:
    """The options that were given, as words of a command line."""
    for option in click.get_current_context().command.params:
        value = said.get(option.name or "")
        if isinstance(value, bool):
            yield (option.opts if value else option.secondary_opts)[0]
        elif value is not None:
            for one in value if isinstance(value, tuple) else (value,):
                yield from (option.opts[0], str(one))
