"""Locks on a connection or session that the caller gives: sqlalchemy-dlock 0.9's interface.

Users of that library move over by changing an import. Everybody else is better served by
`LockProvider`, whose locks know nothing of the caller's connections and transactions.
"""

from __future__ import annotations

from .aio import AsyncSadLock, create_async_sadlock
from .lock import SadLock, create_sadlock

__all__ = ["AsyncSadLock", "SadLock", "create_async_sadlock", "create_sadlock"]
