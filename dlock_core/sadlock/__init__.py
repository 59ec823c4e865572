"""Locks on a connection or session that the caller gives: sqlalchemy-dlock 0.9's interface.

Users of that library move over by changing an import. All others are better served by
`LockProvider`, whose locks know nothing of the caller's connections and transactions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from .locks import A, AsyncSadLock, S, SadLock
from .wanted import Options

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["AsyncSadLock", "SadLock", "create_async_sadlock", "create_sadlock"]


def create_sadlock(
    connection_or_session: S,
    key: Any,
    /,
    contextual_timeout: float | None = None,
    convert: Callable[[Any], int | str] | None = None,
    *,
    shared: bool = False,
    xact: bool = False,
    update: bool = False,
    lock_mode: str | None = None,
    release_on_commit: bool = False,
) -> SadLock[S]:
    """Make a lock with the interface of sqlalchemy-dlock 0.9, for one use.

    - On a `Connection`, or a Session bound to one, the lock is on its driver connection. Nothing else
      of it changes: no transaction is begun or ended, no setting is left behind. A commit or rollback
      inside the lock leaves it held. After an SQL error that leaves PostgreSQL's transaction failed,
      the end of `with` rolls back the innermost transaction, a savepoint if there is one. Closing the
      connection releases the lock; a `with` around that ends in LockLostError.
    - A `Session` bound to an engine gives its connection back at every commit, so the lock is on a
      connection of its own, outside the engine's pool: commit, rollback, an error or a close inside
      the lock leave it held until it is released.
    - With `xact=True` the lock ends with the transaction and only so; leaving `with` before leaves
      it held. It is always on the caller's own connection.
    - On SQLite the lock is a file beside the caller's database, as for `LockProvider`, and held
      until it is released, whatever becomes of the connection; for a database in memory it is valid
      within this process.
    - A lock object that is garbage is released: on a connection, at the latest when that is closed.

    Args:
        connection_or_session: A Connection, a Session or a scoped_session.
        key: int, str, bytes, bytearray or memoryview; also float except on PostgreSQL and SQLite.
        contextual_timeout: Seconds that `with` waits; None is without limit, 0 or less one try.
        convert: Makes the database's name for the lock out of the key: an int for PostgreSQL and Oracle,
            a str for the others.
        shared: Share it with others that ask for it shared (PostgreSQL, SQL Server, Oracle, SQLite).
        xact: Hold it for the rest of the transaction (PostgreSQL, SQL Server).
        update: Share it with readers, but with no other that may `upgrade()` (SQL Server, Oracle).
        lock_mode: Any other mode, by the database's own name: of SQL Server's `sp_getapplock`
            (https://learn.microsoft.com/en-us/sql/relational-databases/system-stored-procedures/sp-getapplock-transact-sql)
            or Oracle's `DBMS_LOCK`
            (https://docs.oracle.com/en/database/oracle/oracle-database/19/arpls/DBMS_LOCK.html).
        release_on_commit: Release it at the end of the transaction, if not before (Oracle).

    Raises:
        TypeError: `connection_or_session` is something else, or the key is (LockKeyTypeError).
        OverflowError: An int key does not fit in 64 bits with sign (LockKeyRangeError).
        UnsupportedError: The database, or an option on it, is not supported.
        ValueError: The timeout is not a number.
    """
    given = connection_or_session
    if not isinstance(given, Connection | Session | scoped_session):
        _refuse(given, "a Connection, Session or scoped_session", "create_async_sadlock")
    dialect = given.dialect if isinstance(given, Connection) else given.get_bind().dialect
    options = Options(shared=shared, xact=xact, update=update, lock_mode=lock_mode, release_on_commit=release_on_commit)
    return SadLock(given, dialect, key, contextual_timeout=contextual_timeout, convert=convert, options=options)


def create_async_sadlock(
    connection_or_session: A,
    key: Any,
    /,
    contextual_timeout: float | None = None,
    convert: Callable[[Any], int | str] | None = None,
    *,
    shared: bool = False,
    xact: bool = False,
    update: bool = False,
    lock_mode: str | None = None,
    release_on_commit: bool = False,
) -> AsyncSadLock[A]:
    """Make a lock on an AsyncConnection, AsyncSession or async_scoped_session; see `create_sadlock`."""
    given = connection_or_session
    if not isinstance(given, AsyncConnection | AsyncSession | async_scoped_session):
        _refuse(given, "an AsyncConnection, AsyncSession or async_scoped_session", "create_sadlock")
    dialect = (given.sync_engine if isinstance(given, AsyncConnection) else given.get_bind()).dialect
    options = Options(shared=shared, xact=xact, update=update, lock_mode=lock_mode, release_on_commit=release_on_commit)
    return AsyncSadLock(given, dialect, key, contextual_timeout=contextual_timeout, convert=convert, options=options)


def _refuse(given: object, wanted: str, other: str) -> NoReturn:
    """Say what to give instead of what was given."""
    if isinstance(given, Engine) or type(given).__name__ == "AsyncEngine":
        hint = "connect first: `with engine.connect() as connection`"
    else:
        hint = f"or call {other} if this is one of the other kind"
    raise TypeError(f"{type(given).__name__} cannot carry a lock: give {wanted}; {hint}")
