"""The command line: measure, and report."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from . import about
from .bench import Bench, progress
from .crew import raise_file_limit
from .figures import Figures
from .measures import MEASURES
from .places import KINDS, missing_places, open_places
from .report import print_tables, write_docs
from .sizes import FULL, QUICK

DOCS = Path(__file__).parent.parent / "docs"


def main() -> None:
    """Do what the command line says."""
    options = _parse()
    signal.signal(signal.SIGTERM, _end)
    figures = Figures.load(options.load) if options.load else _measure(options)
    if options.remark:
        figures.about["remark"] = options.remark
    if options.save:
        figures.save(options.save)
    print_tables(figures)
    if options.docs:
        write_docs(figures, options.docs)


def _end(number: int, _: object) -> None:
    """End as after a keyboard interrupt: the servers and processes that were started end with us."""
    sys.exit(128 + number)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="How fast locks are.")
    parser.add_argument("--quick", action="store_true", help="a look in about a minute, not for the docs")
    parser.add_argument("--only", nargs="+", choices=list(MEASURES), default=list(MEASURES), metavar="MEASURE")
    parser.add_argument("--servers", nargs="+", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--save", type=Path, metavar="FILE", help="keep all numbers as JSON")
    parser.add_argument("--load", type=Path, metavar="FILE", help="measure nothing, report what was kept")
    parser.add_argument(
        "--docs", type=Path, nargs="?", const=DOCS, metavar="FOLDER", help="write benchmarks.md and benchmarks.svg"
    )
    parser.add_argument("--remark", metavar="TEXT", help="what a reader must know of this run beside its figures")
    options = parser.parse_args()
    options.servers = tuple(options.servers or (("postgresql", "sqlite") if options.quick else KINDS))
    return options


def _measure(options: argparse.Namespace) -> Figures:
    raise_file_limit()
    redis = about.find_redis()
    figures = Figures(left_out={**missing_places(options.servers), **about.what_is_left_out(redis)})
    for name, reason in figures.left_out.items():
        progress(f"left out: {name}: {reason}")
    with open_places(options.servers, redis, progress) as places:
        figures.about = about.describe(places, redis) | {"sizes": "quick" if options.quick else "full"}
        for place in places:
            with Bench(QUICK if options.quick else FULL, figures) as bench:
                for name in options.only:
                    if place.kind in MEASURES[name].kinds:
                        MEASURES[name].run(bench, place)
                        if options.save:  # what a run has measured until it is ended is not lost
                            figures.save(options.save)
    progress("done")
    return figures
