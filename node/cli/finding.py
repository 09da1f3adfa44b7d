"""The command that searches: find, with its reasons (--explain) and its news (--watch)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from shlex import quote
from typing import Any

import click

from modelnet_p2p.errors import Code, LocalError, NotFound
from modelnet_p2p.node.cli import words
from modelnet_p2p.node.cli.common import Session, common_flags
from modelnet_p2p.node.cli.helping import examples
from modelnet_p2p.node.cli.nearest import SILENT
from modelnet_p2p.node.cli.output import one_line

INTERRUPTED = 130  # as shells say it
MAX_CAUSES = 6  # of those that ruled most offers out, told by --explain

Offer = dict[str, Any]  # Any: a line of the contract's `find`, a stranger's text in it


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was typed."""

    search: str | None
    task: str | None
    model: str | None
    tag: str | None
    limit: int
    show_all: bool

    @property
    def params(self) -> dict[str, object]:
        asked = {"task": self.task, "model": self.model, "tag": self.tag, "where": self.search}
        return {**asked, "limit": self.limit, "all": self.show_all}

    def __str__(self) -> str:
        kinds = (("task", self.task), ("model", self.model), ("tag", self.tag))
        given = [f"{kind} {what}" for kind, what in kinds if what]
        return ", ".join([*given, *([self.search] if self.search else [])])

    def check(self) -> None:
        """Raises LocalError (bad-input) before anybody is asked."""
        if not str(self):
            raise LocalError(
                Code.BAD_INPUT,
                "say what to find: --task, --model, --tag, or a search",
                hint="modelnet-peer find --task image-classification",
            )
        if self.search is not None:
            # not at the top: it brings the records, which a plain find leaves to the peer
            from modelnet_p2p.query import Query

            Query.asked(self.task, self.model, self.tag, self.search).indexes()


@click.command(
    "find",
    epilog=examples(
        "modelnet-peer find --task image-classification",
        "modelnet-peer find --model modelnet/digits --all",
        "modelnet-peer find --tag english --json",
        "modelnet-peer find text-generation and language:de",
        "modelnet-peer find 'task:text-generation and parameters<=7B and not licence:gpl*' --explain",
        "modelnet-peer find 'model:acme/chat or (tag:chat and cost<=0.01)' --watch",
    ),
)
@common_flags
@click.argument("search", nargs=-1)
@click.option("--task", metavar="T", help="Such as text-classification.")
@click.option(
    "--model",
    metavar="M",
    shell_complete=words.known_models,
    help="A model's name, with @VERSION or as a modelnet: URI too.",
)
@click.option("--tag", metavar="T")
@click.option("--limit", type=click.IntRange(1, 1000), metavar="N", help="At most (default: 20).")
@click.option("--all", "show_all", is_flag=True, help="Dead providers too.")
@click.option("--explain", is_flag=True, help="Say why each was found, and what ruled others out.")
@click.option("--watch", is_flag=True, help="Go on, and tell who appears, changes and goes.")
@click.option(
    "--interval",
    type=click.FloatRange(0.2, 3600),
    default=5.0,
    metavar="S",
    help="Seconds between the looks of --watch (default: 5).",
)
def find_command(
    session: Session,
    search: tuple[str, ...],
    task: str | None,
    model: str | None,
    tag: str | None,
    limit: int | None,
    show_all: bool,
    explain: bool,
    watch: bool,
    interval: float,
) -> int:
    """List who offers what is searched for, best first.

    SEARCH is a task, model or tag, or conditions with and, or, not and brackets: task, model, version, tag,
    owner, provider, digest, framework, language, licence, precision, tier, access, family, gives, input,
    output: NAME:VALUE, where * stands for anything; parameters, context, cost: also NAME<=7B, NAME:1B..7B.
    """
    wanted = Wanted(" ".join(search) or None, task, model, tag, limit or 20, show_all)
    wanted.check()
    if watch and (explain or limit):
        other = "--explain" if explain else "--limit"
        raise LocalError(
            Code.BAD_INPUT, f"--watch follows all offers, and takes no {other}", hint="leave one of them out"
        )
    if watch:
        return _watch(session, wanted, interval)
    _find(session, wanted, explain)
    return 0


def _find(session: Session, wanted: Wanted, explain: bool) -> None:
    output = session.output
    offers: list[Offer] = []

    def on_offer(offer: Offer) -> None:
        offers.append(offer)
        if output.as_json:
            output.quiet()
            output.line(offer)

    params = {**wanted.params, "timeout": session.settings.timeout, "explain": explain}
    with output.progress(f"looking for {wanted}"):
        searched = session.ask("find", params, on_item=on_offer)
    searched = searched if isinstance(searched, dict) else {}
    for line in _course(searched, len(offers)) if explain else ():
        output.notice(line)
    if not offers:
        hint = _next_step(wanted, explain, bool(searched.get("silent")))
        raise NotFound(f"nobody offers {wanted}", hint=hint)
    if not output.as_json:
        columns = ("model", "task", "state", "rtt ms", "load", "provider")
        output.table(columns, [_row(offer) for offer in offers])
        for number, offer in enumerate(offers if explain else ()):
            lead = "" if number else "\n"
            output.text(f"{lead}{number + 1}. {one_line(str(offer.get('model')))}: {_why(offer)}")


def _next_step(wanted: Wanted, explained: bool, silent: bool) -> str:
    if silent:
        return SILENT
    if wanted.search is not None and not explained:
        return f"what ruled others out: modelnet-peer find {quote(wanted.search)} --explain"
    if wanted.search is not None and wanted.task is None:
        return "leave out a condition, or offer it yourself: modelnet-peer publish --help"
    from modelnet_p2p.tasks import is_known  # not at the top: few searches come here

    task = wanted.task if wanted.task is None or is_known(wanted.task) else f"x-ORG/{wanted.task}"
    named = [("model", wanted.model and "NAME"), ("task", task), ("tag", wanted.tag)]
    flags = " ".join(f"--{kind} {what}" for kind, what in named if what)
    yourself = f"offer it yourself: modelnet-peer publish MODULE:NAME {flags}"
    if wanted.tag is None or wanted.task is not None or wanted.model is not None:
        return yourself
    # tags are free words: no list says which there are
    return f"modelnet-peer find --task TASK --json shows which tags there are; or {yourself}"


def _row(offer: Offer) -> tuple[object, ...]:
    rtt, load = offer.get("rtt_ms"), offer.get("load")
    return (
        offer.get("model"),
        offer.get("task"),
        offer.get("state"),
        None if rtt is None else f"{rtt:.1f}",
        None if load is None else f"{load:.0%}",
        offer.get("provider"),
    )


def _why(offer: Offer) -> str:
    return one_line("; ".join(map(str, offer.get("why") or ())))


def _course(searched: dict[str, Any], found: int) -> list[str]:
    """Where the search looked, and what became of the offers that it read."""
    keys = ", ".join(str(key).split("/", 3)[-1] for key in searched.get("keys") or ())
    lines = [
        f"looked under {keys}: {searched.get('read')} offers read, {found} shown",
        f"cards read: {searched.get('cards')}, ruled out without their offers: "
        f"{searched.get('cards_ruled_out')}; requests to holders: {searched.get('messages')}",
    ]
    ruled_out = searched.get("ruled_out") or {}
    most = sorted(ruled_out.items(), key=lambda pair: -pair[1])[:MAX_CAUSES]
    lines += [f"ruled out by {cause}: {number}" for cause, number in most]
    if untimely := searched.get("untimely"):
        lines.append(f"refused as over, or not yet valid by this machine's clock: {untimely}")
    silent = searched.get("silent")
    return lines + ([f"not shown, for their providers do not answer: {silent}"] if silent else [])


def _watch(session: Session, wanted: Wanted, interval: float) -> int:
    """Tell the news until Ctrl-C; the exit status."""
    output = session.output

    def on_change(change: Offer) -> None:
        output.quiet()
        if output.as_json:
            output.line(change)
            return
        parts = (change.get(key) for key in ("event", "model", "task", "state", "provider"))
        event, *rest = (one_line(str(part)) for part in parts)
        output.text(f"{time.strftime('%H:%M:%S')}  {event:<8}  {'  '.join(rest)}")

    try:
        with output.progress(f"watching {wanted}; Ctrl-C ends it"):
            session.ask("watch", {**wanted.params, "interval": interval}, on_item=on_change, endless=True)
    except KeyboardInterrupt:  # the way to end it, and no error to tell
        return INTERRUPTED
    return 0
