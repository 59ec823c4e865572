"""Hand-over: from one process' release to the return of another's acquire."""

from __future__ import annotations

import random
import time
from functools import partial
from statistics import median
from typing import TYPE_CHECKING

from ..bench import progress
from ..contenders import SYNC
from ..referee import ASKING, RELEASED_AT, STOP, TURN

if TYPE_CHECKING:
    from ..bench import Bench
    from ..crew import Crew, Desk
    from ..places import Place
    from ..referee import Referee

__all__ = ["HOW", "NAME", "run"]

NAME = "hand-over"
HOW = (
    "Two processes take turns. While one holds the key, the other waits for it; the time runs from just before the "
    "holder's release to the return of the waiter's acquire. The holder lets the waiter wait for a random time of at "
    "least 3 ms, spread over 5 ms or, where the waiter polls, over the time between two of its polls."
)
SETTLED = 0.003
SPREAD = 0.005
GLANCE = 0.0003
# A poller is slow enough to measure only with a longer look.
MOST_SECONDS = 2.5


def run(bench: Bench, place: Place) -> None:
    """Measure rounds of hand-overs."""
    progress(f"{NAME} · {place.title}")
    actions = {}
    counts: dict[str, list[int]] = {}
    for name, crew in bench.crews(place, NAME).items():
        poll = next(kind.poll(place.kind) for kind in SYNC if kind.name == name)
        counts[name] = []
        seconds = min(max(bench.sizes.crowd_seconds, 2.5 * poll), MOST_SECONDS)
        actions[name] = partial(_round, crew, seconds, max(SPREAD, poll), counts[name])
    found = bench.rounds(NAME, place, actions, bench.sizes.crowd_rounds, bench.slow(place))
    total = {name: sum(of) for name, of in counts.items()}
    bench.figures.add(NAME, place.kind, "", "ms", found, handovers=total)


def _round(crew: Crew, seconds: float, spread: float, counts: list[int]) -> float:
    crew.referee.reset()
    waits = [wait for one in crew.run(take_turns, seconds, spread, size=2) for wait in one]
    counts.append(len(waits))
    return median(waits) * 1000


def take_turns(desk: Desk, seconds: float, spread: float) -> list[float]:
    """Play one of the two; return the seconds from the other's releases to our grants."""
    me, other = desk.place, 1 - desk.place
    cells, seat, key = desk.referee.cells, desk.seat(), desk.contender.key(NAME)
    waits: list[float] = []
    until = time.monotonic() + seconds
    if me == 1:
        _await(cells, TURN, 1)  # the first process has the key
    while True:
        cells[ASKING + me] = 1
        with seat.lock(key):
            now = time.monotonic_ns()
            desk.referee.enter(me + 1)
            if cells[RELEASED_AT]:
                waits.append((now - cells[RELEASED_AT]) / 1e9)
            cells[ASKING + me] = 0
            cells[TURN] = me + 1
            last = bool(cells[STOP])
            if not last:
                _let_wait(desk.referee, other, spread)
                cells[STOP] = time.monotonic() >= until
            desk.referee.leave(me + 1)
            cells[RELEASED_AT] = time.monotonic_ns()
        if last:
            return waits
        _await(cells, TURN, other + 1)
        if cells[STOP]:
            return waits


def _let_wait(referee: Referee, other: int, spread: float) -> None:
    _await(referee.cells, ASKING + other, 1)
    time.sleep(SETTLED + random.uniform(0, spread))


def _await(cells: memoryview[int], cell: int, value: int) -> None:
    while cells[cell] != value:
        time.sleep(GLANCE)
