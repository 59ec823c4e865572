"""Locks for a caller who is not tied to one driver connection: they live on a connection of their own.

A Session bound to an engine gives its connection back at every commit, rollback and close. A lock on
that connection would have to go with it. So such a lock lives where a `LockProvider` keeps its locks,
and the Session's transactions, errors and cancelled statements do not touch it. The same holds on
SQLite, whose locks are on no connection at all.
"""

from __future__ import annotations

import os
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy.engine.base import OptionEngine

from ..forgotten import Forgotten
from ..manager import Manager
from ..options import Options
from ..tickets import State
from .main_thread import hearing
from .questions import refuse_second

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from ..contexts import Context
    from ..tickets import Ticket
    from .questions import Ask

__all__ = ["OwnHold", "acquire_apart"]


class Lodging:
    """The lock sessions of one engine, there as long as somebody holds or waits."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        # Each Session has a connection, on which it also waits: the server sees when two wait for each other.
        self.manager = Manager(engine, Options(share_sessions=False))
        self.guests = 0


class Lodgings:
    """The lock sessions of all engines of this process."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._by_engine: dict[Engine, Lodging] = {}

    def enter(self, engine: Engine) -> Lodging:
        """Come in, and open if nobody is there."""
        while isinstance(engine, OptionEngine):  # one database in memory must not be two
            engine = engine._proxied  # noqa: SLF001 - there is no other way to it
        with self._mutex:
            lodging = self._by_engine.get(engine)
            if lodging is None:
                lodging = self._by_engine[engine] = Lodging(engine)
            lodging.guests += 1
            return lodging

    def leave(self, lodging: Lodging) -> None:
        """Go, and close behind oneself: idle sessions are for those who hold a provider."""
        with self._mutex:
            lodging.guests -= 1
            if lodging.guests:
                return
            if self._by_engine.get(lodging.engine) is lodging:
                del self._by_engine[lodging.engine]
        lodging.manager.close()

    def after_fork(self) -> None:
        """Start empty in a forked child; what the managers hold, they let go themselves."""
        self._mutex = threading.Lock()
        self._by_engine.clear()


_lodgings = Lodgings()
os.register_at_fork(after_in_child=_lodgings.after_fork)


class OnBehalf:
    """A context in which not the thread or task asks, but the Session or Connection that it uses."""

    def __init__(self, context: Context, owner: object) -> None:
        self._owner = owner
        self.latch = context.latch
        self.call = context.call
        self.wait = context.wait
        self.shield = context.shield
        self.inner = context.inner
        self.pause = context.pause
        self.interrupt = context.interrupt
        self.afterwards = context.afterwards

    def owner(self) -> object:
        return self._owner


class OwnHold:
    """A lock on a connection of its own, as its holder sees it."""

    ends_with_transaction = False
    to_be_released = True

    def __init__(self, lodging: Lodging, ticket: Ticket, context: Context) -> None:
        self._ticket = ticket
        self._release = partial(_release, lodging, ticket, context)
        self.pid = ticket.pid
        self._finalizer = weakref.finalize(self, Forgotten(ticket.key, self._release, pid=ticket.pid, loop=ticket.loop))
        self._finalizer.atexit = False  # the server frees the locks of a process that ends

    @property
    def alive(self) -> bool:
        return self._ticket.state is State.HELD

    def release(self, key: object) -> None:  # noqa: ARG002 - the ticket knows its key
        """Unlock, or say that the lock was lost."""
        self._finalizer.detach()
        self._release()


def _release(lodging: Lodging, ticket: Ticket, context: Context) -> None:
    try:
        lodging.manager.release(ticket, context)
    finally:
        _lodgings.leave(lodging)


def acquire_apart(engine: Engine, owner: object, ask: Ask) -> OwnHold | None:
    """Take a lock for a Session or Connection; None when it was not free in time.

    Raises:
        DeadlockError: The owner holds it already, or the wait could never end.
    """
    lodging = _lodgings.enter(engine)
    manager = lodging.manager
    context = hearing(ask.context, manager.workers) if manager.locks.capabilities.server_waits else ask.context
    asker = OnBehalf(context, owner)
    ticket = None
    try:
        if any(held.owner is owner and held.entry.name == ask.request.name for held in manager.entries.held()):
            refuse_second(ask)
        else:
            asking = manager.ticket(ask.request, asker, ask.timeout)
            if manager.acquire(asking, ask.request, asker, ask.timeout):
                ticket = asking
    finally:
        if ticket is None:
            _lodgings.leave(lodging)
    return None if ticket is None else OwnHold(lodging, ticket, asker)
