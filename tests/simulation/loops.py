"""Event loops on simulated threads: the standard library's own loop, whose clock and selector are simulated."""

from __future__ import annotations

import asyncio
import weakref
from asyncio import _get_running_loop, _set_running_loop, base_events
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from greenlet import GreenletExit
from sqlalchemy.util import await_only, greenlet_spawn

from .primitives import Event, Thread
from .scheduler import scheduler

__all__ = ["Job", "Loop", "pause", "task_name"]


class _Selector:
    """Waits for time, and for other threads."""

    def __init__(self) -> None:
        self.woken = Event()

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None or timeout > 0:
            self.woken.wait(timeout)
        else:
            scheduler().step()
        self.woken.clear()
        return []


class Loop(base_events.BaseEventLoop):
    """An event loop.

    Args:
        number: Names its thread.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self._selector = _Selector()
        self._tasks: list[weakref.ref[asyncio.Task[Any]]] = []
        self._end = self.create_future()
        self.thread = Thread(target=self._live, name=f"loop{number}")
        self.set_exception_handler(lambda _, context: self._complain(context))
        self._task_factory = self._make

    def _make(self, _: object, work: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
        task = asyncio.Task(work, loop=self, **options)
        self._tasks.append(weakref.ref(task))
        return task

    def _complain(self, context: dict[str, Any]) -> None:
        """Report a task that was destroyed as it waited; what failed in a task is seen by its user."""
        message, error = context["message"], context.get("exception")
        if ("destroyed" in message or "callback" in message) and not isinstance(error, GreenletExit):
            scheduler().fail(f"the event loop says: {message} {error!r}")

    def _live(self) -> None:
        _set_running_loop(self)
        try:
            while not self._end.done():
                self._run_once()  # type: ignore[attr-defined]
        finally:
            _set_running_loop(None)
        self.close()

    def time(self) -> float:
        return scheduler().now

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none: what answers calls `call_soon_threadsafe`."""

    def _write_to_self(self) -> None:
        self._selector.woken.set_from_outside()

    def stop(self) -> None:
        """End it, from any thread."""
        with suppress(RuntimeError):  # it has ended
            self.call_soon_threadsafe(self._end.cancel)

    def unfinished(self) -> list[str]:
        """Return the tasks that still run."""
        tasks = [task for reference in self._tasks if (task := reference()) is not None and not task.done()]
        return [task.get_coro().__qualname__ for task in tasks]  # type: ignore[union-attr]


class Job:
    """A function of a user in a task of a loop, inside SQLAlchemy's greenlet; started from any thread."""

    def __init__(self, loop: Loop, name: str, function: Callable[[], object]) -> None:
        self.loop = loop
        self.name = name
        self.task: asyncio.Task[Any] | None = None
        self.done = False
        self._over = Event()
        self._function: Callable[[], object] | None = function
        if _get_running_loop() is loop:
            self._begin()
        else:
            loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        work, self._function = self._function, None  # what that refers to may become garbage
        assert work is not None
        self.task = self.loop.create_task(greenlet_spawn(work), name=self.name)
        self.task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[Any]) -> None:
        self.done = True
        self._over.set_from_outside()
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, GreenletExit):
            scheduler().fail(f"the task {self.name} died: {error!r}")

    def join(self, timeout: float | None = None) -> None:
        """Wait until it is done, in a thread or in another task of its loop."""
        if _get_running_loop() is not self.loop:
            self._over.wait(timeout)
            return
        assert self.task is not None
        await_only(asyncio.wait([self.task], timeout=timeout))

    def cancel(self) -> None:
        """Cancel it, from any thread."""
        if self.task is not None and not self.done:
            self.loop.call_soon_threadsafe(self.task.cancel)


def pause(seconds: float, what: str, *, task: bool) -> None:
    """Let time pass, for the current task or for the whole thread."""
    here = scheduler()
    end = here.now + seconds
    while here.now < end:
        if task:
            await_only(asyncio.sleep(end - here.now))
        else:
            here.block(what, end - here.now)


def task_name() -> str:
    """Return the name of the current task, if a user gave it one."""
    if _get_running_loop() is None or (task := asyncio.current_task()) is None or task.get_name().startswith("Task-"):
        return ""
    return task.get_name()
