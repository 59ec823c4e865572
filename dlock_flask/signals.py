"""Signals: what happens to the locks of an application, for metrics and logs.

The sender is the application itself. All come with `key`, and with `bind` as the lock was given it. `lock_lost` is sent
from a helper thread, without an application context. An error of a receiver is logged and changes nothing for the lock.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from blinker import Namespace

if TYPE_CHECKING:
    from blinker import NamedSignal
    from flask import Flask

__all__ = ["lock_acquired", "lock_conflict", "lock_lost", "lock_released", "send"]

log = logging.getLogger("dlock.flask")
_signals = Namespace()

lock_acquired: NamedSignal = _signals.signal("lock-acquired", "A lock was acquired; `waited` is in seconds.")
lock_released: NamedSignal = _signals.signal(
    "lock-released", "A lock was released; `held_for` is in seconds. Not sent for a lock that was lost."
)
lock_conflict: NamedSignal = _signals.signal("lock-conflict", "A lock was not free in time; `waited` is in seconds.")
lock_lost: NamedSignal = _signals.signal(
    "lock-lost", "The server took a lock away; `lock` is its handle, `held_for` is in seconds."
)


def send(signal: NamedSignal, app: Flask, **facts: Any) -> None:
    """Call the receivers, and log their errors."""
    try:
        signal.send(app, **facts)
    except Exception:
        log.exception("a receiver of the signal %s failed", signal.name)
