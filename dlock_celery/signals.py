"""Celery signals about locks; `sender` is the task.

Receivers get `task_id` (None in a direct call), `key`, and what is named here. They run in the process that
runs the task, and their errors are logged. `lock_lost` comes from another thread, while the body still runs.
"""

from __future__ import annotations

from celery.utils.dispatch import Signal

__all__ = ["lock_acquired", "lock_conflict", "lock_lost", "lock_released"]

lock_acquired: Signal = Signal(name="lock_acquired", providing_args=["task_id", "key", "waited"])
"""A task has its lock; `waited` is in seconds."""

lock_released: Signal = Signal(name="lock_released", providing_args=["task_id", "key", "held"])
"""A task gave its lock back; `held` is in seconds. Not sent when the lock was lost."""

lock_conflict: Signal = Signal(name="lock_conflict", providing_args=["task_id", "key", "policy", "holder", "attempts"])
"""Somebody else has the lock; `policy` is the task's `on_conflict`, `holder` text for people or None, `attempts` how
often this message was sent again before."""

lock_lost: Signal = Signal(name="lock_lost", providing_args=["task_id", "key", "lock"])
"""The database no longer holds the lock; `lock` is its object."""
