"""Threads and processes on one key: how many get it in a second, and whether each gets its share."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING

from ..bench import progress
from ..contenders import RAW
from ..contenders.ours import Ours
from ..crew import Crew, Desk, sleep_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..bench import Bench
    from ..places import Place

__all__ = ["HOW", "run"]

HOW = {
    "threads": "16 threads of one process take one key in turns with empty bodies, for half a second a round.",
    "processes": (
        "4 processes with one thread each do the same. They and the server keep all CPUs of a small machine busy, so "
        "that here, more than anywhere else, a library pays for all that it computes beside its statements."
    ),
    "shares": (
        "2 processes with 8 threads each do the same: dlock and the raw driver only. The smallest share is what the "
        "process that got less got of all grants; half would be even."
    ),
}
# Measure -> processes, and threads of each.
SHAPES = {"threads": (1, 16), "processes": (4, 1), "shares": (2, 8)}
# The contenders that are compared where only we hand on within a process.
COMPARED = (RAW, Ours.name)
# How long before the start all learn of it.
NOTICE = 0.1


def run(measure: str, bench: Bench, place: Place) -> None:
    """Measure grants per second."""
    processes, threads = SHAPES[measure]
    progress(f"{measure} · {place.title}")
    actions: dict[str, Callable[[], float]] = {}
    shares: dict[str, list[float]] = {}
    slow = bench.slow(place)
    for name, crew in bench.crews(place, measure, COMPARED if measure == "shares" else None).items():
        try:
            crew.run(_warm_up, threads, size=processes)
            if name not in slow:
                _round(crew, processes, threads, NOTICE, [])  # what is opened only for a wait
        except Exception as error:
            bench.figures.fail(measure, place.kind, name, error)
        else:
            shares[name] = []
            actions[name] = partial(_round, crew, processes, threads, bench.sizes.crowd_seconds, shares[name])
    found = bench.rounds(measure, place, actions, bench.sizes.crowd_rounds, slow)
    smallest = {name: sum(of) / len(of) for name, of in shares.items() if of}
    bench.figures.add(measure, place.kind, "", "grants/s", found, smallest_share=smallest)


def _round(crew: Crew, processes: int, threads: int, seconds: float, shares: list[float]) -> float:
    crew.referee.reset()
    start = time.monotonic() + NOTICE
    grants = crew.run(contend, threads, start, start + seconds, size=processes)
    parts = [sum(of) for of in grants] if processes > 1 else grants[0]
    if sum(parts):
        shares.append(min(parts) / sum(parts))
    return sum(parts) / seconds


def _warm_up(desk: Desk, threads: int) -> None:
    """Let each thread open what it needs."""
    together = threading.Barrier(threads)

    def work(number: int) -> None:
        together.wait()
        with desk.seat().lock(desk.contender.key(f"warm-up-{desk.place}-{number}")):
            pass

    list(desk.pool.map(work, range(threads)))


def contend(desk: Desk, threads: int, start: float, until: float) -> list[int]:
    """Return how often each thread got the key."""
    together = threading.Barrier(threads)

    def work(number: int) -> int:
        together.wait()
        return _take_turns(desk, 1 + desk.place * threads + number, start, until)

    return list(desk.pool.map(work, range(threads)))


def _take_turns(desk: Desk, number: int, start: float, until: float) -> int:
    seat, referee, key = desk.seat(), desk.referee, desk.contender.key("crowd")
    grants = 0
    sleep_until(start)
    while True:
        with seat.lock(key):
            if time.monotonic() >= until:
                return grants
            referee.enter(number)
            grants += 1
            referee.leave(number)
