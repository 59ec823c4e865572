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

__all__ = [
    "AsyncLock",
    "AsyncLockProvider",
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
    "StaleTokenError",
    "UnsafeEnvironmentError",
    "UnsupportedError",
    "fence",
    "fence_table",
]
