"""What the caller's driver connections hold, and the promise that none takes it back into a pool.

The record is kept in `Connection.info`, the dictionary that SQLAlchemy keeps with each driver
connection: it is found again from any `Connection` on it, and dies with it. A detached connection
has no place in a pool any more, and SQLAlchemy forgets it when it is closed; some async drivers'
stay open then, so we end them.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakValueDictionary

from sqlalchemy import event
from sqlalchemy.pool import Pool

if TYPE_CHECKING:
    from sqlalchemy import Connection
    from sqlalchemy.pool import PoolProxiedConnection

__all__ = ["Held", "Holds", "holds_of", "watch_pools"]

log = logging.getLogger("dlock")

KEY = "dlock_core.sadlock"


class Held(Protocol):
    """One lock on one driver connection."""

    name: int | str
    pid: int
    ended: bool

    @property
    def proxied(self) -> PoolProxiedConnection | None:
        """The borrowing of the driver connection during which the lock was taken, None when forgotten."""
        ...

    def returned(self, *, may_talk: bool) -> None:
        """Free the lock, since its connection goes back to the pool now."""
        ...


class Holds:
    """All locks on one driver connection."""

    def __init__(self) -> None:
        self.guarded = False
        self._held: list[Held] = []

    def find(self, name: int | str) -> Held | None:
        """Return the lock of this name."""
        return next((held for held in self._held if held.name == name and not held.ended), None)

    def add(self, held: Held) -> None:
        """Note a lock."""
        self._held.append(held)

    def remove(self, held: Held) -> None:
        """Forget a lock, whether it is noted or not."""
        if held in self._held:
            self._held.remove(held)

    def returned(self, *, may_talk: bool) -> None:
        """Free what was taken by borrowings that end now."""
        for held in list(self._held):
            if held.pid == os.getpid() and not _still_out(held.proxied):
                self.remove(held)
                held.returned(may_talk=may_talk)


def holds_of(connection: Connection) -> Holds:
    """Return what the driver connection under this connection holds."""
    holds: Holds = connection.info.setdefault(KEY, Holds())
    if connection.connection.is_detached:
        _detached[id(connection.connection.dbapi_connection)] = holds
    return holds


# By the identity of the driver connection. Weak, since a detached connection that nobody closes ends
# when nobody knows it any more.
_detached: WeakValueDictionary[int, Holds] = WeakValueDictionary()


def _still_out(proxied: PoolProxiedConnection | None) -> bool:
    """Tell whether a borrowing goes on: with a StaticPool, several share one driver connection.

    SQLAlchemy counts the users of a borrowing, and has counted to 0 when it resets the connection.
    """
    return proxied is not None and proxied.is_valid and getattr(proxied, "_counter", 0) > 0


@functools.cache
def watch_pools() -> None:
    """Look at every connection that goes back to a pool of this process, from now on.

    Listeners for good, since SQLAlchemy's must not come and go while other threads use the pool.
    They cost one look into a dictionary.
    """
    event.listen(Pool, "reset", _before_return)
    event.listen(Pool, "detach", _at_detach)


def _before_return(driver_connection: Any, record: Any, state: Any) -> None:
    """Free the locks of a connection before its pool has it back; SQLAlchemy closes it if we fail."""
    holds = _detached.pop(id(driver_connection), None) if record is None else record.info.get(KEY)
    if holds is not None:
        holds.returned(may_talk=state.asyncio_safe and record is not None)


def _at_detach(driver_connection: Any, record: Any) -> None:
    """Take along what the connection holds; its place in the pool is for another one."""
    holds = record.info.pop(KEY, None)
    if holds is not None:
        _detached[id(driver_connection)] = holds
