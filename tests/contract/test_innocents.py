"""What befalls one acquisition costs no other lock, although they are on one session."""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from dlock_core import AsyncLockProvider, LockConnectionError, LockProvider, create_sadlock
from tests.conftest import server

from .house import House, until
from .witnesses import MySQLWitness, PostgreSQLWitness

SERVERS = ("postgresql", "mysql", "mariadb")  # their drivers can cancel a wait cleanly
LOCKS = 50
HITS = 3


class CalledAwayError(Exception):
    """What the signal handlers of these tests raise."""


# Answers of the server


@pytest.fixture
def plain_role() -> Iterator[sa.Connection]:
    """An administrator of PostgreSQL, and a role `plain` that may take exclusive locks only."""
    admin = sa.create_engine(server("postgresql").url("postgresql+psycopg"), poolclass=NullPool)
    function = "FUNCTION pg_try_advisory_lock_shared(bigint)"
    with admin.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql("DROP ROLE IF EXISTS plain")
        connection.exec_driver_sql("CREATE ROLE plain LOGIN")
        connection.exec_driver_sql(f"REVOKE EXECUTE ON {function} FROM PUBLIC")
        yield connection
        connection.exec_driver_sql(f"GRANT EXECUTE ON {function} TO PUBLIC")
        connection.exec_driver_sql("DROP ROLE plain")


def _hold_many(provider: LockProvider) -> list[Any]:
    locks = [provider.lock(("held", number)) for number in range(LOCKS)]
    assert all(lock.acquire(timeout=0) for lock in locks)
    return locks


def test_a_try_without_the_right_costs_no_other_lock(plain_role: sa.Connection) -> None:
    """The server's no is an answer, not a broken session."""
    count = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted"
    with LockProvider(server("postgresql").url("postgresql+psycopg", user="plain")) as provider:
        locks = _hold_many(provider)
        for _ in range(3):
            with pytest.raises(sa.exc.DBAPIError, match="permission denied"):
                provider.lock("report", shared=True).acquire(timeout=0)
        assert len(provider.held_locks()) == LOCKS
        assert plain_role.exec_driver_sql(count).scalar_one() == LOCKS
        for lock in locks:
            lock.release()
        assert plain_role.exec_driver_sql(count).scalar_one() == 0


@contextmanager
def _cancels(house: House) -> Iterator[None]:
    """Cancel whatever the sessions under test do, again and again."""
    assert house.server is not None
    over = threading.Event()
    witness = house.witness
    killer = type(witness)(house.server)  # type: ignore[call-arg]
    assert isinstance(killer, PostgreSQLWitness | MySQLWitness)

    def cancel() -> None:
        while not over.is_set():
            if isinstance(killer, PostgreSQLWitness):
                killer.scalar(
                    "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE application_name LIKE 'dlock%'"
                )
            else:
                killer._kill("QUERY", f"{killer.OTHERS} AND processlist_info LIKE '%_LOCK(%'")

    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        killer.close()


@pytest.mark.rows(lambda row: row.server in SERVERS and row.api == "sync" and row.share_sessions)
def test_cancels_by_an_administrator_cost_no_other_lock(house: House) -> None:
    """They hit tries and releases; each is an error of that lock alone, and leaves nothing."""
    provider: Any = house.provider
    person = house.person()
    locks = person.do(lambda: _hold_many(provider))

    def use(number: int) -> bool:
        lock = provider.lock(("tried", number))
        if lock.acquire(timeout=0):
            lock.release()
        return False

    hits = 0
    with _cancels(house):
        for number in itertools.count():
            try:
                person.do(partial(use, number))
            except (sa.exc.DBAPIError, LockConnectionError):
                hits += 1
            if hits == HITS:
                break
    assert len(provider.held_locks()) == house.witness.holders() == LOCKS
    for lock in locks:
        person.do(lock.release)
    assert house.witness.holders() == 0


# Waits that their askers leave, with share_sessions=False


def _keeps_its_lock(house: House, provider: Any, leave: Callable[[Any, Any], None]) -> Any:
    """Hold one lock, leave the wait for another in some way, and look what is held and queued."""
    holder = house.stranger()
    assert holder.acquire("k")
    mine = house.maker(provider)("mine")
    leave(mine, house.maker(provider)("k"))
    assert mine.held
    until(lambda: house.witness.waiters() == 0, "the wait to be cancelled")
    assert house.witness.holders() == 2
    holder.release()
    assert house.witness.holders() == 1
    return mine


@pytest.mark.rows(lambda row: row.server in SERVERS and row.api != "sync")
def test_a_cancelled_wait_costs_its_task_no_other_lock(house: House) -> None:
    """`asyncio.timeout` around a wait, while the task holds another lock on the same session."""
    provider: Any = house.new_provider(share_sessions=False)

    def leave(mine: Any, wanted: Any) -> None:
        async def run() -> None:
            await mine.acquire()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await wanted.acquire()

        house.loop.run(run())

    mine = _keeps_its_lock(house, provider, leave)
    house.loop.run(mine.release())
    assert house.witness.holders() == 0


@pytest.mark.rows(lambda row: row.server in SERVERS and row.api != "sync")
def test_a_cancel_that_races_with_the_grant_costs_its_task_no_other_lock(house: House) -> None:
    """Each session is used again at once: no late cancel reaches its next statement."""
    provider: Any = house.new_provider(share_sessions=False)
    other, make = house.maker(house.new_provider()), house.maker(provider)
    chance = random.Random(5)

    async def rounds() -> None:
        mine = make("mine")
        await mine.acquire()
        for number in range(40):
            holder, wanted = other("k"), make("k")
            await holder.acquire()
            freeing = asyncio.create_task(_release_after(holder, chance.uniform(0, 0.01)))
            with suppress(TimeoutError):
                async with asyncio.timeout(chance.uniform(0.001, 0.01)):
                    await wanted.acquire()
            if wanted.held:
                await wanted.release()
            next_one = make(("next", number))
            assert await next_one.acquire(timeout=0)
            await next_one.release()
            await freeing
            assert mine.held
        await mine.release()

    house.loop.begin(rounds()).result(60)
    assert house.witness.holders() == house.witness.waiters() == 0


async def _release_after(lock: Any, seconds: float) -> None:
    await asyncio.sleep(seconds)
    await lock.release()


@contextmanager
def _called_away(seconds: float) -> Iterator[None]:
    """Let a signal handler raise in the main thread after so many seconds."""

    def handle(_number: int, _frame: FrameType | None) -> None:
        raise CalledAwayError

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.rows(lambda row: row.server in SERVERS and row.api == "sync")
def test_a_signal_during_a_wait_costs_the_main_thread_no_other_lock(house: House) -> None:
    """What a handler raises ends the wait, whatever the driver does in C."""
    provider: Any = house.new_provider(share_sessions=False)

    def leave(mine: Any, wanted: Any) -> None:
        assert mine.acquire(timeout=5)
        with pytest.raises(CalledAwayError), _called_away(0.2):
            wanted.acquire()

    _keeps_its_lock(house, provider, leave).release()
    assert house.witness.holders() == 0


@pytest.mark.rows(lambda row: row.server in SERVERS and row.api == "sync")
def test_a_signal_during_a_wait_costs_a_session_of_sqlalchemy_no_other_lock(house: House) -> None:
    """`create_sadlock` on a Session that is bound to an engine: its locks are on one connection, too."""
    with Session(house.engines[0]) as session, house.engines[0].connect() as connection:
        theirs, mine, wanted = create_sadlock(connection, "k"), *(create_sadlock(session, key) for key in ("mine", "k"))
        assert theirs.acquire(timeout=5)
        assert mine.acquire(timeout=5)
        with pytest.raises(CalledAwayError), _called_away(0.2):
            wanted.acquire()
        until(lambda: house.witness.waiters() == 0, "the wait to be cancelled")
        assert mine.locked
        assert house.witness.holders() == 2
        theirs.release()
        mine.release()
    assert house.witness.holders() == 0


@pytest.mark.rows(lambda row: row.name == "postgresql-asyncpg")
def test_a_cancelled_release_costs_its_task_no_other_lock(house: House) -> None:
    """The release goes on without its task."""
    provider = house.new_provider(share_sessions=False)
    assert isinstance(provider, AsyncLockProvider)

    async def rounds() -> None:
        mine = provider.lock("mine")
        await mine.acquire()
        for steps in range(1, 12):
            lock = provider.lock(("released", steps))
            await lock.acquire()
            task = asyncio.create_task(lock.release())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        assert mine.held
        await mine.release()

    house.loop.begin(rounds()).result(30)
    until(lambda: house.witness.holders() == 0)
