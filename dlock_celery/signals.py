"""Celery signals about locks; `sender` is the task.

All come with `key`, with `bind` as the task names it, and with `task_id`, which is None in a direct call. Receivers
run in the process that runs the task, and their errors are logged.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery.utils.dispatch import Signal

if TYPE_CHECKING:
    from celery.app.task import Context

    from .attempt import Attempt

__all__ = ["lock_acquired", "lock_conflict", "lock_lost", "lock_released"]

log = logging.getLogger("dlock.celery")
COMMON = ("key", "bind", "task_id")

lock_acquired: Signal = Signal(name="lock_acquired", providing_args=[*COMMON, "waited"])
"""A lock was acquired; `waited` is in seconds."""

lock_released: Signal = Signal(name="lock_released", providing_args=[*COMMON, "held_for"])
"""A lock was released; `held_for` is in seconds. Not sent for a lock that was lost."""

lock_conflict: Signal = Signal(
    name="lock_conflict", providing_args=[*COMMON, "waited", "on_conflict", "holder", "attempts"]
)
"""A lock was not free in time; `waited` is in seconds, `on_conflict` the task's option, `holder` text for people or
None, `attempts` how often this message was sent again before."""

lock_lost: Signal = Signal(name="lock_lost", providing_args=[*COMMON, "held_for", "lock"])
"""The server took a lock away; `lock` is its object, `held_for` is in seconds. Sent at once, from a helper thread."""


def tell(attempt: Attempt, signal: Signal, **facts: Any) -> None:
    """Send a signal, and its event."""
    signal.send(sender=attempt.task, task_id=attempt.task_id, **facts)
    send_event(attempt, signal.name, **facts)  # type: ignore[attr-defined]


def sends_events(attempt: Attempt) -> bool:
    """Tell whether a run sends events: the app's `dlock_send_events` is on, and a worker runs the task."""
    return attempt.message is not None and bool(attempt.task.app.conf.get("dlock_send_events", False))


def send_event(attempt: Attempt, name: str, **facts: Any) -> None:
    """Send a worker's event such as `dlock-acquired`, if this run sends events."""
    if attempt.message is not None and sends_events(attempt):
        facts["key"] = str(facts["key"])
        dispatch(attempt, attempt.message, name.replace("lock_", "dlock-"), name=attempt.task.name, **facts)


def dispatch(attempt: Attempt, message: Context, event: str, **facts: Any) -> None:
    """Send an event about a task; monitoring must not fail the task."""
    try:
        with attempt.task.app.events.default_dispatcher(hostname=message.hostname) as dispatcher:
            dispatcher.send(event, uuid=attempt.task_id, **facts)
    except Exception:
        log.exception("%s: the event %s was not sent", attempt, event)
