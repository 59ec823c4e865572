"""Signals; `sender` is the class of the lock, and all come with `key`, and with `using`, the alias of the database.

An error of a receiver is logged by Django and changes nothing for the lock.
"""

from __future__ import annotations

from django.dispatch import Signal

__all__ = ["lock_acquired", "lock_conflict", "lock_lost", "lock_released"]

lock_acquired: Signal = Signal()
"""A lock was acquired; `waited` is in seconds."""

lock_conflict: Signal = Signal()
"""A lock was not free in time; `waited` is in seconds."""

lock_lost: Signal = Signal()
"""The server took a lock away; `lock` is its object, `held_for` is in seconds. Sent at once, from a helper thread."""

lock_released: Signal = Signal()
"""A lock was released; `held_for` is in seconds. Not sent for a lock that was lost."""
