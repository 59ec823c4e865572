"""Runs one body under its lock, whatever ends the body, and whatever becomes of the lock meanwhile."""

from __future__ import annotations

import signal
import threading
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

from billiard.pool import SIG_SOFT_TIMEOUT, soft_timeout_sighandler
from celery.exceptions import SoftTimeLimitExceeded

from dlock_core import DeadlockError, LockConnectionError, LockLostError, LockStateError
from dlock_core.adapters import Acquisition, shown

from .attempt import Attempt
from .conflict import drop_finished, settle_conflict, settle_error
from .signals import lock_acquired, lock_lost, lock_released, log, send_event, tell

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from celery import Task

    from dlock_core import Lock

__all__ = ["assert_locked", "current_lock", "holding", "run_guarded"]


class Holding(NamedTuple):
    """The task whose body runs, and the lock that it is under, if any."""

    task: Task[Any, Any]
    lock: Lock | None
    caller: Holding | None = None
    """The task whose body made this call."""


# Threads, greenlets and asyncio tasks each see their own.
holding: ContextVar[Holding | None] = ContextVar("dlock_celery.holding", default=None)


def current_lock() -> Lock | None:
    """Return the lock of the task that runs now, None outside of one or with locks switched off."""
    now = holding.get()
    return now.lock if now else None


def assert_locked() -> None:
    """Make sure that this code runs under the lock of its task.

    Raises:
        LockStateError: There is no lock, or it was lost.
    """
    lock = current_lock()
    if lock is None:
        raise LockStateError("no lock is held here: call this only from a task with @single_instance")
    if not lock.held:
        raise LockStateError(f"key {shown(lock.key)}: the lock was lost", key=lock.key)


class Loss:
    """Hears of the loss of one lock, in the thread that watches the sessions, and does what the task said."""

    def __init__(self, attempt: Attempt, key: Any, taken: Acquisition) -> None:
        self._attempt = attempt
        self._key = key
        self._taken = taken
        self._mutex = threading.Lock()
        self._running = True
        self._known = self._interrupted = False

    def notice(self, lock: Lock) -> None:
        """Report the loss, once; end the body, if the task said so."""
        with self._mutex:
            if self._known:
                return
            self._known = True
        log.error(
            "%s: lost the lock of key %s while its body ran; another may run beside it", self._attempt, shown(self._key)
        )
        facts = self._taken.ended()
        lock_lost.send(sender=self._attempt.task, task_id=self._attempt.task_id, lock=lock, **facts)
        if self._attempt.options.on_lost == "terminate":
            self._interrupt()

    def _interrupt(self) -> None:
        """Raise SoftTimeLimitExceeded in the body, where billiard's handler is there for it: in a prefork child."""
        with self._mutex:
            if self._running and SIG_SOFT_TIMEOUT and signal.getsignal(SIG_SOFT_TIMEOUT) is soft_timeout_sighandler:
                self._interrupted = True
                signal.pthread_kill(threading.main_thread().ident or 0, SIG_SOFT_TIMEOUT)

    def body_ended(self) -> None:
        """Interrupt no more; what is on its way arrives here and not in another task."""
        try:
            self._close()
        except SoftTimeLimitExceeded:
            self._close()
            if not self._interrupted:
                raise

    def _close(self) -> None:
        with self._mutex:
            self._running = False
        if self._interrupted:
            time.sleep(0)  # lets Python run the handler of a signal that has arrived

    def error(self, body_error: BaseException | None) -> LockLostError | None:
        """Return the error that the task shall end with, None if the body's own end stands."""
        own = body_error is not None and not (self._interrupted and isinstance(body_error, SoftTimeLimitExceeded))
        if not self._known or own or self._attempt.options.on_lost == "log":
            return None
        return LockLostError(
            f"{self._attempt}: lost the lock of key {shown(self._key)} while its body ran; "
            "another may have run beside it",
            key=self._key,
        )


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
    token = holding.set(Holding(task, lock or (before and before.lock), before))
    try:
        return body()
    finally:
        holding.reset(token)


def _same(one: Lock, other: Lock) -> bool:
    """Tell whether two locks are of one key in one database."""
    return one.actual_key == other.actual_key and one._coordinator is other._coordinator  # noqa: SLF001 - no public word


class _Run:
    """One body and its lock."""

    def __init__(self, attempt: Attempt, key: Any) -> None:
        self._attempt = attempt
        self._key = key
        self._taken = Acquisition(key, bind=attempt.options.bind)
        self._loss = Loss(attempt, key, self._taken)
        self._lock = attempt.lock(key, self._loss.notice)

    def run(self, body: Callable[[], Any]) -> Any:
        """Do it all; a soft time limit may strike in any line, and then what it cut short is done again."""
        try:
            if not self._acquire():
                self._refuse_own_key()
                return settle_conflict(self._attempt, self._key, self._taken)
            result = _under(self._lock if self._taken.granted else None, self._attempt.task, body)
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
        try:
            if not self._lock.acquire(timeout=self._attempt.timeout):
                return False
        except LockConnectionError as error:
            settle_error(self._attempt, error)
            return True
        facts = self._taken.acquired()
        if self._attempt.duplicate and self._attempt.message:
            drop_finished(self._attempt, self._attempt.message, patience=RESULT_SECONDS)
        self._attempt.forget_headers()
        tell(self._attempt, lock_acquired, **facts)
        return True

    def _refuse_own_key(self) -> None:
        """Raise where this very call chain holds the key: no policy could let that end well."""
        caller = holding.get()
        while caller is not None:
            if caller.lock is not None and caller.lock.held and _same(caller.lock, self._lock):
                raise DeadlockError(
                    f"{self._attempt} did not run: key {shown(self._key)} is held by the body that calls it; give one "
                    "of them another key, or call what it does without its task",
                    key=self._key,
                )
            caller = caller.caller

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
            send_event(self._attempt, lock_lost.name, **self._taken.ended())  # type: ignore[attr-defined]
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"dlock: and then the release of key {shown(self._key)} failed: {failure}")
            log.exception("%s: the release of key %s failed", self._attempt, shown(self._key))
        else:
            if held:
                tell(self._attempt, lock_released, **self._taken.ended())
