"""Which lock the code that runs now is under."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

from dlock_core import LockStateError

if TYPE_CHECKING:
    from celery import Task

    from dlock_core import Lock

__all__ = ["Holding", "assert_locked", "current_lock", "holding"]


class Holding(NamedTuple):
    """The task whose body runs, and the lock that it is under, if any."""

    task: Task[Any, Any]
    lock: Lock | None


# Threads, greenlets and asyncio tasks each see their own.
holding: ContextVar[Holding | None] = ContextVar("dlock_celery.holding", default=None)


def current_lock() -> Lock | None:
    """Return the lock of the task that runs now, None outside of one or with locks switched off."""
    now = holding.get()
    return now.lock if now else None


def assert_locked() -> None:
    """Make sure that this code runs under the lock of its task.

    Raises:
        LockStateError: There is no lock, or it was lost.
    """
    lock = current_lock()
    if lock is None:
        raise LockStateError("no lock is held here: call this only from a task with @single_instance")
    if not lock.held:
        raise LockStateError(f"key {lock.key!r}: the lock was lost", key=lock.key)
