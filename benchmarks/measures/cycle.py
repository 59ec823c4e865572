"""Cycle: take and give back a free lock, again and again."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from ..bench import progress
from ..contenders import RAW, async_contenders, contenders
from ..contenders.ours import Ours

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..bench import Bench
    from ..contenders import AsyncContender, AsyncSeat, Contender, Seat
    from ..places import Place

__all__ = ["HOW", "MAIN", "NAME", "run", "run_jobs"]

NAME = "cycle"
HOW = (
    "One thread or task takes a free lock with `with` and gives it back, with nothing in between, batch by batch. "
    "Client and server each have CPUs of their own, unless the setting says otherwise."
)
MAIN = "main thread"
THREAD = "another thread"
BESIDE = "main thread, holding another lock"
BESIDE_IN_THREAD = "another thread, holding another lock"
ONE_CPU = "main thread, client and server on one CPU"
# The contenders in the settings that matter to us alone.
COMPARED = (RAW, Ours.name)
# Cycles before the clock starts: drivers prepare statements, caches fill.
WARM_UP = 30


def run(bench: Bench, place: Place) -> None:
    """Measure all settings that a database has."""
    with place.pinned(apart=True):
        _run_sync(bench, place, MAIN)
        _run_sync(bench, place, BESIDE)
        _in_thread(partial(_run_sync, bench, place, THREAD))
        _in_thread(partial(_run_sync, bench, place, BESIDE_IN_THREAD))
    if place.pinnable:
        with place.pinned(apart=False):
            _run_sync(bench, place, ONE_CPU)
    for driver in place.async_drivers:
        with place.pinned(apart=True):
            _run_async(bench, place, driver, f"{driver}, async")
            _run_async(bench, place, driver, f"{driver}, async, holding another lock")
        if place.pinnable:
            with place.pinned(apart=False):
                _run_async(bench, place, driver, f"{driver}, async, client and server on one CPU")


def run_jobs(bench: Bench, place: Place) -> None:
    """Measure what a request pays that opens a lock from nothing but its engine."""
    with place.pinned(apart=True):
        _run_sync(bench, place, MAIN, job=True)


def _run_sync(bench: Bench, place: Place, setting: str, *, job: bool = False) -> None:
    measure = "job" if job else NAME
    progress(f"{measure} · {place.title} · {setting}")
    with ExitStack() as stack:
        actions = {}
        for kind in contenders(place.address, measure):
            if setting not in (MAIN, ONE_CPU) and kind.name not in COMPARED:
                continue
            try:
                seat, key = stack.enter_context(_seat(kind, place, beside="holding" in setting, job=job))
                actions[kind.name] = _batch(seat, key, bench.sizes.batch_seconds)
            except Exception as error:
                bench.figures.fail(measure, place.kind, kind.name, error)
        found = bench.rounds(measure, place, actions, bench.sizes.cycle_rounds)
        bench.figures.add(measure, place.kind, setting, "µs", found)


@contextmanager
def _seat(kind: type[Contender], place: Place, *, beside: bool, job: bool) -> Iterator[tuple[Seat, str]]:
    contender = kind(place.address, place.driver)
    seat = contender.job_seat() if job else contender.seat()
    try:
        if beside:
            with seat.lock(contender.key("other")):
                yield seat, contender.key(NAME)
        else:
            yield seat, contender.key(NAME)
    finally:
        seat.close()
        contender.close()


def _batch(seat: Seat, key: str, seconds: float) -> Callable[[], float]:
    """Return what measures a batch of cycles that lasts about so long: microseconds for one."""

    def cycles(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            with seat.lock(key):
                pass
        return (time.perf_counter() - started) / count

    cycles(WARM_UP)
    count = max(1, round(seconds / cycles(WARM_UP)))
    return lambda: cycles(count) * 1e6


def _in_thread(function: Callable[[], None]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def _run_async(bench: Bench, place: Place, driver: str, setting: str) -> None:
    progress(f"{NAME} · {place.title} · {setting}")
    actions = {}
    seats: list[tuple[AsyncContender, AsyncSeat]] = []
    with asyncio.Runner() as runner:
        for kind in async_contenders(place.address, NAME):
            if "holding" in setting and kind.name not in COMPARED:
                continue
            try:
                contender, seat = runner.run(_open(kind, place, driver, beside="holding" in setting))
                seats.append((contender, seat))
                actions[kind.name] = _async_batch(runner, seat, contender.key(NAME), bench.sizes.batch_seconds)
            except Exception as error:
                bench.figures.fail(NAME, place.kind, kind.name, error)
        found = bench.rounds(NAME, place, actions, bench.sizes.cycle_rounds)
        bench.figures.add(NAME, place.kind, setting, "µs", found)
        runner.run(_close(seats))


async def _open(
    kind: type[AsyncContender], place: Place, driver: str, *, beside: bool
) -> tuple[AsyncContender, AsyncSeat]:
    contender = kind(place.address, driver)
    seat = await contender.seat()
    if beside:
        await seat.lock(contender.key("other")).__aenter__()
    return contender, seat


async def _close(seats: list[tuple[AsyncContender, AsyncSeat]]) -> None:
    for contender, seat in seats:
        await seat.close()
        await contender.close()


def _async_batch(runner: asyncio.Runner, seat: AsyncSeat, key: str, seconds: float) -> Callable[[], float]:
    async def cycles(count: int) -> float:
        started = time.perf_counter()
        for _ in range(count):
            async with seat.lock(key):
                pass
        return (time.perf_counter() - started) / count

    runner.run(cycles(WARM_UP))
    count = max(1, round(seconds / runner.run(cycles(WARM_UP))))
    return lambda: runner.run(cycles(count)) * 1e6
