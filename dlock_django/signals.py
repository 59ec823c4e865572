"""Signals; `sender` is the class of the lock, and all come with `key` and `using`.

An error of a receiver is logged by Django and changes nothing for the lock.
"""

from __future__ import annotations

from django.dispatch import Signal

__all__ = ["lock_acquired", "lock_conflict", "lock_lost", "lock_released"]

lock_acquired: Signal = Signal()
"""A lock was taken; `waited` is in seconds."""

lock_conflict: Signal = Signal()
"""A lock was not free in time; `waited` is in seconds."""

lock_lost: Signal = Signal()
"""The server took a lock away; `lock` is its object. Sent from a helper thread, at once."""

lock_released: Signal = Signal()
"""A block ended, and its lock with it, if it was not lost before; `held_for` is in seconds."""
