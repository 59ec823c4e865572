"""What runs in the background: daemon threads for statements that block, and tasks that outlive their callers.

The threads are reused when idle, and nothing is queued behind another statement.

`concurrent.futures.ThreadPoolExecutor` does not serve here: the interpreter joins its threads at
exit, so one thread that waits for a lock would keep a finished program from ending.
"""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import threading
from _thread import start_new_thread
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from sqlalchemy.util import await_only, greenlet_spawn

from ..errors import LockLostError, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["INSIST", "Serial", "Workers", "background", "over", "reaper", "release_garbage", "see_through"]

log = logging.getLogger("dlock")
R = TypeVar("R")
Job: TypeAlias = "Callable[[], Callable[[], object] | None]"
IDLE_SECONDS = 10.0
# How often an interrupt is repeated until it is heard, in seconds: the first may come before the statement.
INSIST = 0.05


class Workers:
    """Threads of one provider; there are as many as statements run at one time. A forked child begins with none."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        # What each idle thread listens to; each step on the list is atomic, so that it needs no mutex.
        self._idle: list[queue.SimpleQueue[Job]] = []

    def submit(self, function: Callable[[], R]) -> Future[R]:
        """Run the function in a thread at once, and return its future."""
        future: Future[R] = Future()
        future.set_running_or_notify_cancel()
        self.put(partial(_fulfil, future, function))
        return future

    def put(self, job: Job) -> None:
        """Run a job, which never raises, in a thread at once, and then what it returns, if anything.

        So what waits for the job goes on when this thread refers to nothing of it any more. A signal handler may
        raise in here: then the job is run or it is not, and at worst a thread waits for one that never comes.
        """
        if self._pid != os.getpid():
            self._pid, self._idle = os.getpid(), []  # the threads are the parent's
        jobs = None
        with suppress(IndexError):
            jobs = self._idle.pop()
        if jobs is None:
            jobs = queue.SimpleQueue()
            threading.Thread(target=self._serve, args=(jobs,), name="dlock-worker", daemon=True).start()
        jobs.put(job)

    def _serve(self, jobs: queue.SimpleQueue[Job]) -> None:
        while True:
            try:
                job = jobs.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                try:
                    self._idle.remove(jobs)
                except ValueError:
                    continue  # a job is on its way
                return
            finish = job()
            del job  # an idle thread must not keep a lock, a session or an exception alive
            if finish is not None:
                finish()
                del finish
            self._idle.append(jobs)


def _fulfil(future: Future[R], function: Callable[[], R]) -> Callable[[], object]:
    """Return what tells the future how the function ended."""
    try:
        return partial(future.set_result, function())
    except BaseException as error:  # noqa: BLE001 - it belongs to the future's waiter
        return partial(future.set_exception, error)
    finally:
        del future, function  # the error's traceback refers to this frame: no circle that keeps a session alive


class Serial:
    """One daemon thread that runs jobs in the order in which they come; started by the first, gone when idle.

    `put` takes no mutex and waits for nothing, so a finaliser may call it: the garbage collector runs at any line of
    any thread, perhaps inside that very mutex. Where no thread can be started the jobs stay, for the next call of
    `put` or `start`, or for `finish`.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.after_fork()

    def after_fork(self) -> None:
        """Start empty in a forked child: the parent's jobs are the parent's."""
        self._pid = os.getpid()
        self._jobs: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._running = threading.Lock()
        self.stuck = False
        """Jobs may be waiting for a thread that could not be started."""

    def put(self, job: Callable[[], object]) -> None:
        """Have a job run after those that came before; what it raises is logged."""
        if self._pid != os.getpid():  # a fork that ran no Python hook
            self.after_fork()
        self._jobs.put(job)
        self.start()

    def start(self) -> None:
        """Start the thread if there are jobs and it does not run."""
        if self._jobs.empty() or not self._running.acquire(blocking=False):
            return
        self.stuck = False
        try:
            # `Thread.start` takes a mutex of Python's own, so that is for the new thread to do.
            start_new_thread(self._begin, ())
        except RuntimeError:
            self.stuck = True
            self._running.release()

    def finish(self) -> None:
        """Run what is left in this thread: the interpreter ends, or no other thread is to be had."""
        if self._pid == os.getpid():
            self.stuck = False
            with suppress(queue.Empty):
                while True:
                    self._do(self._jobs.get_nowait())

    def _begin(self) -> None:
        try:
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        except RuntimeError:
            self._run()  # one more thread is too many, but this one is there

    def _run(self) -> None:
        while True:
            try:
                job = self._jobs.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                self._running.release()
                if self._jobs.empty() or not self._running.acquire(blocking=False):
                    return
                continue
            self._do(job)
            del job  # an idle thread must not keep a session or an exception alive

    def _do(self, job: Callable[[], object]) -> None:
        try:
            job()
        except BaseException:
            log.exception("a job of the thread %s failed", self._name)


_unfinished: set[asyncio.Task[Any]] = set()  # the event loop itself keeps no task alive


def background(work: Coroutine[Any, Any, R]) -> asyncio.Task[R]:
    """Run a coroutine in a task of its own that is kept alive until its end."""
    task = asyncio.get_running_loop().create_task(work)
    _unfinished.add(task)
    task.add_done_callback(_unfinished.discard)
    return task


async def over(future: asyncio.Future[Any], seconds: float | None = None) -> None:
    """Wait until a future is done, or so many seconds.

    It returns nothing, since SQLAlchemy's frame keeps what it does: the future, its error, that one's frames, this one.
    """
    await asyncio.wait([future], timeout=seconds)


def see_through(
    function: Callable[[], R], otherwise: Callable[[R], object] = lambda _: None, *, seconds: float | None = None
) -> R:
    """Run a function to its end, even when the task that wants its result is cancelled.

    A driver or SQLAlchemy that is cancelled halfway through opening a connection forgets it, open.

    Raises:
        TimeoutError: It was not over in so many seconds; then it is cancelled, since nothing answers it.
    """
    task = asyncio.get_running_loop().create_task(greenlet_spawn(function))
    try:
        await_only(over(task, seconds))
    except asyncio.CancelledError:
        task.add_done_callback(lambda done: _hand_over(done, otherwise))
        raise
    if not task.done():
        task.add_done_callback(lambda done: _hand_over(done, otherwise))
        task.cancel()
        raise TimeoutError
    try:
        return task.result()
    finally:
        del task  # its error refers to this frame: what that refers to would wait for the garbage collector


def _hand_over(done: asyncio.Future[R], otherwise: Callable[[R], object]) -> None:
    if not done.cancelled() and done.exception() is None:
        background(greenlet_spawn(otherwise, done.result()))  # which may end a session, and its driver awaits


reaper = Serial("dlock-reaper")
"""Cleans up after what the garbage collector found; finalisers give it their jobs."""
os.register_at_fork(after_in_child=reaper.after_fork)


def release_garbage(key: object, release: Callable[[], None], pid: int, loop: asyncio.AbstractEventLoop | None) -> None:
    """Release what a garbage object holds, where it was taken; called by the collector, at any line of any thread.

    Args:
        key: Named in the log.
        release: Releases it; runs in the event loop if there is one, inside SQLAlchemy's greenlet.
        pid: The process that took the lock.
        loop: The event loop that took it.
    """
    if pid != os.getpid():
        return
    job = partial(_release_garbage, key, release)
    if loop is not None:
        with suppress(RuntimeError):  # the loop is closed: its sessions are ended without it
            loop.call_soon_threadsafe(lambda: background(greenlet_spawn(job)))
            return
    reaper.put(job)


def _release_garbage(key: object, release: Callable[[], None]) -> None:
    log.warning("key %s: the lock object was garbage-collected while it held the lock; releasing it", shown(key))
    try:
        release()
    except LockLostError as lost:  # as the program ends, perhaps: then it is free all the same
        log.debug("released with its session: %s", lost)
    except Exception:
        log.exception("release of key %s failed", shown(key))
