"""The server session under a caller's connection: asked for locks, and ended when in doubt.

In doubt is any exception between "statement sent" and "answer seen". SQLAlchemy, too, throws a
connection away whose statement was cancelled; but one that was detached from its pool it only
forgets, and the server keeps what it holds.
"""

from __future__ import annotations

import select
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError, ResourceClosedError

from ..dialects import find_dialect
from ..errors import (
    DeadlockError,
    LockConnectionError,
    LockStateError,
    UnsafeEnvironmentError,
    UnsupportedError,
    shown,
)
from ..failures import connection_lost, named
from ..session import SqlSession
from ..sockets import socket_number

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from sqlalchemy import Connection, TextClause

    from ..dialects.base import ServerDialect

__all__ = ["ANSWERS", "CallerSession", "asking"]

# Errors that are the server's own answer to a question for a lock: nothing was granted, or it was undone.
ANSWERS = (DBAPIError, DeadlockError, LockStateError, UnsafeEnvironmentError, UnsupportedError)


class CallerSession(SqlSession):
    """The server session under a caller's connection.

    It keeps the driver connection and nothing of SQLAlchemy's, so that the garbage collector still
    finds a connection that the caller forgets, and its pool gets it back.
    """

    def __init__(self, connection: Connection) -> None:
        driver_connection = connection.connection.dbapi_connection
        locks: ServerDialect = find_dialect(connection.dialect.name)  # type: ignore[assignment] # SQLite's are elsewhere
        super().__init__(connection.engine, driver_connection, locks, None, "")
        self.unbegun = not connection.in_transaction()

    @classmethod
    def under(cls, connection: Connection, key: object) -> Self:
        """Look at what is under a connection.

        Raises:
            LockConnectionError: The driver has closed it without SQLAlchemy's knowledge.
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

    def hung_up(self) -> bool:
        """Tell whether the server has closed the connection, without asking it; False where nobody can see."""
        if not hasattr(select, "POLLRDHUP"):
            return False
        poll = select.poll()
        try:
            number = socket_number(self.driver_connection)
            if number is None:
                return False
            poll.register(number, select.POLLRDHUP)
        except (OSError, ValueError, self.sqla.loaded_dbapi.Error):  # the driver has noticed, and closed its end
            return True
        return bool(poll.poll(0))

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
        connection = self._connection  # pymssql's `autocommit` is a method
        return getattr(connection, "autocommit_state", getattr(connection, "autocommit", False)) is True

    def end_under(self, connection: Connection, error: BaseException) -> None:
        """End the session on the server, and tell SQLAlchemy, which may know a statement of it unfinished."""
        if not self._may_close():
            self.hang_up()  # a helper thread still waits in the driver, whose close would wait for it
        with suppress(ResourceClosedError):
            connection.invalidate(error)
        self.end()

    def leave(self) -> None:
        """Close our second handle of the socket, which would keep the session alive beyond the caller's close."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None


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
        ours = named(error, key)
        if ours is error:
            raise
        raise ours from error
    finally:
        session.leave()
