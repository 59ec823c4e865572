"""`close` and `release` of a lock object, and `close` of its provider, while it is asked for elsewhere."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import pytest

from dlock_core import AsyncLockProvider, LockStateError

from .house import House, until
from .persons import Person

pytestmark = pytest.mark.rows(
    lambda row: (
        row.name
        in {
            "postgresql-psycopg",
            "postgresql-psycopg2",
            "postgresql-psycopg-async",
            "postgresql-asyncpg",
            "postgresql-psycopg-alock",
            "postgresql-psycopg-own",
            "mysql-aiomysql",
            "mariadb-pymysql",
            "mariadb-mysqlclient",
            "mariadb-pymysql-alock",
            "sqlite-file",
            "sqlite-aiosqlite",
        }
    )
)
RACES = 25


def asks(house: House, person: Person) -> None:
    """Wait until the last lock of a person is being asked for, at the server if there is one."""
    if house.row.is_server:
        until(lambda: house.witness.waiters() == 1, "the wait to begin")
    else:
        until(lambda: person.locks[-1]._ticket is not None, "the wait to begin")


def test_close_calls_off_a_wait_for_another_process(house: House) -> None:
    """It ends in an error that says so, here and at the server, and the object can be used again."""
    holder, waiter, closer = house.stranger(), house.person(), house.person()
    assert holder.acquire("k")
    wait = waiter.begin("k")
    asks(house, waiter)
    (lock,) = waiter.locks
    closer.do(lock.close)
    with pytest.raises(LockStateError, match=r"'k'.*close\(\)"):
        wait.result(10)
    until(lambda: house.witness.waiters() == 0, "the wait at the server to end")
    holder.release()
    assert house.witness.holders() == 0
    assert waiter.do(lambda: lock.acquire(timeout=5))
    waiter.do(lock.release)


def test_close_calls_off_a_wait_in_the_queue_of_this_process(house: House) -> None:
    """Those behind it move up."""
    holder, waiter, closer = house.person(), house.person(), house.person()
    assert holder.acquire("k")
    wait = waiter.begin("k")
    until(lambda: len(house.provider._coordinator.entries._awaited) == 1)
    closer.do(waiter.locks[0].close)
    with pytest.raises(LockStateError, match=r"'k'.*close\(\)"):
        wait.result(10)
    behind = closer.begin("k")
    holder.release()
    assert behind.result(10)
    closer.release()


def test_release_of_a_lock_that_is_being_asked_for_is_refused(house: House) -> None:
    """The wait goes on, and one that gets the lock can release it."""
    holder, waiter, other = house.stranger(), house.person(), house.person()
    assert holder.acquire("k")
    wait = waiter.begin("k")
    asks(house, waiter)
    (lock,) = waiter.locks
    with pytest.raises(LockStateError, match=r"'k'.*acquire\(\) is under way"):
        other.do(lock.release)
    holder.release()
    assert wait.result(10)
    assert lock.held
    waiter.release()
    assert house.witness.holders() == 0


@pytest.mark.rows(lambda row: row.name in {"postgresql-psycopg-async", "postgresql-asyncpg"})
def test_a_close_after_the_grant_and_before_acquire_returns_is_said(house: House) -> None:
    """Two readers are let in at once; the first closes the other one's lock before its task goes on."""
    provider = house.new_provider()
    assert isinstance(provider, AsyncLockProvider)
    first, second = (provider.lock("k", shared=True) for _ in range(2))

    async def close_second() -> None:
        assert await first.acquire()
        assert second.held
        await second.close()
        await first.release()

    async def both() -> list[Any]:
        return list(await asyncio.gather(close_second(), second.acquire(), return_exceptions=True))

    _, error = asyncio.run(both())
    assert isinstance(error, LockStateError)
    assert "'k': close() was called" in str(error)
    assert not second.held


# psycopg complains of a connection whose session is ended while it is still being opened.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_close_at_any_moment_of_an_acquisition_leaves_nothing(house: House) -> None:
    """Either it came too early, and the lock is held and can be released, or nothing is held."""
    chance = random.Random(20261128)
    waiter, closer, holder = house.person(), house.person(), house.stranger()
    for number in range(RACES):
        contended = number % 2 == 0
        assert not contended or holder.acquire("k", timeout=10)
        wait = waiter.begin("k", timeout=10)
        lock = waiter.locks[-1]
        time.sleep(chance.uniform(0, 0.004))
        closed = closer.submit(lock.close)
        if contended:
            time.sleep(chance.uniform(0, 0.004))
            holder.release()
        closed.result(10)
        error = wait.exception(15)
        assert error is None or isinstance(error, LockStateError)
        assert error is None or not lock.held
        waiter.do(lock.close)
        until(lambda: house.witness.holders() == 0, "the lock to be free")
    assert not house.provider.held_locks()
    assert not house.provider._coordinator.entries._entries


@pytest.mark.rows(lambda row: row.share_sessions)
def test_all_that_wait_get_the_same_error_when_their_provider_is_closed(house: House) -> None:
    """At the server, by tries for want of a session, and in the queue of this process."""
    provider = house.new_provider(max_sessions=2)
    at_server, polling, queued = (house.person(provider) for _ in range(3))
    holder = house.stranger()
    assert holder.acquire("a")
    assert holder.acquire("b")
    waits = [at_server.begin("a")]
    asks(house, at_server)
    waits.append(polling.begin("b"))
    until(lambda: len(provider._coordinator.entries._entries) == 2, "the one that polls")
    waits.append(queued.begin("a"))
    until(lambda: len(provider._coordinator.entries._awaited) == 1, "the one in the queue")
    house.close_provider(provider)
    errors: list[Any] = [wait.exception(10) for wait in waits]
    assert [type(error) for error in errors] == [LockStateError] * 3
    assert all("this lock provider was closed" in str(error) for error in errors)
    until(lambda: house.witness.waiters() == 0, "the wait at the server to end")
    holder.release()
    holder.release()
