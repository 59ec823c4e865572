"""Locks on sessions of our own, for a caller that is not tied to one driver connection.

A Session bound to an engine gives its connection back at every commit, rollback and close. A lock on
that connection would have to go with it. So such a lock lives where a `LockProvider` keeps its locks,
and the Session's transactions, errors and cancelled statements do not touch it. A Session also waits
there for its next lock; what a cancel of such a wait costs, `coordination/policy.py` says. On SQLite every
such lock is a file of its own, and nothing touches it.
"""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy.engine.base import OptionEngine

from ..coordination.coordinator import Coordinator
from ..coordination.main_thread import helpers
from ..coordination.options import Options
from ..coordination.state import State, Ticket
from ..dialects.base import SESSION
from ..dialects.failures import connection_lost, lost, named
from ..sessions.pool import Opener, open_session
from ..sessions.session import SqlSession
from ..sessions.timeouts import Deadline, patience
from ..sessions.workers import release_garbage
from .connection import ANSWERS
from .wanted import server_dialect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from ..dialects.base import ServerDialect
    from .wanted import Wanted

__all__ = ["ModeHold", "OwnHold", "acquire_apart", "acquire_in_mode"]


class EngineLocks:
    """The lock sessions of one engine, open as long as a lock is asked for or held there."""

    def __init__(self, engine: Engine) -> None:
        # Each Session has a connection, on which it also waits: the server sees when two wait for each other.
        self.coordinator = Coordinator(engine, Options(share_sessions=False))
        self.users: set[Ticket] = set()


class OpenEngines:
    """The engines of this process that have lock sessions now."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self.by_engine: dict[Engine, EngineLocks] = {}

    def enter(self, engine: Engine, user: Ticket) -> EngineLocks:
        """Return an engine's lock sessions, opened for the first user."""
        with self._mutex:
            locks = self.by_engine.get(engine)
            if locks is None:
                locks = self.by_engine[engine] = EngineLocks(engine)
            locks.users.add(user)
            return locks

    def leave(self, locks: EngineLocks, user: Ticket) -> None:
        """Close them after the last user, which may leave twice: idle sessions are for a provider."""
        engine = locks.coordinator.engine
        with self._mutex:
            locks.users.discard(user)
            if locks.users or self.by_engine.get(engine) is not locks:
                return
            del self.by_engine[engine]
        locks.coordinator.close()

    def after_fork(self) -> None:
        """Start empty in a forked child; each coordinator lets go of its sessions itself."""
        self._mutex = threading.Lock()
        self.by_engine.clear()


engines = OpenEngines()
os.register_at_fork(after_in_child=engines.after_fork)


class OwnHold:
    """A lock on a session of our own; it is released when nothing refers to it any more."""

    scope = SESSION
    to_be_released = True

    def __init__(self, locks: EngineLocks, ticket: Ticket) -> None:
        self.pid = ticket.pid
        self._locks = locks
        self._ticket = ticket
        self._finalizer = weakref.finalize(self, _forget, locks, ticket)
        self._finalizer.atexit = False  # the server frees the locks of a process that ends

    @property
    def alive(self) -> bool:
        return self._ticket.state is State.HELD

    def release(self, key: object) -> None:  # noqa: ARG002 - the ticket knows its key
        """Unlock, or say that the lock was lost."""
        try:
            _release(self._locks, self._ticket)
        finally:
            self._finalizer.detach()

    def withdraw(self) -> None:
        """Let it be: its session is not the caller's."""


def _release(locks: EngineLocks, ticket: Ticket) -> None:
    try:
        locks.coordinator.release(ticket, ticket.context)
    finally:
        engines.leave(locks, ticket)


def _forget(locks: EngineLocks, ticket: Ticket) -> None:
    ticket.disown()  # its Session may ask again before the release is over
    release_garbage(ticket.key, partial(_release, locks, ticket), ticket.pid, ticket.loop)


def acquire_apart(engine: Engine, owner: object, wanted: Wanted) -> OwnHold | None:
    """Take a lock for a Session or Connection; None when it was not free in time.

    Raises:
        DeadlockError: The owner holds it already, or the wait could never end.
    """
    while isinstance(engine, OptionEngine):  # its locks are those of the engine that it is made from
        engine = engine._proxied  # noqa: SLF001 - there is no other way to it
    ticket = Ticket(wanted.request, wanted.context, wanted.timeout, owner)
    locks = engines.enter(engine, ticket)
    hold = None
    try:
        coordinator = locks.coordinator
        if any(held.owner is owner and held.entry.name == wanted.request.name for held in coordinator.entries.held()):
            wanted.refuse_second()
            return None
        wanted.stop = partial(coordinator.withdraw, ticket)
        if coordinator.acquire(ticket):
            hold = OwnHold(locks, ticket)
        return hold
    finally:
        if hold is None:
            engines.leave(locks, ticket)


class ModeHold:
    """A lock in another mode than shared or exclusive, which are all that a coordinator knows.

    Here the server alone decides which go together, so each is on a session of its own.
    """

    scope = SESSION
    to_be_released = True

    def __init__(self, session: SqlSession, locks: ServerDialect, wanted: Wanted) -> None:
        self.pid = os.getpid()
        self.name = wanted.request.name
        self._session = session
        self._locks = locks
        self._mode = wanted.mode
        self._grants = 1
        self._finalizer = weakref.finalize(
            self, release_garbage, wanted.request.key, session.end, self.pid, session.loop
        )
        self._finalizer.atexit = False

    @property
    def alive(self) -> bool:
        return not (self._session.ended or self._session.hung_up())

    def upgrade(self, wanted: Wanted) -> bool:
        """Make it exclusive."""
        with _asking(self._session, wanted):
            granted = wanted.ask_upgrade(self._session, self._locks)
        self._grants += granted and self._locks.counts_upgrades
        return granted

    def release(self, key: object) -> None:
        """Unlock and end the session, or say that the lock was lost."""
        try:
            intact = self.alive and all(
                self._locks.release(self._session, self.name, mode=self._mode, scope=SESSION, label=None)
                for _ in range(self._grants)
            )
        except Exception as error:
            if not connection_lost(error):
                raise
            raise lost(key, "its session ended") from error
        finally:
            self._session.end()
            self._finalizer.detach()
        if not intact:
            raise lost(key, "its session ended")

    def withdraw(self) -> None:
        """Let it be: its session is not the caller's."""


# What each Session holds in a mode of its own.
_held: WeakKeyDictionary[object, WeakSet[ModeHold]] = WeakKeyDictionary()


@contextmanager
def _asking(session: SqlSession, wanted: Wanted) -> Iterator[None]:
    """Talk to the server; a session in doubt is ended."""
    wanted.stop = session.interrupt
    try:
        yield
    except BaseException as error:
        if not isinstance(error, ANSWERS) or connection_lost(error):
            session.end()
        ours = named(error, wanted.request.key)
        if ours is error:
            raise
        raise ours from error


def acquire_in_mode(engine: Engine, owner: object, wanted: Wanted) -> ModeHold | None:
    """Take a lock in a mode of its own for a Session; None when it was not free in time.

    Raises:
        DeadlockError: The owner holds it already, or the wait could never end.
    """
    if any(hold.name == wanted.request.name and hold.alive for hold in _held.get(owner, ())):
        wanted.refuse_second()
        return None
    locks = server_dialect(engine.dialect.name)
    opened = partial(open_session, engine, locks=locks, watch=None, label="dlock", allow_unsafe=False)
    session = Opener(engine, opened, SqlSession.end, helpers)(patience(Deadline(wanted.timeout)))
    hold = None
    try:
        with _asking(session, wanted):
            if wanted.ask(session, locks):
                hold = ModeHold(session, locks, wanted)
                _held.setdefault(owner, WeakSet()).add(hold)
    finally:
        if hold is None:
            session.end()
    return hold
