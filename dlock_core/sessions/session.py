"""One server session that holds locks: used, watched and ended; `pool.py` opens it.

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
from contextlib import nullcontext, suppress
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only, greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet

from ..dialects.failures import StatementCancelledError, answered, first_line, from_handler
from ..errors import LockConnectionError
from .drivers import Closing, SerialExecutor, driver_of, kill_statement
from .sockets import Peer, duplicate_socket, replace_by_null
from .timeouts import ServerWait
from .watch import clock
from .workers import background

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Engine, TextClause

    from ..dialects.base import ServerDialect
    from .watch import Watch

__all__ = ["SqlSession"]

log = logging.getLogger("dlock")

# A wait shorter than this part of the lease is a proof of life, as any other statement.
WAIT_IS_PROOF = 4
SILENCE = "the database has not answered in time"
DRIVERS_LIMIT = "the driver's own time limit for statements ended it (asyncpg: command_timeout)"
# An error in answer to a heartbeat is a sign of life; so many in a row are none.
FAILED_BEATS = 3
# Pause between two looks whether a session is free, in seconds.
AGAIN = 0.001
# The value of a statement's parameter that the server assigns, see `SqlSession.answer`.
OUT = object()


class SqlSession:
    """A driver connection that belongs to us alone; one borrower at a time uses it."""

    borrowed = False

    def __init__(
        self,
        engine: Engine,
        connection: Any,
        locks: ServerDialect,
        watch: Watch | None,
        label: str,
        *,
        seen: int | None = None,
    ) -> None:
        self._engine = engine
        self.sqla = engine.dialect
        self._connection = connection
        self._locks = locks
        self._watch = watch
        self._lease = None if watch is None else watch.lease
        self.label = label
        # A blocking driver's cursor serves for all statements, one at a time; SQLAlchemy's async ones for one each.
        self._cursor = None if self.sqla.is_async else connection.cursor()
        self.driver_connection = self.sqla.get_driver_connection(connection)
        self.driver = driver_of(self.sqla)
        self._executor = SerialExecutor.of(self.driver_connection)
        # Noted now, since a driver does not tell it while another thread is in a statement. Where the driver never
        # does, the pool saw it open.
        descriptor = self.driver.descriptor(self.driver_connection)
        self._descriptor = seen if descriptor is None else descriptor
        self.socket = duplicate_socket(self._descriptor)
        self._peer = Peer(self.socket)
        self._mutex = threading.Lock()
        self._closing = Closing()
        self._beat: asyncio.Task[Any] | None = None
        self._pid = os.getpid()
        self.loop = asyncio.get_running_loop() if self.sqla.is_async else None
        """The event loop that opened it, None for a blocking driver."""
        # One statement at a time; re-entrant, since the heartbeat has it already. Tasks look at `_beat` instead.
        self._line: Any = threading.RLock() if self.loop is None else nullcontext()
        self._user: int | None = None
        self.waiter: object = None
        # The server's number for the session; noted now, since mysqlclient tells it to no other thread during a wait.
        self.number = self.driver.number and self.driver.number(self.driver_connection)
        kills = self.number is not None
        self._wait = ServerWait(self.loop, kills=kills, sound=kills or self.driver.waits_for_cancel)
        self.due = inf
        self.ended = self.silent = self._broken = False
        self.fresh = True
        self.locks = self._failed_beats = 0
        self.proof = clock()
        self.shows_key = False
        """Its name at the server may be that of a key."""
        # Each constant statement as the driver wants it, and the order of its parameters where they go by position.
        self._statements: dict[TextClause, tuple[str, tuple[str, ...] | None]] = {}

    def first(self, statement: TextClause, /, **values: object) -> Sequence[Any]:  # noqa: C901 - the hot path
        """Run a constant statement and return its first row, after the heartbeat's if that is under way.

        Raises:
            sqlalchemy.exc.DBAPIError: `connection_invalidated` tells whether the session is gone.
        """
        sql, order = self._statements.get(statement) or self._compile(statement)
        watch, cursor = self._watch, None
        with self._line:
            if self._beat is not None:
                self._await_beat(self._beat)
            self._user = threading.get_ident()
            if self.ended:  # looked at after `_user` is set, as `end` sets and looks the other way round
                self._close()
                raise LockConnectionError("this session has ended")
            sent = clock()
            if watch is not None:
                wait = self._wait.seconds
                patience = watch.patience_with_locks if self.locks and not wait else watch.patience
                self.due = sent - watch.frozen + wait + patience
            try:
                cursor = self._cursor or self._connection.cursor()
                out = None
                if values.get("answer") is OUT:
                    out = values["answer"] = cursor.var(int)
                cursor.execute(sql, values if order is None else tuple([values[name] for name in order]))
                row: Sequence[Any] = (out.getvalue(),) if out is not None else cursor.fetchone() or ()
                if row and self.driver.reads_to_end:
                    cursor.fetchall()
                if self._cursor is None:
                    cursor.close()
            except asyncio.CancelledError:
                self._stop_in_executor(cursor)
                raise
            except Exception as error:
                if not isinstance(error, self.sqla.loaded_dbapi.Error) and from_handler(error):
                    raise
                raise self._translated(error, sql, values, cursor) from error
            finally:
                self._user = None
                self.due = inf
                if self.ended:
                    self._close()  # `end` left it to us
            self.proof = sent
            return row

    def command(self, statement: TextClause) -> None:
        """Run a statement that has no rows."""
        sql, _ = self._compile(statement)
        cursor = self._connection.cursor()
        try:
            cursor.execute(sql)
            cursor.close()
        except self.sqla.loaded_dbapi.Error as error:
            raise self._translated(error, sql, {}, cursor) from error

    def begun(self) -> bool:
        """Tell whether a transaction is open; here each statement is one of its own."""
        return False

    def rollback(self) -> None:
        """End the driver's transaction, of which SQLAlchemy knows nothing."""
        self.sqla.do_rollback(self._connection)

    def answer(self, block: TextClause, /, **values: object) -> Any:
        """Run a constant PL/SQL block and return the number that it assigns to `:answer`; else as `first`."""
        return self.first(block, **values, answer=OUT)[0]

    def _await_beat(self, beat: asyncio.Task[Any] | None) -> None:
        while beat is not None and beat is not asyncio.current_task():
            await_only(asyncio.wait([beat]))
            beat = self._beat

    def _stop_in_executor(self, cursor: Any) -> None:
        """Let a cancelled task's statement end in its thread."""
        if self._executor is not None and cursor is not None:
            cancel = self.driver.cancel(self.driver_connection, cursor)
            assert cancel is not None
            self._executor.stop(cancel)

    def _compile(self, statement: TextClause) -> tuple[str, tuple[str, ...] | None]:
        found = self._statements.get(statement)
        if found is None:
            compiled = statement.compile(dialect=self.sqla)
            order = tuple(compiled.positiontup or ()) if compiled.positional else None
            found = self._statements[statement] = (compiled.string, order)
        return found

    def _translated(self, error: Exception, sql: str, parameters: Any, cursor: Any) -> BaseException:
        """Say what an error means; one out of the driver's own depths has broken its connection."""
        if self.silent:
            return LockConnectionError(SILENCE)
        dbapi = self.sqla.loaded_dbapi
        if not isinstance(error, dbapi.Error):
            self._broken = True
            late = isinstance(error, TimeoutError)
            return LockConnectionError(DRIVERS_LIMIT if late else f"the driver failed: {first_line(error)}")
        gone = self._broken = self.sqla.is_disconnect(error, self._connection, cursor) or self._locks.lost(error)
        return DBAPIError.instance(
            sql, parameters, error, dbapi.Error, hide_parameters=True, connection_invalidated=gone, dialect=self.sqla
        )

    def acquire(
        self, name: Any, *, shared: bool, timeout: float | None, label: str | None, again: bool = False
    ) -> bool:
        """Ask the server for the lock."""
        wait = self._wait
        self.locks -= again
        if timeout != 0:
            wait.begin(timeout)
        locks = self._locks
        mode = locks.shared if shared else locks.exclusive
        try:
            granted = locks.acquire(self, name, mode=mode, scope="session", timeout=timeout, label=label, again=again)
        except asyncio.CancelledError:
            if not wait.was_answered():
                raise
            self.locks += 1  # it may be held: the caller unlocks now
            raise StatementCancelledError("the wait was cancelled") from None
        except Exception as error:
            self.locks += answered(error)  # same
            raise
        finally:
            if wait.seconds:
                wait.end()
        self.fresh = False
        if granted and self._lease is not None and clock() - self.proof > self._lease / WAIT_IS_PROOF:
            self.first(self._locks.ping)  # the grant may have lain here while this process was frozen
        if granted:
            self.shows_key = self.shows_key or label is not None
            self.locks += 1
        return granted

    def release(self, name: Any, *, shared: bool) -> bool:
        """Unlock."""
        label = self.label if self.shows_key else None
        mode = self._locks.shared if shared else self._locks.exclusive
        intact = self._locks.release(self, name, mode=mode, scope="session", label=label)
        self.shows_key = False
        self.locks -= 1
        return intact

    def holds(self, name: Any, *, shared: bool) -> bool:
        """Ask the server whether this session holds the lock now; its borrower's statements wait meanwhile.

        Over an async driver it needs a task of its own.
        """
        mode = self._locks.shared if shared else self._locks.exclusive
        if self.loop is None:
            return self._locks.holds(self, name, mode=mode)
        while self._beat is not None or self._user is not None:
            await_only(asyncio.wait([self._beat]) if self._beat is not None else asyncio.sleep(AGAIN))
        self._beat = asyncio.current_task()
        try:
            return self._locks.holds(self, name, mode=mode)
        finally:
            self._beat = None

    def next_token(self, name: Any) -> int:  # noqa: ARG002 - one clock serves all names
        """Return a number that grows with every grant."""
        assert self._locks.token is not None
        return int(self.first(self._locks.token)[0])

    def alive(self) -> bool:
        """Tell whether the server has not hung up, without asking it; False where the socket is out of reach."""
        return not self.ended and self._peer.in_reach and not self._peer.hung_up() and not self.expired()

    def hung_up(self) -> bool:
        """Tell whether it is gone, as far as can be seen: a statement found so, or its event loop is closed."""
        return self._broken or self._peer.hung_up() or (self.loop is not None and self.loop.is_closed())

    def stirs(self) -> bool:
        """Tell whether something came that may be the end, where a hang-up cannot be seen."""
        return self._peer.stirs()

    def expired(self) -> bool:
        """Tell whether the server may have ended the session because its lease is over."""
        return self._lease is not None and not self._wait.seconds and clock() - self.proof > self._lease

    def waits(self) -> bool:
        """Tell whether it waits for a lock at the server."""
        return self._wait.seconds > 0

    def beat(self, ask: Callable[[], object] | None = None) -> None:
        """Begin to ask the server for a sign of life, or something else that is small and can wait for the next time.

        Any statement that is under way is a sign of life as well: then nothing is asked.
        """
        if self.loop is None:
            assert self._watch is not None
            self._watch.workers.submit(partial(self._beat_in_thread, ask))
        else:
            self.call_reader(partial(self._beat_in_loop, ask))

    def _beat_in_thread(self, ask: Callable[[], object] | None) -> None:
        if self._line.acquire(blocking=False):
            try:
                self._ping(ask)
            finally:
                self._line.release()

    def _beat_in_loop(self, ask: Callable[[], object] | None) -> None:
        if self._beat is None and self._user is None:
            assert self.loop is not None
            self._beat = self.loop.create_task(greenlet_spawn(self._ping, ask))
            self._beat.add_done_callback(lambda _: setattr(self, "_beat", None))

    def _ping(self, ask: Callable[[], object] | None) -> None:
        try:
            if ask is None:
                self.first(self._locks.ping)
            else:
                ask()
        except Exception as error:  # noqa: BLE001 - the watch finds a session broken, and tells
            log.debug("the heartbeat of a lock session failed: %s", first_line(error))
            self._failed_beats += 1
            self._broken = self._broken or self._failed_beats >= FAILED_BEATS
        else:
            self._failed_beats = 0

    def call_reader(self, function: Callable[[], None]) -> None:
        """Call a function where answers are read: in the event loop when it runs, or here and now."""
        if self.loop is None:
            function()
        else:
            with suppress(RuntimeError):  # closed meanwhile, which the watch will see
                self.loop.call_soon_threadsafe(function)

    def interrupt(self, waiter: object = None) -> None:
        """End a wait that another thread or task runs here: by a cancel at the server, else by its socket.

        Args:
            waiter: The waiter to interrupt; a later wait of another goes on. None: any, and the session is in doubt.
        """
        if self.ended or self._pid != os.getpid():
            return
        if waiter is None:
            self._stop_statement()
        else:
            self._wait.interrupt(self, waiter)

    def _stop_statement(self) -> None:
        try:
            self.cancel_statement()
        except Exception:  # the wait may just have ended, and the session with it
            log.debug("could not interrupt a wait", exc_info=True)

    def cancel_statement(self) -> None:
        """Cancel what another thread runs here, as the driver does it; else close the socket."""
        if self.driver.always_kills:
            self.kill_statement()
            return
        cancel = self.driver.cancel(self.driver_connection, self._cursor)
        if cancel is None or (self.socket is not None and not self.driver.cancels_with_socket):
            self.hang_up()
        else:
            self._closing.cancel(cancel)

    def kill_statement(self) -> None:
        """Let the server end what runs here, by a word on another connection."""
        assert self.number is not None
        kill_statement(self._engine, self.number)

    def hang_up(self) -> None:
        """Close the socket under what uses the session."""
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
        may_close = self._may_close()
        try:
            if may_close:
                self._close()
            elif self.loop is None and self.socket is None:
                self._stop_statement()  # its thread closes the session then
        finally:  # a second cancel may come while the driver says goodbye
            if self._watch is not None:
                self._watch.remove(self)
            if self.socket is not None:
                with suppress(OSError):  # closed already, as it should be
                    self.socket.shutdown(socket.SHUT_RDWR)
                self.socket.close()
            if self.loop is not None and not may_close:
                self._leave_to_loop(self.loop)

    def _may_close(self) -> bool:
        """Tell whether the driver itself may close: not under another one's statement, nor out of its loop.

        A goodbye that MySQL and MariaDB do not read, since they wait for a lock, looks to them like a living client.
        """
        if self.loop is None:
            return self._user in (None, threading.get_ident())
        return self._user is None and in_greenlet() and asyncio.get_running_loop() is self.loop

    def _close(self) -> None:
        self._closing.close(self._terminate)

    def _terminate(self) -> None:
        try:
            self.sqla.do_terminate(self._connection)
        except Exception:  # a broken connection; its socket is closed by `end`
            log.debug("the driver could not close a lock session", exc_info=True)

    def _leave_to_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let the loop close the connection, which may be at work on it; one that is closed uses it no more."""
        try:
            loop.call_soon_threadsafe(lambda: background(greenlet_spawn(self._close)))
        except RuntimeError:
            self.driver.finish(self.driver_connection)

    def park(self) -> None:
        """Give up the parent's session in a forked child.

        The driver object is never freed, since its destructor might say goodbye on the parent's
        wire. Its descriptor becomes the null device, since the child's copy would keep the
        session, and its locks, alive after the parent has died.
        """
        if self.ended:
            return
        self.ended = True
        for kept in (self._connection, self.driver_connection, self.socket):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(kept))
        if self.socket is not None:
            replace_by_null(self.socket, self._descriptor)
