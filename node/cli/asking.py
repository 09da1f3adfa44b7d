"""The command that calls a model: invoke."""

from __future__ import annotations

from typing import Any

import click

from modelnet_p2p.errors import LocalError
from modelnet_p2p.node.cli import words
from modelnet_p2p.node.cli.common import Session, common_flags
from modelnet_p2p.node.cli.helping import examples
from modelnet_p2p.node.cli.values import check_out, for_people, parse_params, read_input, write_out
from modelnet_p2p.payload import WIRES

Value = Any  # a value of the wire: None, bool, int, float, str, bytes, list, dict or array


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
@click.argument("target", shell_complete=words.known_models)
@click.argument("text", required=False)
@click.option(
    "--input",
    "source",
    metavar="FILE|-",
    shell_complete=words.files,
    help=".npy tensor, .json value, else UTF-8 text; - is stdin.",
)
@click.option("--param", "pairs", multiple=True, metavar="K=JSON", help="A keyword of the model; repeatable.")
@click.option("--provider", metavar="ID", help="Ask this peer and no other.")
@click.option(
    "--wire", type=click.Choice(WIRES), help="Large float tensors travel so, smaller and less exact."
)
@click.option(
    "--out", metavar="FILE.npy", shell_complete=words.files, help="Write the tensor of the answer there."
)
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
