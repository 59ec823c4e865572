"""`python -m tests.simulation`: look for a schedule that breaks a promise; replay and shrink one."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from itertools import count, islice

from .core import load
from .mutants import MUTANTS
from .plan import Token
from .search import find, shrink, story
from .simulation import quiet

SCHEDULES = 500


def main() -> int:
    """Run it; 1 when an invariant did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", metavar="TOKEN", help="replay one simulation, and tell its story")
    parser.add_argument("--schedules", type=int, help=f"how many, {SCHEDULES} by default")
    parser.add_argument("--minutes", type=float, help="for how long, instead")
    parser.add_argument("--first", type=int, help="the first seed; a fresh one by default")
    parser.add_argument("--lines", action="store_true", help="threads may switch at every line of the core")
    parser.add_argument("--mutant", choices=MUTANTS, help="in a core with this defect")
    arguments = parser.parse_args()
    core = load(*(MUTANTS[arguments.mutant].edits if arguments.mutant else ()), lines=arguments.lines)
    if arguments.seed is not None:
        print(story(core, Token.parse(arguments.seed)))
        return 0
    first = secrets.randbelow(10**9) if arguments.first is None else arguments.first
    print(f"seeds from {first}", flush=True)
    seeds = count(first) if arguments.minutes else islice(count(first), arguments.schedules or SCHEDULES)
    search = find(core, seeds, until=arguments.minutes and time.monotonic() + 60 * arguments.minutes)
    print(search)
    if search.failed is None:
        return 0
    print(f"\nseed {search.failed}: {search.failure}\nshrinking ...", flush=True)
    with quiet():
        small = shrink(core, search.failed)
    print(story(core, small))
    print(f"\nreplay it: make simulate SEED={small}{' ARGS=--lines' if arguments.lines else ''}")
    return 1


sys.exit(main())
