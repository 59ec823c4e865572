"""What becomes of a task that does not get its lock."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from celery.backends.base import DisabledBackend
from celery.exceptions import Ignore, Reject, Retry, TaskRevokedError
from celery.states import READY_STATES, REVOKED

from .attempt import AGAIN, DUPLICATE
from .errors import LockConflictError
from .report import holder_of, log, tell
from .signals import lock_conflict

if TYPE_CHECKING:
    from celery.app.task import Context

    from dlock_core import LockError

    from .attempt import Attempt

__all__ = ["drop_finished", "settle_conflict", "settle_error"]

# Seconds between two looks for a result.
POLL = 0.05


def settle_conflict(attempt: Attempt, key: Any) -> Any:
    """Return what the task shall return, or raise what ends it."""
    holder, policy = holder_of(attempt, key), attempt.options.on_conflict
    by = f" by {holder}" if holder else ""
    error = LockConflictError(
        f"{attempt} did not run: key {key!r} is held{by}", key, attempt.task.name, attempt.attempts, holder
    )
    tell(attempt, lock_conflict, key=key, policy=policy, holder=holder, attempts=attempt.attempts)
    message = attempt.message
    if message and attempt.redelivered:
        drop_finished(attempt, message)
        _send_again(attempt, message, error, {DUPLICATE: True})
        raise Ignore  # the state of the task belongs to the delivery that runs
    if policy == "skip":
        log.info("%s skipped: key %r is held%s", attempt, key, by)
        return attempt.options.skip_result
    if message is None:
        raise error
    raise _ending(attempt, message, error)


def _ending(attempt: Attempt, message: Context, error: LockConflictError) -> Exception:
    """Return the exception by which Celery ends this message."""
    match attempt.options.on_conflict:
        case "retry":
            return _again(attempt, message, error)
        case "revoke":
            return _revoked(attempt, message, error)
        case "reject":
            log.info("rejected: %s", error)
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
    limit = attempt.options.retry_limit
    if limit is not None and attempt.attempts >= limit:
        return error
    return _send_again(attempt, message, error, {})


def _send_again(attempt: Attempt, message: Context, error: LockError, headers: dict[str, Any]) -> Retry:
    """Send a message again, with the same number of the task's own retries."""
    delay = attempt.delay()
    headers = {**(message.headers or {}), AGAIN: attempt.attempts + 1, **headers}
    signature = attempt.task.signature_from_request(message, retries=message.retries, countdown=delay, headers=headers)
    signature.apply_async()
    log.info("%s; trying again in %.1f s", error, delay)
    return Retry(exc=error, when=delay, sig=signature)  # type: ignore[arg-type]


def _revoked(attempt: Attempt, message: Context, error: LockConflictError) -> Exception:
    """Revoke a message, and what follows in its chain or chord: only a failure of the backend reaches those."""
    log.info("revoked: %s", error)
    attempt.task.backend.mark_as_failure(
        str(message.id),
        TaskRevokedError(str(error)),
        request=message,
        store_result=not _without_result(attempt, message),
        state=REVOKED,
    )
    return Ignore(error)


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
