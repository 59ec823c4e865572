"""A driver and its connections, by the interfaces that sessions use: DBAPI, a socket, SQLAlchemy's dialect."""

from __future__ import annotations

import asyncio
import errno
import select
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from math import inf
from typing import TYPE_CHECKING, Any, NoReturn

from sqlalchemy import create_engine
from sqlalchemy.dialects import registry
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import NullPool
from sqlalchemy.util import await_only, greenlet_spawn

from .primitives import Event
from .scheduler import scheduler

if TYPE_CHECKING:
    from .server import Server, ServerSession

__all__ = [
    "DRIVERS",
    "TASK_DRIVERS",
    "Call",
    "Connection",
    "Epoll",
    "Error",
    "LeavingConnection",
    "OperationalError",
    "Poll",
    "Socket",
    "TaskConnection",
    "engine_for",
    "open_now",
    "park",
]


class Error(Exception):
    """The DBAPI's base of all errors.

    Args:
        code: What it is, for the dialects.
    """

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class OperationalError(Error):
    """An error of the server, or of the way to it."""


GONE = "gone"
# Kinds of drivers: one waits for the cancel of a wait, one has the server kill it, one can only hang up.
DRIVERS = ("cancels", "kills", "hangs up")
# For tasks: one has the server cancel a statement, one leaves it there.
TASK_DRIVERS = ("task cancels", "task leaves")
# An unlock waits so long behind its owner's wait on the same session, in seconds; then the session ends.
QUEUED = 60.0


class Call:
    """A statement under way."""

    def __init__(self, statement: str, values: dict[str, Any]) -> None:
        self.statement = statement
        self.values = values
        self.thread = scheduler().current
        self.sent = scheduler().now
        self.row: tuple[Any, ...] | None = None
        self.error: str | None = None
        self.answered = False
        self.killed = False
        """The server has been told to cancel it."""
        self.victims_sent = 0
        """Of a kill: how many statements the session had sent that it is for."""

    def answer(self, row: tuple[Any, ...] | None, error: str | None = None) -> None:
        """Bring the answer, once."""
        if not self.answered:
            self.answered, self.row, self.error = True, row, error
            scheduler().wake(self.thread)

    def wait(self) -> tuple[Any, ...] | None:
        """Wait for the answer."""
        while not self.answered:
            scheduler().block(f"the answer to {self.statement}")
        if self.error is not None:
            raise OperationalError(self.error)
        return self.row


class TaskCall(Call):
    """A statement under way in a task."""

    def __init__(self, statement: str, values: dict[str, Any]) -> None:
        super().__init__(statement, values)
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] = self._loop.create_future()

    def answer(self, row: tuple[Any, ...] | None, error: str | None = None) -> None:
        if not self.answered:
            self.answered, self.row, self.error = True, row, error
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._resolve)

    def _resolve(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    async def result(self, cancel: Callable[[], None] | None) -> tuple[Any, ...] | None:
        """Wait for the answer; a task that is cancelled has the server cancel the statement and waits for its end."""
        try:
            await asyncio.wait([self._future])
        except asyncio.CancelledError:
            if cancel is not None:
                with suppress(OperationalError):
                    await greenlet_spawn(cancel)
                    await asyncio.wait([self._future])
            raise
        if self.error is not None:
            raise OperationalError(self.error)
        return self.row


class Connection:
    """A driver's connection, and the way to the server, which may be cut."""

    in_task = False

    def __init__(self, server: Server, session: ServerSession) -> None:
        self.server = server
        self.session = session
        self.home: Any = None
        """The provider that opened it."""
        self.call: Call | None = None
        self.sent = 0
        """How many statements so far, but for unlocks, which are repeated when a cancel hits them."""
        self.last = ""
        """The last of these."""
        self.closed = False
        self.hung_up = False
        """The server's end has been seen."""
        self.hung_up_at = inf
        """When, by the seconds that the process was awake."""
        self.refused_pings = 0
        self.broken = False
        """A statement was left before its answer came."""
        self.watchers: list[Event] = []
        self.inherited = self.parked = False
        """It is the copy of a parent's, in a forked child; which has let go of it."""
        self.silent = False
        self.owed: list[Callable[[], object]] = []
        """What a silent network holds back."""
        self.harm = ""
        """What befell it, so that its end is no surprise."""

    @property
    def gone(self) -> bool:
        """Whether nothing can be said on it any more."""
        return self.closed or self.hung_up or self.broken

    def cursor(self) -> Cursor:
        return Cursor(self)

    def fileno(self) -> int:
        return self.session.number

    def execute(self, statement: str, values: dict[str, Any]) -> tuple[Any, ...] | None:
        """Send a statement and wait for its answer."""
        scheduler().step()
        self._must_be_ours()
        if self.call is not None:
            scheduler().fail(f"two threads use session {self.session.number} at one time")
        if self.gone:
            raise OperationalError(GONE)
        call = self.call = self._call(statement, values)
        if statement != "unlock":
            self.sent, self.last = self.sent + 1, statement
        try:
            self.server.send(self, call)
            row = self._wait(call)
        finally:
            self.call = None
            self.broken = self.broken or not call.answered
        scheduler().step()
        return row

    def _call(self, statement: str, values: dict[str, Any]) -> Call:
        return Call(statement, values)

    def _wait(self, call: Any) -> tuple[Any, ...] | None:
        return call.wait()  # type: ignore[no-any-return]

    def hang_up(self) -> None:
        """See the other end closed."""
        self.hung_up, self.hung_up_at = True, scheduler().awake
        for watcher in self.watchers:
            watcher.set_from_outside()
        if self.call is not None:
            self.call.answer(None, GONE)

    def close(self) -> None:
        """Close this end; a statement under way on it fails."""
        if not self.closed:
            self._must_be_ours()
            if self.call is not None and scheduler().now - self.call.sent >= QUEUED:
                self.harm, self.server.harmed = self.harm or "an unlock behind a wait", True
            self.closed = True
            self.server.closed_by_client(self)
            self.hang_up()

    def _must_be_ours(self) -> None:
        if self.inherited:
            scheduler().fail(f"a forked child uses or ends session {self.session.number} of its parent")

    def cancel(self) -> None:
        """Cancel the statement under way, and wait until the server has done so."""
        self._must_be_ours()
        self.server.cancel_from_elsewhere(self.session, in_task=self.in_task)


class TaskConnection(Connection):
    """A connection of an async driver, which has the server cancel what its task is called away from."""

    in_task = True
    cancels = True

    def _call(self, statement: str, values: dict[str, Any]) -> Call:
        return TaskCall(statement, values)

    def _wait(self, call: Any) -> tuple[Any, ...] | None:
        return await_only(call.result(self.cancel if self.cancels else None))  # type: ignore[no-any-return]


class LeavingConnection(TaskConnection):
    """One that leaves a statement at the server, and is of no use then."""

    cancels = False


class Cursor:
    """A cursor."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._row: tuple[Any, ...] | None = None

    def execute(self, statement: str, values: Any = None) -> None:
        self._row = self._connection.execute(statement, dict(values or {}))

    def fetchone(self) -> tuple[Any, ...] | None:
        return self._row

    def close(self) -> None:
        pass


def _connection_of(number: int) -> Connection:
    return scheduler().descriptors[number]  # type: ignore[no-any-return]


def park(_null: int, number: int, *, inheritable: bool) -> None:
    """Stand for `os.dup2`: put the null device in a connection's place."""
    _connection_of(number).parked = True


class Socket:
    """A second handle of a connection's socket."""

    family = 1  # a Unix socket, which knows no keepalive

    def __init__(self, fileno: int) -> None:
        self._number = fileno
        self._connection = _connection_of(fileno)
        self._closed = False

    def fileno(self) -> int:
        return self._number

    def shutdown(self, _how: int) -> None:
        scheduler().step()
        if self._closed or self._connection.closed:
            raise OSError(errno.ENOTCONN, "not connected")
        self._connection.close()

    def close(self) -> None:
        self._closed = True


class Poll:
    """Linux's poll, for the hang-up of one socket."""

    def register(self, connection: Socket, _events: int) -> None:
        self._connection = _connection_of(connection.fileno())

    def poll(self, _seconds: float) -> list[int]:
        scheduler().step()
        return [select.POLLHUP] if self._connection.hung_up else []


class Epoll:
    """Linux's epoll, for hang-ups, each told once."""

    def __init__(self) -> None:
        self._connections: dict[int, Connection] = {}
        self._event = Event()
        self._closed = False

    def register(self, number: int, _events: int) -> None:
        connection = self._connections[number] = _connection_of(number)
        connection.watchers.append(self._event)
        if connection.hung_up:
            self._event.set()

    def unregister(self, number: int) -> None:
        if self._connections.pop(number, None) is None:
            raise FileNotFoundError

    def poll(self, seconds: float) -> list[tuple[int, int]]:
        if self._closed:
            raise ValueError("closed")
        self._event.wait(seconds)
        self._event.clear()
        ended = [number for number, one in self._connections.items() if one.hung_up]
        for number in ended:
            del self._connections[number]
        return [(number, select.POLLHUP) for number in ended]

    def close(self) -> None:
        self._closed = True
        self._event.set()


class Dbapi:
    """The driver's module."""

    paramstyle = "named"
    Error = Error
    OperationalError = OperationalError


class Dialect(DefaultDialect):
    """SQLAlchemy's view of the database."""

    name = "simulated"
    supports_statement_cache = True
    default_paramstyle = "named"

    @classmethod
    def import_dbapi(cls) -> Any:
        return Dbapi

    def initialize(self, connection: Any) -> None:
        """Ask nothing."""

    def set_isolation_level(self, dbapi_connection: Any, level: Any) -> None:
        """Every statement is a transaction of its own."""

    def do_rollback(self, dbapi_connection: Any) -> None:
        """Same."""

    def do_terminate(self, dbapi_connection: Any) -> None:
        dbapi_connection.close()

    def do_close(self, dbapi_connection: Any) -> None:
        dbapi_connection.close()

    def is_disconnect(self, e: Any, connection: Any, cursor: Any) -> bool:
        return getattr(e, "code", "") == GONE


class TaskDialect(Dialect):
    """The same over an async driver."""

    is_async = True


registry.register("simulated", __name__, "Dialect")
registry.register("simulated.tasks", __name__, "TaskDialect")
open_now: list[Callable[[int, str], Connection]] = []
"""Opens a connection to the server of the simulation that runs, for one of its providers."""


@cache
def engine_for(driver: str, number: int) -> Any:
    """Return the engine of a provider, over a driver of a kind; all simulations use the same ones."""
    url = "simulated+tasks://" if driver in TASK_DRIVERS else "simulated://"
    engine = create_engine(url, poolclass=NullPool, creator=lambda: open_now[-1](number, driver))
    engine.dialect.driver = driver
    return AsyncEngine(engine) if driver in TASK_DRIVERS else engine


def unreachable() -> NoReturn:
    """Say that there is no way to the server."""
    raise OperationalError(GONE)
