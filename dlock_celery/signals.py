"""Celery signals about locks; `sender` is the task.

Receivers get `task_id` (None in a direct call), `key`, and what is named here. They run in the process that
runs the task, and their errors are logged. `lock_lost` comes from another thread, while the body still runs.
"""

from __future__ import annotations

from celery.utils.dispatch import Signal

__all__ = ["lock_acquired", "lock_conflict", "lock_lost", "lock_released"]

lock_acquired = Signal(name="lock_acquired", providing_args=["task_id", "key", "waited"])
lock_released = Signal(name="lock_released", providing_args=["task_id", "key", "held"])
lock_conflict = Signal(name="lock_conflict", providing_args=["task_id", "key", "policy", "holder", "attempts"])
lock_lost = Signal(name="lock_lost", providing_args=["task_id", "key", "lock"])
