"""`scripts/demo`: plays one demo and says at the end, for people or as JSON, whether all was right."""

from __future__ import annotations

import argparse
import json
import sys
import time

from rich.console import Console

from demos import first_light, search
from demos.stage import Stage
from processes import Failed, end_on_sigterm

DEMOS = {"first-light": first_light, "search": search}
OK, WRONG, INTERRUPTED = 0, 1, 130


def main() -> int:
    listing = "\n".join(f"  {name}: {(demo.__doc__ or '').splitlines()[0]}" for name, demo in DEMOS.items())
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="Shows the network at work with real processes on this machine, and cleans up.",
        epilog=f"demos:\n{listing}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", default="first-light", choices=DEMOS, metavar="NAME")
    parser.add_argument("--json", action="store_true", help="a last line on stdout with every answer")
    options = parser.parse_args()
    end_on_sigterm()
    stage = Stage(Console(stderr=True, soft_wrap=True))
    started = time.monotonic()
    failed = ""
    try:
        DEMOS[options.name].play(stage)
    except Failed as error:
        failed = str(error)
    except KeyboardInterrupt:
        stage.console.print("interrupted; every process that was started has been ended")
        return INTERRUPTED
    wrong = sum(not answer.correct for answer in stage.answers)
    fine = not failed and not wrong
    seconds = round(time.monotonic() - started, 1)
    if failed:
        stage.console.print(failed, style="red", markup=False)
    if options.json:
        answers = [answer.to_map() for answer in stage.answers]
        print(json.dumps({"demo": "ok" if fine else "failed", "seconds": seconds, "answers": answers}))
    else:
        right = f"{len(stage.answers) - wrong} of {len(stage.answers)} answers right"
        print(f"demo {'ok' if fine else 'FAILED'}: {right}, {seconds} s")
    return OK if fine else WRONG


if __name__ == "__main__":
    sys.exit(main())
