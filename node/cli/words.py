"""Words that only we know, for a shell that completes a line: models, built-in sources, files.

What a shell asks while somebody holds the Tab key must be quick and silent: the running peer has a moment to
name models, and without one there are no names. Nothing here is imported before a shell asks.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from modelnet_p2p.errors import ModelnetError

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem

PATIENCE = 0.3  # seconds for the running peer: a Tab that takes longer feels broken
BUILTINS = ("builtin:digits", "builtin:echo", "builtin:minilm")


def known_models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Of this peer, and of the records that it keeps for others."""
    answer = _ask(ctx, "models", {"prefix": incomplete})
    return [str(name) for name in answer.get("models") or ()]


def own_models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """What this peer serves, or has still to load."""
    models = _ask(ctx, "status", {}).get("models") or ()
    names = [str(model.get("model")).partition("@")[0] for model in models]
    return [name for name in names if name.startswith(incomplete)]


def sources(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """What can be published, as far as it can be listed."""
    from click.shell_completion import CompletionItem

    fitting = [CompletionItem(name) for name in BUILTINS if name.startswith(incomplete)]
    return [*fitting, *files(ctx, param, incomplete)]


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """The shell knows them best."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def folders(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="dir")]


def _ask(ctx: click.Context, method: str, params: dict[str, object]) -> dict[str, Any]:
    """What the peer on this line's home answers; an empty map from a peer that is not there, or not quick."""
    from modelnet_p2p.node.config import locate_home
    from modelnet_p2p.node.control.client import ask_at_once

    with suppress(ModelnetError):
        home = locate_home(ctx.params.get("home"), os.environ)
        return ask_at_once(home, method, params, until=time.monotonic() + PATIENCE)
    return {}
