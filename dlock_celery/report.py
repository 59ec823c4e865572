"""Tells the world about locks: signals, events of the worker, and who holds a key."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import SQLAlchemyError

from dlock_core import LockError

if TYPE_CHECKING:
    from celery.utils.dispatch import Signal

    from .attempt import Attempt

__all__ = ["holder_of", "log", "send_event", "tell"]

log = logging.getLogger("dlock.celery")


def tell(attempt: Attempt, signal: Signal, **facts: Any) -> None:
    """Send a signal, and its event."""
    signal.send(sender=attempt.task, task_id=attempt.task_id, **facts)
    send_event(attempt, signal.name, **facts)  # type: ignore[attr-defined]


def send_event(attempt: Attempt, name: str, **facts: Any) -> None:
    """Send a worker's event such as `dlock-acquired`, if the app's `dlock_send_events` is on."""
    app = attempt.task.app
    if not attempt.message or not app.conf.get("dlock_send_events", False):
        return
    facts["key"] = str(facts["key"])
    try:
        with app.events.default_dispatcher(hostname=attempt.message.hostname) as dispatcher:
            dispatcher.send(name.replace("lock_", "dlock-"), uuid=attempt.task_id, name=attempt.task.name, **facts)
    except Exception:
        log.exception("%s: the event %s was not sent", attempt, name)  # monitoring must not fail the task


def holder_of(attempt: Attempt, key: Any) -> str | None:
    """Say who holds a key, None if the database does not tell; an answer for people, old when it arrives."""
    try:
        holders = attempt.provider.inspect(key)
    except (LockError, SQLAlchemyError) as error:
        log.debug("%s: the holder of key %r is unknown: %s", attempt, key, error)
        return None
    return "; ".join(holder.party for holder in holders) or None
