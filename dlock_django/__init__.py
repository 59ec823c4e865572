"""Locks for Django, from the databases in DATABASES: `manage.py anything --lock`, views, blocks of code."""

from __future__ import annotations

from .commands import CommandLocked, CommandLockLost, LockedCommand, LockedCommandMixin
from .locks import alock, atry_lock, is_locked, lock, try_lock
from .providers import get_engine
from .transactions import locked_atomic, xact_lock
from .views import lock_view

__all__ = [
    "CommandLockLost",
    "CommandLocked",
    "LockedCommand",
    "LockedCommandMixin",
    "alock",
    "atry_lock",
    "get_engine",
    "is_locked",
    "lock",
    "lock_view",
    "locked_atomic",
    "try_lock",
    "xact_lock",
]
