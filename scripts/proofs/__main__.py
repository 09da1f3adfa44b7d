"""`scripts/prove`: each kind of bad record, as often as asked, at every hop; exit 0 when none got past one.

Committed results: `scripts/proofs/records.jsonl`. The cases are those of `tests/dht/test_bad_records.py`, and
more of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from datetime import UTC, datetime

from bad_records import AT_HOLDERS, MAKERS, SEED, Case, Maker, World, cases, make_world
from hops import Hops

PROVEN, DISPROVEN, INTERRUPTED = 0, 1, 130
CHUNK = 1000  # cases made at once, so that those of one place travel together


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/prove", description="What a test run has no time for.")
    parser.add_argument("what", choices=["records"], help="bad records at holders and readers")
    parser.add_argument("--cases", type=int, default=10_000, metavar="N", help="of each kind (10,000)")
    parser.add_argument("--json", action="store_true", help="a line on stdout for each kind")
    return parser.parse_args()


def prove(world: World, maker: Maker, count: int) -> dict[str, object]:
    """What became of `count` records of that kind; raises AssertionError naming one that got through."""
    started, hops = time.process_time(), Hops(world)
    kinds: Counter[str] = Counter()
    made: list[Case] = []
    for case in cases(world, maker, count):
        kinds[case.kind.decode().split("/")[2]] += 1
        made.append(case)
        if len(made) == CHUNK:
            hops.travel(made)
            made.clear()
    hops.travel(made)
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "seed": SEED,
        "bad": maker.__name__,
        "cases": kinds.total(),
        "of": dict(kinds),
        "refused": dict(hops.refused.most_common()),
        "got_through": 0,
        "cpu_s": round(time.process_time() - started, 1),
    }


def main() -> int:
    options = read_options()
    world = make_world()
    for maker in (*MAKERS, *AT_HOLDERS):
        try:
            result = prove(world, maker, options.cases)
        except AssertionError as error:
            print(f"scripts/prove: {maker.__name__}: {str(error)[:2000]}", file=sys.stderr)
            return DISPROVEN
        except KeyboardInterrupt:
            return INTERRUPTED
        if options.json:
            print(json.dumps(result), flush=True)
        else:
            print(f"{result['bad']:24} {result['cases']:>8} {result['refused']}", flush=True)
    return PROVEN


if __name__ == "__main__":
    sys.exit(main())
