"""What happens when the server takes the lock away while the body runs."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING, Any

from billiard.pool import SIG_SOFT_TIMEOUT, soft_timeout_sighandler
from celery.exceptions import SoftTimeLimitExceeded

from dlock_core import LockLostError

from .report import log
from .signals import lock_lost

if TYPE_CHECKING:
    from dlock_core import Lock

    from .attempt import Attempt

__all__ = ["Loss"]


class Loss:
    """Hears of the loss of one lock, in the thread that watches the sessions, and does what the task said."""

    def __init__(self, attempt: Attempt, key: Any) -> None:
        self._attempt = attempt
        self._key = key
        self._mutex = threading.Lock()
        self._running = True
        self._known = self._interrupted = False

    def notice(self, lock: Lock) -> None:
        """Report the loss, once; end the body, if the task said so."""
        with self._mutex:
            if self._known:
                return
            self._known = True
        log.error("%s: lost the lock of key %r while its body ran; another may run beside it", self._attempt, self._key)
        lock_lost.send(sender=self._attempt.task, task_id=self._attempt.task_id, key=self._key, lock=lock)
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
            f"{self._attempt}: lost the lock of key {self._key!r} while its body ran; another may have run beside it",
            key=self._key,
        )
