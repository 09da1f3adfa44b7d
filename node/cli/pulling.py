"""The command that fetches weights, lists what it has fetched, and removes it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import click

from modelnet_p2p.errors import Code, LocalError, ModelnetError, NotFound
from modelnet_p2p.names import parse_digest
from modelnet_p2p.node.cli import words
from modelnet_p2p.node.cli.common import Session, common_flags
from modelnet_p2p.node.cli.helping import examples
from modelnet_p2p.node.control.client import home_flag


@click.command(
    "pull",
    epilog=examples(
        "modelnet-peer pull acme/sentiment",
        "modelnet-peer pull sha256:9f86d081884c7d65…      # whoever has these bytes",
        "modelnet-peer publish acme/sentiment            # then: serve it, too",
        "modelnet-peer pull --list",
        "modelnet-peer pull --remove acme/sentiment",
    ),
)
@common_flags
@click.argument("model", required=False, shell_complete=words.known_models)
@click.option("--list", "listing", is_flag=True, help="List what was fetched.")
@click.option("--remove", is_flag=True, help="Remove what was fetched of MODEL, and make room.")
def pull_command(session: Session, model: str | None, listing: bool, remove: bool) -> None:
    """Fetch a model's weights from those who share them: a name, a URI, or a digest.

    Each piece is checked against the digest that the model's owner has sealed. Interrupted, it goes on
    where it stopped when it is asked again; what is here already is not fetched again.
    """
    if listing:
        _list(session)
    elif model is None:
        raise click.UsageError("Missing argument 'MODEL'.")
    elif remove:
        _remove(session, model)
    else:
        _pull(session, model)


def _pull(session: Session, model: str) -> None:
    output = session.output
    answer = _here(session, model)
    if answer is None:
        with output.progress(f"pulling {model}"), ExitStack() as bar:
            follow = output.line if output.as_json else _bar(session, model, bar)
            params = {"model": model, "timeout": session.settings.timeout}
            answer = session.ask("pull", params, on_item=follow, endless=True)
    if output.as_json:
        output.line({"done": True, **answer})
        return
    output.fields(_told(answer))
    if output.to_terminal and answer["model"]:
        output.notice(
            f"to serve it: modelnet-peer publish {answer['model']}{home_flag(session.settings.home)}"
        )


def _here(session: Session, model: str) -> dict[str, Any] | None:
    """What a digest means, if it is here: that needs no peer. A name may mean another one by now."""
    from modelnet_p2p.node.weights.cache import Cache
    from modelnet_p2p.node.weights.kept import digest_asked, found_line, meant

    root = digest_asked(model)
    cache = Cache(session.settings.home.cache_path)
    found = cache.whole(root) if root is not None else None
    if root is None or found is None:
        return None
    seals = cache.manifests(root)
    return found_line(found, meant(seals, model) or seals)


def _told(answer: dict[str, Any]) -> list[tuple[str, object]]:
    """A pull's end, for people."""
    size, fetched, seconds = answer["size"], answer["fetched"], answer["seconds"]
    rate = f", {fetched / seconds / 1e6:.0f} MB/s" if fetched and seconds else ""
    lines: list[tuple[str, object]] = [
        ("model", answer["model"] or "no name: nobody who offers it was found"),
        ("digest", answer["digest"]),
        ("size", f"{amount(size)} in {answer['files']} file{'' if answer['files'] == 1 else 's'}"),
        ("fetched", f"{amount(fetched)}{rate}" if fetched else "nothing: all of it was here"),
    ]
    lines += [("from", f"{one['peer']}  {amount(one['bytes'])}") for one in answer["from"]]
    lines += [
        ("wrong bytes", f"from {peer}: thrown away, and it was not asked again") for peer in answer["liars"]
    ]
    return [*lines, ("path", answer["path"])]


def amount(size: int) -> str:
    """So many bytes, for people."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def _bar(session: Session, model: str, stack: ExitStack) -> Callable[[dict[str, Any]], None]:
    """Draws a bar as soon as it is known how large the whole is."""
    advance: list[Callable[[int], object]] = []
    here = 0

    def follow(line: dict[str, Any]) -> None:
        nonlocal here
        if not advance:
            advance.append(stack.enter_context(session.output.transfer(f"pulling {model}", line["size"])))
        advance[0](line["here"] - here)
        here = line["here"]

    return follow


def _list(session: Session) -> None:
    lines = _kept(session)
    if session.output.as_json:
        for line in lines:
            session.output.line(line)
        return
    if not lines:
        session.output.notice(f"nothing was pulled to {session.settings.home.cache_path}")
        return
    rows = [
        (
            ", ".join(line["models"]) or None,
            amount(line["size"]),
            "whole" if line["whole"] else f"{amount(line['here'])} of it",
            {None: None, True: "yes", False: "no"}[line["shared"]],
            line["digest"],
        )
        for line in lines
    ]
    session.output.table(["model", "size", "here", "shared", "digest"], rows)


def _kept(session: Session) -> list[dict[str, Any]]:
    """What is kept: the running peer also knows what it shares."""
    lines: list[dict[str, Any]] = []
    try:
        session.ask_running("kept", {}, on_item=lines.append, timeout=session.settings.timeout, needed=False)
    except LocalError as error:
        if error.code is not Code.NOT_RUNNING:
            raise
        from modelnet_p2p.node.weights.cache import Cache
        from modelnet_p2p.node.weights.kept import kept_line

        lines = [kept_line(kept) for kept in Cache(session.settings.home.cache_path).all()]
    return lines


def _remove(session: Session, model: str) -> None:
    from modelnet_p2p.node.weights.cache import Cache

    meant = [line for line in _kept(session) if _is_meant(line, model)]
    if not meant:
        raise NotFound(f"nothing was pulled of {model!r}", hint="modelnet-peer pull --list")
    if len(meant) > 1:
        digests = ", ".join(line["digest"] for line in meant)
        words = f"{model!r} is the name of several weights: {digests}"
        raise NotFound(words, code=Code.AMBIGUOUS, hint="name the digest: pull --remove sha256:…")
    (line,) = meant
    if line["shared"]:
        name = line["models"][0] if line["models"] else "MODEL"
        words = f"the running peer serves {model} from there"
        raise LocalError(Code.IN_USE, words, hint=f"modelnet-peer unpublish {name.partition('@')[0]}")
    cache = Cache(session.settings.home.cache_path)
    freed = cache.remove(parse_digest(line["digest"]))
    if session.output.as_json:
        session.output.line({"digest": line["digest"], "removed": True, "freed": freed})
        return
    session.output.fields([("removed", line["digest"]), ("freed", amount(freed))])


def _is_meant(line: dict[str, Any], model: str) -> bool:
    from modelnet_p2p.node.weights.kept import digest_asked

    try:
        root = digest_asked(model)
    except ModelnetError:
        return False
    if root is not None:
        return parse_digest(line["digest"]) == root
    return any(model in (name, name.partition("@")[0]) for name in line["models"])
