"""Daemon threads for statements that block: reused when idle, never queued behind one another.

`concurrent.futures.ThreadPoolExecutor` does not serve here: the interpreter joins its threads at
exit, so one thread that waits for a lock would keep a finished program from ending.
"""

from __future__ import annotations

import functools
import queue
import threading
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Workers"]

R = TypeVar("R")
IDLE_SECONDS = 10.0


class Workers:
    """Threads of one provider; there are as many as statements run at one time."""

    def __init__(self) -> None:
        self._idle: list[_Worker] = []  # each step on it is atomic, so that it needs no mutex

    def submit(self, function: Callable[[], R]) -> Future[R]:
        """Run the function in a thread at once, and return its future."""
        future: Future[R] = Future()
        future.set_running_or_notify_cancel()
        self.put(functools.partial(_fulfil, future, function))
        return future

    def put(self, job: Callable[[], None]) -> None:
        """Run a job, which never raises, in a thread at once.

        A signal handler may raise in here: then the job is run or it is not, and at worst a worker waits for
        ever for one.
        """
        worker = None
        with suppress(IndexError):
            worker = self._idle.pop()
        if worker is None:
            worker = _Worker(self)
            threading.Thread(target=worker.run, name="dlock-worker", daemon=True).start()
        worker.jobs.put(job)

    def rest(self, worker: _Worker) -> None:
        """Take back a worker whose job is done."""
        self._idle.append(worker)

    def dismiss(self, worker: _Worker) -> bool:
        """Let an idle worker go, unless a job is on its way to it."""
        try:
            self._idle.remove(worker)
        except ValueError:
            return False
        return True


class _Worker:
    def __init__(self, crew: Workers) -> None:
        self._crew = crew
        self.jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()

    def run(self) -> None:
        while True:
            try:
                job = self.jobs.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                if self._crew.dismiss(self):
                    return
                continue
            job()
            del job  # an idle thread must not keep a session or an exception alive
            self._crew.rest(self)


def _fulfil(future: Future[R], function: Callable[[], R]) -> None:
    try:
        result = function()
    except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits for the future
        future.set_exception(error)
    else:
        future.set_result(result)
    finally:
        del future, function  # the error's traceback refers to this frame: no circle that keeps a session alive
