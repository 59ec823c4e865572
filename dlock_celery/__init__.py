"""Celery tasks that never overlap, by locks of the database you already have."""

from __future__ import annotations

from .conflict import LockConflictError
from .decorator import single_instance
from .guard import assert_locked, current_lock
from .providers import DLock, get_provider
from .signals import lock_acquired, lock_conflict, lock_lost, lock_released
from .task import SingleInstanceMixin, SingleInstanceTask

__all__ = [
    "DLock",
    "LockConflictError",
    "SingleInstanceMixin",
    "SingleInstanceTask",
    "assert_locked",
    "current_lock",
    "get_provider",
    "lock_acquired",
    "lock_conflict",
    "lock_lost",
    "lock_released",
    "single_instance",
]
