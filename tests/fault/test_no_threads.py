"""No thread can be started when a task's lock needs one: at a limit of processes, for example."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dlock_core import LockConnectionError, LockProvider
from dlock_core.sessions import workers
from dlock_core.sessions.workers import Workers, reaper
from tests.contract.house import House, until

pytestmark = pytest.mark.rows(
    lambda row: row.name in {"postgresql-psycopg-alock", "mysql-pymysql-alock", "mariadb-pymysql-alock-own"}
)


@pytest.fixture
def at_the_limit(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What lets no thread be started, as long as it is open."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    class Limit:
        def __enter__(self) -> None:
            monkeypatch.setattr(Workers, "put", refuse)

        def __exit__(self, *_: object) -> None:
            monkeypatch.undo()

    return Limit()


def lock_of(house: House) -> Any:
    """Return the provider's way to make locks for tasks."""
    assert isinstance(house.provider, LockProvider)
    return house.provider.alock


def test_a_lock_is_released_without_a_thread(house: House, at_the_limit: Any) -> None:
    """At the server too, and the next one of this process gets it."""

    async def main() -> None:
        lock = lock_of(house)("k")
        await lock.acquire()
        with at_the_limit:
            await lock.release()
        assert house.witness.holders() == 0
        again = lock_of(house)("k")
        assert await asyncio.wait_for(again.acquire(timeout=0), 5)
        await again.release()

    house.loop.run(main())


def test_a_lock_that_cannot_be_asked_for_is_an_error_and_stays_free(house: House, at_the_limit: Any) -> None:
    """The error names the key; nothing is left in the bookkeeping."""

    async def main() -> None:
        with at_the_limit, pytest.raises(LockConnectionError, match=r"'k'.*no thread"):
            await lock_of(house)("k").acquire()
        async with lock_of(house)("k", timeout=5) as lock:
            assert lock.held

    house.loop.run(main())
    assert not house.provider._coordinator.entries._entries


def test_a_wait_that_is_cancelled_without_a_thread_ends_at_the_server(house: House, at_the_limit: Any) -> None:
    """And takes no lock with it."""
    holder = house.stranger()
    assert holder.acquire("k")

    async def main() -> None:
        task = asyncio.create_task(lock_of(house)("k").acquire())
        await asyncio.to_thread(until, lambda: house.witness.waiters() == 1, "the wait to begin")
        with at_the_limit:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    house.loop.run(main())
    until(lambda: house.witness.waiters() == 0, "the wait to end")
    holder.release()
    assert house.witness.holders() == 0


@pytest.mark.rows(lambda row: row.name == "postgresql-psycopg")
@pytest.mark.filterwarnings("ignore:dlock.*garbage:ResourceWarning")
def test_a_garbage_lock_that_found_no_thread_is_free_without_another_call(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch starts its release again; it once waited for the next acquisition, which may never come."""

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    assert isinstance(house.provider, LockProvider)
    until(lambda: not reaper._running.locked())  # a thread of an earlier test would take the job
    lock = house.provider.lock("k")
    assert lock.acquire()
    with monkeypatch.context() as limit:
        limit.setattr(workers, "start_new_thread", refuse)
        del lock
        assert reaper.stuck
    assert house.witness.holders() == 1
    until(lambda: house.witness.holders() == 0)
