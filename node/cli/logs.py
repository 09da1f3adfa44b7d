"""The command `logs`: what the peer on this home has written, and what it writes now."""

from __future__ import annotations

import time
from collections.abc import Sequence

import click

from modelnet_p2p.node.cli.common import Session, common_flags
from modelnet_p2p.node.cli.helping import examples

LOOK_SECONDS = 0.2  # between two looks at a followed log: at once for a person, nothing for the machine
INTERRUPTED = 130


@click.command(
    "logs",
    epilog=examples(
        "modelnet-peer logs",
        "modelnet-peer logs -f              # and what comes, until Ctrl-C",
        "modelnet-peer logs -n 1000 --json",
    ),
)
@common_flags
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(0), default=50, metavar="N", help="Lines (default: 50).")
def logs_command(session: Session, follow: bool, lines: int) -> int:
    """Show the log of the peer on this home; it is kept in the home, whether the peer runs or not."""
    from modelnet_p2p.node.logs.tail import Tail, log_path

    with Tail(session.settings.home) as tail:
        session.output.notice(f"from {log_path(session.settings.home)}")
        _show(session, tail.last(lines))
        try:
            while follow:
                time.sleep(LOOK_SECONDS)
                _show(session, tail.more())
        except KeyboardInterrupt:  # the way to end it, and no error to tell
            return INTERRUPTED
    return 0


def _show(session: Session, lines: Sequence[str]) -> None:
    from modelnet_p2p.node.logs.tail import parse_line

    for line in lines:
        if session.output.as_json:
            session.output.line(dict(parse_line(line)))
        else:
            session.output.text(line)
