"""Commands that serve: join, publish, unpublish."""

from __future__ import annotations

import sys
from typing import Any

import click

from modelnet_p2p.node.cli import words
from modelnet_p2p.node.cli.common import Session, common_flags
from modelnet_p2p.node.cli.describing import described
from modelnet_p2p.node.cli.helping import examples
from modelnet_p2p.node.cli.homing import at_home
from modelnet_p2p.node.cli.output import Output
from modelnet_p2p.node.config import GATEWAY_ON, USUAL_GATEWAY
from modelnet_p2p.node.control.client import home_flag
from modelnet_p2p.node.serving.policy.safety import check_safe
from modelnet_p2p.node.shell import publisher


@click.command(
    "join",
    epilog=examples(
        "modelnet-peer join",
        "modelnet-peer join --publish builtin:digits",
        "modelnet-peer join --gateway   # and OPENAI_BASE_URL=http://127.0.0.1:8765/v1",
        "modelnet-peer join --home /tmp/second",
        "modelnet-peer join --bootstrap /ip4/192.0.2.7/tcp/4001/p2p/12D3Koo…",
    ),
)
@common_flags
@click.option(
    "--listen", multiple=True, metavar="MULTIADDR", help="Default: /ip4/127.0.0.1/tcp/0; repeatable."
)
@click.option("--lan", is_flag=True, help="Listen everywhere; find, and be found by, the local network.")
@click.option(
    "--gateway",
    is_flag=False,
    flag_value=GATEWAY_ON,
    metavar="[HOST:PORT]",
    help=f"Answer OpenAI's clients over HTTP there (alone: {USUAL_GATEWAY}).",
)
@click.option(
    "--publish",
    "sources",
    multiple=True,
    metavar="SOURCE",
    shell_complete=words.sources,
    help="Serve this too; repeatable.",
)
def join_command(session: Session, sources: tuple[str, ...]) -> None:
    """Start this machine's peer and stay in the network until Ctrl-C."""
    for source in sources:
        check_safe(source)
    from modelnet_p2p.node.daemon import early_signals, run

    early_signals()
    run(
        session.settings, sources, on_ready=lambda ready: _ready(session, ready), notice=session.output.notice
    )


def _ready(session: Session, ready: dict[str, Any]) -> None:
    output = session.output
    if output.as_json:
        output.line(ready)
        return
    output.fields(
        [
            ("ready", ready["peer"]),
            *(("address", addr) for addr in ready["addrs"]),
            ("control", ready["control"]),
            *([("gateway", f"{ready['gateway']}/v1")] if ready.get("gateway") else ()),
        ]
    )
    sys.stdout.flush()
    if output.to_terminal:
        where = home_flag(session.settings.home)
        output.notice(f"Ctrl-C leaves. In another terminal: modelnet-peer publish builtin:digits{where}")


@click.command(
    "publish",
    epilog=examples(
        "modelnet-peer publish builtin:digits",
        "modelnet-peer publish mymodels:summarise --task summarization --tag english",
        "modelnet-peer publish mymodels:summarise --language de --licence MIT --price usd_per_call=0.002",
        "modelnet-peer publish weights.safetensors --module mymodels:Net",
        "modelnet-peer publish http://127.0.0.1:11434/v1   # all models of an OpenAI-compatible server",
        "modelnet-peer publish http://127.0.0.1:11434/v1#llama3.2:1b",
        "modelnet-peer publish model.onnx --quantise int8 --dry-run",
        "modelnet-peer publish weights.onnx --share-weights     # others may pull them",
        "modelnet-peer publish acme/sentiment                   # which `pull` has fetched",
        "modelnet-peer publish mymodels:summarise --manifest acme.manifest   # a replica of acme's",
    ),
)
@common_flags
@click.argument("source", shell_complete=words.sources)
@click.option("--model", metavar="NAME[@VERSION]", help="The name to serve it under.")
@click.option("--task", metavar="T", help="What it does, such as text-classification.")
@click.option("--tag", "tags", multiple=True, metavar="T", help="Repeatable.")
@click.option("--price", multiple=True, metavar="NAME=AMOUNT", help="Such as usd_per_call=0.002; repeatable.")
@click.option(
    "--tier", type=click.Choice(["device", "edge", "cloud"]), help="What kind of machine serves it."
)
@click.option(
    "--language", "languages", multiple=True, metavar="CODE", help="Such as de or pt-BR; repeatable."
)
@click.option("--licence", metavar="SPDX", help="Under which it may be used, such as Apache-2.0.")
@click.option("--module", metavar="MODULE:CLASS", help="The torch module of a .safetensors file.")
@click.option(
    "--manifest",
    metavar="FILE",
    shell_complete=words.files,
    help="The seal of the model's owner (owner sign), if that is not you.",
)
@click.option(
    "--quantise", type=click.Choice(["int8"]), help="Serve a smaller variant of a torch or ONNX model."
)
@click.option(
    "--sample",
    metavar="FILE",
    shell_complete=words.files,
    help="An input (.npy, or .npz by name) to try a model on, where none can be made up.",
)
@click.option(
    "--slots",
    type=click.IntRange(min=1),
    metavar="N",
    help="Calls at once, of an async function, a directory that generates, or a server's models.",
)
@click.option(
    "--share-weights/--no-share-weights",
    default=None,
    help="Let others fetch its files; default: only those that `pull` fetched.",
)
@click.option("--dry-run", is_flag=True, help="Load and describe it, and publish nothing.")
def publish_command(
    session: Session,
    source: str,
    model: str | None,
    task: str | None,
    tags: tuple[str, ...],
    price: tuple[str, ...],
    tier: str | None,
    languages: tuple[str, ...],
    licence: str | None,
    module: str | None,
    manifest: str | None,
    quantise: str | None,
    sample: str | None,
    slots: int | None,
    share_weights: bool | None,
    dry_run: bool,
) -> None:
    """Serve a model from the running peer: builtin:digits, MODULE:NAME, FILE.onnx, FILE.safetensors, …"""
    check_safe(source)
    settings, output = session.settings, session.output
    options = {"quantise": quantise, "sample": sample, "slots": str(slots) if slots else None}
    params = {
        "source": source,
        "model": model,
        "task": task,
        "tags": list(tags),
        **_terms(price, tier, languages, licence),
        "module": module,
        "share_weights": share_weights,
        "dry_run": dry_run,
        "options": {name: text for name, text in options.items() if text},
        **publisher(),
    }
    if manifest is not None:
        from modelnet_p2p.node.manifests import read_manifest

        params["manifest"] = read_manifest(manifest)
    with output.progress(f"publishing {source}"):
        # loading a model takes what it takes: only a timeout that was asked for ends it
        limit = settings.timeout if settings.timeout_asked else None
        answer = session.ask_running("publish", params, timeout=limit)
    _show_published(session, answer, dry_run)


def _terms(
    price: tuple[str, ...], tier: str | None, languages: tuple[str, ...], licence: str | None
) -> dict[str, Any]:
    """What of it was given; raises LocalError (bad-input) before the peer is asked."""
    if not (price or tier or languages or licence is not None):
        return {}
    # not at the top: it brings the records, which a plain publish leaves to the peer
    from modelnet_p2p.node.serving.terms import Terms, prices

    amounts = prices(price)
    Terms.given(amounts, tier, languages, licence)
    return {"price": amounts, "tier": tier, "languages": list(languages), "licence": licence}


def _show_published(session: Session, answer: dict[str, Any], dry_run: bool) -> None:
    """One model, or all that a server has."""
    output, program = session.output, click.get_current_context().find_root().command
    assert isinstance(program, click.Group)
    for left_out in answer.get("left_out") or ():
        output.notice(f"{left_out.get('upstream')} is left out: {left_out.get('why')}")
    for number, line in enumerate(answer.get("models") or [answer]):
        for note in line.get("notes") or ():
            output.notice(f"note: {at_home(note, home_flag(session.settings.home), program)}")
        if output.as_json:
            output.line(line)
            continue
        if number:
            output.text("")
        _show_model(output, line, dry_run)


def _show_model(output: Output, answer: dict[str, Any], dry_run: bool) -> None:
    holders = answer.get("holders") or {}
    output.fields(
        [
            ("model", answer.get("model")),
            ("uri", answer.get("uri")),
            ("task", answer.get("task")),
            *([("upstream", answer["upstream"])] if answer.get("upstream") else []),
            *([("in place of", f"{answer['replaces']}, published before")] if answer.get("replaces") else []),
            *(described(answer) if dry_run else ()),
            ("stored", "nothing: a dry run" if dry_run else _holders(holders)),
        ]
    )


@click.command(
    "unpublish",
    epilog=examples(
        "modelnet-peer unpublish modelnet/digits",
        "modelnet-peer unpublish http://127.0.0.1:11434/v1   # all of that server's models",
    ),
)
@common_flags
@click.argument("model", shell_complete=words.own_models)
def unpublish_command(session: Session, model: str) -> None:
    """Withdraw a model from the network."""
    output = session.output
    with output.progress(f"withdrawing {model}"):
        answer = session.ask_running("unpublish", {"model": model}, timeout=session.settings.timeout + 5)
    for line in answer.get("models") or [answer]:  # of a server: each of its models
        if output.as_json:
            output.line(line)
        else:
            output.fields([("withdrawn", line.get("model")), ("told", _holders(line.get("holders") or {}))])


def _holders(holders: dict[str, int]) -> str:
    stored = holders.get("stored", 0)
    if not holders.get("asked", 0):
        return "by nobody else yet: the first peer that comes is told"
    return f"on {stored} other peer{'' if stored == 1 else 's'}"
