"""How one piece of blocking code waits: in a thread, in an asyncio task, or in either over a helper thread.

The acquisition of a lock is written once, as blocking code. A context tells it who asks (the owner),
gives it a latch to queue on, and runs what talks to the server. The async contexts rely on
SQLAlchemy's greenlet bridge, the same that `AsyncConnection.run_sync` uses.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from concurrent.futures import wait as wait_for_futures
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from sqlalchemy.util import await_only, greenlet_spawn

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from .threads import Workers
    from .timeouts import Deadline

__all__ = ["BLOCKING", "GREENLET", "Blocking", "Context", "Latch", "MainThread", "Threaded", "see_through"]

log = logging.getLogger("dlock")
P = ParamSpec("P")
R = TypeVar("R")

# How often an interrupt is repeated until it is heard: the first may come before the statement.
INSIST = 0.05
# How long a main thread that a signal calls away stays for its helper, so that a program which then
# ends leaves nothing at the server.
PARTING = 0.2


class Latch(Protocol):
    """What one queued asker waits on."""

    def set(self) -> bool:
        """Wake the asker, from any thread; False when nobody can wake any more."""
        ...

    def wait(self, deadline: Deadline) -> bool:
        """Wait until set; False when the deadline passed first."""
        ...


class Context(Protocol):
    """Where blocking code runs."""

    def owner(self) -> object:
        """Return who asks."""
        ...

    def latch(self) -> Latch:
        """Make a latch that this asker can wait on."""
        ...

    def call(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run what talks to the server; whoever leaves early must call `interrupt`."""
        ...

    @property
    def inner(self) -> Context:
        """Where the functions run that `call` runs: what follows is for them."""
        ...

    def wait(self, function: Callable[[], R], stop: Callable[[], None]) -> R:
        """Run a statement that may wait for long; `stop` ends it early."""
        ...

    def shield(self, workers: Workers, function: Callable[[], R]) -> R:
        """Run a statement to its end, whatever becomes of the asker."""
        ...

    def pause(self, seconds: float) -> None:
        """Sleep."""
        ...

    def interrupt(self, stop: Callable[[], None]) -> None:
        """End the wait of a function that `call` still runs for an asker who left."""
        ...

    def afterwards(self, function: Callable[[], object]) -> None:
        """Run a clean-up that may talk to the server, for an asker who is leaving."""
        ...


class ThreadLatch:
    """A latch for a thread; a signal can end its wait."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> bool:
        self._lock.release()
        return True

    def wait(self, deadline: Deadline) -> bool:
        while True:
            remaining = deadline.remaining()
            if self._lock.acquire(timeout=-1 if remaining is None else min(remaining, threading.TIMEOUT_MAX)):
                return True
            if deadline.passed:
                return False


class TaskLatch:
    """A latch for an asyncio task, waited on inside SQLAlchemy's greenlet."""

    __slots__ = ("_future", "_loop")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future = self._loop.create_future()

    def set(self) -> bool:
        try:
            self._loop.call_soon_threadsafe(self._resolve)
        except RuntimeError:  # its loop is closed: that task will never run again
            return False
        return True

    def _resolve(self) -> None:
        if not self._future.done():
            self._future.set_result(None)

    def wait(self, deadline: Deadline) -> bool:
        while not self._future.done():
            if deadline.passed:
                return False
            await_only(asyncio.wait([self._future], timeout=deadline.remaining()))
        return True


class Blocking:
    """A thread that waits itself."""

    def owner(self) -> object:
        return threading.current_thread()

    def latch(self) -> Latch:
        return ThreadLatch()

    def call(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        return function(*args, **kwargs)

    @property
    def inner(self) -> Context:
        return self

    def wait(self, function: Callable[[], R], stop: Callable[[], None]) -> R:  # noqa: ARG002
        return function()

    def shield(self, workers: Workers, function: Callable[[], R]) -> R:  # noqa: ARG002
        return function()

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def interrupt(self, stop: Callable[[], None]) -> None:
        """Do nothing: the exception that ended the wait came out of the function itself."""

    def afterwards(self, function: Callable[[], object]) -> None:
        function()


class MainThread(Blocking):
    """The main thread, where signal handlers run, over a server that lets its sessions wait.

    A helper thread waits at the server, and the main thread for the helper. psycopg2 and mysqlclient
    wait in C, which holds up a signal until the server answers; PyMySQL takes the TimeoutError of a
    handler for a lost connection. When a handler raises, the helper's wait is ended; its session is
    in doubt then, like after any exception out of a statement.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    def wait(self, function: Callable[[], R], stop: Callable[[], None]) -> R:
        running = self._workers.submit(function)
        try:
            return running.result()
        except BaseException:
            if not running.done():
                self._workers.submit(lambda: _insist(running, stop))
                wait_for_futures([running], timeout=PARTING)
            raise


class Greenlet(Blocking):
    """An asyncio task over an async driver."""

    def owner(self) -> object:
        return asyncio.current_task()

    def latch(self) -> Latch:
        return TaskLatch()

    def shield(self, workers: Workers, function: Callable[[], R]) -> R:  # noqa: ARG002
        return see_through(function)

    def pause(self, seconds: float) -> None:
        await_only(asyncio.sleep(seconds))


class Threaded(Greenlet):
    """An asyncio task over a sync driver: what talks to the server runs in a thread of the provider.

    Never in the loop's default executor: its few threads would all wait, and a release would queue
    behind them.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._running: Future[Any] | None = None

    @property
    def inner(self) -> Context:
        return WORKER

    def call(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        future = self._workers.submit(lambda: function(*args, **kwargs))
        self._running = future
        answer = asyncio.wrap_future(future)
        try:
            return await_only(asyncio.shield(answer))
        except asyncio.CancelledError:
            answer.add_done_callback(_report)
            raise

    def interrupt(self, stop: Callable[[], None]) -> None:
        running = self._running
        if running is not None and not running.done():
            self._workers.submit(lambda: _insist(running, stop))

    def afterwards(self, function: Callable[[], object]) -> None:
        self._workers.submit(function)


def _report(answer: asyncio.Future[Any]) -> None:
    """Log the failure of what a cancelled task left behind; nobody else will hear of it."""
    if not answer.cancelled() and answer.exception() is not None:
        log.warning("failed after its task was cancelled: %s", answer.exception())


def _insist(running: Future[Any], stop: Callable[[], None]) -> None:
    while not running.done():
        stop()
        wait_for_futures([running], timeout=INSIST)


def see_through(function: Callable[[], R], otherwise: Callable[[R], object] = lambda _: None) -> R:
    """Run a function to its end, even when the task that wants its result is cancelled.

    A driver or SQLAlchemy that is cancelled halfway through opening a connection forgets it, open.
    """
    task = asyncio.get_running_loop().create_task(greenlet_spawn(function))
    try:
        return await_only(asyncio.shield(task))
    except asyncio.CancelledError:
        task.add_done_callback(lambda done: _hand_over(done, otherwise))
        raise


def _hand_over(done: asyncio.Future[R], otherwise: Callable[[R], object]) -> None:
    if not done.cancelled() and done.exception() is None:
        otherwise(done.result())


BLOCKING = WORKER = Blocking()
GREENLET = Greenlet()
