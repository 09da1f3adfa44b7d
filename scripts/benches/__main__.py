"""`scripts/bench`: measures the groups asked for, a line or a row for each figure."""

from __future__ import annotations

import argparse
import json
import sys

import trio
from rich.console import Console

from benches import overlay, wire
from benches.figure import Figure, show
from benches.swarm import PEERS, Swarm, open_swarm
from processes import Failed, end_on_sigterm

GROUPS = {"wire": wire, "overlay": overlay}
OK, FAILED, INTERRUPTED = 0, 1, 130


async def measure(groups: list[str], swarm: Swarm, *, as_json: bool, console: Console) -> list[Figure]:
    """In order; with `as_json` each figure is printed as soon as it is known."""
    figures = []
    for group in groups:
        console.print(f"measuring {group} ...", highlight=False)
        async for figure in GROUPS[group].measure(swarm):
            figures.append(figure)
            if as_json:
                print(json.dumps(figure.to_map()), flush=True)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Medians over loopback; only runs on one machine compare.",
    )
    parser.add_argument("group", nargs="*", help=f"of {', '.join(GROUPS)}; all of them where none is named")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: about half a minute")
    parser.add_argument("--json", action="store_true", help="a line on stdout for each figure")
    options = parser.parse_args()
    if unknown := set(options.group) - set(GROUPS):
        parser.error(f"no group {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    end_on_sigterm()
    console = Console(stderr=True)
    try:
        console.print(f"starting a swarm of {PEERS} peers ...", highlight=False)
        with open_swarm(options.quick) as swarm:
            figures = trio.run(
                lambda: measure(options.group or list(GROUPS), swarm, as_json=options.json, console=console)
            )
    except Failed as error:
        console.print(str(error), style="red", markup=False)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    if not options.json:
        show(figures)
    return OK


if __name__ == "__main__":
    sys.exit(main())
