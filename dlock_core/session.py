"""One server session that holds locks: opened, guarded, prepared, used and ended.

The session owns its driver connection alone. It comes out of a private pool, a `recreate()` of the
engine's, so that the engine's creator, events and credentials apply while no slot of the
application's pool is taken, not even at the moment of opening. It runs in autocommit: while a lock
is held the server shows it idle, not "idle in transaction".

When in doubt, the session is ended. In doubt is any exception between "statement sent" and "answer
seen": SQLAlchemy's `invalidate()` of a detached connection closes nothing, and garbage collection
waits for the last traceback that refers to it.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import select
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError

from .errors import LockConnectionError
from .signals import from_handler
from .urls import shown_url

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Engine, Pool, TextClause

    from .dialects.base import ServerDialect

__all__ = ["SqlSession", "connection_lost", "open_session", "socket_number"]

log = logging.getLogger("dlock")


def open_session(engine: Engine, pool: Pool, locks: ServerDialect, *, label: str, unsafe_ok: bool) -> SqlSession:
    """Open a session of our own, guard it, and only then set anything on it.

    The order matters: through a transaction pooler a setting would stay on a server session that
    the application uses next.

    Raises:
        LockConnectionError: The database cannot be reached.
        UnsafeEnvironmentError: A lock there would protect nothing.
    """
    session = SqlSession(engine, _connect(engine, pool), locks, label)
    try:
        if locks.guard(session, unsafe_ok=unsafe_ok):
            locks.prepare(session, label=label)
    except BaseException:
        session.end()
        raise
    return session


def _connect(engine: Engine, pool: Pool) -> Any:
    """Return a driver connection in autocommit that no pool knows."""
    try:
        pooled = pool.connect()
    except Exception as error:  # drivers raise their own, OSError and SQLAlchemy's here
        if from_handler(error):
            raise
        raise LockConnectionError(
            f"cannot open a lock session on {shown_url(engine.url)}: "
            f"{_first_line(error)}. Check that the server runs and that the URL is right"
        ) from error
    connection = pooled.dbapi_connection
    assert connection is not None
    pooled.detach()
    try:
        engine.dialect.set_isolation_level(connection, "AUTOCOMMIT")
    except BaseException:
        engine.dialect.do_terminate(connection)
        raise
    return connection


class SqlSession:
    """A driver connection that belongs to us alone; one borrower at a time uses it."""

    def __init__(self, engine: Engine, connection: Any, locks: ServerDialect, label: str) -> None:
        self._engine = engine
        self.sqla = engine.dialect
        self._connection = connection
        self._locks = locks
        self.label = label
        self._shows_key = False
        # A blocking driver's cursor serves for all statements, one at a time; SQLAlchemy's async ones for one each.
        self._cursor = None if self.sqla.is_async else connection.cursor()
        self.driver_connection = self.sqla.get_driver_connection(connection)
        self._socket = _duplicate_socket(self.driver_connection)
        self._peer = _watch_peer(self._socket)
        self._mutex = threading.Lock()
        self._pid = os.getpid()
        self._loop = _running_loop() if self.sqla.is_async else None
        self._user: int | None = None
        self._ended = False
        self.fresh = True
        # Each constant statement as the driver wants it, and the order of its parameters where they go by position.
        self._statements: dict[TextClause, tuple[str, tuple[str, ...] | None]] = {}

    def first(self, statement: TextClause, /, **values: object) -> Sequence[Any]:
        """Run a constant statement and return its first row.

        Raises:
            sqlalchemy.exc.DBAPIError: `connection_invalidated` tells whether the session is gone.
        """
        sql, order = self._compile(statement)
        parameters = values if order is None else tuple(values[name] for name in order)
        cursor = None
        self._user = threading.get_ident()
        if self._ended:  # looked at after `_user` is set, as `end` sets and looks the other way round
            raise LockConnectionError("this session has ended")
        try:
            cursor = self._cursor or self._connection.cursor()
            cursor.execute(sql, parameters)
            row: Sequence[Any] = cursor.fetchone() or ()
            if self._cursor is None:
                cursor.close()
        except self.sqla.loaded_dbapi.Error as error:
            raise self._translated(error, sql, parameters, cursor) from error
        except Exception as error:  # out of the driver's own depths: its connection is broken
            if from_handler(error):
                raise
            raise LockConnectionError(f"the driver failed: {_first_line(error)}") from error
        finally:
            self._user = None
        return row

    def _compile(self, statement: TextClause) -> tuple[str, tuple[str, ...] | None]:
        found = self._statements.get(statement)
        if found is None:
            compiled = statement.compile(dialect=self.sqla)
            order = tuple(compiled.positiontup or ()) if compiled.positional else None
            found = self._statements[statement] = (compiled.string, order)
        return found

    def _translated(self, error: Exception, sql: str, parameters: Any, cursor: Any) -> BaseException:
        dbapi = self.sqla.loaded_dbapi
        gone = isinstance(error, dbapi.Error) and self.sqla.is_disconnect(error, self._connection, cursor)
        return DBAPIError.instance(
            sql, parameters, error, dbapi.Error, hide_parameters=True, connection_invalidated=gone, dialect=self.sqla
        )

    def acquire(self, name: Any, *, shared: bool, timeout: float | None, label: str | None) -> bool:
        """Ask the server for the lock."""
        granted = self._locks.acquire(self, name, shared=shared, timeout=timeout, label=label)
        self._shows_key = self._shows_key or (granted and label is not None)
        self.fresh = False
        return granted

    def release(self, name: Any, *, shared: bool) -> bool:
        """Unlock."""
        label = self.label if self._shows_key else None
        self._shows_key = False
        return self._locks.release(self, name, shared=shared, label=label)

    def next_token(self, name: Any) -> int:  # noqa: ARG002 - one clock serves all names
        """Return a number that grows with every grant."""
        return int(self.first(self._locks.token)[0])

    def alive(self) -> bool:
        """Tell whether the server has not hung up, without asking it; False where the socket is out of reach."""
        return not self._ended and self._peer is not None and not self._peer.poll(0)

    def interrupt(self) -> None:
        """End a wait that another thread runs here: by the driver's cancel, else by its socket.

        A session that was interrupted is in doubt, so it is ended and never lent again.
        """
        if self._ended or self._pid != os.getpid():
            return
        cancel = getattr(self.driver_connection, "cancel_safe", None)
        cancel = cancel or getattr(self.driver_connection, "cancel", None)
        try:
            if cancel is not None:
                cancel()  # outside the mutex: it opens a connection, for which `end` must not wait
            else:
                self._hang_up()
        except Exception:  # the wait may just have ended, and the session with it
            log.debug("could not interrupt a wait", exc_info=True)

    def _hang_up(self) -> None:
        with self._mutex:
            if not self._ended and self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """End the session on the server: whatever it holds is free."""
        if self._ended:
            return
        if self._pid != os.getpid():
            self.park()
            return
        with self._mutex:
            self._ended = True
        try:
            if self._may_close():
                self.sqla.do_terminate(self._connection)
        except Exception:  # a broken connection; its socket is closed below
            log.debug("the driver could not close a lock session", exc_info=True)
        finally:
            self._shut()

    def _may_close(self) -> bool:
        """Tell whether the driver itself may close: not under another thread's wait, nor out of its loop."""
        if self._loop is not None:
            return _running_loop() is self._loop
        return self._user in (None, threading.get_ident())

    def _shut(self) -> None:
        if self._socket is not None:
            with suppress(OSError):  # closed already, as it should be
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
        finish = getattr(getattr(self.driver_connection, "pgconn", None), "finish", None)
        if finish is not None:  # psycopg's async connection outside its loop
            finish()

    def park(self) -> None:
        """Give up the parent's session in a forked child.

        The driver object lives for ever, since its destructor might say goodbye on the parent's
        wire. Its descriptor becomes the null device, since the child's copy would keep the
        session, and its locks, alive after the parent has died.
        """
        if self._ended:
            return
        self._ended = True
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.driver_connection))
        if self._socket is None:
            return
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._socket))
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (self._socket.fileno(), socket_number(self.driver_connection)):
            if descriptor is not None:
                os.dup2(null, descriptor, inheritable=False)
        os.close(null)


def _watch_peer(connection: socket.socket | None) -> select.poll | None:
    """Return what tells in no time whether the peer has closed; data is not asked for."""
    if connection is None or not hasattr(select, "POLLRDHUP"):
        return None
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return poll


def _duplicate_socket(driver_connection: Any) -> socket.socket | None:
    """Return a second handle of the session's socket, None where the driver shows none."""
    descriptor = socket_number(driver_connection)
    return None if descriptor is None else socket.socket(fileno=os.dup(descriptor))


def socket_number(driver_connection: Any) -> int | None:
    """Return the descriptor of a driver connection's socket, None where the driver shows none."""
    if hasattr(driver_connection, "fileno"):  # psycopg, psycopg2, mysqlclient
        return int(driver_connection.fileno())
    # The other drivers keep theirs private, and there is no other way to it.
    stream = getattr(driver_connection, "_transport", None)  # asyncpg, asyncmy
    stream = stream or getattr(driver_connection, "_writer", None)  # aiomysql
    found = getattr(driver_connection, "_sock", None)  # PyMySQL
    found = stream.get_extra_info("socket") if stream is not None else found
    return None if found is None else int(found.fileno())


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def connection_lost(error: BaseException) -> bool:
    """Tell whether an error of a statement means that the session is gone."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated
    return isinstance(error, OSError) and not from_handler(error)
