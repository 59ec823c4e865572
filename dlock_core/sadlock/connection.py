"""Locks on the driver connection under a caller's connection: taken, watched, released, and ended when in doubt.

Such a lock is never unlocked on another driver connection, and never goes back into a pool. What one holds is recorded
in `Connection.info`, which SQLAlchemy keeps with it: it is found again from any `Connection` on it, and dies with it. A
detached connection has no pool any more; some async drivers' stay open when SQLAlchemy forgets it, so we end them.

In doubt is any exception between "statement sent" and "answer seen". SQLAlchemy, too, throws a connection away whose
statement was cancelled; but one that was detached it only forgets, and the server keeps what it holds.
"""

from __future__ import annotations

import os
import sys
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError, ResourceClosedError
from sqlalchemy.pool import Pool

from ..coordination.main_thread import helpers
from ..dialects.base import SESSION, TRANSACTION, sqlstate
from ..dialects.failures import connection_lost, lost, named
from ..errors import (
    DeadlockError,
    LockConnectionError,
    LockStateError,
    UnsafeEnvironmentError,
    UnsupportedError,
    shown,
)
from ..sessions.session import SqlSession
from ..sessions.sockets import Peer, duplicate_socket
from .wanted import server_dialect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.orm import Session

    from ..dialects.base import Scope, ServerDialect
    from .wanted import Wanted

__all__ = ["ANSWERS", "Hold", "acquire_on"]

# Errors that are the server's own answer to a question for a lock: nothing was granted, or it was undone.
ANSWERS = (DBAPIError, DeadlockError, LockStateError, UnsafeEnvironmentError, UnsupportedError)

# How often the driver is asked to cancel before the socket is closed.
CANCELS = 3
CLOSED = "its connection was closed while it was held; close it after the lock, or use LockProvider"
IDLE = 0  # libpq's PQTRANS_IDLE
IN_FAILED_SQL_TRANSACTION = "25P02"


class CallerSession(SqlSession):
    """The server session under a caller's connection.

    It keeps the driver connection and nothing of SQLAlchemy's, so that the garbage collector still
    finds a connection that the caller forgets, and its pool gets it back.
    """

    borrowed = True

    def __init__(self, connection: Connection, locks: ServerDialect, key: object) -> None:
        driver_connection = connection.connection.dbapi_connection
        try:
            super().__init__(connection.engine, driver_connection, locks, None, "")
        except (OSError, connection.dialect.loaded_dbapi.Error) as error:
            connection.invalidate(error)
            raise LockConnectionError(
                f"key {shown(key)}: the connection is broken: {error}; roll back to get another", key=key
            ) from error
        self._in_transaction = connection.in_transaction()
        self._asking = False
        self._withdrawals = 0

    def is_under(self, connection: Connection) -> bool:
        """Tell whether the caller's connection is still on this very driver connection."""
        if connection.closed or connection.invalidated:
            return False
        return connection.connection.dbapi_connection is self._connection

    def hung_up(self) -> bool:
        """Tell whether the server has closed the connection, without asking it; False where that is out of sight."""
        try:
            return Peer(self.driver.descriptor(self.driver_connection)).hung_up()
        except (OSError, ValueError, self.sqla.loaded_dbapi.Error):  # the driver has noticed, and closed its end
            return True

    def begun(self) -> bool:
        """Tell whether the driver has a transaction open, whatever SQLAlchemy thinks."""
        driver = self.driver_connection
        if hasattr(driver, "is_in_transaction"):  # asyncpg
            return bool(driver.is_in_transaction())
        info = getattr(driver, "info", None)  # psycopg, psycopg2
        status = getattr(info, "transaction_status", None)
        return self._in_transaction if status is None else status != IDLE

    @property
    def autocommit(self) -> bool:
        """Whether each statement is a transaction of its own."""
        connection = self._connection  # pymssql's `autocommit` is a method
        return getattr(connection, "autocommit_state", getattr(connection, "autocommit", False)) is True

    @contextmanager
    def asking(
        self, connection: Connection, key: object, *, answers: tuple[type[Exception], ...] = ANSWERS
    ) -> Iterator[None]:
        """Talk to the server; when it is in doubt what the server did, the driver connection ends.

        Other threads can withdraw what is asked meanwhile. `answers` are errors that are the server's own answer, after
        which we hold what we held before.

        Raises:
            LockConnectionError: The connection broke, or the question was withdrawn.
        """
        if self.socket is None:
            with suppress(OSError, self.sqla.loaded_dbapi.Error):  # it is broken, which the statement will say
                self.socket = duplicate_socket(self.driver.descriptor(self.driver_connection))
        in_doubt = True
        with self._mutex:
            self._asking, self._withdrawals = True, 0
        try:
            yield
            in_doubt = False
        except BaseException as error:
            in_doubt = connection_lost(error) or not isinstance(error, answers)
            ours = named(error, key)
            if ours is error:
                raise
            raise ours from error
        finally:
            with self._mutex:  # from now on nothing is withdrawn
                self._asking, withdrawn = False, self._withdrawals > 0
            if withdrawn or in_doubt:
                self._end_under(connection, sys.exception())
            with self._mutex:  # our second handle of it would keep the session alive beyond the caller's close
                if self.socket is not None:
                    self.socket.close()
                    self.socket = None
        if withdrawn:
            raise LockConnectionError(
                f"key {shown(key)}: the connection ended, since the question was withdrawn", key=key
            )

    def withdraw(self) -> None:
        """End the statement that another thread runs here; the session ends with it.

        To be called until the statement is over. A cancel may come late, so it must not find the session in use again.
        """
        with self._mutex:
            if not self._asking:
                return
            self._withdrawals += 1
        if self._withdrawals > CANCELS:
            self.hang_up()
        else:
            helpers.put(self.interrupt)  # it may have to connect first, to a server that does not answer

    def _end_under(self, connection: Connection, error: BaseException | None) -> None:
        """End the session on the server, and SQLAlchemy's use of it, which may know a statement unfinished."""
        with suppress(ResourceClosedError):
            if not self._may_close() or not self._closing.refuse_cancels():
                connection.detach()  # SQLAlchemy would close it under another thread's statement or cancel
            connection.invalidate(error)
        self.end()


class Hold:
    """A lock on a driver connection, which remembers it until it is free.

    It refers to what is the caller's weakly: a connection that the caller forgets goes back into its pool.
    """

    def __init__(self, connection: Connection, owner: Connection | Session, wanted: Wanted) -> None:
        self.name = wanted.request.name
        self.scope: Scope = wanted.options.scope
        self.pid = os.getpid()
        self.ended = False
        self.locks = server_dialect(connection.dialect.name)
        self.session = CallerSession(connection, self.locks, wanted.request.key)
        self._mode = wanted.mode
        self._releasable = not wanted.options.xact
        self._grants = 1
        self._wanted = weakref.ref(wanted)
        self.connection = weakref.ref(connection)
        self._owner: weakref.ref[Connection | Session] = weakref.ref(owner)
        self._borrowing = weakref.ref(connection.connection)
        self._older_savepoints = _open_savepoints(connection) if self.scope == TRANSACTION else []

    @property
    def alive(self) -> bool:
        """Whether it is held, as far as this process knows."""
        connection = self.connection()
        if self.ended or connection is None:
            return False
        return self.session.is_under(connection) and not self.session.hung_up()

    @property
    def to_be_released(self) -> bool:
        """Whether leaving `with` releases it."""
        return self.scope == SESSION or (self._releasable and self.alive)

    @property
    def abandoned(self) -> bool:
        """Whether no lock object can release it any more."""
        return self.scope == SESSION and self._wanted() is None

    @property
    def still_out(self) -> bool:
        """Whether the borrowing of its connection goes on: with a StaticPool, several share one driver connection.

        SQLAlchemy counts the users of a borrowing, and has counted to 0 when it resets the connection.
        """
        borrowing = self._borrowing()
        return borrowing is not None and borrowing.is_valid and getattr(borrowing, "_counter", 0) > 0

    def upgrade(self, wanted: Wanted) -> bool:
        """Make it exclusive."""
        wanted.stop = self.session.withdraw
        connection = self.connection()
        assert connection is not None, "asked while alive"
        with self.session.asking(connection, wanted.request.key):
            granted = wanted.ask_upgrade(self.session, self.locks)
            self._grants += granted and self.locks.counts_upgrades
        return granted

    def release(self, key: object) -> None:
        """Unlock on the very connection that holds the lock, or say that it was lost."""
        if not self._releasable:
            raise LockStateError(
                f"key {shown(key)}: a lock with xact=True ends with its transaction: commit or roll back to release it",
                key=key,
            )
        if self.ended:
            raise lost(key, CLOSED)
        connection = self.connection()
        if connection is None or not self.session.is_under(connection):
            self.session.end()  # SQLAlchemy does not close a detached connection that it invalidates
            raise lost(key, "its connection broke or was exchanged while it was held")
        holds = holds_of(connection)
        try:
            with self.session.asking(connection, key, answers=()):
                intact = self._unlock_after(self._roll_back_innermost)
                self.ended = True
        except LockConnectionError as error:
            raise lost(key, "its session ended") from error
        finally:
            if self.ended or self.session.ended:
                holds.locks.pop(self, None)
        if not intact:
            raise lost(key, "the server says that our session did not hold it")

    def unlock(self, session: SqlSession) -> bool:
        """Undo each grant; False when the server says that there was none."""
        return all(
            self.locks.release(session, self.name, mode=self._mode, scope=self.scope, label=None)
            for _ in range(self._grants)
        )

    def _unlock_after(self, roll_back: Callable[[], None]) -> bool:
        """Unlock, in a transaction that has failed after a rollback of that."""
        try:
            return self.unlock(self.session)
        except DBAPIError as error:
            if sqlstate(error) != IN_FAILED_SQL_TRANSACTION:
                raise
            roll_back()
            return self.unlock(self.session)

    def _roll_back_innermost(self) -> None:
        """Roll back what has failed and nothing else: rows before a savepoint are kept."""
        owner = self._owner()
        if owner is None or not owner.in_transaction():
            owner = self.connection()
        assert owner is not None, "asked while its connection lives"
        transaction = owner.get_nested_transaction() or owner.get_transaction()
        if transaction is None:
            self.session.rollback()
        else:
            transaction.rollback()

    def withdraw(self) -> None:
        """End a release that another thread runs; the connection ends with it."""
        self.session.withdraw()

    def returned(self, *, may_talk: bool) -> None:
        """Free the lock, since its connection goes back to the pool now; a transaction has ended before."""
        self.ended = True
        if self.scope == TRANSACTION:
            return
        if may_talk:
            self._unlock_after(self.session.rollback)
        else:  # detached, or found by the garbage collector: SQLAlchemy may be unable to close it
            self.session.end()

    def savepoint_released(self, name: str) -> None:
        """Note a RELEASE SAVEPOINT, of all younger ones too: what was locked since belongs to what is around it."""
        if name in self._older_savepoints:
            del self._older_savepoints[self._older_savepoints.index(name) :]

    def savepoint_rolled_back(self, name: str) -> None:
        """Note a ROLLBACK TO SAVEPOINT, which ends the lock if the savepoint is older."""
        self.ended = self.ended or name in self._older_savepoints


def _open_savepoints(connection: Connection) -> list[str]:
    """Return the names of the savepoints that are open now, oldest first.

    Each is SQLAlchemy's private knowledge: its event of a SAVEPOINT comes before the name is made.
    """
    names: list[str] = []
    nested = connection.get_nested_transaction()
    while nested is not None:
        names.insert(0, nested._savepoint)  # noqa: SLF001
        nested = nested._previous_nested  # noqa: SLF001
    return names


def acquire_on(connection: Connection, owner: Connection | Session, wanted: Wanted) -> Hold | None:
    """Take a lock on the caller's connection, or its Session's; None when it was not free in time.

    Raises:
        DeadlockError: The connection holds it already, or the server found a circle of waits.
        LockStateError: It is to end with the transaction, and the connection is in autocommit.
    """
    holds = holds_of(connection)
    before = holds.find(wanted.request.name)
    if before is not None and not before.abandoned:
        wanted.refuse_second()
        return None
    hold = Hold(connection, owner, wanted)
    session = hold.session
    wanted.stop = session.withdraw
    if hold.scope == TRANSACTION:
        _watch_transaction(connection)
    granted = False
    holds.locks[hold] = None  # before it can be held: its connection never goes into the pool with it
    try:
        with session.asking(connection, wanted.request.key):
            if hold.scope == TRANSACTION:
                _refuse_autocommit(session, wanted)
            if before is not None:
                before.unlock(session)
                before.ended = True
                holds.locks.pop(before, None)
            # A lock of PostgreSQL's transaction is right behind every pooler.
            if not holds.guarded and (hold.scope == SESSION or connection.dialect.name != "postgresql"):
                hold.locks.guard(session, allow_unsafe=False)
                holds.guarded = True
            granted = wanted.ask(session, hold.locks)
    finally:
        if session.ended or not granted:
            hold.ended = True
            holds.locks.pop(hold, None)
    return hold if granted else None


def _refuse_autocommit(session: CallerSession, wanted: Wanted) -> None:
    if session.autocommit:
        option = "xact" if wanted.options.xact else "release_on_commit"
        raise LockStateError(
            f"{option}=True on a connection in autocommit would be released at once; "
            f"use another isolation level, or leave {option} out"
        )


KEY = "dlock_core.sadlock"


class Holds:
    """All locks on one driver connection, and whether its server was found fit for them."""

    def __init__(self) -> None:
        self.guarded = False
        self.locks: dict[Hold, None] = {}

    def find(self, name: int | str) -> Hold | None:
        """Return the lock of this name."""
        return next((hold for hold in self.locks if hold.name == name and not hold.ended), None)

    def returned(self, *, may_talk: bool) -> None:
        """Free what was taken by borrowings that end now."""
        for hold in list(self.locks):
            if hold.pid == os.getpid() and not hold.still_out:
                self.locks.pop(hold, None)
                hold.returned(may_talk=may_talk)


def holds_of(connection: Connection) -> Holds:
    """Return what the driver connection under this connection holds."""
    holds: Holds = connection.info.setdefault(KEY, Holds())
    if connection.connection.is_detached:
        _detached[id(connection.connection.dbapi_connection)] = holds
    return holds


# By the identity of the driver connection. Weak, since a detached connection that is never closed ends
# as garbage.
_detached: weakref.WeakValueDictionary[int, Holds] = weakref.WeakValueDictionary()


# For good: SQLAlchemy's listeners must not come and go while other threads use a pool. They look into a dictionary.
@event.listens_for(Pool, "reset")
def _before_return(driver_connection: Any, record: Any, state: Any) -> None:
    """Free the locks of a connection before its pool has it back; SQLAlchemy closes it if we fail."""
    holds = _detached.pop(id(driver_connection), None) if record is None else record.info.get(KEY)
    if holds is not None:
        holds.returned(may_talk=state.asyncio_safe and record is not None)


@event.listens_for(Pool, "detach")
def _at_detach(driver_connection: Any, record: Any) -> None:
    """Take along what the connection holds; its place in the pool is for another one."""
    holds = record.info.pop(KEY, None)
    if holds is not None:
        _detached[id(driver_connection)] = holds


# Connections whose transactions are watched, by events of SQLAlchemy: a ROLLBACK as text goes unseen.
_watched: weakref.WeakSet[Connection] = weakref.WeakSet()


def _watch_transaction(connection: Connection) -> None:
    """Listen to a connection's transactions, for good: a listener cannot go while SQLAlchemy goes through them."""
    if connection not in _watched:
        _watched.add(connection)
        for name, listener in LISTENERS.items():
            event.listen(connection, name, listener)


def _in_transaction(connection: Connection) -> list[Hold]:
    """Return the locks of a transaction; those of a broken or closed connection are not alive anyway."""
    if connection.closed or connection.invalidated:
        return []
    locks = holds_of(connection).locks
    return [hold for hold in locks if hold.scope == TRANSACTION and hold.connection() is connection]


def _at_end(connection: Connection, *_: object) -> None:
    for hold in _in_transaction(connection):
        hold.ended = True
        holds_of(connection).locks.pop(hold, None)


def _at_savepoint(note: Callable[[Hold, str], None]) -> Callable[..., None]:
    def listener(connection: Connection, name: str, *_: object) -> None:
        for hold in _in_transaction(connection):
            note(hold, name)

    return listener


LISTENERS: dict[str, Callable[..., None]] = {
    "commit": _at_end,
    "rollback": _at_end,
    "commit_twophase": _at_end,
    "rollback_twophase": _at_end,
    "release_savepoint": _at_savepoint(Hold.savepoint_released),
    "rollback_savepoint": _at_savepoint(Hold.savepoint_rolled_back),
}
