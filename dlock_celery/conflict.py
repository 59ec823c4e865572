"""What becomes of a task that does not get its lock."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from celery import VERSION
from celery.backends.base import DisabledBackend
from celery.exceptions import Ignore, Reject, Retry, TaskRevokedError
from celery.signals import task_revoked
from celery.states import FAILURE, READY_STATES, REVOKED

from dlock_core import LockError
from dlock_core.adapters import holder_of, shown

from .attempt import AGAIN, DUPLICATE
from .signals import dispatch, lock_conflict, log, sends_events, tell

if TYPE_CHECKING:
    from celery.app.task import Context

    from dlock_core.adapters import Acquisition

    from .attempt import Attempt

__all__ = ["LockConflictError", "drop_finished", "settle_conflict", "settle_error"]


class LockConflictError(LockError):
    """The task did not run, because another run, or another program, holds its key.

    All that it knows is in `args`, so that it is whole after a result backend, by pickle or JSON.

    Attributes:
        key: The key of the lock.
        task: The name of the task that did not run.
        attempts: How many times this message was sent again before.
        holder: The session that held it, in words; None if unknown.
    """

    def __init__(
        self, message: str, key: Any = None, task: str | None = None, attempts: int = 1, holder: str | None = None
    ) -> None:
        super().__init__(message, key=key)
        self.args = (message, key, task, attempts, holder)
        self.task = task
        self.attempts = attempts
        self.holder = holder

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), self.args)


# Seconds between two looks for a result.
POLL = 0.05
# Seconds for which a key's holder is remembered: it is asked for on a connection of its own, and a burst of duplicates
# must not become a burst of connections.
REMEMBERED = 1.0
# Since then the worker itself marks a task as failed whose message was rejected (celery/celery#4222).
MARKS_REJECTED = VERSION >= (5, 7)


def settle_conflict(attempt: Attempt, key: Any, taken: Acquisition) -> Any:
    """Return what the task shall return, or raise what ends it."""
    policy = attempt.options.on_conflict
    holder = (holder_of(attempt.provider, key, max_age=REMEMBERED) if _is_read(attempt) else "") or None
    by = f" by {holder}" if holder else ""
    error = LockConflictError(
        f"{attempt} did not run: key {shown(key)} is held{by}", key, attempt.task.name, attempt.attempts, holder
    )
    tell(attempt, lock_conflict, **taken.conflict(), on_conflict=policy, holder=holder, attempts=attempt.attempts)
    message = attempt.message
    if message and attempt.redelivered:
        drop_finished(attempt, message)
        _send_again(attempt, message, error, {DUPLICATE: True})
        raise Ignore  # the state of the task belongs to the delivery that runs
    if policy == "skip":
        log.info("%s skipped: key %s is held%s", attempt, shown(key), by)
        return attempt.options.skip_result
    if message is None:
        raise error
    raise _ending(attempt, message, error)


def _is_read(attempt: Attempt) -> bool:
    """Tell whether the holder will be read: in an error, a log, by a receiver or a monitor."""
    raises = attempt.message is None or attempt.options.on_conflict != "retry" or _tried_enough(attempt)
    return (
        (raises and attempt.options.on_conflict != "skip")
        or log.isEnabledFor(logging.INFO)
        or lock_conflict.has_listeners(attempt.task)
        or sends_events(attempt)
    )


def _tried_enough(attempt: Attempt) -> bool:
    limit = attempt.options.retry_limit
    return limit is not None and attempt.attempts >= limit


def _ending(attempt: Attempt, message: Context, error: LockConflictError) -> Exception:
    """Return the exception by which Celery ends this message."""
    match attempt.options.on_conflict:
        case "retry":
            return _again(attempt, message, error)
        case "revoke":
            return _revoked(attempt, message, error)
        case "reject":
            log.info("rejected: %s", error)
            if not MARKS_REJECTED:
                _mark(attempt, message, error, FAILURE)
            return Reject(error, requeue=False)
        case _:
            return error


def settle_error(attempt: Attempt, error: LockError) -> None:
    """Return if the task shall run without a lock, because the database cannot be asked; raise otherwise."""
    match attempt.options.on_error:
        case "run_unlocked":
            log.warning("%s runs without a lock: %s", attempt, error)
        case "retry" if attempt.message:
            raise _again(attempt, attempt.message, error)
        case _:
            raise error


def _again(attempt: Attempt, message: Context, error: LockError) -> Exception:
    """Send a message again, unless that was done too often; return what says so to Celery."""
    return error if _tried_enough(attempt) else _send_again(attempt, message, error, {})


def _send_again(attempt: Attempt, message: Context, error: LockError, headers: dict[str, Any]) -> Retry:
    """Send a message again, with the same number of the task's own retries."""
    delay = attempt.delay()
    headers = {**(message.headers or {}), AGAIN: attempt.attempts + 1, **headers}
    signature = attempt.task.signature_from_request(message, retries=message.retries, countdown=delay, headers=headers)
    signature.apply_async()
    log.info("%s; trying again in %.1f s", error, delay)
    return Retry(exc=error, when=delay, sig=signature)  # type: ignore[arg-type]


def _revoked(attempt: Attempt, message: Context, error: LockConflictError) -> Exception:
    log.info("revoked: %s", error)
    _mark(attempt, message, TaskRevokedError(str(error)), REVOKED)
    facts = {"terminated": False, "signum": None, "expired": False}
    task_revoked.send(sender=attempt.task, request=message, **facts)
    if sends_events(attempt) or attempt.task.app.conf.worker_send_task_events:
        dispatch(attempt, message, "task-revoked", **facts)
    return Ignore(error)


def _mark(attempt: Attempt, message: Context, error: Exception, state: str) -> None:
    """End a task, and what follows in its chain or chord: only a failure of the backend reaches those."""
    attempt.task.backend.mark_as_failure(
        str(message.id), error, request=message, store_result=not _without_result(attempt, message), state=state
    )


def drop_finished(attempt: Attempt, message: Context, *, patience: float = 0) -> None:
    """Drop a message whose task has a result by now, from an earlier delivery; its result stays.

    Args:
        attempt: To run the task.
        message: What was delivered again.
        patience: Seconds to wait for a result.

    Raises:
        Ignore: It has one.
    """
    backend = attempt.task.backend
    if isinstance(backend, DisabledBackend) or not backend.persistent or _without_result(attempt, message):
        return  # nothing is remembered
    deadline = time.monotonic() + patience
    while backend.get_state(str(message.id)) not in READY_STATES:
        if time.monotonic() >= deadline:
            return
        time.sleep(POLL)
    log.info("%s dropped: delivered again, and an earlier delivery has ended", attempt)
    raise Ignore


def _without_result(attempt: Attempt, message: Context) -> bool:
    return bool(message.ignore_result or attempt.task.ignore_result)
