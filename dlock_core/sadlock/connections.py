"""Session-level locks on the driver connection of the caller's connection.

Such a lock belongs to the driver connection on which it was taken. It is never unlocked on another
one, and it never goes back into a pool: see `holds.py`.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING

from ..errors import LockConnectionError
from ..failures import lost
from .caller import CallerSession, asking
from .holds import holds_of, watch_pools
from .questions import locks_on_caller, refuse_second, wait_for, wait_for_upgrade

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.orm import Session
    from sqlalchemy.pool import PoolProxiedConnection

    from ..requests import Request
    from .questions import Ask, LocksOnCaller

__all__ = ["ConnectionHold", "acquire_on"]

CLOSED = "its connection was closed while it was held; close it after the lock, or use LockProvider"


class HeldByConnection:
    """A session-level lock as its driver connection remembers it."""

    def __init__(
        self, session: CallerSession, locks: LocksOnCaller, request: Request, proxied: PoolProxiedConnection
    ) -> None:
        self.name = request.name
        self.shared = request.shared
        self.pid = os.getpid()
        self.session = session
        self.locks = locks
        self.ended = False
        self._proxied = weakref.ref(proxied)

    @property
    def proxied(self) -> PoolProxiedConnection | None:
        return self._proxied()

    def returned(self, *, may_talk: bool) -> None:
        self.ended = True
        if may_talk:
            self.locks.release(self.session, self.name, shared=self.shared, recover=self.session.rollback)
        else:  # detached, or found by the garbage collector: SQLAlchemy may be unable to close it
            self.session.end()


class ConnectionHold:
    """A session-level lock as its holder sees it."""

    ends_with_transaction = False
    to_be_released = True

    def __init__(self, connection: Connection, orm_session: Session | None, held: HeldByConnection) -> None:
        self._connection = connection
        self._orm_session = orm_session
        self._held = held
        self.pid = held.pid

    @property
    def alive(self) -> bool:
        held = self._held
        return not held.ended and held.session.is_under(self._connection) and not held.session.hung_up()

    def upgrade(self, ask: Ask) -> bool:
        """Make it exclusive."""
        with asking(self._connection, self._held.session, ask.request.key):
            return wait_for_upgrade(self._held.session, self._held.locks, ask)

    def release(self, key: object) -> None:
        """Unlock on the very connection that holds the lock, or say that it was lost."""
        session = self._held.session
        if self._held.ended:
            raise lost(key, CLOSED)
        if not session.is_under(self._connection):
            session.end()  # SQLAlchemy does not close a detached connection that it invalidates
            raise lost(key, "its connection broke or was exchanged while it was held")
        holds_of(self._connection).remove(self._held)
        try:
            with asking(self._connection, session, key, answers=()):
                intact = self._unlock()
        except LockConnectionError as error:
            raise lost(key, "its session ended") from error
        if not intact:
            raise lost(key, "the server says that our session did not hold it")

    def _unlock(self) -> bool:
        held = self._held
        return held.locks.release(held.session, held.name, shared=held.shared, recover=self._roll_back_innermost)

    def _roll_back_innermost(self) -> None:
        """Roll back what has failed and nothing else: rows before a savepoint are kept."""
        orm = self._orm_session
        owner = self._connection if orm is None or not orm.in_transaction() else orm
        transaction = owner.get_nested_transaction() or owner.get_transaction()
        if transaction is None:
            self._held.session.rollback()
        else:
            transaction.rollback()


def acquire_on(connection: Connection, orm_session: Session | None, ask: Ask) -> ConnectionHold | None:
    """Take a session-level lock on the caller's connection; None when it was not free in time.

    Args:
        connection: The caller's connection.
        orm_session: The Session that the caller has bound to it, if he uses one.
        ask: What he wants.

    Raises:
        DeadlockError: The connection holds it already, or the server found a circle of waits.
    """
    holds = holds_of(connection)
    if holds.find(ask.request.name) is not None:
        refuse_second(ask)
        return None
    watch_pools()
    session = CallerSession.under(connection, ask.request.key)
    locks = locks_on_caller(connection.dialect.name, ask)
    held = HeldByConnection(session, locks, ask.request, connection.connection)
    with asking(connection, session, ask.request.key):
        if not holds.guarded:
            locks.guard(session)
            holds.guarded = True
        if not wait_for(session, locks, ask):
            return None
    holds.add(held)
    return ConnectionHold(connection, orm_session, held)
