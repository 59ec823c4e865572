"""Acquires and releases for one provider: first the queue of this process, then the server.

This is blocking code; a context decides where it waits and where it talks to the server.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import sys
import warnings
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from .contexts import BLOCKING, GREENLET, see_through
from .dialects import find_dialect, refusal_to_fence, refusal_to_share
from .dialects.sqlite import SQLite
from .entries import Entries
from .errors import (
    LockStateError,
    UnsupportedError,
    shown,
)
from .events import Listeners
from .failures import connection_lost, lost, named
from .keys import check_key, label
from .lenders import ANSWERS, POLL_LAST, SharedLender, SingleLender
from .opening import open_session
from .owner_lender import OwnerLender
from .requests import Request
from .stock import Stock
from .threads import Workers
from .tickets import State, Ticket
from .timeouts import FOR_EVER, Deadline
from .watch import Care, Watch

if TYPE_CHECKING:
    from sqlalchemy import Engine, Pool

    from .contexts import Context
    from .dialects.base import ServerDialect, Session
    from .lenders import Lender
    from .options import Options

__all__ = ["Manager"]

log = logging.getLogger("dlock")

# How often and how long a process hands a lock on before it asks the server again.
TURN_GRANTS, TURN_SECONDS = 64, 0.02
# Longest name of a PostgreSQL session, in bytes.
LABEL_BYTES = 63
# How many keys, and how long ones, are mapped only once.
CACHED_REQUESTS, CACHED_LENGTH = 256, 256


class Manager:
    """Knows one database's locks, and all that this process asks of them."""

    def __init__(self, engine: Engine, options: Options) -> None:
        self.engine = engine
        self.options = options
        self.locks = find_dialect(engine.dialect.name)
        self.listeners = Listeners(engine.dialect.name)
        if options.lease is not None and not self.locks.capabilities.lease:
            raise UnsupportedError(
                f"lease={options.lease}: {engine.dialect.name} cannot end a silent session; "
                "PostgreSQL, MySQL and MariaDB can"
            )
        self._requests: dict[tuple[str, bool, bool], Request] = {}
        self._closed = False
        self._sessions: set[Session] = set()
        self._start()
        _managers.add(self)
        weakref.finalize(self, _end_all, self._sessions, self.locks)

    def _start(self) -> None:
        self._pid = os.getpid()
        self.entries = Entries(turn_grants=self._turn_grants(), turn_seconds=TURN_SECONDS)
        self.workers = Workers()
        self._watch = Watch(self._dead, heartbeat=self.options.heartbeat, lease=self.options.lease)
        self._lenders: dict[object, Lender] = {}
        self._suite = f"dlock-{self.options.adapter}" if self.options.adapter else "dlock"
        self._whereabouts = f" {platform.node()[:24]}:{self._pid}"

    def _turn_grants(self) -> int:
        if not self.options.share_sessions:
            return 0  # a lock must be on its owner's session
        # Where the server does not queue, each turn is followed by a pause, so it may be long.
        return TURN_GRANTS if self.locks.capabilities.server_waits else sys.maxsize

    def after_fork(self) -> None:
        """Start anew in a forked child: empty maps, new mutexes, none of the parent's sessions."""
        for lender in self._lenders.values():
            lender.stock.park_all()
        self._watch.after_fork()
        if isinstance(self.locks, SQLite):
            self.locks.after_fork()
        self._start()

    def request(self, key: object, *, shared: bool, fencing: bool) -> Request:
        """Check a key and map it.

        Raises:
            LockKeyError: It cannot name a lock.
            UnsupportedError: The database has no shared locks, or no fencing tokens.
        """
        known = self._requests.get((key, shared, fencing)) if type(key) is str else None
        if known is None:
            known = self._map(key, shared=shared, fencing=fencing)
            if type(key) is str and len(key) <= CACHED_LENGTH:
                if len(self._requests) >= CACHED_REQUESTS:
                    self._requests.clear()
                self._requests[key, shared, fencing] = known
        return known

    def _map(self, key: object, *, shared: bool, fencing: bool) -> Request:
        self.check_shared(key, shared=shared)
        if fencing and shared:
            raise UnsupportedError(
                f"key {shown(key)}: a shared lock has no fencing token; ask for it exclusively", key=key
            )
        if fencing and not self.locks.capabilities.fencing:
            raise UnsupportedError(f"key {shown(key)}: {refusal_to_fence(self.locks)}", key=key)
        checked = check_key(key)
        prefix = self.options.prefix
        text = label(prefix, checked) if self.options.show_keys else ""
        return Request(checked, self.locks.name(prefix, checked), text, shared, fencing)

    def check_shared(self, key: object, *, shared: bool) -> None:
        """Refuse a shared lock where there is none."""
        if shared and not self.locks.capabilities.shared:
            raise UnsupportedError(f"key {shown(key)}: {refusal_to_share(self.locks)}", key=key)

    def ticket(self, request: Request, context: Context, timeout: float | None) -> Ticket:
        """Return a ticket to acquire with.

        Raises:
            LockStateError: This provider is closed.
        """
        if self._pid != os.getpid():  # a fork that ran no Python hook
            self.after_fork()
        if self._closed:
            raise LockStateError(f"key {shown(request.key)}: this lock provider is closed", key=request.key)
        loop = asyncio.get_running_loop() if self.engine.dialect.is_async else None
        return Ticket(
            request.key,
            context,
            shared=request.shared,
            once=timeout == 0,
            home=self._lender(loop),
            alone=request.fencing,
            loop=loop,
        )

    def acquire(self, ticket: Ticket, request: Request, context: Context, timeout: float | None) -> bool:
        """Acquire; False when it was not free in time.

        Raises:
            DeadlockError: The wait could never end.
            LockConnectionError: The database cannot be asked.
            UnsafeEnvironmentError: A lock there would protect nothing.
        """
        deadline = Deadline(timeout)
        try:
            if (
                self.entries.ask(request.name, ticket, context)
                and self._queue(ticket, deadline)
                and (ticket.hold is not None or context.call(self._ask, request, ticket, deadline, context.inner))
            ):
                return True
        except BaseException:
            self._abandon(ticket, context)
            raise
        if self._closed:
            raise LockStateError(f"key {shown(request.key)}: this lock provider was closed", key=request.key)
        return False

    def _queue(self, ticket: Ticket, deadline: Deadline) -> bool:
        """Wait for our turn in this process; False when time is over."""
        if ticket.latch is None:
            return True
        if not ticket.latch.wait(FOR_EVER if ticket.once else deadline):
            return self.entries.leave(ticket) is State.HELD
        return ticket.state is not State.GONE

    def _ask(self, request: Request, ticket: Ticket, deadline: Deadline, context: Context) -> bool:
        """Ask the server, as this process's only asker for this key."""
        lender: Lender = ticket.home
        granted = reusable = False
        try:
            if ticket.polite and not self.locks.capabilities.server_waits:
                context.pause(min(POLL_LAST, deadline.remaining() or POLL_LAST))  # our turn is over: let others in
            waits = not (ticket.once or deadline.near) and lender.foresees_wait(request)
            granted = not waits and lender.attempt(request, ticket, context)
            granted = granted or self._wait(request, ticket, deadline, context)
            reusable = not granted and self.entries.leave(ticket) is State.ASKING
        except BaseException as error:
            if ticket.state is State.GONE and isinstance(error, Exception):
                return False  # the asker left, and interrupted this
            reusable = isinstance(error, ANSWERS)
            ours = named(error, request.key)
            if ours is error:
                raise
            raise ours from error
        finally:
            if not granted and ticket.state is not State.HELD:  # who was granted may have left, and another hold it
                lender.settle(ticket, reusable=reusable)
        return granted

    def _wait(self, request: Request, ticket: Ticket, deadline: Deadline, context: Context) -> bool:
        """Wait at the server, or poll where it has no queue."""
        if ticket.once or not self.entries.waiting(ticket):
            return False
        lender: Lender = ticket.home
        while ticket.state is State.ASKING and not deadline.passed:
            if lender.wait(request, ticket, deadline, context):
                return True
        return False

    def _abandon(self, ticket: Ticket, context: Context) -> None:
        """Leave no trace of an asker whom an exception takes away."""
        before = self.entries.leave(ticket)
        if before is State.HELD and self.entries.release(ticket) is State.ENDING:
            context.afterwards(lambda: self._unlock(ticket, context.inner))
        elif before is State.ASKING:
            context.interrupt(lambda: self._interrupt(ticket))

    def withdraw(self, ticket: Ticket) -> None:
        """Call back an asker who is still under way, from another thread; who holds by now is left alone."""
        before = self.entries.leave(ticket)
        if before is State.QUEUED:
            assert ticket.latch is not None
            ticket.latch.set()
        elif before in (State.ASKING, State.GONE):
            self._interrupt(ticket)

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
        if ticket.session is not None and ticket.session.expired():
            self._dead(ticket.session)
        match self.entries.release(ticket):
            case State.LOST:
                lender: Lender = ticket.home
                lender.settle(ticket, reusable=True)
                raise lost(ticket.key, "its session ended")
            case State.ENDING:
                context.call(self._unlock, ticket, context.inner)

    def _unlock(self, ticket: Ticket, context: Context) -> None:
        lender: Lender = ticket.home
        try:
            intact = lender.unlock(ticket.entry.name, ticket, context)
        except Exception as error:
            if connection_lost(error):
                raise lost(ticket.key, "its session ended") from error
            raise
        finally:
            self.entries.ended(ticket)
        if not intact:
            raise lost(ticket.key, "the server says that our session did not hold it")

    def release_forgotten(self, ticket: Ticket) -> None:
        """Release a lock whose object is garbage."""
        if ticket.loop is None or not ticket.loop.is_closed():  # else the watch ends its session
            self.release(ticket, BLOCKING if ticket.loop is None else GREENLET)

    def held_locks(self) -> list[Any]:
        """Return the lock objects that hold a lock now."""
        told = [ticket.told() for ticket in self.entries.held() if ticket.told is not None]
        return [method.__self__ for method in told if method is not None]  # type: ignore[attr-defined]

    def _dead(self, session: Any) -> None:
        """End a session that the server has ended, or should have; or that does not answer when it is opened."""
        for lender in list(self._lenders.values()):
            if session in lender.stock:
                lender.stock.end(session)
        session.end()

    def _session_ended(self, session: Session) -> None:
        """Tell all whose locks were on a session that ended."""
        for ticket in self.entries.lose(session):
            log.error("lost the lock of key %s: its session ended", shown(ticket.key))
            if (told := ticket.told and ticket.told()) is not None:
                self.workers.submit(told)
            if ticket.loop is not None and ticket.loop.is_closed():
                self.workers.submit(partial(_warn_of_closed_loop, ticket.key))

    def close(self) -> None:
        """End all sessions: every lock is free; whoever queues gets an error."""
        self._closed = True
        for ticket in self.entries.close():
            log.warning("lock provider closed while key %s was held", shown(ticket.key))
        for lender in list(self._lenders.values()):
            lender.stock.end_all()
        if isinstance(self.locks, SQLite):
            self.locks.close()

    def _lender(self, home: object) -> Lender:
        """Return the sessions that an asker can use: those of his event loop, or of all threads."""
        lender = self._lenders.get(home)
        if lender is None:
            self._end_closed_loops()
            lender = self._lenders.setdefault(home, self._new_lender())
        return lender

    def _end_closed_loops(self) -> None:
        for loop in [home for home in self._lenders if isinstance(home, asyncio.AbstractEventLoop)]:
            if loop.is_closed():
                self._lenders.pop(loop).stock.end_all()

    def _new_lender(self) -> Lender:
        private = self.engine.pool.recreate()
        stock: Stock

        def opener() -> Session:
            if not self.engine.dialect.is_async:
                return self._open(private)
            return see_through(lambda: self._open(private), stock.keep)

        stock = Stock(opener, self._session_ended, self._sessions, self.options.max_sessions)

        if not self.locks.capabilities.server_waits:
            return SingleLender(stock, self.entries.granted, self.session_label)
        if self.options.share_sessions:
            return SharedLender(stock, self.entries.granted, self.session_label, self.workers)
        return OwnerLender(stock, self.entries.granted, self.session_label)

    def _open(self, private: Pool) -> Session:
        if isinstance(self.locks, SQLite):
            return self.locks.open(self.engine, private, self.session_label(""), self._watch.add)
        return open_session(
            self.engine,
            private,
            self.locks,
            Care(self._watch, self.workers, self.options.lease),
            label=self.session_label(""),
            unsafe_ok=self.options.unsafe_ok,
        )

    def session_label(self, text: str) -> str:
        """Return what the server's views show for a session: suite, key, host and process."""
        readable = f" {text}".encode("ascii", "backslashreplace").decode().rstrip()
        return f"{self._suite}{readable[: LABEL_BYTES - len(self._suite) - len(self._whereabouts)]}{self._whereabouts}"


def _warn_of_closed_loop(key: object) -> None:
    warnings.warn(
        f"dlock: key {shown(key)}: its event loop was closed while the lock was held, and the lock is lost; "
        "release it before the loop ends",
        ResourceWarning,
        stacklevel=1,
    )


def _end_all(sessions: set[Session], locks: ServerDialect | SQLite) -> None:
    for session in list(sessions):
        session.end()
    if isinstance(locks, SQLite):
        locks.close()


_managers: weakref.WeakSet[Manager] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for manager in list(_managers):
        manager.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
