"""Waiting: what a thousand waits cost, for one key and for many."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ..bench import progress
from ..observers import Observer

if TYPE_CHECKING:
    from ..bench import Bench
    from ..contenders import AsyncSeat
    from ..crew import AsyncDesk, Crew
    from ..places import Place

__all__ = ["HOW", "NAME", "run"]

NAME = "waiting"
HOW = (
    "One process holds the keys, all on one connection where its library can; 1,000 tasks (200 with `--quick`) of "
    "another wait for them. What counts is the server's own count of "
    "what the waiting process opened."
)
# Opened at one time.
OPENERS = 16


def run(bench: Bench, place: Place) -> None:
    """Measure connections."""
    for driver in place.async_drivers[:1]:
        for tasks, keys in bench.sizes.waiting:
            setting = f"{tasks} tasks, {'one key' if keys == 1 else f'{keys} keys'}"
            progress(f"{NAME} · {place.title} · {driver} · {setting}")
            found: dict[str, list[float]] = {}
            for crew in bench.fresh_crews(place, NAME, driver, 2):
                try:
                    found[crew.name] = [_count(crew, place, tasks, keys)]
                except Exception as error:
                    bench.figures.fail(NAME, place.kind, crew.name, error)
            bench.figures.add(NAME, place.kind, setting, "connections", found)


def _count(crew: Crew, place: Place, tasks: int, keys: int) -> float:
    observer = Observer(place, crew)
    crew.run(hold, tasks, keys, size=1)
    before = observer.settled()
    crew.run(wait, tasks, keys, first=1)
    count = observer.settled() - before
    crew.run(waiting, tasks, first=1)
    return count


def hold(desk: AsyncDesk, tasks: int, keys: int) -> None:
    """Take so many keys on one seat."""
    desk.run(_hold(desk, tasks, keys))


async def _hold(desk: AsyncDesk, tasks: int, keys: int) -> None:
    seat = await desk.contender.seat()
    for number in range(keys):
        await desk.held_async.enter_async_context(seat.lock(_key(desk, tasks, keys, number)))
    desk.held_async.push_async_callback(seat.close)


def _key(desk: AsyncDesk, tasks: int, keys: int, number: int) -> str:
    """Return a key that no earlier setting used: in Redis, its lock would outlive its holder."""
    return desk.contender.key(f"waiting-{tasks}-{keys}-{number % keys}")


def wait(desk: AsyncDesk, tasks: int, keys: int) -> None:
    """Let so many tasks wait for keys that are held; they still wait when this returns."""
    desk.run(_wait(desk, tasks, keys))


async def _wait(desk: AsyncDesk, tasks: int, keys: int) -> None:
    few = asyncio.Semaphore(OPENERS)
    shared = await desk.contender.seat() if desk.contender.one_seat else None

    async def seat() -> AsyncSeat:
        async with few:
            return shared or await desk.contender.seat()

    async def one(seat: AsyncSeat, key: str) -> None:
        async with seat.lock(key):
            raise RuntimeError("granted, while another process holds it")

    seats = await asyncio.gather(*(seat() for _ in range(tasks)))
    desk.tasks = [asyncio.create_task(one(seat, _key(desk, tasks, keys, number))) for number, seat in enumerate(seats)]
    await asyncio.sleep(0.5)


def waiting(desk: AsyncDesk, tasks: int) -> None:
    """Check that all still wait."""
    ended: list[Any] = [task for task in desk.tasks if task.done()]
    if ended or len(desk.tasks) != tasks:
        error = next((task.exception() for task in ended if not task.cancelled()), None)
        raise RuntimeError(f"{len(ended)} of {tasks} no longer wait: {error!r}")
