"""Locks for Flask from the database that the application has: `with dlock.lock("export"):` in a view."""

from __future__ import annotations

from .conflict import LockConflict
from .extension import DLock
from .handles import AsyncHandle, Handle
from .signals import lock_acquired, lock_conflict, lock_lost, lock_released

__all__ = [
    "AsyncHandle",
    "DLock",
    "Handle",
    "LockConflict",
    "lock_acquired",
    "lock_conflict",
    "lock_lost",
    "lock_released",
]
