"""The command `doctor`: what is wrong on this machine, one line each, and what to type."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from shlex import quote
from typing import TYPE_CHECKING

import click

from modelnet_p2p.errors import Code, LocalError
from modelnet_p2p.node.cli.common import Session, common_flags
from modelnet_p2p.node.cli.configuring import despite_bad_config
from modelnet_p2p.node.cli.helping import examples
from modelnet_p2p.node.cli.output import Output
from modelnet_p2p.node.disk.home import Home

if TYPE_CHECKING:
    from modelnet_p2p.node.checkup.finding import Finding, Tell

_MARKS = {"ok": "✓", "note": "•", "failed": "✗", "skipped": "-"}
_NAME_WIDTH = 12  # of the longest name of a check, and a space


def _without_config(home: Home, output: Output, broken: LocalError) -> None:
    with _libraries():
        from modelnet_p2p.node.checkup.examination import examine_without_config
    _examine(partial(examine_without_config, home, broken), output)


@click.command(
    "doctor",
    epilog=examples(
        "modelnet-peer doctor",
        "modelnet-peer doctor --bootstrap /ip4/192.0.2.7/tcp/4001/p2p/12D3Koo…",
        "modelnet-peer doctor --json",
    ),
)
@despite_bad_config(_without_config)
@common_flags
def doctor_command(session: Session) -> None:
    """Find out what is wrong on this machine: Python, disk, key, port, peers, calls; 0 if all is well."""
    with _libraries():
        from modelnet_p2p.node.checkup.examination import (
            examine,  # a check-up loads the whole peer, `--help` does not
        )
    _examine(partial(examine, session.settings), session.output)


def _examine(checkup: Callable[[Tell], Awaitable[Sequence[Finding]]], output: Output) -> None:
    """Run it, each finding printed as it comes; raises the verdict."""
    import trio

    from modelnet_p2p.node.checkup.examination import verdict
    from modelnet_p2p.node.logs.level import set_up_logging

    set_up_logging()
    if error := verdict(trio.run(checkup, partial(_show, output))):
        raise error


@contextmanager
def _libraries() -> Iterator[None]:
    """What cannot even be imported is the finding: no check would come so far as to tell it."""
    try:
        yield
    except ImportError as error:
        again = f"{quote(sys.executable)} -m pip install --force-reinstall modelnet-p2p"
        words = f"{error.name or 'a library'} cannot be imported: {error}"
        raise LocalError(Code.BAD_STATE, words, hint=again) from error


def _show(output: Output, finding: Finding) -> None:
    if output.as_json:
        output.line(finding.to_map())
        return
    line = f"{_MARKS[finding.state]} {finding.check:<{_NAME_WIDTH}} {finding.text}"
    if finding.why and finding.state != "ok":
        line += f" ({finding.why})"
    if finding.hint:
        line += f" → {finding.hint}"
    output.text(" ".join(line.split("\n")))
