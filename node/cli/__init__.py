"""`modelnet-peer`: the commands of one peer, and of a person who only wants to ask.

This page is all that is read before a Ctrl-C has somewhere to go: importing the rest takes long enough to
be interrupted, and that must not print where Python was at that moment.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status is returned, or given to the shell when `argv` is None."""
    if argv is None:
        signal.signal(signal.SIGINT, _leave)
        if sys.argv[1:2] == ["join"]:
            signal.signal(signal.SIGTERM, _leave)  # only there it is an orderly end
    from modelnet_p2p.node.cli.app import run_app

    return run_app(argv)


def _leave(number: int, frame: object) -> None:
    """Nothing has begun: end at once, as `join` (0) or as an interrupted command (130)."""
    os._exit(0 if sys.argv[1:2] == ["join"] else 130)


__all__ = ["main"]
