"""Session-level locks on the caller's driver connection.

The lock belongs to the driver connection on which it was taken. It is never unlocked on another one,
and it never goes back into a pool: see `holds.py`. When in doubt about what the server did, the
driver connection is ended, as SQLAlchemy itself does when a statement is cancelled.
"""

from __future__ import annotations

import os
import weakref
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sqlalchemy.exc import DBAPIError, ResourceClosedError

from ..dialects import find_dialect
from ..errors import (
    DeadlockError,
    LockConnectionError,
    LockError,
    LockLostError,
    LockStateError,
    UnsafeEnvironmentError,
    shown,
)
from ..session import SqlSession, connection_lost
from ..timeouts import Deadline
from .holds import holds_of, watch_pools
from .main_thread import hearing, helpers
from .postgresql import PostgreSQLOnCaller

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from sqlalchemy import Connection, TextClause
    from sqlalchemy.orm import Session
    from sqlalchemy.pool import PoolProxiedConnection

    from ..contexts import Context
    from ..dialects.base import ServerDialect
    from ..requests import Request

__all__ = [
    "Ask",
    "CallerSession",
    "ConnectionHold",
    "acquire_on",
    "asking",
    "locks_on_caller",
    "refuse_second",
    "wait_for",
]

# Errors that are the server's own answer to a question for a lock: nothing was granted, or it was undone.
ANSWERS = (DBAPIError, DeadlockError, LockStateError, UnsafeEnvironmentError)


class Ask(NamedTuple):
    """A question for a lock: what, how, where to wait, and how many seconds (None is for ever)."""

    request: Request
    xact: bool
    context: Context
    timeout: float | None


class LocksOnCaller(Protocol):
    """A database's locks on a connection of which nothing else may change."""

    def guard(self, session: CallerSession) -> None:
        """Refuse a server on which a lock protects nothing."""
        ...

    def acquire(self, session: CallerSession, name: Any, *, shared: bool, xact: bool, timeout: float | None) -> bool:
        """Ask for the lock: once at 0, else the server waits; False may come early when it rounds."""
        ...

    def release(self, session: CallerSession, name: Any, *, shared: bool, recover: Callable[[], None]) -> bool:
        """Unlock; False when the server says that this session did not hold it."""
        ...


class PlainLocksOnCaller:
    """A database whose statements for locks touch neither transactions nor settings: MySQL, MariaDB."""

    def __init__(self, locks: ServerDialect) -> None:
        self._locks = locks

    def guard(self, session: CallerSession) -> None:
        self._locks.guard(session, unsafe_ok=False)

    def acquire(self, session: CallerSession, name: Any, *, shared: bool, xact: bool, timeout: float | None) -> bool:
        assert not xact
        return self._locks.acquire(session, name, shared=shared, timeout=timeout, label="")

    def release(self, session: CallerSession, name: Any, *, shared: bool, recover: Callable[[], None]) -> bool:  # noqa: ARG002 - a failed transaction does not hinder it
        return self._locks.release(session, name, shared=shared, label="")


def locks_on_caller(name: str) -> LocksOnCaller:
    """Return the locks of a database server, by SQLAlchemy's name of the dialect."""
    if name == "postgresql":
        return PostgreSQLOnCaller()
    locks = find_dialect(name)
    assert hasattr(locks, "guard"), "SQLite's locks are on no connection"
    return PlainLocksOnCaller(locks)  # type: ignore[arg-type]


class CallerSession(SqlSession):
    """The server session under the caller's connection.

    It keeps the driver connection and nothing of SQLAlchemy's, so that a connection that the caller
    forgets can still be found by the garbage collector and go back to its pool.
    """

    def __init__(self, connection: Connection) -> None:
        driver_connection = connection.connection.dbapi_connection
        super().__init__(connection.engine, driver_connection, find_dialect(connection.dialect.name), "")  # type: ignore[arg-type]
        self.unbegun = not connection.in_transaction()

    @classmethod
    def under(cls, connection: Connection, key: object) -> Self:
        """Look at what is under a connection.

        Raises:
            LockConnectionError: A connection that the driver has closed without SQLAlchemy's knowledge.
        """
        try:
            return cls(connection)
        except (OSError, connection.dialect.loaded_dbapi.Error) as error:
            connection.invalidate(error)
            raise LockConnectionError(
                f"key {shown(key)}: the connection is broken: {error}; roll back to get another", key=key
            ) from error

    def is_under(self, connection: Connection) -> bool:
        """Tell whether the caller's connection is still on this very driver connection."""
        if connection.closed or connection.invalidated:
            return False
        return connection.connection.dbapi_connection is self._connection

    def command(self, statement: TextClause) -> None:
        """Run a statement that has no rows."""
        sql, _ = self._compile(statement)
        cursor = self._connection.cursor()
        try:
            cursor.execute(sql)
            cursor.close()
        except self.sqla.loaded_dbapi.Error as error:
            raise self._translated(error, sql, {}, cursor) from error

    def rollback(self) -> None:
        """End the driver's transaction, of which SQLAlchemy knows nothing."""
        self.sqla.do_rollback(self._connection)

    @property
    def autocommit(self) -> bool:
        """Whether each statement is a transaction of its own."""
        return getattr(self._connection, "autocommit", False) is True

    def end_under(self, connection: Connection, error: BaseException) -> None:
        """End the session on the server, and tell SQLAlchemy, which may know a statement of it unfinished."""
        if not self._may_close():
            self._hang_up()  # a helper thread still waits in the driver, whose close would wait for it
        with suppress(ResourceClosedError):
            connection.invalidate(error)
        self.end()  # a detached connection is not closed by SQLAlchemy, which only forgets it

    def leave(self) -> None:
        """Close our second handle of the socket, which would keep the session alive beyond the caller's close."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class HeldByConnection:
    """A session-level lock as its driver connection remembers it."""

    def __init__(
        self, session: CallerSession, locks: LocksOnCaller, request: Request, proxied: PoolProxiedConnection
    ) -> None:
        self.name = request.name
        self.shared = request.shared
        self.pid = os.getpid()
        self.session = session
        self.locks = locks
        self.lost = ""
        self.ended = False
        self._proxied = weakref.ref(proxied)

    @property
    def proxied(self) -> PoolProxiedConnection | None:
        return self._proxied()

    def returned(self, *, may_talk: bool) -> None:
        self.ended = True
        self.lost = "its connection was closed while it was held, and the lock released with it"
        if may_talk:
            self.locks.release(self.session, self.name, shared=self.shared, recover=self.session.rollback)
        else:  # detached, or found by the garbage collector: SQLAlchemy may be unable to close it
            self.session.end()


class ConnectionHold:
    """A session-level lock as its holder sees it."""

    ends_with_transaction = False

    def __init__(self, connection: Connection, orm_session: Session | None, held: HeldByConnection) -> None:
        self._connection = connection
        self._orm_session = orm_session
        self._held = held
        self.pid = held.pid

    @property
    def alive(self) -> bool:
        return not self._held.lost and self._held.session.is_under(self._connection)

    def release(self, key: object) -> None:
        """Unlock on the very connection that holds the lock, or say that it was lost."""
        held = self._held
        if held.lost:
            raise _lost(key, held.lost)
        if not held.session.is_under(self._connection):
            held.session.end()  # SQLAlchemy does not close a detached connection that it invalidates
            raise _lost(key, "its connection broke or was exchanged while it was held")
        holds_of(self._connection).remove(held)
        try:
            with asking(self._connection, held.session, key, answers=()):
                intact = held.locks.release(
                    held.session, held.name, shared=held.shared, recover=self._roll_back_innermost
                )
        except LockConnectionError as error:
            raise _lost(key, "its session ended") from error
        if not intact:
            raise _lost(key, "the server says that our session did not hold it")

    def _roll_back_innermost(self) -> None:
        """Roll back what has failed and nothing else: rows before a savepoint are kept."""
        orm = self._orm_session
        owner = self._connection if orm is None or not orm.in_transaction() else orm
        transaction = owner.get_nested_transaction() or owner.get_transaction()
        if transaction is None:
            self._held.session.rollback()
        else:
            transaction.rollback()


def acquire_on(connection: Connection, orm_session: Session | None, ask: Ask) -> ConnectionHold | None:
    """Take a session-level lock on the caller's connection; None when it was not free in time."""
    holds = holds_of(connection)
    if holds.find(ask.request.name) is not None:
        refuse_second(ask)
        return None
    watch_pools()
    session, locks = CallerSession.under(connection, ask.request.key), locks_on_caller(connection.dialect.name)
    held = HeldByConnection(session, locks, ask.request, connection.connection)
    with asking(connection, session, ask.request.key):
        if not holds.guarded:
            locks.guard(session)
            holds.guarded = True
        if not wait_for(session, locks, ask):
            return None
    holds.add(held)
    return ConnectionHold(connection, orm_session, held)


def wait_for(session: CallerSession, locks: LocksOnCaller, ask: Ask) -> bool:
    """Ask the server; the longest waits are asked for in several rounds."""
    question = partial(locks.acquire, session, ask.request.name, shared=ask.request.shared, xact=ask.xact)
    if ask.timeout == 0:
        return question(timeout=0)
    deadline, context = Deadline(ask.timeout), hearing(ask.context, helpers())
    while not deadline.passed:
        if context.wait(partial(question, timeout=deadline.remaining()), session.interrupt):
            return True
    return False


def refuse_second(ask: Ask) -> None:
    """Refuse a key that this connection holds already: the server would count a second hold, not wait.

    Raises:
        DeadlockError: A wait was asked for; a try is just refused.
    """
    if ask.timeout != 0:
        key = ask.request.key
        raise DeadlockError(
            f"key {shown(key)}: this connection holds it already and would wait for itself; "
            "release it first, or use another connection",
            key=key,
        )


@contextmanager
def asking(
    connection: Connection, session: CallerSession, key: object, *, answers: tuple[type[Exception], ...] = ANSWERS
) -> Iterator[None]:
    """Talk to the server; when it is in doubt what the server did, the driver connection ends.

    Args:
        connection: The caller's connection.
        session: The server session under it.
        key: Named in errors.
        answers: Errors that are the server's own answer, after which we hold what we held before.

    Raises:
        LockConnectionError: The connection broke.
    """
    try:
        yield
    except BaseException as error:
        if connection_lost(error) or not isinstance(error, answers):
            session.end_under(connection, error)
        named = _named(error, key)
        if named is error:
            raise
        raise named from error
    finally:
        session.leave()


def _named(error: BaseException, key: object) -> BaseException:
    """Return the error as the user should see it: it names the key, and is ours if the session is gone."""
    if isinstance(error, LockError):
        return type(error)(f"key {shown(key)}: {error}", key=key)
    if connection_lost(error):
        text = str(getattr(error, "orig", error)).strip().partition("\n")[0]
        return LockConnectionError(f"key {shown(key)}: lost the database while asking for it: {text}", key=key)
    return error


def _lost(key: object, reason: str) -> LockLostError:
    return LockLostError(
        f"key {shown(key)}: the lock was lost, {reason}: somebody else may have held it since. Keep the connection "
        "open inside the lock, or use LockProvider, whose locks have connections of their own",
        key=key,
    )
