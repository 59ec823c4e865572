"""Tasks that are cancelled, in every place where they can wait."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from sqlalchemy.util import greenlet_spawn

from dlock_core.sessions.timeouts import Deadline

from .house import House, fail_beside, until

pytestmark = pytest.mark.rows(lambda row: row.api != "sync")


def test_a_cancelled_waiter_leaves_nothing_at_the_server(house: House) -> None:
    """Nothing queued, nothing held, and the CancelledError is the task's end."""
    holder, waiter = house.stranger(), house.person()
    assert holder.acquire("k")
    waiter.begin("k")
    if house.row.is_server:
        until(lambda: house.witness.waiters() == 1)
    else:
        until(lambda: house.provider._coordinator.entries._entries)
    _cancel(house, waiter)
    until(lambda: house.witness.waiters() == 0)
    until(lambda: not house.provider._coordinator.entries._entries)
    holder.release()
    assert house.witness.holders() == 0


def test_a_cancelled_waiter_of_the_same_process_leaves_the_queue(house: House) -> None:
    """Those behind it move up."""
    holder, first, second = house.person(), house.person(), house.person()
    assert holder.acquire("k")
    first.begin("k")
    until(lambda: len(house.provider._coordinator.entries._awaited) == 1)
    wait = second.begin("k")
    until(lambda: len(house.provider._coordinator.entries._awaited) == 2)
    _cancel(house, first)
    holder.release()
    assert wait.result(5)
    second.release()


def _cancel(house: House, person: Any) -> None:
    task = person.task
    task.cancel()
    until(task.done)


async def _race(house: House, delay: float) -> None:
    """Hold the key elsewhere, release it at about the moment when the waiter is cancelled."""
    maker, other = house.maker(), house.maker(house.providers[-1])
    holder = other("k")
    await holder.acquire()
    lock = maker("k")
    task = asyncio.create_task(lock.acquire())
    await asyncio.sleep(0.002)
    freeing = asyncio.create_task(holder.release())
    await asyncio.sleep(delay)
    task.cancel()
    try:
        granted = await task
    except asyncio.CancelledError:
        granted = False
    await freeing
    if granted:
        await lock.release()


def test_a_cancel_that_races_with_the_grant_leaves_nothing(house: House) -> None:
    """Granted or cancelled, never both; the next one gets the lock."""
    house.new_provider()
    jitter = random.Random(7)

    async def rounds() -> None:
        for _ in range(60):
            await _race(house, jitter.uniform(0, 0.003))
            async with asyncio.timeout(5):
                probe = house.maker()("k")
                assert await probe.acquire(timeout=5)
                await probe.release()

    house.loop.run(rounds())


@pytest.mark.rows(lambda row: row.api == "async" and row.is_server and row.share_sessions)
def test_a_cancelled_release_that_waits_for_its_turn_costs_no_other_lock(house: House) -> None:
    """The locks of a loop are on one session, where one statement runs at a time."""

    async def body() -> None:
        leaving, staying = house.maker()("leaving"), house.maker()("staying")
        await leaving.acquire()
        await staying.acquire()
        shared = house.provider._coordinator._policy(asyncio.get_running_loop())._shared
        assert shared is not None
        gate = shared.gate
        await greenlet_spawn(gate.enter, Deadline(5))
        release = asyncio.create_task(leaving.release())
        await asyncio.sleep(0.05)
        release.cancel()
        await asyncio.wait([release])
        gate.leave()
        assert staying.held
        await staying.release()

    house.loop.run(body())
    until(lambda: house.witness.holders() == 0)


def test_a_cancel_in_the_body_goes_through_and_releases(house: House) -> None:
    """`asyncio.timeout` works around and inside a lock."""

    async def body() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), house.maker()("k"):
                await asyncio.sleep(60)
        async with asyncio.timeout(5), house.maker()("k", timeout=5):
            pass

    house.loop.run(body())
    assert house.witness.holders() == 0


def test_a_task_group_with_a_failing_task_ends_cleanly(house: House) -> None:
    """Its other tasks, waiting and holding, are cancelled and leave nothing."""

    async def hold() -> None:
        async with house.maker()("k"):
            await asyncio.sleep(60)

    house.loop.run(fail_beside(*(hold() for _ in range(5))))
    until(lambda: house.witness.holders() == 0)
    until(lambda: house.witness.waiters() == 0)
