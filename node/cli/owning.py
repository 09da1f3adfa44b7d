"""Commands about owners: whose model a bare name means, and being an owner whose model others serve.

A running peer is asked to change what it remembers; where none runs, the home's files are changed. An
owner's key is read here and never handed to a peer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.cli import words
from modelnet_p2p.node.cli.common import DAEMON_SPARE, Session, common_flags
from modelnet_p2p.node.cli.helping import examples, help_alone
from modelnet_p2p.node.cli.output import one_line

if TYPE_CHECKING:
    from modelnet_p2p.identity import PeerId
    from modelnet_p2p.node.disk.home import Home
    from modelnet_p2p.node.owners import Owners

Value = Any  # a value of the wire


@click.group(
    "owner",
    invoke_without_command=True,
    epilog=examples(
        "modelnet-peer owner list",
        "modelnet-peer owner trust acme/sentiment 12D3KooW…",
        "modelnet-peer owner sign mymodels:summarise --out summarise.manifest",
        "modelnet-peer owner revoke --key acme.key --reason stolen",
    ),
)
@click.pass_context
def owner_command(ctx: click.Context) -> None:
    """Choose whose model a name means (until then: that of the first answer), or own models yourself."""
    help_alone(ctx)


@owner_command.command("list", epilog=examples("modelnet-peer owner list", "modelnet-peer owner list --json"))
@common_flags
def list_command(session: Session) -> None:
    """List the names whose owner is remembered."""

    output = session.output
    lines: list[dict[str, Any]] = []

    def from_files(owners: Owners) -> None:
        fates = _fates(session.settings.home)
        for known in owners.all():
            over = {"revoked": fates[known.owner]} if known.owner in fates else {}
            lines.append({**known.to_map(), **over})

    _ask_or_do(session, "owners", {}, from_files, on_item=lines.append)
    if output.as_json:
        for line in lines:
            output.line(line)
    elif not lines:
        output.notice("none yet: the first call of a model by its name remembers whose it was")
    else:
        rows = [(line["model"], _day(line["since_unix"]), line["how"], line["owner"]) for line in lines]
        output.table(("model", "since", "how", "owner"), rows)
        for line in lines:
            if (fate := line.get("revoked")) is not None:
                output.notice(f"{line['model']}: its owner's key was revoked {_fate(fate)}")


@owner_command.command(
    "trust",
    epilog=examples(
        "modelnet-peer owner trust acme/sentiment 12D3KooW…",
        "modelnet-peer owner trust 'modelnet:acme/sentiment?owner=12D3KooW…'",
    ),
)
@common_flags
@click.argument("model", shell_complete=words.known_models)
@click.argument("owner", required=False)
def trust_command(session: Session, model: str, owner: str | None) -> None:
    """Let a model's name mean this owner's model from now on."""
    from modelnet_p2p.names import ModelUri
    from modelnet_p2p.node.owners import trust

    uri = ModelUri.parse(model)
    if owner is None and uri.owner is None:
        raise LocalError(
            Code.BAD_INPUT, "whose model is it to mean?", hint=f"modelnet-peer owner trust {uri.name} OWNER"
        )
    chosen = owner or str(uri.owner)
    line = _ask_or_do(
        session,
        "trust",
        {"model": uri.name, "owner": chosen},
        lambda owners: trust(owners, uri.name, chosen),
    )
    session.output.answer(line, f"{line['model']} means the model of {line['owner']}")


@owner_command.command("forget", epilog=examples("modelnet-peer owner forget acme/sentiment"))
@common_flags
@click.argument("model", shell_complete=words.known_models)
def forget_command(session: Session, model: str) -> None:
    """Forget whose model a name means: the next call decides anew."""
    from modelnet_p2p.names import ModelUri
    from modelnet_p2p.node.owners import forget

    name = ModelUri.parse(model).name
    line = _ask_or_do(session, "forget", {"model": name}, lambda owners: forget(owners, name))
    session.output.answer(line, f"{line['model']}: forgotten")


@owner_command.command("key", epilog=examples("modelnet-peer owner key ~/acme.key"))
@common_flags
@click.argument("file", shell_complete=words.files)
def key_command(session: Session, file: str) -> None:
    """Make an owner's key, for models that several peers serve as yours."""
    from modelnet_p2p.node.manifests import make_key

    path = Path(file)
    owner = str(make_key(path).id)
    if session.output.as_json:
        session.output.line({"owner": owner, "path": str(path)})
    else:
        session.output.text(owner)
        session.output.notice(f"keep {path} safe: whoever has it can sign as this owner")


@owner_command.command(
    "sign",
    epilog=examples(
        "modelnet-peer owner sign mymodels:summarise --out summarise.manifest",
        "modelnet-peer owner sign weights.safetensors --module mymodels:Net --model acme/net@2 \\",
        "    --key ~/acme.key --out net.manifest",
        "modelnet-peer publish mymodels:summarise --manifest summarise.manifest    # on each provider",
    ),
)
@common_flags
@click.argument("source", shell_complete=words.sources)
@click.option("--out", required=True, metavar="FILE", help="Where to put the sealed manifest.")
@click.option("--key", "key_file", metavar="FILE", help="The owner's key (default: this peer's own).")
@click.option("--model", metavar="NAME[@VERSION]", help="The name it is served under.")
@click.option("--task", metavar="T", help="What it does, such as text-classification.")
@click.option("--module", metavar="MODULE:CLASS", help="The torch module of a .safetensors file.")
@click.option("--licence", metavar="SPDX", help="Under which it may be used, such as Apache-2.0.")
def sign_command(
    session: Session,
    source: str,
    out: str,
    key_file: str | None,
    model: str | None,
    task: str | None,
    module: str | None,
    licence: str | None,
) -> None:
    """Seal what a model is, as its owner: whoever publishes it with this seal serves your model.

    The running peer loads it once, to describe it.
    """
    from modelnet_p2p.node.disk.files import write_durably
    from modelnet_p2p.node.manifests import load_key, seal_described
    from modelnet_p2p.node.serving.policy.safety import check_safe
    from modelnet_p2p.node.shell import publisher

    check_safe(source)
    settings, output = session.settings, session.output
    key = load_key(Path(key_file)) if key_file else settings.home.load_or_make_key()
    if key.id in _fates(settings.home):
        raise LocalError(
            Code.FORBIDDEN,
            f"the key of {key.id} was revoked: nobody who has heard of it takes what it seals",
            hint="modelnet-peer owner key FILE makes another one",
        )
    params = {"source": source, "model": model, "task": task, "tags": [], "module": module, **publisher()}
    with output.progress(f"loading {source}"):
        limit = settings.timeout if settings.timeout_asked else None
        described = session.ask_running("publish", {**params, "dry_run": True}, timeout=limit)
    envelope = seal_described(described, key, licence, int(time.time()))
    write_durably(Path(out), envelope, mode=0o644)
    facts = {"model": described["model"], "owner": str(key.id), "task": described["task"]}
    facts |= {"digest": described.get("digest"), "manifest": out}
    if output.as_json:
        output.line(facts)
    else:
        output.fields([(name, value) for name, value in facts.items() if value is not None])
    if facts["digest"] is None:
        output.notice(
            "it has no digest: the seal says whose it is, and cannot say which code a provider runs"
        )


@owner_command.command(
    "revoke",
    epilog=examples(
        "modelnet-peer owner revoke --key acme.key --out acme.revocation    # in advance: keep it safe",
        "modelnet-peer owner revoke --file acme.revocation                  # once the key is stolen or lost",
        "modelnet-peer owner revoke --key acme.key --reason stolen --successor 12D3KooW…",
    ),
)
@common_flags
@click.option("--key", "key_file", metavar="FILE", shell_complete=words.files, help="The key to revoke.")
@click.option("--file", "made", metavar="FILE", shell_complete=words.files, help="One that --out has made.")
@click.option("--out", metavar="FILE", help="Only write it there: nobody is told.")
@click.option("--reason", default="", metavar="TEXT", help="A line for those who meet it.")
@click.option("--successor", metavar="ID", help="The owner id that takes its place.")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME",
    shell_complete=words.known_models,
    help="A model that the key has sealed, beside those that are found; repeatable.",
)
def revoke_command(
    session: Session,
    key_file: str | None,
    made: str | None,
    out: str | None,
    reason: str,
    successor: str | None,
    models: tuple[str, ...],
) -> None:
    """Take a key back for good: nothing that it has sealed, or will, counts any more.

    The running peer tells the network. It cannot be undone.
    """
    from modelnet_p2p.node.disk.files import write_durably
    from modelnet_p2p.node.manifests import load_key, read_end, seal_end
    from modelnet_p2p.records import open_revocation

    if (key_file is None) == (made is None) or (made and (out or reason or successor)):
        raise LocalError(
            Code.BAD_INPUT,
            "name the key to revoke (--key), or the file of a revocation made before (--file), and not both",
            hint="modelnet-peer owner revoke --help",
        )
    if key_file is not None:
        envelope = seal_end(load_key(Path(key_file)), reason, successor, time.time_ns() // 1000)
    else:
        envelope = read_end(Path(made or ""))
    key, output = str(open_revocation(envelope).record.provider), session.output
    if out is not None:
        write_durably(Path(out), envelope)
        if output.as_json:
            output.line({"revoked": key, "path": out})
        else:
            output.text(key)
            output.notice(f"nobody is told yet; whoever has {out} can revoke this key: keep it safe")
        return
    output.notice(f"revoking {key}: nothing that it sealed counts from now on, and this cannot be undone")
    params = {"envelope": envelope, "models": list(models), "timeout": session.settings.timeout}
    with output.progress("telling the network"):
        answer = session.ask_running("revoke", params, timeout=session.settings.timeout + DAEMON_SPARE)
    if output.as_json:
        output.line(answer)
        return
    stored, asked = answer["holders"]["stored"], answer["holders"]["asked"]
    told = f"under {answer['keys']} keys, to {stored} of {asked} peers or more"
    output.fields(
        [
            ("revoked", f"{answer['revoked']} {_fate(answer)}"),
            ("successor", answer["successor"] or "none"),
            ("models", ", ".join(answer["models"]) or "none found"),
            ("told", told),
        ]
    )


def _fates(home: Home) -> dict[PeerId, dict[str, Any]]:
    """The ends of the keys that this home remembers."""
    from modelnet_p2p.node.disk.revocations import RevocationFiles
    from modelnet_p2p.node.revoking import fate_of

    kept = RevocationFiles(home.revocations_path).load()
    return {one.sealed.record.provider: fate_of(one.sealed) for one in kept}


def _fate(fate: dict[str, Any]) -> str:
    """`on 2026-11-29: stolen`."""
    return f"on {_day(fate['issued_unix'])}" + (f": {one_line(fate['reason'])}" if fate["reason"] else "")


def _ask_or_do(
    session: Session,
    method: str,
    params: dict[str, Value],
    do: Callable[[Owners], Value],
    on_item: Callable[[Value], None] = lambda item: None,
) -> Value:
    """The running peer's answer: it knows its network. Without one, what `do` makes of the files."""
    from modelnet_p2p.node.control.client import StillStarting
    from modelnet_p2p.node.owners import Owners

    settings = session.settings
    try:
        return session.ask_running(method, params, on_item=on_item, timeout=settings.timeout, needed=False)
    except LocalError as error:
        # one that is starting has read the files, or is about to
        if error.code is not Code.NOT_RUNNING or isinstance(error, StillStarting):
            raise
    return do(Owners(settings.network, settings.home.owners_path))


def _day(unix: float) -> str:
    return f"{datetime.fromtimestamp(unix, UTC):%Y-%m-%d}"
