"""Acquires and releases for one provider: first the queue of this process, then the server.

This is blocking code; a context decides where it waits and where it talks to the server.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import weakref
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from .contexts import see_through
from .dialects import find_dialect, refusal_to_share
from .dialects.sqlite import SQLite
from .entries import Entries, State, Ticket
from .errors import LockConnectionError, LockError, LockLostError, LockStateError, UnsupportedError, shown
from .keys import check_key, label
from .session import connection_lost, open_session
from .session_pool import SessionPool
from .threads import Workers
from .timeouts import Deadline

if TYPE_CHECKING:
    from sqlalchemy import Engine, Pool

    from .contexts import Context
    from .dialects.base import Session
    from .keys import Key

__all__ = ["Manager", "Request"]

log = logging.getLogger("dlock")

# Pauses between tries where the server does not queue, in seconds.
POLL_FIRST, POLL_LAST = 0.001, 0.01
# Sessions kept open for the next locks.
KEEP_IDLE = 8
# Longest name of a PostgreSQL session, in bytes.
LABEL_BYTES = 63


class Request(NamedTuple):
    """What a lock object asks for: the user's key, the server's name for it, the people's label."""

    key: Key
    name: int | str
    label: str
    shared: bool


class Manager:
    """Knows one database's locks, and all that this process asks of them."""

    def __init__(self, engine: Engine, *, prefix: str, show_keys: bool, unsafe_ok: bool) -> None:
        self.engine = engine
        self.prefix = prefix
        self.locks = find_dialect(engine.dialect.name)
        self._show_keys = show_keys
        self._unsafe_ok = unsafe_ok
        self._closed = False
        self._pools: dict[asyncio.AbstractEventLoop | None, SessionPool] = {}
        self._start()
        _managers.add(self)
        weakref.finalize(self, _end_sessions, self._pools)

    def _start(self) -> None:
        self._pid = os.getpid()
        self.entries = Entries()
        self.workers = Workers()
        self._whereabouts = f" {platform.node()[:24]}:{self._pid}"

    def after_fork(self) -> None:
        """Start anew in a forked child: empty maps, new mutexes, none of the parent's sessions."""
        for pool in self._pools.values():
            pool.park_all()
        if isinstance(self.locks, SQLite):
            self.locks.after_fork()
        self._pools.clear()
        self._start()

    def request(self, key: object, *, shared: bool) -> Request:
        """Check a key and map it.

        Raises:
            LockKeyError: It cannot name a lock.
            UnsupportedError: The database has no shared locks.
        """
        self.check_shared(key, shared=shared)
        checked = check_key(key)
        text = label(self.prefix, checked) if self._show_keys else ""
        return Request(checked, self.locks.name(self.prefix, checked), text, shared)

    def check_shared(self, key: object, *, shared: bool) -> None:
        """Refuse a shared lock where there is none."""
        if shared and not self.locks.capabilities.shared:
            raise UnsupportedError(f"key {shown(key)}: {refusal_to_share(self.locks)}", key=key)

    def acquire(self, request: Request, context: Context, timeout: float | None) -> Ticket | None:
        """Acquire; None when it was not free in time.

        Raises:
            DeadlockError: The wait could never end.
            LockConnectionError: The database cannot be asked.
            UnsafeEnvironmentError: A lock there would protect nothing.
        """
        if self._pid != os.getpid():  # a fork that ran no Python hook
            self.after_fork()
        if self._closed:
            raise LockStateError(f"key {shown(request.key)}: this lock provider is closed", key=request.key)
        deadline = Deadline(timeout)
        ticket = Ticket(request.key, context, shared=request.shared, once=timeout == 0)
        try:
            if (
                self.entries.ask(request.name, ticket, context)
                and self._queue(ticket, deadline)
                and (ticket.state is State.HELD or context.call(self._ask, request, ticket, deadline, context))
            ):
                return ticket
        except BaseException:
            self._abandon(ticket, context)
            raise
        if self._closed:
            raise LockStateError(f"key {shown(request.key)}: this lock provider was closed", key=request.key)
        return None

    def _queue(self, ticket: Ticket, deadline: Deadline) -> bool:
        """Wait for our turn in this process; False when time is over."""
        if ticket.latch is None:
            return True
        if not ticket.latch.wait(Deadline(None) if ticket.once else deadline):
            return self.entries.leave(ticket) is State.HELD
        return ticket.state is not State.GONE

    def _ask(self, request: Request, ticket: Ticket, deadline: Deadline, context: Context) -> bool:
        """Ask the server, as this process's only asker for this key."""
        pool = self._pool()
        ticket.pool = pool
        try:
            granted = self._try(pool, request, ticket) or self._wait(request, ticket, deadline, context)
        except BaseException as error:
            if ticket.session is not None:
                pool.end(ticket.session)
            if ticket.state is State.GONE and isinstance(error, Exception):
                return False  # the asker left, and interrupted this
            named = self._named(error, request.key)
            if named is error:
                raise
            raise named from error
        session = ticket.session
        assert session is not None
        if granted and self.entries.granted(ticket, session):
            return True
        if not granted and self.entries.leave(ticket) is State.ASKING:
            pool.give(session)
        else:  # the asker left meanwhile, and may have interrupted the session
            pool.end(session)
        return False

    def _try(self, pool: SessionPool, request: Request, ticket: Ticket) -> bool:
        """Try once; on a session that went stale while idle, try another."""
        while True:
            session = ticket.session = pool.take()
            fresh = session.fresh
            try:
                return session.acquire(request.name, shared=request.shared, timeout=0, label=self._label(request.label))
            except Exception as error:
                if fresh or not connection_lost(error):
                    raise
                pool.end(session)

    def _wait(self, request: Request, ticket: Ticket, deadline: Deadline, context: Context) -> bool:
        """Wait at the server, or poll where it has no queue."""
        if ticket.once or not self.entries.waiting(ticket):
            return False
        session = ticket.session
        assert session is not None
        step = POLL_FIRST
        while ticket.state is State.ASKING and not deadline.passed:
            remaining = deadline.remaining()
            if not self.locks.capabilities.server_waits:
                context.pause(step if remaining is None else min(step, remaining))
                step = min(2 * step, POLL_LAST)
                remaining = 0
            label = self._label(request.label)
            ask = partial(session.acquire, request.name, shared=request.shared, timeout=remaining, label=label)
            if context.wait(ask, session.interrupt):
                return True
        return False

    def _abandon(self, ticket: Ticket, context: Context) -> None:
        """Leave no trace of an asker whom an exception takes away."""
        before = self.entries.leave(ticket)
        if before is State.HELD and self.entries.release(ticket):
            context.afterwards(lambda: self._unlock(ticket))
        elif before is State.ASKING:
            context.interrupt(lambda: self._interrupt(ticket))

    @staticmethod
    def _interrupt(ticket: Ticket) -> None:
        if ticket.session is not None:
            ticket.session.interrupt()

    def release(self, ticket: Ticket, context: Context) -> None:
        """Release.

        Raises:
            LockLostError: The server did not hold the lock for us any more.
        """
        if ticket.pid != os.getpid():
            return  # a forked child's copy: the lock is the parent's
        if not self.entries.release(ticket):
            raise _lost(ticket, "its session ended")
        context.call(self._unlock, ticket)

    def _unlock(self, ticket: Ticket) -> None:
        session, pool = ticket.session, ticket.pool
        assert session is not None
        assert pool is not None
        try:
            intact = session.release(ticket.entry.name, shared=ticket.shared)
            pool.give(session) if intact else pool.end(session)
        except BaseException as error:
            pool.end(session)
            if connection_lost(error):
                raise _lost(ticket, "its session ended") from error
            raise
        finally:
            self.entries.ended(ticket)
        if not intact:
            raise _lost(ticket, "the server says that our session did not hold it")

    def close(self) -> None:
        """End all sessions: every lock is free; whoever queues gets an error."""
        self._closed = True
        for ticket in self.entries.close():
            log.warning("lock provider closed while key %s was held", shown(ticket.key))
        _end_sessions(self._pools)

    def _pool(self) -> SessionPool:
        """Return the sessions of this process, or with an async driver of the running event loop."""
        loop = asyncio.get_running_loop() if self.engine.dialect.is_async else None
        pool = self._pools.get(loop)
        if pool is None:
            for closed in [other for other in self._pools if other is not None and other.is_closed()]:
                self._pools.pop(closed).end_all()
            pool = self._pools.setdefault(loop, self._new_pool(in_loop=loop is not None))
        return pool

    def _new_pool(self, *, in_loop: bool) -> SessionPool:
        private = self.engine.pool.recreate()
        if not in_loop:
            return SessionPool(lambda: self._open(private), KEEP_IDLE)
        pool = SessionPool(lambda: see_through(lambda: self._open(private), pool.keep), KEEP_IDLE)
        return pool

    def _open(self, private: Pool) -> Session:
        if isinstance(self.locks, SQLite):
            return self.locks.open(self.engine, private)
        return open_session(self.engine, private, self.locks, label=self._label(""), unsafe_ok=self._unsafe_ok)

    def _label(self, text: str) -> str:
        """Return what the server's views show for a session: suite, key, host and process."""
        readable = f" {text}".encode("ascii", "backslashreplace").decode().rstrip()
        return f"dlock{readable[: LABEL_BYTES - 5 - len(self._whereabouts)]}{self._whereabouts}"

    @staticmethod
    def _named(error: BaseException, key: Key) -> BaseException:
        """Return the error as the user should see it: it names the key, and is ours if the session is gone."""
        if isinstance(error, LockError):
            return type(error)(f"key {shown(key)}: {error}", key=key)
        if connection_lost(error):
            text = str(getattr(error, "orig", error)).strip().partition("\n")[0]
            return LockConnectionError(f"key {shown(key)}: lost the database while asking for it: {text}", key=key)
        return error


def _lost(ticket: Ticket, reason: str) -> LockLostError:
    return LockLostError(
        f"key {shown(ticket.key)}: the lock was lost, {reason}: somebody else may have held it since", key=ticket.key
    )


def _end_sessions(pools: dict[asyncio.AbstractEventLoop | None, SessionPool]) -> None:
    for pool in list(pools.values()):
        pool.end_all()


_managers: weakref.WeakSet[Manager] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for manager in list(_managers):
        manager.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
