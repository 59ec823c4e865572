"""Distributed locks from the database you already have, over SQLAlchemy."""

from __future__ import annotations

from .aio import AsyncLock
from .checks import Finding
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
    NotPermittedError,
    StaleTokenError,
    UnsafeEnvironmentError,
    UnsupportedError,
)
from .events import LockAcquired, LockAttempt, LockEvent, LockLost, LockNotAcquired, LockReleased
from .fencing import fence, fence_table
from .inspection import LockInfo, LockWaiter
from .lock import Lock
from .names import name_table
from .provider import AsyncLockProvider, LockProvider
from .running import run_locked
from .sadlock import AsyncSadLock, SadLock, create_async_sadlock, create_sadlock
from .templates import KeyTemplate, key_maker

__all__ = [
    "AsyncLock",
    "AsyncLockProvider",
    "AsyncSadLock",
    "DeadlockError",
    "Finding",
    "KeyTemplate",
    "Lock",
    "LockAcquired",
    "LockAttempt",
    "LockConnectionError",
    "LockError",
    "LockEvent",
    "LockInfo",
    "LockKeyError",
    "LockKeyRangeError",
    "LockKeyTypeError",
    "LockLost",
    "LockLostError",
    "LockNotAcquired",
    "LockProvider",
    "LockReleased",
    "LockStateError",
    "LockTimeoutError",
    "LockWaiter",
    "NotPermittedError",
    "SadLock",
    "StaleTokenError",
    "UnsafeEnvironmentError",
    "UnsupportedError",
    "create_async_sadlock",
    "create_sadlock",
    "fence",
    "fence_table",
    "key_maker",
    "name_table",
    "run_locked",
]
