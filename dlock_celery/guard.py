"""Runs one body under its lock, and lets the lock go however the body ends."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from dlock_core import LockConnectionError, LockLostError

from .attempt import Attempt
from .conflict import drop_finished, settle_conflict, settle_error
from .current import Holding, holding
from .loss import Loss
from .report import log, send_event, tell
from .signals import lock_acquired, lock_lost, lock_released

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from celery import Task

    from dlock_core import Lock

__all__ = ["run_guarded"]

# The lock is released before the result is stored; so long does a copy of a message wait for that result.
RESULT_SECONDS = 1.0


def run_guarded(task: Task[Any, Any], body: Callable[[], Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Run the body of a task under its lock; on a conflict do what the task says about one."""
    attempt = Attempt(task)
    if attempt.bypassed:
        return _under(None, task, body)
    return _Run(attempt, attempt.key_of(args, kwargs)).run(body)


def _under(lock: Lock | None, task: Task[Any, Any], body: Callable[[], Any]) -> Any:
    """Run the body so that it can ask for its lock; without one it is still under that of its caller."""
    before = holding.get()
    token = holding.set(Holding(task, lock or (before and before.lock)))
    try:
        return body()
    finally:
        holding.reset(token)


class _Run:
    """One body and its lock."""

    def __init__(self, attempt: Attempt, key: Any) -> None:
        self._attempt = attempt
        self._key = key
        self._loss = Loss(attempt, key)
        self._lock = attempt.lock(key, self._loss.notice)
        self._granted_at: float | None = None

    def run(self, body: Callable[[], Any]) -> Any:
        """Do it all; a soft time limit may strike in any line, and then what it cut short is done again."""
        try:
            if not self._acquire():
                return settle_conflict(self._attempt, self._key)
            result = _under(self._lock if self._granted_at else None, self._attempt.task, body)
            self._end(None)
        except BaseException as error:
            self._end(error)
            if loss := self._loss.error(error):
                raise loss from error
            raise
        if loss := self._loss.error(None):
            raise loss
        return result

    def _acquire(self) -> bool:
        """Return whether the body may run."""
        started = time.monotonic()
        try:
            if not self._lock.acquire(timeout=self._attempt.timeout):
                return False
        except LockConnectionError as error:
            settle_error(self._attempt, error)
            return True
        self._granted_at = time.monotonic()
        if self._attempt.duplicate and self._attempt.message:
            drop_finished(self._attempt, self._attempt.message, patience=RESULT_SECONDS)
        self._attempt.forget_headers()
        tell(self._attempt, lock_acquired, key=self._key, waited=self._granted_at - started)
        return True

    def _end(self, error: BaseException | None) -> None:
        try:
            self._loss.body_ended()
        finally:
            self._release(error)

    def _release(self, error: BaseException | None) -> None:
        held = self._lock.held
        try:
            self._lock.close()
        except LockLostError:
            self._loss.notice(self._lock)
            send_event(self._attempt, lock_lost.name, key=self._key)  # type: ignore[attr-defined]
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"dlock: and then the release of key {self._key!r} failed: {failure}")
            log.exception("%s: the release of key %r failed", self._attempt, self._key)
        else:
            if held:
                tell(self._attempt, lock_released, key=self._key, held=time.monotonic() - (self._granted_at or 0))
