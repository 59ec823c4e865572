"""Transaction-level locks: they end with the caller's transaction, and nothing else ends them.

SQLAlchemy's events on the connection tell when that is. Statements such as ROLLBACK that the caller
writes himself go unseen.
"""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, event

from ..errors import LockStateError, shown
from ..failures import lost
from .caller import CallerSession, asking
from .holds import holds_of, watch_pools
from .questions import locks_on_caller, refuse_second, wait_for, wait_for_upgrade

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session
    from sqlalchemy.pool import PoolProxiedConnection

    from .questions import Ask, LocksOnCaller

__all__ = ["TransactionHold", "acquire_in_transaction"]


class TransactionHold:
    """A lock that its transaction holds."""

    ends_with_transaction = True

    def __init__(self, connection: Connection, session: CallerSession, locks: LocksOnCaller, ask: Ask) -> None:
        self.name = ask.request.name
        self.pid = os.getpid()
        self._session = session
        self._locks = locks
        self._ask = ask
        # Weak, since what connections hold is remembered beside them: see `holds.py`.
        self._connection = weakref.ref(connection)
        self._proxied = weakref.ref(connection.connection)
        self._savepoints = 0
        self.ended = False

    @property
    def proxied(self) -> PoolProxiedConnection | None:
        return self._proxied()

    @property
    def to_be_released(self) -> bool:
        """Whether leaving `with` is to release it, where the database can do that before the transaction's end."""
        return self._ask.release_on_commit and self.alive

    @property
    def alive(self) -> bool:
        connection = self._connection()
        if self.ended or connection is None:
            return False
        return self._session.is_under(connection) and not self._session.hung_up()

    def upgrade(self, ask: Ask) -> bool:
        """Make it exclusive."""
        with asking(self._alive_connection(), self._session, ask.request.key):
            return wait_for_upgrade(self._session, self._locks, ask)

    def _alive_connection(self) -> Connection:
        connection = self._connection()
        assert connection is not None, "asked while alive"
        return connection

    def release(self, key: object) -> None:
        if self._ask.release_on_commit:
            self._release(self._alive_connection(), key)
            return
        raise LockStateError(
            f"key {shown(key)}: a lock with xact=True ends with its transaction: commit or roll back to release it",
            key=key,
        )

    def _release(self, connection: Connection, key: object) -> None:
        self.ended = True
        _holds_in_transaction(connection).remove(self)
        holds_of(connection).remove(self)
        with asking(connection, self._session, key, answers=()):
            intact = self._locks.release(self._session, self.name, shared=False, recover=self._session.rollback)
        if not intact:
            raise lost(key, "the server says that our session did not hold it")

    def returned(self, *, may_talk: bool) -> None:  # noqa: ARG002 - its transaction has ended before
        self.transaction_ended()

    def transaction_ended(self) -> None:
        """Note a COMMIT or ROLLBACK."""
        self.ended = True

    def savepoint_begun(self) -> None:
        """Note a SAVEPOINT inside the lock."""
        self._savepoints += 1

    def savepoint_released(self) -> None:
        """Note a RELEASE SAVEPOINT: what was locked since belongs to what is around it."""
        self._savepoints = max(0, self._savepoints - 1)

    def savepoint_rolled_back(self) -> None:
        """Note a ROLLBACK TO SAVEPOINT, which ends the lock if the savepoint is older."""
        self.ended = self.ended or self._savepoints == 0
        self._savepoints = max(0, self._savepoints - 1)


def acquire_in_transaction(subject: Connection | Session, ask: Ask) -> TransactionHold | None:
    """Take a lock for the rest of the caller's transaction, which begins now if there is none.

    Raises:
        LockStateError: The connection is in autocommit, where a transaction ends at once.
    """
    begin_here = not subject.in_transaction()
    hold = None
    try:
        hold = _take(_in_transaction(subject), ask)
    finally:
        if hold is None and begin_here:
            _end_transaction(subject)
    return hold


def _in_transaction(subject: Connection | Session) -> Connection:
    """Return the connection, which is in a transaction now."""
    if not isinstance(subject, Connection):
        return subject.connection()
    if not subject.in_transaction():
        subject.begin()
    return subject


def _take(connection: Connection, ask: Ask) -> TransactionHold | None:
    holds = holds_of(connection)
    if holds.find(ask.request.name) is not None:
        refuse_second(ask)
        return None
    watch_pools()
    session = CallerSession.under(connection, ask.request.key)
    locks = locks_on_caller(connection.dialect.name, ask)
    hold = TransactionHold(connection, session, locks, ask)
    with asking(connection, session, ask.request.key):
        if session.autocommit:
            option = "xact=True" if ask.xact else "release_on_commit=True"
            raise LockStateError(
                f"{option} on a connection in autocommit would be released at once; "
                f"use another isolation level, or leave {option.partition('=')[0]} out"
            )
        if connection.dialect.name != "postgresql" and not holds.guarded:
            locks.guard(session)
            holds.guarded = True
        if not wait_for(session, locks, ask):
            return None
    holds.add(hold)
    _holds_in_transaction(connection).append(hold)
    return hold


def _end_transaction(subject: Connection | Session) -> None:
    """Leave no transaction behind where there was none.

    Closing it, unlike a rollback, does not expire what an ORM session has loaded.
    """
    transaction = subject.get_transaction()
    if transaction is not None:
        transaction.close()


_watched: WeakKeyDictionary[Connection, list[TransactionHold]] = WeakKeyDictionary()


def _holds_in_transaction(connection: Connection) -> list[TransactionHold]:
    """Return the locks of a connection's transaction; from the first one on, its events are watched.

    Its listeners stay: they cannot be removed while SQLAlchemy goes through them.
    """
    if connection not in _watched:
        _watched[connection] = []
        for name, listener in LISTENERS.items():
            event.listen(connection, name, listener)
    return _watched[connection]


def _at_end(connection: Connection, *_: object) -> None:
    holds = _watched.get(connection, [])
    for hold in holds:
        hold.transaction_ended()
    if not connection.closed and not connection.invalidated:
        for hold in holds:
            holds_of(connection).remove(hold)
    holds.clear()


def _at_savepoint(note: Callable[[TransactionHold], None]) -> Callable[..., None]:
    def listener(connection: Connection, *_: object) -> None:
        for hold in _watched.get(connection, []):
            note(hold)

    return listener


LISTENERS: dict[str, Callable[..., None]] = {
    "commit": _at_end,
    "rollback": _at_end,
    "commit_twophase": _at_end,
    "rollback_twophase": _at_end,
    "savepoint": _at_savepoint(TransactionHold.savepoint_begun),
    "release_savepoint": _at_savepoint(TransactionHold.savepoint_released),
    "rollback_savepoint": _at_savepoint(TransactionHold.savepoint_rolled_back),
}
