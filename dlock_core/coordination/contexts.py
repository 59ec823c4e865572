"""How one piece of blocking code waits: in a thread, in an asyncio task, or in either over a helper thread.

The acquisition of a lock is written once, as blocking code. A context names the owner,
gives it a latch to queue on, and runs what talks to the server. The async contexts rely on
SQLAlchemy's greenlet bridge, the same that `AsyncConnection.run_sync` uses.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from concurrent.futures import wait as wait_for_futures
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from sqlalchemy.util import await_only, greenlet_spawn

from ..errors import LockConnectionError
from ..sessions.workers import INSIST, background, over, see_through

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future

    from ..sessions.timeouts import Deadline
    from ..sessions.workers import Workers

__all__ = ["BLOCKING", "GREENLET", "Context", "Latch", "Threaded"]

log = logging.getLogger("dlock")
P = ParamSpec("P")
R = TypeVar("R")


class Latch(Protocol):
    """What one queued asker waits on."""

    def set(self) -> bool:
        """Wake the waiter, from any thread; False when its event loop is closed."""
        ...

    def wait(self, deadline: Deadline) -> bool:
        """Wait until set; False when the deadline passed first."""
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


class Context:
    """Where blocking code runs: here, in a thread that waits itself."""

    called_away = False
    """The asker has left already, and will not release."""

    def owner(self) -> object:
        """Return the owner: the thread or task that asks."""
        return threading.current_thread()

    def thread(self) -> threading.Thread:
        """Return the thread that a blocking wait of the asker would stop."""
        return threading.current_thread()

    def latch(self) -> Latch:
        """Make a latch that this asker can wait on."""
        return ThreadLatch()

    def call(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run what talks to the server; a caller that leaves early must call `interrupt`.

        Raises:
            LockConnectionError: There is no thread for it.
        """
        return function(*args, **kwargs)

    def finish(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run what gives a lock back, as `call` does, but in any case."""
        return function(*args, **kwargs)

    @property
    def inner(self) -> Context:
        """Where the functions run that `call` runs: what follows is for them."""
        return self

    def wait_apart(self, function: Callable[[], R], stop: Callable[[], None]) -> R:
        """Run a wait that only `stop` ends early: when its asker leaves, it is stopped, and comes to its own end."""
        gevent = _gevent()
        return function() if gevent is None else _in_greenlet(gevent, function, stop)

    def shield(self, function: Callable[[], R]) -> R:
        """Run a statement to its end, whatever becomes of the asker."""
        gevent = _gevent()
        return function() if gevent is None else _in_greenlet(gevent, function)

    def pause(self, seconds: float) -> None:
        """Sleep."""
        time.sleep(seconds)

    def interrupt(self, stop: Callable[[], None]) -> None:
        """End the wait of a function that `call` still runs for a caller that has left; here none does."""

    def afterwards(self, function: Callable[[], object]) -> None:
        """Run a clean-up that may talk to the server, for a caller that is leaving."""
        function()


class Greenlet(Context):
    """An asyncio task over an async driver."""

    def owner(self) -> object:
        return asyncio.current_task()

    def latch(self) -> Latch:
        return TaskLatch()

    def wait_apart(self, function: Callable[[], R], stop: Callable[[], None]) -> R:
        task = background(greenlet_spawn(function))
        try:
            await_only(over(task))
        except asyncio.CancelledError:
            _leave(task, stop)
            raise
        try:
            return task.result()
        finally:
            del task  # its error refers to this frame

    def shield(self, function: Callable[[], R]) -> R:
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
        self._begin(partial(function, *args, **kwargs))
        return self._await()  # type: ignore[no-any-return]

    def finish(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            self._begin(partial(function, *args, **kwargs))
        except LockConnectionError:
            return function(*args, **kwargs)  # the loop stands still for one answer, but no lock is left behind
        return self._await()  # type: ignore[no-any-return]

    def _begin(self, function: Callable[[], object]) -> None:
        try:
            self._running = self._workers.submit(partial(copy_context().run, function))
        except RuntimeError as error:
            raise LockConnectionError(f"no thread to ask the database in: {error}") from error

    def _await(self) -> Any:
        assert self._running is not None
        answer = asyncio.wrap_future(self._running)
        try:
            await_only(over(answer))
        except asyncio.CancelledError:
            answer.add_done_callback(partial(_report, log.warning))
            raise
        self._running = None
        try:
            return answer.result()
        finally:
            del answer  # its error refers to this frame: a lock in it would wait for the garbage collector

    def interrupt(self, stop: Callable[[], None]) -> None:
        running = self._running
        if running is None or running.done():
            return
        try:
            self._workers.submit(
                lambda: _insist(stop, running.done, lambda seconds: wait_for_futures([running], timeout=seconds))
            )
        except RuntimeError:  # no thread: should it not be heard, the grant is given back
            stop()

    def afterwards(self, function: Callable[[], object]) -> None:
        try:
            self._workers.submit(function)
        except RuntimeError:
            function()


def _leave(task: asyncio.Task[Any], stop: Callable[[], None]) -> None:
    """Stop a wait whose asker has left."""
    task.add_done_callback(partial(_report, log.debug))
    background(greenlet_spawn(_insist, stop, task.done, lambda seconds: await_only(over(task, seconds))))


def _report(say: Callable[..., None], left: asyncio.Future[Any]) -> None:
    """Log the failure of what a cancelled task left behind; nothing else shows it."""
    if not left.cancelled() and left.exception() is not None:
        say("failed after its task was cancelled: %s", left.exception())


def _insist(stop: Callable[[], None], over: Callable[[], bool], pause: Callable[[float], object]) -> None:
    """Stop a wait again and again until it is over: the first time may come before its statement."""
    while not over():
        stop()
        pause(INSIST)


def _gevent() -> Any:
    """Return gevent where it makes threads into greenlets: a kill or a Timeout can end those at any statement."""
    monkey = sys.modules.get("gevent.monkey")
    return sys.modules["gevent"] if monkey is not None and monkey.is_module_patched("threading") else None


def _in_greenlet(gevent: Any, function: Callable[[], R], stop: Callable[[], None] | None = None) -> R:
    """Run a function to its end in a greenlet of its own, whatever becomes of the one that asks."""
    running = gevent.spawn(_outcome, function)
    try:
        result, error = running.get()
    except BaseException:
        if stop is not None:
            gevent.spawn(_insist, stop, running.ready, running.join)
        raise
    try:
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]
    finally:
        del error  # its traceback refers to this frame


def _outcome(function: Callable[[], R]) -> tuple[R | None, BaseException | None]:
    try:
        return function(), None
    except BaseException as error:  # noqa: BLE001 - it belongs to the greenlet that asks
        return None, error


BLOCKING = WORKER = Context()
GREENLET = Greenlet()
