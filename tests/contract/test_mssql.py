"""What SQL Server's drivers alone can do to us; on the stand-in too, which has their protocol."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from dlock_core import LockLostError, LockProvider, create_async_sadlock, create_sadlock
from dlock_core.sessions.session import SqlSession
from tests.sadlock.clients import Runner

from .house import House, until

pytestmark = pytest.mark.rows(lambda row: row.server == "mssql")

LOOKALIKES = [
    "k",
    "K",
    "k ",
    " k",
    "k'",
    'k"',
    "k%s",
    "k%%",
    "k?",
    ":k",
    "k\\",
    "é",
    "e\u0301",
    "É",
    "ключ",
    "КЛЮЧ",
    "🔒",
    "🔑",
]
CONTROLS = ["k\0", "k\n", "k\\\n", "k\t", "x" * 255, "x" * 256, "я" * 127, "я" * 128, b"\xff"]


def _options(house: House) -> dict[str, Any]:
    assert house.server is not None
    return house.server.engine_options(house.row.drivername)


def _engine(house: House) -> sa.Engine:
    """Make the application's engine."""
    engine = sa.create_engine(house.url, **_options(house))
    house.engines.append(engine)
    return engine


def test_a_key_is_one_lock_over_every_driver(house: House) -> None:
    """Whatever pymssql writes into its statement, and ODBC binds beside it."""
    assert house.server is not None
    keys: list[Any] = [*LOOKALIKES, *CONTROLS]
    people = [house.person() for _ in keys]
    for person, key in zip(people, keys, strict=True):
        assert person.acquire(key, timeout=0), key
    assert house.witness.holders() == len(keys)
    with LockProvider(house.server.url("mssql+pymssql")) as others:
        assert [key for key in keys if others.lock(key, timeout=0).acquire()] == []
    for person in people:
        person.release()


@pytest.mark.rows(lambda row: row.server == "mssql" and row.api == "sync")
def test_a_provider_closes_while_a_thread_waits(house: House) -> None:
    """No driver is closed under its own statement, which crashes some; the wait ends all the same."""
    for _ in range(5):
        holder, provider = house.stranger(), house.new_provider()
        waiter = house.person(provider)
        assert holder.acquire("k")
        wait = waiter.begin("k")
        until(lambda: house.witness.waiters() == 1)
        house.close_provider(provider)
        assert wait.exception(5) is not None
        until(lambda: house.witness.waiters() == 0)
        holder.release()


@pytest.mark.rows(lambda row: row.server == "mssql" and row.api == "sync")
def test_a_wait_ends_where_the_socket_is_out_of_reach(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other systems than Linux do not show it; the drivers' own cancel does it, and the waiter's thread closes."""
    monkeypatch.setattr("dlock_core.sessions.sockets._sockets", set)
    holder, provider = house.stranger(), house.new_provider()
    waiter = house.person(provider)
    assert holder.acquire("k")
    wait = waiter.begin("k")
    until(lambda: house.witness.waiters() == 1)
    sessions: Any = provider._coordinator._sessions
    assert all(isinstance(session, SqlSession) and session.socket is None for session in sessions)
    house.close_provider(provider)
    assert wait.exception(5) is not None
    until(lambda: house.witness.waiters() == 0)
    holder.release()


@pytest.mark.rows(lambda row: row.server == "mssql" and row.api == "async")
def test_a_caller_s_wait_is_cancelled_and_its_connection_survives_or_ends(house: House) -> None:
    """Aioodbc leaves the statement of a cancelled task running in a thread; to close under it crashes the process."""
    holder = house.person()
    assert holder.acquire("k")
    engine = create_async_engine(house.url, **_options(house))

    async def give_up() -> None:
        async with engine.connect() as connection:
            lock = create_async_sadlock(connection, "k")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await lock.acquire()
        await engine.dispose()

    started = time.monotonic()
    Runner(house.loop)(give_up)
    assert time.monotonic() - started < 5
    until(lambda: house.witness.waiters() == 0)
    holder.release()


@pytest.mark.rows(lambda row: row.server == "mssql" and row.api == "sync")
def test_a_transaction_owns_its_lock(house: House) -> None:
    """Also over ODBC, where no transaction has begun when the lock is asked for."""
    engine = _engine(house)
    with engine.connect() as connection, engine.connect() as other:
        lock = create_sadlock(connection, "k", xact=True)
        for end in (connection.commit, connection.rollback):
            assert lock.acquire()
            assert not create_sadlock(other, "k").acquire(False)
            end()
            assert not lock.locked
            with create_sadlock(other, "k"):
                pass


@pytest.mark.rows(lambda row: row.server == "mssql" and row.api == "sync")
def test_an_upgrade_waits_for_readers_and_is_released_at_once(house: House) -> None:
    """Update beside Shared, then Exclusive alone; one release gives both grants back."""
    engine = _engine(house)
    with engine.connect() as connection, engine.connect() as other:
        updater, reader = create_sadlock(connection, "k", update=True), create_sadlock(other, "k", shared=True)
        assert reader.acquire(False)
        with updater:
            assert not updater.upgrade(timeout=0.05)
            answers: list[bool] = []
            thread = threading.Thread(target=lambda: answers.append(updater.upgrade(timeout=10)))
            thread.start()
            until(lambda: house.witness.waiters() == 1)
            reader.release()
            thread.join()
            assert answers == [True]
            assert not reader.acquire(False)
        assert reader.acquire(False)
        reader.release()


@pytest.mark.rows(lambda row: row.server == "mssql" and row.api == "sync")
def test_a_killed_session_is_recognised_on_a_caller_s_connection(house: House) -> None:
    """KILL, and then the release: the lock was lost, and SQLAlchemy makes another connection."""
    engine = _engine(house)
    with engine.connect() as connection:
        lock = create_sadlock(connection, "k")
        lock.acquire()
        house.witness.break_lock()
        with pytest.raises(LockLostError, match="'k'"):
            lock.release()
        connection.rollback()
        with lock:
            assert house.witness.holders() == 1
