"""Distributed locks from the database you already have, over SQLAlchemy."""

from __future__ import annotations

from .aio import AsyncLock
from .errors import (
    DeadlockError,
    LockConnectionError,
    LockError,
    LockKeyError,
    LockKeyRangeError,
    LockKeyTypeError,
    LockLostError,
    LockStateError,
    LockTimeoutError,
    StaleTokenError,
    UnsafeEnvironmentError,
    UnsupportedError,
)
from .fencing import fence, fence_table
from .lock import Lock
from .provider import AsyncLockProvider, LockProvider
from .sadlock import AsyncSadLock, SadLock, create_async_sadlock, create_sadlock

__all__ = [
    "AsyncLock",
    "AsyncLockProvider",
    "AsyncSadLock",
    "DeadlockError",
    "Lock",
    "LockConnectionError",
    "LockError",
    "LockKeyError",
    "LockKeyRangeError",
    "LockKeyTypeError",
    "LockLostError",
    "LockProvider",
    "LockStateError",
    "LockTimeoutError",
    "SadLock",
    "StaleTokenError",
    "UnsafeEnvironmentError",
    "UnsupportedError",
    "create_async_sadlock",
    "create_sadlock",
    "fence",
    "fence_table",
]
