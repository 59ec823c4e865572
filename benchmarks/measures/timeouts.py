"""Timeouts: how much later than asked a wait in vain returns."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ..bench import progress

if TYPE_CHECKING:
    from ..bench import Bench
    from ..crew import Desk
    from ..places import Place

__all__ = ["HOW", "NAME", "run"]

NAME = "timeouts"
HOW = (
    "One process holds a key, another waits for it with a timeout, in vain; what counts is how much later than asked "
    "the wait ends (below 0: too early). All contenders do so at the same time: they mostly sleep."
)


def run(bench: Bench, place: Place) -> None:
    """Measure how much later."""
    progress(f"{NAME} · {place.title}")
    crews = bench.crews(place, NAME)
    running = {}
    slow = bench.slow(place)
    for name, crew in crews.items():
        try:
            crew.run(hold, size=1)
            waits = [(asked, max(2, count // 3) if name in slow else count) for asked, count in bench.sizes.waits]
            running[name] = crew.start(late, waits, size=1, first=1)
        except Exception as error:
            bench.figures.fail(NAME, place.kind, name, error)
    found: dict[str, list[list[float]]] = {}
    for name, answer in running.items():
        try:
            found[name] = answer()[0]
            crews[name].run(let_go, size=1)
        except Exception as error:
            bench.figures.fail(NAME, place.kind, name, error)
    for number, (asked, _) in enumerate(bench.sizes.waits):
        of = {name: lates[number] for name, lates in found.items()}
        bench.figures.add(NAME, place.kind, f"{asked:g} s", "ms late", of)


def hold(desk: Desk) -> None:
    """Take the key."""
    desk.held.enter_context(desk.seat().lock(desk.contender.key(NAME)))


def let_go(desk: Desk) -> None:
    """Give the key back."""
    desk.held.close()


def late(desk: Desk, waits: list[tuple[float, int]]) -> list[list[float]]:
    """Return the milliseconds beyond each timeout."""
    return [[_late(desk, asked) for _ in range(count)] for asked, count in waits]


def _late(desk: Desk, asked: float) -> float:
    started = time.monotonic()
    if desk.seat().acquire(desk.contender.key(NAME), asked):
        raise RuntimeError(f"granted after {time.monotonic() - started:.3f} s, while another holds it")
    return (time.monotonic() - started - asked) * 1000
