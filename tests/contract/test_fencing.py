"""Fencing tokens, and the fence that refuses a stale one."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from dlock_core import LockStateError, StaleTokenError, UnsupportedError, fence, fence_table

from .house import House, until
from .persons import AnyLock

pytestmark = pytest.mark.rows(lambda row: row.fencing)


def _token(lock: AnyLock) -> int:
    return lock.fencing_token


def test_tokens_grow_with_every_grant(house: House) -> None:
    """In one process and across processes, released or handed on."""
    people = [house.person(), house.stranger(), house.person()]
    tokens = [person.within("k", _token, fencing=True) for person in people for _ in range(5)]
    tokens += [person.within("k", _token, fencing=True) for _ in range(5) for person in people]
    assert tokens == sorted(set(tokens))


def test_tokens_grow_through_a_queue(house: House) -> None:
    """Waiters of one process get one each, in their order."""
    holder, people = house.person(), [house.person() for _ in range(6)]
    assert holder.acquire("k", fencing=True)
    first = holder.locks[0].fencing_token
    waits = []
    for queued, person in enumerate(people, start=1):
        waits.append(person.begin_within("k", _token, fencing=True, timeout=60))
        until(partial(_queued, house, queued))
    holder.release()
    tokens = [first, *(wait.result(60) for wait in waits)]
    assert tokens == sorted(set(tokens))


def _queued(house: House, number: int) -> bool:
    return len(house.provider._coordinator.entries._awaited) == number


def test_a_lock_without_fencing_has_no_token(house: House) -> None:
    """The error says how to get one; an unheld lock has none either."""
    person = house.person()
    assert person.acquire("k")
    with pytest.raises(LockStateError, match="fencing=True"):
        _ = person.locks[0].fencing_token
    person.release()
    with pytest.raises(LockStateError, match="not held"):
        _ = house.maker()("k", fencing=True).fencing_token


@pytest.mark.rows(lambda row: not row.fencing)
def test_a_database_without_tokens_says_which_have_them(house: House) -> None:
    """The mistake shows where the lock is made."""
    with pytest.raises(
        UnsupportedError, match=r"'k': .* no fencing tokens; PostgreSQL, MySQL, MariaDB and SQLite have"
    ):
        house.maker()("k", fencing=True)


@pytest.mark.rows(lambda row: row.shared and row.fencing)
def test_readers_have_no_token(house: House) -> None:
    """A token orders writers; a shared lock has many holders at one time."""
    with pytest.raises(UnsupportedError, match="shared"):
        house.maker()("k", shared=True, fencing=True)


@pytest.fixture
def engine(house: House) -> Iterator[sa.Engine]:
    """An application's database with the fence's table, on the sync rows' servers."""
    engine = sa.create_engine(house.url)
    metadata = sa.MetaData()
    fence_table(metadata)
    metadata.create_all(engine)
    yield engine
    metadata.drop_all(engine)
    engine.dispose()


ENGINES = pytest.mark.rows(lambda row: row.api == "sync" and not row.in_memory and row.fencing)


@ENGINES
def test_a_stale_token_is_refused_and_a_new_one_goes_through(house: House, engine: sa.Engine) -> None:
    """Equal and greater tokens write; a smaller one never again, for this key only."""
    for token in (5, 5, 9):
        with engine.begin() as connection:
            fence(connection, "k", token)
    with pytest.raises(StaleTokenError, match=r"'k'.*8 is stale, 9") as caught, engine.begin() as connection:
        fence(connection, "k", 8)
    assert (caught.value.token, caught.value.seen) == (8, 9)
    with engine.begin() as connection:
        fence(connection, ("k", 1), 1)
    with Session(engine) as session, session.begin(), pytest.raises(StaleTokenError):
        fence(session, "k", 1)


@pytest.mark.rows(lambda row: row.api == "sync" and not row.in_memory and row.fencing)
@pytest.mark.parametrize("who", ["option", "engine", "driver"])
def test_a_fence_on_a_connection_in_autocommit_is_refused(house: House, engine: sa.Engine, who: str) -> None:
    """Its row would be free again before the write; whatever asked for autocommit."""
    bare: sa.Engine
    match who:
        case "option":
            bare = engine.execution_options(isolation_level="AUTOCOMMIT")
        case "engine":
            bare = sa.create_engine(house.url, isolation_level="AUTOCOMMIT")
        case _:
            bare = sa.create_engine(house.url)
            sa.event.listen(bare, "connect", _autocommit)
    with bare.connect() as connection, pytest.raises(LockStateError, match=r"'k'.*autocommit"):
        fence(connection, "k", 5)
    with Session(bare) as session, pytest.raises(LockStateError, match="autocommit"):
        fence(session, "k", 5)
    bare.dispose()


def _autocommit(connection: Any, _: object) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.isolation_level = None
    elif callable(connection.autocommit):
        connection.autocommit(True)
    else:
        connection.autocommit = True


@pytest.mark.rows(lambda row: row.api == "async" and row.fencing and row.share_sessions)
def test_a_fence_on_an_async_connection_in_autocommit_is_refused(house: House) -> None:
    """And one in a transaction is not."""
    engine = create_async_engine(house.url)
    metadata = sa.MetaData()
    fence_table(metadata)

    async def use() -> None:
        async with engine.begin() as connection:
            await connection.run_sync(metadata.create_all)
            await connection.run_sync(fence, "k", 4)
        try:
            for bare in (
                engine.execution_options(isolation_level="AUTOCOMMIT"),
                create_async_engine(house.url, isolation_level="AUTOCOMMIT"),
            ):
                async with bare.connect() as connection:
                    with pytest.raises(LockStateError, match=r"'k'.*autocommit"):
                        await connection.run_sync(fence, "k", 5)
                await bare.dispose()
        finally:
            async with engine.begin() as connection:
                await connection.run_sync(metadata.drop_all)
            await engine.dispose()

    house.loop.run(use())


def test_an_application_that_begins_by_itself_on_sqlite_is_not_in_autocommit(tmp_path: Path) -> None:
    """SQLAlchemy's own advice for savepoints: the driver begins nothing, an event does."""
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'app.db'}")
    sa.event.listen(engine, "connect", _autocommit)
    sa.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    metadata = sa.MetaData()
    fence_table(metadata)
    metadata.create_all(engine)
    with engine.begin() as connection:
        fence(connection, "k", 5)
    engine.dispose()


@pytest.mark.rows(lambda row: row.api == "sync" and row.is_server and row.fencing)
def test_a_transaction_that_read_before_sees_what_others_have_written_since(house: House, engine: sa.Engine) -> None:
    """Its snapshot is older than the next holder's token; MySQL would read from it, PostgreSQL ends it."""
    with engine.begin() as connection:
        fence(connection, "k", 5)
    stale = engine.connect().execution_options(isolation_level="REPEATABLE READ")
    with stale, stale.begin():
        assert stale.execute(sa.text("SELECT count(*) FROM dlock_fences")).scalar_one() == 1
        with engine.begin() as connection:
            fence(connection, "k", 9)
        with pytest.raises((StaleTokenError, sa.exc.DBAPIError), match=r"is stale, 9|could not serialize access"):
            fence(stale, "k", 8)


@ENGINES
def test_a_fence_that_is_rolled_back_was_never_there(house: House, engine: sa.Engine) -> None:
    """The token counts only with the work of its transaction."""
    with engine.connect() as connection:
        fence(connection, "k", 9)
        connection.rollback()
        fence(connection, "k", 3)
        connection.commit()


@ENGINES
def test_a_holder_that_lost_its_lock_cannot_write(house: House, engine: sa.Engine) -> None:
    """The story that tokens are for: frozen, replaced, awake again."""
    frozen, next_one = house.person(), house.stranger()
    assert frozen.acquire("k", fencing=True)
    old = frozen.locks[0].fencing_token
    house.witness.break_lock()

    def write(lock: AnyLock) -> None:
        with engine.begin() as connection:
            fence(connection, "k", lock.fencing_token)

    next_one.within("k", write, fencing=True, timeout=5)
    with pytest.raises(StaleTokenError), engine.begin() as connection:
        fence(connection, "k", old)
    with pytest.raises(Exception, match="lost"):
        frozen.do(frozen.locks[0].release)


@pytest.mark.rows(lambda row: row.api == "sync" and row.is_server and row.fencing)
def test_first_writers_of_a_key_do_not_fail_one_another(house: House, engine: sa.Engine) -> None:
    """Two transactions make the same row at one moment: the greater token wins, none fails with SQL."""
    errors: list[Any] = []

    def write(token: int) -> None:
        try:
            with engine.begin() as connection:
                fence(connection, "new", token)
        except StaleTokenError:
            pass
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(token,)) for token in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT max(token), count(*) FROM dlock_fences")).one() == (7, 1)


@ENGINES
@pytest.mark.parametrize("token", [None, "5", 1.5, True])
def test_a_token_that_is_none_is_refused(house: House, engine: sa.Engine, token: Any) -> None:
    """Nothing is written."""
    with engine.begin() as connection, pytest.raises(TypeError, match="fencing_token"):
        fence(connection, "k", token)
