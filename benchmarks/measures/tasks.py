"""Tasks: a thousand of one event loop on one key."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from ..bench import progress

if TYPE_CHECKING:
    from ..bench import Bench
    from ..contenders import AsyncSeat
    from ..crew import AsyncDesk, Crew
    from ..places import Place

__all__ = ["HOW", "NAME", "run"]

NAME = "tasks"
HOW = (
    "1,000 tasks (200 with `--quick`) of one event loop take one key in turns with empty bodies. Where each needs a "
    "connection of its own, they share ten. Each contender is measured for itself, so that the ratio is one of medians."
)
CONNECTIONS = 10
GRACE = 0.2


def run(bench: Bench, place: Place) -> None:
    """Measure grants per second."""
    for driver in place.async_drivers[:1]:
        progress(f"{NAME} · {place.title} · {driver}")
        found: dict[str, list[float]] = {}
        for crew in bench.fresh_crews(place, NAME, driver, 1):
            try:
                found[crew.name] = _rounds(crew, bench)
            except Exception as error:
                bench.figures.fail(NAME, place.kind, crew.name, error)
        bench.figures.add(NAME, place.kind, driver, "grants/s", found)


def _rounds(crew: Crew, bench: Bench) -> list[float]:
    crew.run(contend, CONNECTIONS, bench.sizes.crowd_seconds / 4)
    return [crew.run(contend, bench.sizes.many, bench.sizes.crowd_seconds)[0] for _ in range(bench.sizes.crowd_rounds)]


def contend(desk: AsyncDesk, tasks: int, seconds: float) -> float:
    """Return the grants of a second."""
    return desk.run(_contend(desk, tasks, seconds))


async def _contend(desk: AsyncDesk, tasks: int, seconds: float) -> float:
    contender = desk.contender
    seats = [await contender.seat() for _ in range(1 if contender.one_seat else CONNECTIONS)]
    crowd = _Crowd(desk, seats, time.monotonic() + seconds)
    running = [asyncio.create_task(crowd.take_turns()) for _ in range(tasks)]
    _, late = await asyncio.wait(running, timeout=seconds + GRACE)
    for task in late:  # a task that polls would notice the end late
        task.cancel()
    answers = await asyncio.gather(*running, return_exceptions=True)
    for seat in seats:
        with suppress(Exception):  # after a cancel, a driver may find its connection broken
            await seat.close()
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return crowd.grants / seconds


class _Crowd:
    """Tasks that take turns until the time is over."""

    def __init__(self, desk: AsyncDesk, seats: list[AsyncSeat], until: float) -> None:
        self._desk = desk
        self._key = desk.contender.key(f"{NAME}-{time.monotonic_ns()}")
        self._until = until
        self._seat = seats[0] if len(seats) == 1 else None
        self._free: asyncio.Queue[AsyncSeat] = asyncio.Queue()
        for seat in seats:
            self._free.put_nowait(seat)
        self.grants = 0

    async def take_turns(self) -> None:
        """Be one of the tasks."""
        while time.monotonic() < self._until:
            if self._seat is not None:
                await self._take(self._seat)
                continue
            seat = await self._free.get()
            try:
                if time.monotonic() < self._until:
                    await self._take(seat)
            finally:
                self._free.put_nowait(seat)

    async def _take(self, seat: AsyncSeat) -> None:
        referee = self._desk.referee
        async with seat.lock(self._key):
            if time.monotonic() < self._until:
                referee.enter(1)
                self.grants += 1
                referee.leave(1)
