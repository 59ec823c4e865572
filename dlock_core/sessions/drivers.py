"""What is peculiar to a driver: where its socket is, how its statements are cancelled, and how it is closed."""

from __future__ import annotations

import sys
import threading
from collections import deque
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import text

from .workers import INSIST, Workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Dialect, Engine, TextClause

__all__ = ["CANCEL_SECONDS", "Closing", "Driver", "SerialExecutor", "driver_of", "kill_statement"]

# How long the cancel of a wait may take, in seconds, until its session is ended instead.
CANCEL_SECONDS = 10.0


def _reach(thing: Any, path: str) -> Any:
    """Follow a path of attributes, to None where one is missing; drivers keep much of it private."""
    for name in path.split("."):
        thing = getattr(thing, name, None)
    return thing


def _socket_of(stream: str) -> Callable[[Any], Any]:
    """Return what finds the socket of an asyncio stream or transport, by its name in the connection."""

    def find(connection: Any) -> Any:
        found = getattr(connection, stream, None)
        return None if found is None else found.get_extra_info("socket")

    return find


KILL_QUERY = text("KILL QUERY :number")  # MySQL and MariaDB


@dataclass(frozen=True, kw_only=True)
class Driver:
    """How one driver differs from the others."""

    socket: Callable[[Any], Any] = lambda _: None
    """Return the socket of a driver's connection, or what else has its `fileno`; None where it is out of reach."""
    cancel: Callable[[Any, Any], Callable[[], object] | None] = lambda _connection, _cursor: None
    """Return what cancels a statement, out of another thread; None where only its socket ends it."""
    cancels_with_socket: bool = True
    """False: where the socket is known, its end is the better cancel."""
    waits_for_cancel: bool = False
    """It waits for the end of a statement that it cancels, so that the cancel hits no later one."""
    number: Callable[[Any], int] | None = None
    """Return the server's number for the session, by which another one kills its statement."""
    kill: TextClause = KILL_QUERY
    """Kills the statement of a session by its number."""
    always_kills: bool = False
    """Whatever the cause: its own cancel would stop all threads of this process until the server answers."""
    reads_to_end: bool = False
    """Rows that are not read are called off at the server, which may come late."""
    finish: Callable[[Any], object] = lambda _: None
    """Close a connection when the event loop that it needs is closed."""

    def descriptor(self, connection: Any) -> int | None:
        """Return the number of a connection's socket, None where the driver does not show it."""
        found = self.socket(connection)
        return None if found is None else int(found.fileno())


def _psycopg_cancel(connection: Any, _: object) -> Callable[[], object] | None:
    safe = getattr(connection, "cancel_safe", None)  # from 3.2 on
    return connection.cancel if safe is None else partial(safe, timeout=CANCEL_SECONDS)


def _itself(connection: Any) -> Any:
    return connection


def _close_in_turn(connection: Any) -> None:
    """Close a connection of aioodbc after its statement, not under it."""
    if not connection.closed:
        with suppress(RuntimeError):  # the interpreter shuts down and starts no thread; the connection ends with it
            connection._executor.submit(connection._conn.close)  # noqa: SLF001 - as aioodbc does
        connection._conn = None  # noqa: SLF001 - same


_thread_id: Callable[[Any], int] = lambda connection: connection.thread_id()  # noqa: E731

DRIVERS = {
    "psycopg": Driver(
        socket=_itself,
        cancel=_psycopg_cancel,
        waits_for_cancel=True,
        finish=lambda connection: connection.pgconn.finish(),
    ),
    "psycopg2": Driver(
        socket=_itself,
        number=lambda connection: connection.get_backend_pid(),
        kill=text("SELECT pg_catalog.pg_cancel_backend(:number)"),
        always_kills=True,
        waits_for_cancel=True,
    ),
    "asyncpg": Driver(socket=_socket_of("_transport"), waits_for_cancel=True),
    "mysqldb": Driver(socket=_itself, number=_thread_id),
    "pymysql": Driver(socket=lambda connection: _reach(connection, "_sock"), number=_thread_id),
    "aiomysql": Driver(socket=_socket_of("_writer"), number=_thread_id),
    "asyncmy": Driver(socket=_socket_of("_transport"), number=_thread_id),
    "pyodbc": Driver(cancel=lambda _, cursor: getattr(cursor, "cancel", None), reads_to_end=True),
    "aioodbc": Driver(
        cancel=lambda _, cursor: _reach(cursor, "_cursor._impl.cancel"),  # pyodbc's cursor, inside two others
        reads_to_end=True,
        finish=_close_in_turn,
    ),
    "pymssql": Driver(
        cancel=lambda connection, _: _reach(connection, "_conn.cancel"), cancels_with_socket=False, reads_to_end=True
    ),
    "oracledb": Driver(cancel=lambda connection, _: connection.cancel),
}
UNKNOWN = Driver()


def driver_of(dialect: Dialect) -> Driver:
    """Return what is known of a dialect's driver; the dialects' guards refuse one of which nothing is."""
    return DRIVERS.get(dialect.driver, UNKNOWN)


def kill_statement(engine: Engine, number: int) -> None:
    """Kill what a session is waiting for, from a connection of its own."""
    compiled = driver_of(engine.dialect).kill.compile(dialect=engine.dialect)
    values: Any = {"number": number}
    if compiled.positional:
        values = tuple(values[name] for name in compiled.positiontup or ())
    pooled = engine.pool.recreate().connect()
    connection: Any = pooled.dbapi_connection
    pooled.detach()
    try:
        cursor = connection.cursor()
        cursor.execute(compiled.string, values)
        cursor.close()
    finally:
        engine.dialect.do_terminate(connection)


R = TypeVar("R")


class Closing:
    """Closes a driver connection once, and never beside a cancel of its statement.

    Neither waits for the other, since a cancel may have to connect first: the one that ends last closes.
    """

    def __init__(self) -> None:
        self._mutex = threading.RLock()  # the garbage collector may close in here
        self._cancels = 0
        self._refuses = self._begun = False
        self._close: Callable[[], object] | None = None

    def cancel(self, cancel: Callable[[], object]) -> None:
        """Run a cancel, unless the connection is closed."""
        with self._mutex:
            if self._refuses:
                return
            self._cancels += 1
        try:
            cancel()
        finally:
            with self._mutex:
                self._cancels -= 1
            self._close_if_last()

    def refuse_cancels(self) -> bool:
        """Let no other cancel begin; False while one is under way."""
        with self._mutex:
            self._refuses = True
            return not self._cancels

    def close(self, close: Callable[[], object]) -> None:
        """Close the connection, now or after the last cancel."""
        self._close = close
        self.refuse_cancels()
        self._close_if_last()

    def _close_if_last(self) -> None:
        with self._mutex:
            due = self._close is not None and not self._cancels and not self._begun
            self._begun = self._begun or due
        if due:
            assert self._close is not None
            self._close()


class SerialExecutor:
    """An executor for aioodbc: it runs one function at a time, for one connection, each in a daemon thread.

    A task that is cancelled leaves its statement running in a thread. What follows waits for it, in a thread too.
    """

    def __init__(self) -> None:
        self._busy = threading.Lock()
        # Held while a statement is cancelled, and to tell that it is over: no cancel reaches what follows.
        self._cancelling = threading.Lock()
        # The driver's cursors: we have the last reference, since to free one beside the close of its connection leaves
        # an error in the thread that frees it, which is the event loop's.
        self._cursors: list[Any] = []
        self._jobs: deque[Callable[[], None]] = deque()
        self._unfinished: dict[Future[Any], None] = {}  # in the order of their submission

    @classmethod
    def of(cls, driver_connection: Any) -> SerialExecutor | None:
        """Return the one of a connection, from now on; None if its driver is not aioodbc."""
        if not type(driver_connection).__module__.startswith("aioodbc"):
            return None
        if not isinstance(driver_connection._executor, cls):  # noqa: SLF001 - it can only be given to the connection's maker
            driver_connection._executor = cls()  # noqa: SLF001 - same
        return driver_connection._executor  # noqa: SLF001 - same

    @classmethod
    def adopt(cls, driver_connection: Any) -> None:
        """Do as `of` for a connection of our own, on which nothing has run; nothing else closes it, nor as garbage."""
        if cls.of(driver_connection) is not None:
            kind: Any = type(driver_connection)
            driver_connection.__class__ = _closed_in_turn(kind)

    def submit(self, function: Callable[..., R], *args: Any) -> Future[R]:
        """Run the function when those before it are done, unless its future is cancelled first."""
        future: Future[R] = Future()
        self._unfinished[future] = None
        future.add_done_callback(self._unfinished.pop)
        self._jobs.append(lambda: self._run(future, function, args))
        _workers.submit(self._next)
        return future

    def _next(self) -> None:
        with self._busy:
            self._cursors = [
                cursor
                for cursor, count in zip(self._cursors, _references(self._cursors), strict=True)
                if count > ONLY_HERE
            ]
            self._jobs.popleft()()

    def _run(self, future: Future[R], function: Callable[..., R], args: tuple[Any, ...]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = function(*args)
            if hasattr(result, "fetchone") and not any(result is cursor for cursor in self._cursors):
                self._cursors.append(result)
        except BaseException as error:  # noqa: BLE001 - it belongs to the future's waiter
            with self._cancelling:
                future.set_exception(error)
        else:
            with self._cancelling:
                future.set_result(result)

    def stop(self, cancel: Callable[[], object]) -> None:
        """End the function whose turn it is; a cancel may come before the driver has begun, so it is repeated."""
        for running in list(self._unfinished)[:1]:
            _workers.submit(partial(self._insist, running, cancel))

    def _insist(self, running: Future[Any], cancel: Callable[[], object]) -> None:
        while True:
            with self._cancelling:
                if running.done():
                    return
                cancel()
            wait([running], timeout=INSIST)


def _references(things: list[Any]) -> list[int]:
    return [sys.getrefcount(thing) for thing in things]


ONLY_HERE = _references([object()])[0]


@cache
def _closed_in_turn(driver_connection: type) -> type:
    return type(
        driver_connection.__name__,
        (driver_connection,),
        {"__module__": driver_connection.__module__, "__del__": _close_in_turn},
    )


_workers = Workers()
