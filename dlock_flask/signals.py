"""Signals: what happens to the locks of an application, for metrics and logs.

The sender is the application itself. Each comes with `handle`, whose `key` and `waited` tell more.
`lock_lost` is sent from a thread of its own, without an application context.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from blinker import Namespace

if TYPE_CHECKING:
    from blinker import NamedSignal
    from flask import Flask

    from .base import BaseHandle

__all__ = ["lock_acquired", "lock_conflict", "lock_lost", "lock_released", "send"]

log = logging.getLogger("dlock.flask")
_signals = Namespace()

lock_acquired: NamedSignal = _signals.signal("lock-acquired", "A handle has its lock.")
lock_released: NamedSignal = _signals.signal(
    "lock-released", "A handle has given its lock back, or would have if it was not lost."
)
lock_conflict: NamedSignal = _signals.signal("lock-conflict", "Somebody else has the lock.")
lock_lost: NamedSignal = _signals.signal("lock-lost", "The database no longer holds the lock for a handle that has it.")


def send(signal: NamedSignal, app: Flask, handle: BaseHandle[Any]) -> None:
    """Tell the receivers; who looks on must not break a lock, so their errors are logged."""
    try:
        signal.send(app, handle=handle)
    except Exception:
        log.exception("a receiver of the signal %s failed", signal.name)
