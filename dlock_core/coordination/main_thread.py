"""Work that a helper thread does for the main thread, because signal handlers run there.

A handler may raise between any two lines that the main thread runs, even inside the bookkeeping. So
the main thread runs none of ours: a helper thread does the work, which no signal reaches, and the
main thread only waits for it, on a plain lock. When a handler calls it away, the work is undone,
again by a helper. That costs a hop between two threads; other threads do their work themselves.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from ..sessions.workers import Workers
from .contexts import Context

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..sessions.workers import Job

__all__ = ["MainThreadCall", "MainThreadsHelper", "helpers", "in_main_thread", "to_its_end"]

log = logging.getLogger("dlock")

# How long the main thread stays to see the work undone, so that a program which then ends leaves
# nothing at the server; in seconds.
PARTING = 0.5
# How often the main thread looks up from its wait, in seconds: a signal that arrives between Python's last look for
# one and the system call that waits does not end that call.
GLANCE = 0.2
# A handler may raise again while the undoing is being started.
ATTEMPTS = 10


def in_main_thread() -> bool:
    """Tell whether signal handlers run in this thread."""
    return threading.current_thread() is threading.main_thread()


class MainThreadsHelper(Context):
    """A helper that asks in the name of the main thread, until a signal handler calls that away."""

    def owner(self) -> object:
        return threading.main_thread()

    def thread(self) -> threading.Thread:
        return threading.main_thread()


def _nothing() -> None:
    """Disown nothing."""


class MainThreadCall:
    """A piece of work for the main thread.

    Use it by `outcome`, or as `try: return call.result()` with `except BaseException as error: call.end(error); raise`,
    and call nothing after it: a handler may raise at any call.

    Args:
        workers: Threads that do it.
        work: What is to be done.
        undo: Makes it undone, and does not return before the work is over or called off.
        disown: Lets go of what the undoing will free, so that this thread may ask for it at once; it takes no mutex.
    """

    def __init__(
        self,
        workers: Workers,
        work: Callable[[], Any],
        undo: Callable[[MainThreadCall], object],
        disown: Callable[[], object] = _nothing,
    ) -> None:
        self._workers = workers
        self._work = work
        self._undo = undo
        self._disown = disown
        self._value: Any = None
        self._error: BaseException | None = None
        self._begun = threading.Lock()
        self._undoing = threading.Lock()
        self._bell = threading.Lock()
        self._bell.acquire()
        self._parting = threading.Lock()
        self._parting.acquire()
        self._over = False

    def result(self) -> Any:
        """Have it done, and return its result."""
        self._put(self._run)
        while not self._bell.acquire(timeout=GLANCE):
            pass
        if self._error is not None:
            raise self._error
        return self._value

    def outcome(self) -> Any:
        """Have it done or undone, and return its result; not for an acquisition.

        A handler that raises on the way back from here undoes nothing any more.
        """
        try:
            return self.result()
        except BaseException as error:
            self.end(error)
            raise

    def _put(self, job: Job) -> None:
        try:
            self._workers.put(job)
        except RuntimeError:  # no more threads, or none at all as the interpreter ends
            if (finish := job()) is not None:
                finish()

    def _run(self) -> Callable[[], object] | None:
        if not self._begun.acquire(blocking=False):
            return None
        try:
            self._value = self._work()
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            self._error = error
        self._over = True
        return self._bell.release

    def call_off(self) -> bool:
        """Tell whether it had not begun, and see to it that it never will."""
        return self._begun.acquire(blocking=False)

    def over(self, seconds: float = -1) -> bool:
        """Wait until it is done; False when it is not within so many seconds."""
        if not self._over and self._bell.acquire(timeout=seconds):
            self._bell.release()
        return self._over

    @property
    def succeeded(self) -> bool:
        """Whether it is done and raised nothing."""
        return self._over and self._error is None

    def end(self, error: BaseException) -> None:
        """Undo it, unless the exception is its own."""
        if self._error is error:
            self._error = None  # no circle of error, traceback and call
            return
        for _ in range(ATTEMPTS):
            try:
                self._disown()
                self._put(self._undo_once)
                self._parting.acquire(timeout=PARTING)
            except BaseException:  # noqa: BLE001, S112 - the first one is on its way to the user, and tells enough
                continue
            return

    def _undo_once(self) -> None:
        if not self._undoing.acquire(blocking=False):
            return
        try:
            self._undo(self)
        except Exception:
            log.exception("could not undo what a signal interrupted")
        finally:
            self._parting.release()


def to_its_end(workers: Workers, work: Callable[[], object], disown: Callable[[], object] = _nothing) -> None:
    """Do what frees something; in the main thread a helper does it, and goes on when a signal calls the thread away."""
    if not in_main_thread():
        work()
        return
    MainThreadCall(workers, work, lambda call: work() if call.call_off() else call.over(), disown).outcome()


helpers = Workers()
"""The helper threads for locks of callers' connections and sessions, which have no provider."""
