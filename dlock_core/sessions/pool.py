"""The private pool of one part of a process: opens sessions in time, lends them, and forgets none."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, wait
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from ..dialects.failures import connecting, shown_url
from ..errors import LockConnectionError
from .drivers import SerialExecutor
from .session import SqlSession
from .sockets import finder_of_socket
from .timeouts import PATIENCE
from .workers import see_through

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine, Pool

    from ..dialects.base import ServerDialect, Session
    from .watch import Watch
    from .workers import Workers

__all__ = ["Opener", "SessionPool", "open_session", "private_pool"]

CLOSED = "the lock provider was closed"
# Sessions without a lock that are kept for the next ones.
KEEP_IDLE = 2


class SessionPool:
    """Sessions, lent to one borrower at a time.

    Args:
        opener: Opens a session, within so many seconds.
        lost: Called with each session that ends while it may hold locks.
        everything: All open sessions of the provider, shared with its finaliser, which must not refer to it.
        limit: How many sessions there may be.
    """

    def __init__(
        self,
        opener: Callable[[float], Session],
        lost: Callable[[Session], object],
        everything: set[Session],
        limit: int,
    ) -> None:
        self._everything = everything
        self._open = opener
        self._lost = lost
        self._limit = limit
        self._mutex = threading.Lock()
        self._closed = False
        self._opening = 0
        self._idle: list[Session] = []
        self._all: set[Session] = set()

    def take(self, seconds: float, *, within_limit: bool = False) -> Session | None:
        """Lend an idle session, or open one in so many seconds; None when the limit is reached.

        Raises:
            LockConnectionError: The provider was closed, or the session cannot be opened.
        """
        with self._mutex:
            if self._closed:
                raise LockConnectionError(CLOSED)
            if self._idle:
                return self._idle.pop()
            if within_limit and len(self._all) + self._opening >= self._limit:
                return None
            self._opening += 1
        try:
            session = self._open(seconds)
            self._adopt(session)
        finally:
            with self._mutex:
                self._opening -= 1
        return session

    def __contains__(self, session: Session) -> bool:
        return session in self._all

    def keep(self, session: Session) -> None:
        """Take in a session that was opened for a borrower that left meanwhile."""
        with suppress(LockConnectionError):
            self._adopt(session)
            self.give(session)

    def _adopt(self, session: Session) -> None:
        with self._mutex:
            if not self._closed:
                self._all.add(session)
                self._everything.add(session)
                return
        session.end()
        raise LockConnectionError(CLOSED)

    def give(self, session: Session) -> None:
        """Take back a session that holds nothing."""
        with self._mutex:
            if session in self._all and len(self._idle) < KEEP_IDLE:
                self._idle.append(session)
                return
        self.end(session)

    def end(self, session: Session) -> None:
        """End a session; whatever it holds is lost."""
        with self._mutex:
            self._all.discard(session)
            if session in self._idle:
                self._idle.remove(session)
        try:
            session.end()
        finally:
            with self._mutex:
                self._everything.discard(session)
            self._lost(session)

    def end_all(self) -> None:
        """End every session, lent or idle, and keep none from now on."""
        with self._mutex:
            self._closed = True
            sessions = list(self._all)
        for session in sessions:
            self.end(session)

    def park_all(self) -> None:
        """Give up all sessions in a forked child; see `Session.park`."""
        self._mutex = threading.Lock()
        self._closed = True
        for session in self._all:
            session.park()
        self._everything.difference_update(self._all)
        self._all.clear()
        self._idle.clear()


# Of the databases whose drivers show no socket.
PORTS = {"mssql": 1433, "oracle": 1521}


def private_pool(engine: Engine) -> Pool:
    """Return a pool with the engine's settings for connections of our own.

    Those of aioodbc are used in our order from the first statement on, which SQLAlchemy runs: its task may be
    cancelled, and the loop cancels all tasks when it ends.
    """
    pool = engine.pool.recreate()
    if engine.dialect.driver == "aioodbc":

        def adopt(connection: Any, _record: object) -> None:
            SerialExecutor.adopt(engine.dialect.get_driver_connection(connection))

        event.listen(pool, "connect", adopt, insert=True)
    return pool


class Opener:
    """Opens sessions in time, for threads or for the tasks of one event loop.

    Args:
        engine: Its database, events and credentials are used.
        opened: Makes a session out of a private pool.
        keep: Takes a session that was opened for a caller that has left.
        workers: Threads to open in.
    """

    def __init__(
        self,
        engine: Engine,
        opened: Callable[[Pool], SqlSession],
        keep: Callable[[SqlSession], object],
        workers: Workers,
    ) -> None:
        self._engine = engine
        self._opened = opened
        self._keep = keep
        self._workers = workers
        self._pool = private_pool(engine)
        self._turn = threading.Lock()
        self._unanswered: set[Future[SqlSession]] = set()

    def __call__(self, seconds: float) -> SqlSession:
        """Open a session.

        Raises:
            LockConnectionError: The database cannot be reached, or has not answered in so many seconds.
            UnsafeEnvironmentError: A lock there would protect nothing.
        """
        try:
            if self._engine.dialect.is_async:
                return see_through(partial(self._opened, self._pool), self._keep, seconds=seconds)
            return self._open_in_thread(seconds)
        except TimeoutError as error:
            # SQLAlchemy asks its first questions under a mutex of the pool, which the lost opening may keep.
            self._pool = private_pool(self._engine)
            raise LockConnectionError(
                f"cannot open a lock session on {shown_url(self._engine.url)}: "
                f"the database has not answered within {seconds:.0f} s. Check the server and the network"
            ) from error

    def _open_in_thread(self, seconds: float) -> SqlSession:
        until = time.monotonic() + seconds
        if not self._unanswered:
            return self._result(self._begin(), until)
        # A thread that a silent server keeps cannot be ended. While there is one, openings begin one at a time.
        if not self._turn.acquire(timeout=seconds):
            raise TimeoutError
        try:
            if time.monotonic() > until:
                raise TimeoutError
            opening = self._begin()
            wait([opening], timeout=min(PATIENCE, until - time.monotonic()))
        finally:
            self._turn.release()
        return self._result(opening, until)

    def _begin(self) -> Future[SqlSession]:
        opener = partial(copy_context().run, partial(self._opened, self._pool))
        try:
            return self._workers.submit(opener)
        except RuntimeError:  # no more threads, for one at the interpreter's end
            opening: Future[SqlSession] = Future()
            opening.set_result(opener())
            return opening

    def _result(self, opening: Future[SqlSession], until: float) -> SqlSession:
        taken = False
        try:
            wait([opening], timeout=until - time.monotonic())
            taken = opening.done()  # looked at once: an answer that comes later is not ours
        finally:
            if not taken:
                self._unanswered.add(opening)
                opening.add_done_callback(self._answered)
        if not taken:
            raise TimeoutError
        return opening.result()

    def _answered(self, opening: Future[SqlSession]) -> None:
        self._unanswered.discard(opening)
        if opening.exception() is None:
            self._keep(opening.result())


def open_session(
    engine: Engine, pool: Pool, locks: ServerDialect, watch: Watch | None, *, label: str, allow_unsafe: bool
) -> SqlSession:
    """Open a session of our own, guard it, and only then set anything on it.

    The order matters: through a transaction pooler a setting would stay on a server session that
    the application uses next.

    Raises:
        LockConnectionError: The database cannot be reached.
        UnsafeEnvironmentError: A lock there would protect nothing.
    """
    session = _connected(engine, pool, locks, watch, label)
    try:
        if watch is not None:
            watch.add(session)
        if locks.guard(
            session,
            allow_unsafe=allow_unsafe,
            another=lambda: _connected(engine, pool, locks, None, label),
        ):
            locks.prepare(session, label=label, lease=None if watch is None else watch.lease)
    except BaseException:
        session.end()
        raise
    return session


def _connected(engine: Engine, pool: Pool, locks: ServerDialect, watch: Watch | None, label: str) -> SqlSession:
    """Return a session in autocommit, on a driver connection that no pool knows."""
    url, port = engine.url, PORTS.get(engine.dialect.name)
    if port is not None:
        port = int(str(url.query.get("PORT", url.port or port)))  # FreeTDS' is in the query
    failure = f"cannot open a lock session on {shown_url(url)}"
    with (
        finder_of_socket(url.host, port, in_turn=not engine.dialect.is_async) as found,
        connecting(failure, ". Check that the server runs and that the URL is right"),
    ):
        pooled = pool.connect()
        connection: Any = pooled.dbapi_connection
        pooled.detach()
        seen = found()
    try:
        engine.dialect.set_isolation_level(connection, "AUTOCOMMIT")
        return SqlSession(engine, connection, locks, watch, label, seen=seen)
    except BaseException:
        engine.dialect.do_terminate(connection)
        raise
