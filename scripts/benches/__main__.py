"""`scripts/bench`: measures the groups asked for, a line or a row for each figure."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from rich.console import Console

from benches import crowd, environment, figure, first, marks, overlay, serving, wire
from benches.figure import Figure
from benches.systems import ABROAD, MODULES, OURS
from processes import Failed, end_on_sigterm

GROUPS = {"wire": wire, "overlay": overlay, "serving": serving, "first": first}
LARGE = {"crowd": crowd}  # measured only where it is asked for: minutes, and most of a machine
OTHERS = tuple(name for name in MODULES if name != OURS)
OK, FAILED, INTERRUPTED = 0, 1, 130


def measure(options: argparse.Namespace, against: Sequence[str], console: Console) -> list[Figure]:
    """In order; with --json each figure is printed as soon as it is known."""
    figures = []
    for group in options.group or GROUPS:
        console.print(f"measuring {group}", highlight=False)
        for one in (GROUPS | LARGE)[group].measure(options.quick, against, console):
            figures.append(one)
            if options.json:
                print(json.dumps(one.to_map()), flush=True)
    return figures


def at_hand(wanted: Sequence[str], console: Console) -> list[str]:
    """Those of the systems that can run here; a line about the others."""
    why = environment.missing()
    away = [name for name in wanted if name in ABROAD and why]
    if away:
        console.print(f"without {', '.join(away)}: {why}", style="yellow", highlight=False)
    return [name for name in wanted if name not in away]


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Medians over loopback; only figures of one run compare.",
    )
    groups = f"of {', '.join(GROUPS)}, all of them where none is named; or {', '.join(LARGE)}"
    parser.add_argument("group", nargs="*", help=groups)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: less than two minutes")
    parser.add_argument("--json", action="store_true", help="a line on stdout for each figure")
    parser.add_argument(
        "--against",
        default="",
        metavar="SYSTEM,…",
        help=f"measure these too, by turns with ours: {','.join(OTHERS)}",
    )
    parser.add_argument("--prepare", action="store_true", help=f"make {environment.FOLDER} first, for them")
    options = parser.parse_args()
    options.against = [name for name in options.against.split(",") if name]
    for kind, given, known in (("group", options.group, GROUPS | LARGE), ("system", options.against, OTHERS)):
        if unknown := set(given) - set(known):
            parser.error(f"no {kind} {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return options


def main() -> int:
    options = read_options()
    end_on_sigterm()
    console = Console(stderr=True)
    try:
        if options.prepare:
            environment.prepare(lambda line: console.print(line, highlight=False))
            if not (options.group or options.against):
                return OK
        figures = measure(options, at_hand(options.against, console), console)
    except Failed as error:
        console.print(str(error), style="red", markup=False)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    if not options.json:
        figure.show(figures)
    if verdicts := marks.judge(figures):
        marks.show(verdicts, to_stderr=options.json)
    return OK


if __name__ == "__main__":
    sys.exit(main())
