"""Locks for a caller who is not tied to one driver connection: they live on a connection of their own.

A Session bound to an engine gives its connection back at every commit, rollback and close. A lock on
that connection would have to go with it. So such a lock lives where a `LockProvider` keeps its locks,
and the Session's transactions, errors and cancelled statements do not touch it. The same holds on
SQLite, whose locks are on no connection at all.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import weakref
from _thread import start_new_thread
from contextlib import suppress
from typing import TYPE_CHECKING

from sqlalchemy.engine.base import OptionEngine
from sqlalchemy.util import greenlet_spawn

from ..errors import shown
from ..manager import Manager, Options
from ..tickets import State
from .main_thread import hearing

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from ..contexts import Context
    from ..tickets import Ticket
    from .caller import Ask

__all__ = ["OwnHold", "acquire_apart"]

log = logging.getLogger("dlock")


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


# The event loop itself keeps no task alive.
_unfinished: set[asyncio.Task[None]] = set()
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

    def in_main_thread(self) -> bool:
        """Say no: each asker has a session of his own, so that a signal costs nobody else a lock."""
        return False


class OwnHold:
    """A lock on a connection of its own, as its holder sees it."""

    ends_with_transaction = False

    def __init__(self, lodging: Lodging, ticket: Ticket, context: Context) -> None:
        self._lodging = lodging
        self._ticket = ticket
        self._context = context
        self.pid = ticket.pid
        self._finalizer = weakref.finalize(self, _release_forgotten, lodging, ticket, context, _running_loop())
        self._finalizer.atexit = False  # the server frees the locks of a process that ends

    @property
    def alive(self) -> bool:
        return self._ticket.state is State.HELD

    def release(self, key: object) -> None:  # noqa: ARG002 - the ticket knows its key
        """Unlock, or say that the lock was lost."""
        self._finalizer.detach()
        _release(self._lodging, self._ticket, self._context)


def _release(lodging: Lodging, ticket: Ticket, context: Context) -> None:
    try:
        lodging.manager.release(ticket, context)
    finally:
        _lodgings.leave(lodging)


def _release_forgotten(
    lodging: Lodging, ticket: Ticket, context: Context, loop: asyncio.AbstractEventLoop | None
) -> None:
    """Release the lock of an object that the garbage collector has found.

    The collector may come at any line of any thread, so nothing is done here that takes a mutex.
    """

    def release() -> None:
        log.warning("key %s: nobody has the lock any more that holds it; released", shown(ticket.key))
        try:
            _release(lodging, ticket, context)
        except Exception:
            log.exception("release of key %s failed", shown(ticket.key))

    def begin() -> None:
        assert loop is not None
        task = loop.create_task(greenlet_spawn(release))
        _unfinished.add(task)
        task.add_done_callback(_unfinished.discard)

    if ticket.pid != os.getpid():
        return
    try:
        if loop is not None:
            loop.call_soon_threadsafe(begin)
            return
    except RuntimeError:  # the loop is closed: its sessions are ended without it
        pass
    with suppress(RuntimeError):  # the interpreter ends, and all sessions with it
        start_new_thread(release, ())


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def acquire_apart(engine: Engine, owner: object, ask: Ask) -> OwnHold | None:
    """Take a lock for a Session or Connection; None when it was not free in time.

    Raises:
        DeadlockError: The owner holds it already, or the wait could never end.
    """
    lodging = _lodgings.enter(engine)
    manager = lodging.manager
    context = hearing(ask.context, manager.workers) if manager.locks.capabilities.server_waits else ask.context
    asker = OnBehalf(context, owner)
    request = ask.request
    ticket = None
    try:
        ticket = manager.acquire(request, asker, ask.timeout)
    finally:
        if ticket is None:
            _lodgings.leave(lodging)
    return None if ticket is None else OwnHold(lodging, ticket, asker)
