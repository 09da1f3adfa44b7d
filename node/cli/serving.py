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
from modelnet_p2p.node.cli.offering import check_single, publishing_options, publishing_params
from modelnet_p2p.node.cli.output import Output
from modelnet_p2p.node.config import GATEWAY_ON, USUAL_GATEWAY
from modelnet_p2p.node.control.client import home_flag
from modelnet_p2p.node.disk.runtime import Runtime
from modelnet_p2p.node.serving.policy.safety import check_safe
from modelnet_p2p.node.shell import publisher


@click.command(
    "join",
    epilog=examples(
        "modelnet-peer join",
        "modelnet-peer join --publish builtin:digits",
        "modelnet-peer join --publish mymodels:summarise --task summarization --price usd_per_call=0.002",
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
    help="Serve this too; repeatable. One alone takes what `publish` does, such as --task.",
)
@publishing_options(hidden=True)
def join_command(session: Session, sources: tuple[str, ...], **said: Any) -> None:
    """Start this machine's peer and stay in the network until Ctrl-C."""
    for source in sources:
        check_safe(source)
    check_single(sources, said)
    wanted = [{"source": source, **publishing_params(said), **publisher()} for source in sources]
    settings, output = session.settings, session.output
    # held before all that a peer needs is loaded: a command that is typed meanwhile waits for its socket
    with Runtime(settings.network, settings.home).lock(joining=True):
        from modelnet_p2p.node.daemon import early_signals, run

        early_signals()
        run(settings, wanted, on_ready=lambda ready: _ready(session, ready), notice=output.notice)


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
@publishing_options()
@click.option("--dry-run", is_flag=True, help="Load and describe it, and publish nothing.")
def publish_command(session: Session, source: str, dry_run: bool, **said: Any) -> None:
    """Serve a model from the running peer: builtin:digits, MODULE:NAME, FILE.onnx, FILE.safetensors, …"""
    check_safe(source)
    settings, output = session.settings, session.output
    params = {"source": source, **publishing_params(said), "dry_run": dry_run, **publisher()}
    with output.progress(f"publishing {source}"):
        # loading a model takes what it takes: only a timeout that was asked for ends it
        limit = settings.timeout if settings.timeout_asked else None
        answer = session.ask_running("publish", params, timeout=limit)
    _show_published(session, answer, dry_run)


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
    stored, asked = holders.get("stored", 0), holders.get("asked", 0)
    if not asked:
        return "by nobody else yet: the first peer that comes is told"
    if stored < asked:
        return f"on {stored} of {asked} other peers"
    return f"on {stored} other peer{'' if stored == 1 else 's'}"
