"""The lock for threads."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session, scoped_session

from ..contexts import BLOCKING
from .base import BaseSadLock
from .options import Options

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from sqlalchemy import Dialect

__all__ = ["ConnectionOrSession", "SadLock", "create_sadlock"]

ConnectionOrSession: TypeAlias = Connection | Session | scoped_session[Any]
G = TypeVar("G", bound=ConnectionOrSession)


class SadLock(BaseSadLock[G]):
    """A lock on a connection or session of the caller's; made by `create_sadlock`.

    `with lock:` acquires it, or raises LockTimeoutError after `contextual_timeout`, and releases it at the end.
    """

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Acquire the lock.

        Args:
            block: False tries once, whatever the timeout.
            timeout: Seconds; None waits for ever, 0 or less tries once.

        Returns:
            Whether the lock is held now.

        Raises:
            LockStateError: This object holds it already, or another thread is using it.
            DeadlockError: The wait could never end.
            LockConnectionError: The database cannot be asked; the connection is invalid then.
            UnsafeEnvironmentError: A lock there would protect nothing.
            ValueError: The timeout is not a number.
        """
        return self._acquire(BLOCKING, block=block, timeout=timeout)

    def upgrade(self, timeout: float | None = None) -> bool:
        """Turn a lock with update=True into an exclusive one, when those who share it have left.

        In vain, and after an error that is no loss, it is held as before. Its release releases both.

        Args:
            timeout: Seconds; None waits for ever, 0 or less tries once.

        Returns:
            Whether it is exclusive now.

        Raises:
            LockStateError: It is not held, exclusive already, or not an update lock.
            LockLostError: The server says that it was lost.
            DeadlockError: The wait could never end.
        """
        return self._upgrade(BLOCKING, timeout)

    def release(self) -> None:
        """Release the lock.

        Raises:
            LockStateError: It is not held, or it ends with its transaction (xact=True).
            LockLostError: It was lost while we held it; somebody else may have held it.
        """
        self._release_amid(sys.exception())

    def close(self) -> None:
        """Release the lock if it is held; leave one with xact=True to its transaction."""
        self._close(sys.exception())

    def __enter__(self) -> Self:
        """Acquire, or raise LockTimeoutError after `contextual_timeout`."""
        self._enter(BLOCKING)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exit(error)


def create_sadlock(
    connection_or_session: G,
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
) -> SadLock[G]:
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
    - On SQLite the lock is a side file beside the caller's database, as for `LockProvider`, and held
      until it is released, whatever becomes of the connection; for a database in memory it is valid
      within this process.
    - A lock object that is garbage is released: on a connection, at the latest when that is closed.

    Args:
        connection_or_session: A Connection, a Session or a scoped_session.
        key: int, str, bytes, bytearray or memoryview; also float except on PostgreSQL and SQLite.
        contextual_timeout: Seconds that `with` waits; None is for ever, 0 or less one try.
        convert: Makes the database's name for the lock out of the key: an int for PostgreSQL and Oracle,
            a str for the others.
        shared: Share it with others who ask for it shared (PostgreSQL, SQL Server, Oracle, SQLite).
        xact: Hold it for the rest of the transaction (PostgreSQL, SQL Server).
        update: Share it with readers, but with nobody else who may `upgrade()` (SQL Server, Oracle).
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
    options = Options(shared=shared, xact=xact, update=update, lock_mode=lock_mode, release_on_commit=release_on_commit)
    caller = _SyncCaller(connection_or_session)
    return SadLock(
        connection_or_session, caller, key, contextual_timeout=contextual_timeout, convert=convert, options=options
    )


class _SyncCaller:
    """The caller's own object."""

    def __init__(self, given: ConnectionOrSession) -> None:
        if not isinstance(given, Connection | Session | scoped_session):
            refuse(given, "a Connection, Session or scoped_session", "create_async_sadlock")
        self._given = given
        self.dialect: Dialect = given.dialect if isinstance(given, Connection) else given.get_bind().dialect

    def current(self) -> Connection | Session:
        """Return the connection or session; a scoped session's of this thread."""
        return self._given() if isinstance(self._given, scoped_session) else self._given


def refuse(given: object, wanted: str, other: str) -> NoReturn:
    """Say what to give instead of what was given."""
    if isinstance(given, Engine) or type(given).__name__ == "AsyncEngine":
        hint = "connect first: `with engine.connect() as connection`"
    else:
        hint = f"or call {other} if this is one of the other kind"
    raise TypeError(f"{type(given).__name__} cannot carry a lock: give {wanted}; {hint}")
