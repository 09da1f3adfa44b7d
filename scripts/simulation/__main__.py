"""`scripts/simulate`: plays the scenarios asked for; exit 0 when all their marks are met, 1 when not."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from simulation.curves import read_rows
from simulation.kinds import meant
from simulation.play import play
from simulation.scenario import FOLDER, BadScenario, Scenario, read
from simulation.show import Played, console_on, table

MET, MISSED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
SEED = 2026
RARE = "rare"  # scripts/simulate starts its module
RARE_TITLE = "Searches for what one provider of hundreds alone has; by itself: scripts/simulate rare"


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/simulate",
        description="Real walks, tables, stores and signatures in virtual time; same seed, same events.",
    )
    parser.add_argument("scenario", nargs="*", help="a name of --list, or the path of a .toml file")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of everything that is drawn ({SEED})")
    parser.add_argument("--full", action="store_true", help="at the size that the marks speak of: minutes")
    parser.add_argument("--json", action="store_true", help="a line on stdout for each phase")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="pictures of all that was played")
    parser.add_argument(
        "--from", type=Path, metavar="FILE", dest="kept", help="... and of what is kept in it"
    )
    parser.add_argument("--list", action="store_true", help="the scenarios there are")
    options = parser.parse_args()
    if options.kept and not options.plot:
        parser.error("--from FILE goes with --plot DIR")
    if not (options.scenario or options.list or options.kept):
        parser.error("name a scenario; --list shows them")
    return options


def named(name: str) -> Path:
    """The file of a scenario; raises BadScenario."""
    if name.endswith(".toml"):
        return Path(name)
    path = FOLDER / f"{name}.toml"
    if name == RARE:
        raise BadScenario(f"{RARE} is a world of its own, played alone: scripts/simulate {RARE} [--full]")
    if not path.exists():
        raise BadScenario(f"no scenario is called {meant(name, [*names(), RARE])}")
    return path


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def _make(folder: Path) -> None:
    """The folder of the pictures; raises BadScenario."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadScenario(f"no pictures can be put into {folder}: {error.strerror}") from error


def _why_not(own: list[dict[str, object]], kept: Path | None) -> str:
    if own:
        return "no figure was measured, as the table says; more reads, deaths or seconds have some"
    return f"{kept} holds nothing that a picture is of; pictures are drawn of what --json prints"


def perform(scenario: Scenario, options: argparse.Namespace) -> list[Played]:
    """Play it, telling how far it is on stderr; with --json each phase as soon as it is over."""
    console = console_on(sys.stderr)
    found = []
    for result, digest in play(scenario, options.seed, lambda line: console.print(line, markup=False)):
        found.append(Played(scenario.name, options.seed, result, digest))
        if options.json:
            print(json.dumps(found[-1].to_map()), flush=True)
    if not options.json:
        table(scenario.title, found, scenario.beside)
    return found


def main() -> int:
    options = read_options()
    try:
        scenarios = [read(named(name)) for name in (names() if options.list else options.scenario)]
        if options.list:
            for scenario in scenarios:
                print(f"{scenario.name:16} {scenario.title}")
            print(f"{RARE:16} {RARE_TITLE}")
            return MET
        if options.plot is not None:
            _make(options.plot)  # now, and not after minutes
        played: list[Played] = []
        for scenario in scenarios:
            played += perform(scenario.at_full_size() if options.full else scenario, options)
        if options.plot is not None:
            from simulation.plots import draw, draw_own  # matplotlib takes half a second

            own = [one.to_map() for one in played]
            rows = [*(read_rows(options.kept) if options.kept else []), *own]
            written = [*draw(rows, options.plot), *draw_own(own, options.plot)]
            for path in written:
                print(path, file=sys.stderr)
            if not written:
                print(f"scripts/simulate: nothing is drawn: {_why_not(own, options.kept)}", file=sys.stderr)
    except BadScenario as error:
        print(f"scripts/simulate: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        return INTERRUPTED
    return MISSED if any(one.missed for one in played) else MET


if __name__ == "__main__":
    sys.exit(main())
