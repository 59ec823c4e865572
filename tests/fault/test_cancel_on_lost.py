"""cancel_on_lost: the body of a lost lock is cancelled, and no other's cancel is taken for that."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from dlock_core import AsyncLock, LockLostError
from tests.contract.house import House

pytestmark = pytest.mark.rows(
    lambda row: (
        row.name in {"postgresql-asyncpg", "postgresql-psycopg-alock", "mariadb-aiomysql", "mysql-pymysql-alock"}
    )
)
LONG = 30.0


@pytest.fixture
def lock(house: House) -> Callable[..., AsyncLock]:
    """What makes locks whose loss cancels."""
    return lambda key="k", **options: house.maker()(key, cancel_on_lost=True, **options)


async def lost(house: House) -> None:
    """Lose the lock, and go on working."""
    house.witness.break_lock()
    await asyncio.sleep(LONG)


def run(house: House, body: Callable[[], Awaitable[Any]]) -> None:
    """Run a body in a task, and look whether it leaves the task as it was: without a cancel pending."""

    async def task() -> None:
        await body()
        current = asyncio.current_task()
        assert current is not None
        assert current.cancelling() == 0
        await asyncio.sleep(0)

    house.loop.run(task())


async def holder(lock: Callable[..., AsyncLock]) -> asyncio.Task[None]:
    """Return a task that holds the lock and would go on for long."""
    holds = asyncio.Event()

    async def work() -> None:
        async with lock():
            holds.set()
            await asyncio.sleep(LONG)

    task = asyncio.create_task(work())
    await holds.wait()
    return task


def test_the_body_is_cancelled_and_the_loss_raised(house: House, lock: Callable[..., AsyncLock]) -> None:
    """The cancel does not leave the `async with`; what led to it is the cause."""

    async def body() -> None:
        with pytest.raises(LockLostError, match="'k'") as caught:
            async with lock():
                await lost(house)
        assert isinstance(caught.value.__cause__, asyncio.CancelledError)

    run(house, body)


def test_without_it_the_body_goes_on(house: House) -> None:
    """The loss is reported at the end."""

    async def body() -> None:
        ended = False
        with pytest.raises(LockLostError):
            async with house.maker()("k"):
                house.witness.break_lock()
                await asyncio.sleep(0.1)
                ended = True
        assert ended

    run(house, body)


def test_a_body_that_swallows_the_cancel_still_learns_of_the_loss(house: House, lock: Callable[..., AsyncLock]) -> None:
    """And its task goes on uncancelled."""

    async def body() -> None:
        with pytest.raises(LockLostError):
            async with lock():
                with pytest.raises(asyncio.CancelledError):
                    await lost(house)

    run(house, body)


def test_a_body_that_fails_while_it_is_cancelled_keeps_its_error(house: House, lock: Callable[..., AsyncLock]) -> None:
    """With a note about the loss."""

    async def body() -> None:
        with pytest.raises(ZeroDivisionError) as caught:
            async with lock():
                try:
                    await lost(house)
                finally:
                    raise ZeroDivisionError
        assert any("lost" in note for note in caught.value.__notes__)

    run(house, body)


def test_a_cancel_from_outside_stays_one(house: House, lock: Callable[..., AsyncLock]) -> None:
    """The lock is sound: it is released, and the task is cancelled."""

    async def body() -> None:
        task = await holder(lock)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    run(house, body)
    assert house.witness.holders() == 0


@pytest.mark.parametrize("first", ["loss", "cancel"])
def test_a_cancel_from_outside_beside_a_loss_goes_first(
    house: House, lock: Callable[..., AsyncLock], first: str
) -> None:
    """In either order, before the body has seen either: the code that cancelled the task sees it end so."""

    async def body() -> None:
        task = await holder(lock)
        held = house.provider.held_locks()[0]
        assert isinstance(held, AsyncLock)
        assert held._body is not None
        if first == "loss":
            held._body.cancel()  # as the watch does in the loop; the task has not run yet
        task.cancel()
        if first == "cancel":
            held._body.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(house, body)


def test_a_timeout_around_is_distinguished_from_the_loss(house: House, lock: Callable[..., AsyncLock]) -> None:
    """`asyncio.timeout` that expires gives TimeoutError, one that does not lets LockLostError through."""

    async def body() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2), lock():
                await asyncio.sleep(LONG)
        with pytest.raises(LockLostError):
            async with asyncio.timeout(LONG) as around:
                async with lock(timeout=5):
                    await lost(house)
        assert not around.expired()

    run(house, body)


def test_a_timeout_inside_is_distinguished_from_the_loss(house: House, lock: Callable[..., AsyncLock]) -> None:
    """The same the other way round."""

    async def body() -> None:
        async with lock():
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await asyncio.sleep(LONG)
        with pytest.raises(LockLostError):
            async with lock(timeout=5), asyncio.timeout(LONG):
                await lost(house)

    run(house, body)


def test_a_task_group_in_the_body_ends_with_it(house: House, lock: Callable[..., AsyncLock]) -> None:
    """Its tasks are cancelled: nothing goes on working without the lock."""
    ends: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(LONG)
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    async def body() -> None:
        with pytest.raises(LockLostError):
            async with lock(), asyncio.TaskGroup() as group:
                group.create_task(work())
                group.create_task(work())
                house.witness.break_lock()
        assert ends == ["cancelled"] * 2

    run(house, body)


def test_in_a_task_group_a_loss_is_an_error_like_others(house: House, lock: Callable[..., AsyncLock]) -> None:
    """It ends the group, with the other tasks cancelled."""

    async def work() -> None:
        async with lock():
            await lost(house)

    async def group() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(work())
            tasks.create_task(asyncio.sleep(LONG))

    async def body() -> None:
        with pytest.raises(ExceptionGroup) as caught:
            await asyncio.create_task(group())  # before Python 3.13 a group leaves its own cancel on its task
        assert [type(error) for error in caught.value.exceptions] == [LockLostError]

    run(house, body)


def test_two_nested_locks_that_are_lost_together(house: House, lock: Callable[..., AsyncLock]) -> None:
    """Both lived on one session; the task is cancelled by neither in the end."""

    async def body() -> None:
        with pytest.raises(LockLostError):
            async with lock("outer"), lock("inner"):
                await lost(house)

    for _ in range(10):
        run(house, body)
