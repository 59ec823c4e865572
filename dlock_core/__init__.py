"""Distributed locks from the database you already have, over SQLAlchemy."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cli.run_locked import run_locked
    from .coordination.events import LockAcquired, LockAttempt, LockEvent, LockLost, LockNotAcquired, LockReleased
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
    from .fencing import fence, fence_table
    from .inspection import Finding, LockInfo, LockWaiter
    from .lock import AsyncLock, Lock
    from .provider import AsyncLockProvider, LockProvider
    from .sadlock import create_async_sadlock, create_sadlock

__all__ = [
    "AsyncLock",
    "AsyncLockProvider",
    "DeadlockError",
    "Finding",
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
    "StaleTokenError",
    "UnsafeEnvironmentError",
    "UnsupportedError",
    "create_async_sadlock",
    "create_sadlock",
    "fence",
    "fence_table",
    "run_locked",
]

# Where they are, the light and the frequent first. A name is imported when it is used: this package is imported with
# each of its modules, and by pytest for the sake of two fixtures.
_MODULES = (
    "errors",
    "lock",
    "provider",
    "coordination.events",
    "inspection",
    "cli.run_locked",
    "fencing",
    "sadlock",
)


def __getattr__(name: str) -> object:
    if name in __all__:
        for module in _MODULES:
            submodule = import_module(f"{__name__}.{module}")
            if name in submodule.__all__:
                found = globals()[name] = getattr(submodule, name)
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
