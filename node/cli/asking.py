"""Commands that ask the network: find and invoke."""

from __future__ import annotations

from typing import Any

import click

from modelnet_p2p.errors import Code, LocalError, NotFound
from modelnet_p2p.node.cli.common import Session, common_flags
from modelnet_p2p.node.cli.examples import examples
from modelnet_p2p.node.cli.values import check_out, for_people, parse_params, read_input, write_out
from modelnet_p2p.payload import WIRES

Value = Any  # a value of the wire: None, bool, int, float, str, bytes, list, dict or array


@click.command(
    "find",
    epilog=examples(
        "modelnet-peer find --task image-classification",
        "modelnet-peer find --model modelnet/digits --all",
        "modelnet-peer find --tag english --json",
    ),
)
@common_flags
@click.option("--task", metavar="T", help="Such as text-classification.")
@click.option("--model", metavar="M", help="A model's name, with @VERSION or as a modelnet: URI too.")
@click.option("--tag", metavar="T")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, metavar="N", help="At most (default: 20).")
@click.option("--all", "show_all", is_flag=True, help="Dead providers too.")
def find_command(
    session: Session, task: str | None, model: str | None, tag: str | None, limit: int, show_all: bool
) -> None:
    """List who offers a task, a model or a tag, best first."""
    asked = ", ".join(
        f"{kind} {what}" for kind, what in (("task", task), ("model", model), ("tag", tag)) if what
    )
    if not asked:
        raise LocalError(
            Code.BAD_INPUT,
            "say what to find: --task, --model or --tag",
            hint="modelnet-peer find --task image-classification",
        )
    output = session.output
    offers: list[dict[str, Any]] = []

    def on_offer(offer: dict[str, Any]) -> None:
        offers.append(offer)
        if output.as_json:
            output.quiet()
            output.line(offer)

    params = {"task": task, "model": model, "tag": tag, "limit": limit, "all": show_all}
    with output.progress(f"looking for {asked}"):
        session.ask("find", {**params, "timeout": session.settings.timeout}, on_item=on_offer)
    if not offers:
        hint = f"offer it yourself: modelnet-peer publish MODULE:NAME --task {task}" if task else ""
        raise NotFound(f"nobody offers {asked}", hint=hint or "--all lists those that do not answer, too")
    if not output.as_json:
        columns = ("model", "task", "state", "rtt ms", "load", "provider")
        output.table(columns, [_row(offer) for offer in offers])


def _row(offer: dict[str, Any]) -> tuple[object, ...]:
    rtt, load = offer.get("rtt_ms"), offer.get("load")
    return (
        offer.get("model"),
        offer.get("task"),
        offer.get("state"),
        None if rtt is None else f"{rtt:.1f}",
        None if load is None else f"{load:.0%}",
        offer.get("provider"),
    )


@click.command(
    "invoke",
    epilog=examples(
        "modelnet-peer invoke task:summarization 'Long text …'",
        "modelnet-peer invoke mymodel 'some text' --param n=3 --timeout 60",
        "modelnet-peer invoke modelnet/digits --input digit.npy --json",
        "modelnet-peer invoke encoder --input states.npy --out next.npy --wire int8",
        "cat letter.txt | modelnet-peer invoke mymodel --input -",
    ),
)
@common_flags
@click.argument("target")
@click.argument("text", required=False)
@click.option(
    "--input", "source", metavar="FILE|-", help=".npy tensor, .json value, else UTF-8 text; - is stdin."
)
@click.option("--param", "pairs", multiple=True, metavar="K=JSON", help="A keyword of the model; repeatable.")
@click.option("--provider", metavar="ID", help="Ask this peer and no other.")
@click.option(
    "--wire", type=click.Choice(WIRES), help="Large float tensors travel so, smaller and less exact."
)
@click.option("--out", metavar="FILE.npy", help="Write the tensor of the answer there.")
def invoke_command(
    session: Session,
    target: str,
    text: str | None,
    source: str | None,
    pairs: tuple[str, ...],
    provider: str | None,
    wire: str | None,
    out: str | None,
) -> None:
    """Call a model by its name, its modelnet: URI or task:TASK, and print its answer."""
    check_out(out)
    params = parse_params(pairs)
    value = read_input(text, source, session.output.transfer)
    printer = _Printer(session)
    timeout = session.settings.timeout
    asked = {"target": target, "params": params, "provider": provider, "wire": wire, "timeout": timeout}
    with session.output.progress(f"calling {target}"), printer:
        done = session.ask("invoke", asked, value, on_item=printer.item)
        session.output.quiet()
    if out is None:
        printer.done(done)
        return
    try:
        wrote = write_out(out, done["output"])
    except LocalError:
        printer.done(done)  # an answer that was waited for is not lost
        raise
    printer.done(done, wrote=True)
    session.output.notice(wrote)


class _Printer:
    """An answer as it comes: JSON lines, or text that grows and values that are summed up."""

    def __init__(self, session: Session) -> None:
        self._output = session.output
        self._open_line = False  # text was printed that did not end its line
        self._items = 0

    def __enter__(self) -> _Printer:
        return self

    def __exit__(self, *_: object) -> None:
        self._close_line()  # also before an error, which is a line of its own

    def item(self, item: Value) -> None:
        self._output.quiet()
        self._items += 1
        if self._output.as_json:
            self._output.line({"item": item})
        elif isinstance(item, str):  # pieces of one text: nothing between them
            self._output.text(item, end="")
            self._open_line = not item.endswith("\n")
        else:
            self._close_line()
            self._output.text(for_people(item))

    def done(self, done: dict[str, Value], *, wrote: bool = False) -> None:
        if self._output.as_json:
            self._output.line(done)
            return
        if not wrote and not (self._items and done.get("output") is None):
            self._output.text(for_people(done.get("output")))

    def _close_line(self) -> None:
        if self._open_line:
            self._output.text("")
            self._open_line = False
