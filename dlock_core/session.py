"""One server session that holds locks: used, watched and ended; `opening.py` opens it.

The session owns its driver connection alone. It runs in autocommit: while a lock is held the server
shows it idle, not "idle in transaction".

When in doubt, the session is ended. In doubt is any exception between "statement sent" and "answer
seen": SQLAlchemy's `invalidate()` of a detached connection closes nothing, and garbage collection
waits for the last traceback that refers to it.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import socket
import threading
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only, greenlet_spawn

from .errors import LockConnectionError
from .failures import first_line
from .onebyone import OneByOne
from .sighting import same_file
from .signals import from_handler
from .sockets import Peer, duplicate_socket, socket_number
from .watch import clock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Engine, TextClause

    from .dialects.base import ServerDialect
    from .watch import Care

__all__ = ["SqlSession"]

log = logging.getLogger("dlock")

# A wait shorter than this part of the lease is a proof of life, as any other statement.
WAIT_IS_PROOF = 4
SILENCE = "the database has not answered in time"


class SqlSession:
    """A driver connection that belongs to us alone; one borrower at a time uses it."""

    def __init__(
        self,
        engine: Engine,
        connection: Any,
        locks: ServerDialect,
        care: Care | None,
        label: str,
        *,
        seen: int | None = None,
    ) -> None:
        self._engine = engine
        self.sqla = engine.dialect
        self._connection = connection
        self._locks = locks
        self._care = care
        self.label = label
        # A blocking driver's cursor serves for all statements, one at a time; SQLAlchemy's async ones for one each.
        self._cursor = None if self.sqla.is_async else connection.cursor()
        self.driver_connection = self.sqla.get_driver_connection(connection)
        self._one_by_one = OneByOne.of(self.driver_connection)
        # The descriptor of a socket that the driver does not show, see `sighting.py`.
        self._seen = seen
        self.socket = duplicate_socket(self.driver_connection, seen)
        self._peer = Peer(self.socket)
        self._mutex = threading.Lock()
        self._line = threading.Lock()
        self._closing = threading.Lock()
        self._beat: asyncio.Task[None] | None = None
        self._parting: asyncio.Task[None] | None = None
        self._pid = os.getpid()
        self._loop = _running_loop() if self.sqla.is_async else None
        self._user: int | None = None
        # Seconds that the server is asked to wait.
        self._wait = 0.0
        self.due = inf
        self.ended = self.silent = False
        self.fresh = True
        self.locks = 0
        self.proof = clock()
        self.watched = self._shows_key = False
        # Each constant statement as the driver wants it, and the order of its parameters where they go by position.
        self._statements: dict[TextClause, tuple[str, tuple[str, ...] | None]] = {}

    def first(self, statement: TextClause, /, **values: object) -> Sequence[Any]:
        """Run a constant statement and return its first row, after the heartbeat's if that is under way.

        Raises:
            sqlalchemy.exc.DBAPIError: `connection_invalidated` tells whether the session is gone.
        """
        return self._in_line(self._first, statement, values)  # type: ignore[no-any-return]

    def answer(self, block: TextClause, /, **values: object) -> Any:
        """Run a constant PL/SQL block and return the number that it assigns to `:answer`; else as `first`."""
        return self._in_line(self._answer, block, values)

    def _in_line(
        self, run: Callable[[TextClause, dict[str, object]], Any], statement: TextClause, values: dict[str, object]
    ) -> Any:
        if self._loop is None:
            with self._line:
                return run(statement, values)
        while self._beat is not None and self._beat is not asyncio.current_task():
            await_only(asyncio.wait([self._beat]))
        return run(statement, values)

    def _first(self, statement: TextClause, values: dict[str, object]) -> Sequence[Any]:
        def run(cursor: Any, sql: str, parameters: Any) -> Sequence[Any]:
            cursor.execute(sql, parameters)
            row: Sequence[Any] = cursor.fetchone() or ()
            if row and self.sqla.name == "mssql":
                cursor.fetchall()  # to the end of the answer: pymssql would ask the server to cancel the rest
            return row

        return self._run(statement, values, run)  # type: ignore[no-any-return]

    def _answer(self, block: TextClause, values: dict[str, object]) -> Any:
        def run(cursor: Any, sql: str, parameters: Any) -> Any:
            out = cursor.var(int)
            cursor.execute(sql, {**parameters, "answer": out})
            return out.getvalue()

        return self._run(block, values, run)

    def _run(self, statement: TextClause, values: dict[str, object], run: Callable[[Any, str, Any], Any]) -> Any:
        sql, order = self._compile(statement)
        parameters = values if order is None else tuple(values[name] for name in order)
        cursor = None
        self._user = threading.get_ident()
        if self.ended:  # looked at after `_user` is set, as `end` sets and looks the other way round
            self._close()
            raise LockConnectionError("this session has ended")
        sent = self._sent()
        try:
            cursor = self._cursor or self._connection.cursor()
            result = run(cursor, sql, parameters)
            if self._cursor is None:
                cursor.close()
        except self.sqla.loaded_dbapi.Error as error:
            raise self._translated(error, sql, parameters, cursor) from error
        except asyncio.CancelledError:
            if self._one_by_one is not None and cursor is not None:
                self._one_by_one.stop(cursor._cursor._impl.cancel)  # noqa: SLF001 - pyodbc's, inside two others
            raise
        except Exception as error:  # out of the driver's own depths: its connection is broken
            if from_handler(error):
                raise
            reason = SILENCE if self.silent else f"the driver failed: {first_line(error)}"
            raise LockConnectionError(reason) from error
        finally:
            self._user = None
            self.due = inf
            if self.ended:
                self._close()  # `end` left it to us
        self.proof = sent
        return result

    def _sent(self) -> float:
        """Tell the watch that an answer is due, and return the time."""
        now = clock()
        if self._care is not None:
            self.due = now + self._wait + self._care.watch.patience
            if not self.watched:
                self._care.watch.add(self)
        return now

    def _compile(self, statement: TextClause) -> tuple[str, tuple[str, ...] | None]:
        found = self._statements.get(statement)
        if found is None:
            compiled = statement.compile(dialect=self.sqla)
            order = tuple(compiled.positiontup or ()) if compiled.positional else None
            found = self._statements[statement] = (compiled.string, order)
        return found

    def _translated(self, error: Exception, sql: str, parameters: Any, cursor: Any) -> BaseException:
        if self.silent:
            return LockConnectionError(SILENCE)
        dbapi = self.sqla.loaded_dbapi
        gone = isinstance(error, dbapi.Error) and self.sqla.is_disconnect(error, self._connection, cursor)
        gone = gone or self._locks.lost(error)
        return DBAPIError.instance(
            sql, parameters, error, dbapi.Error, hide_parameters=True, connection_invalidated=gone, dialect=self.sqla
        )

    def acquire(self, name: Any, *, shared: bool, timeout: float | None, label: str | None) -> bool:
        """Ask the server for the lock."""
        self._wait = inf if timeout is None else timeout
        lease = self._care and self._care.lease
        try:
            granted = self._locks.acquire(self, name, shared=shared, timeout=timeout, label=label)
        finally:
            if self._wait and lease is None:
                self.proof = clock()  # of life: the statement itself was sent long ago
            self._wait = 0.0
        self.fresh = False
        if granted and lease is not None and clock() - self.proof > lease / WAIT_IS_PROOF:
            self.first(self._locks.ping)  # the grant may have lain here while this process was frozen
        if granted:
            self._shows_key = self._shows_key or label is not None
            self.locks += 1
        return granted

    def release(self, name: Any, *, shared: bool) -> bool:
        """Unlock."""
        label = self.label if self._shows_key else None
        self._shows_key = False
        intact = self._locks.release(self, name, shared=shared, label=label)
        self.locks -= 1
        return intact

    def next_token(self, name: Any) -> int:  # noqa: ARG002 - one clock serves all names
        """Return a number that grows with every grant."""
        assert self._locks.token is not None
        return int(self.first(self._locks.token)[0])

    def alive(self) -> bool:
        """Tell whether the server has not hung up, without asking it; False where the socket is out of reach."""
        return not self.ended and self._peer.in_reach and not self._peer.hung_up() and not self.expired()

    def hung_up(self) -> bool:
        """Tell whether the server has closed; False where that cannot be seen."""
        return self._peer.hung_up()

    def expired(self) -> bool:
        """Tell whether the server may have ended the session because its lease is over."""
        lease = self._care and self._care.lease
        return lease is not None and not self._wait and clock() - self.proof > lease

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that opened it, None for a blocking driver."""
        return self._loop

    def stranded(self) -> bool:
        """Tell whether the event loop that opened it is closed, so that nobody can use it."""
        return self._loop is not None and self._loop.is_closed()

    def waits(self) -> bool:
        """Tell whether it waits for a lock at the server."""
        return self._wait > 0

    def beat(self) -> None:
        """Begin to ask the server for a sign of life; any statement that is under way is one as well."""
        if self._loop is None:
            assert self._care is not None
            self._care.workers.submit(self._beat_in_thread)
        else:
            with suppress(RuntimeError):  # closed meanwhile, which the watch will see
                self._loop.call_soon_threadsafe(self._beat_in_loop)

    def _beat_in_thread(self) -> None:
        if self._line.acquire(blocking=False):
            try:
                self._ping()
            finally:
                self._line.release()

    def _beat_in_loop(self) -> None:
        if self._beat is None and self._user is None:
            assert self._loop is not None
            self._beat = self._loop.create_task(greenlet_spawn(self._ping))
            self._beat.add_done_callback(lambda _: setattr(self, "_beat", None))

    def _ping(self) -> None:
        try:
            self._first(self._locks.ping, {})
        except Exception as error:  # noqa: BLE001 - the watch reads it off `proof`
            log.debug("the heartbeat of a lock session failed: %s", first_line(error))

    def interrupt(self) -> None:
        """End a wait that another thread runs here: by the driver's cancel, else by its socket.

        A session that was interrupted is in doubt, so it is ended and never lent again.
        """
        if self.ended or self._pid != os.getpid():
            return
        self._stop_statement()

    def _stop_statement(self) -> None:
        driver = self.driver_connection
        cancel = getattr(driver, "cancel_safe", None) or getattr(driver, "cancel", None)  # psycopg, oracledb
        cancel = cancel or getattr(self._cursor, "cancel", None)  # pyodbc
        if cancel is None and self.socket is None:
            cancel = getattr(getattr(driver, "_conn", None), "cancel", None)  # pymssql
        try:
            if cancel is not None:
                cancel()  # outside the mutex: it opens a connection, for which `end` must not wait
            else:
                self.hang_up()
        except Exception:  # the wait may just have ended, and the session with it
            log.debug("could not interrupt a wait", exc_info=True)

    def hang_up(self) -> None:
        """Close the socket under whoever uses the session."""
        with self._mutex:
            if not self.ended and self.socket is not None:
                self.socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """End the session on the server: whatever it holds is free."""
        if self.ended:
            return
        if self._pid != os.getpid():
            self.park()
            return
        with self._mutex:
            self.ended = True
        try:
            if self._may_close():
                self._close()
            elif self._loop is None and self.socket is None:
                self._stop_statement()  # whose thread closes the session then
        finally:  # a second cancel may come while the driver says goodbye
            self._shut()

    def _close(self) -> None:
        if self._closing.acquire(blocking=False):
            try:
                self.sqla.do_terminate(self._connection)
            except Exception:  # a broken connection; its socket is closed by `end`
                log.debug("the driver could not close a lock session", exc_info=True)

    def _may_close(self) -> bool:
        """Tell whether the driver itself may close: not under another thread's wait, nor out of its loop."""
        if self._loop is not None:
            return _running_loop() is self._loop
        return self._user in (None, threading.get_ident())

    def _shut(self) -> None:
        if self._care is not None:
            self._care.watch.remove(self)
        if self.socket is not None:
            with suppress(OSError):  # closed already, as it should be
                self.socket.shutdown(socket.SHUT_RDWR)
            self.socket.close()
        if self._loop is None or _running_loop() is self._loop:
            return
        try:
            self._loop.call_soon_threadsafe(self._close_in_loop)
        except RuntimeError:  # the loop is closed, and will not use the connection any more
            self._finish()

    def _close_in_loop(self) -> None:
        """Close what another thread could not: the loop itself may be at work on the connection."""
        assert self._loop is not None
        self._parting = self._loop.create_task(greenlet_spawn(self._close))

    def _finish(self) -> None:
        driver = self.driver_connection
        finish = getattr(getattr(driver, "pgconn", None), "finish", None)  # psycopg's
        finish = finish or getattr(getattr(driver, "_conn", None), "close", None)  # pyodbc's, inside aioodbc's
        if finish is not None:
            finish()

    def park(self) -> None:
        """Give up the parent's session in a forked child.

        The driver object lives for ever, since its destructor might say goodbye on the parent's
        wire. Its descriptor becomes the null device, since the child's copy would keep the
        session, and its locks, alive after the parent has died.
        """
        if self.ended:
            return
        self.ended = True
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.driver_connection))
        if self.socket is None:
            return
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self.socket))
        seen = self._seen if same_file(self._seen, self.socket) else None
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (self.socket.fileno(), socket_number(self.driver_connection), seen):
            if descriptor is not None:
                os.dup2(null, descriptor, inheritable=False)
        os.close(null)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
