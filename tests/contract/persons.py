"""Persons: threads or tasks that acquire and release when a test tells them to.

A test is written once, as plain blocking code; a person does what it says in a thread of its own, or
in an asyncio task of its own, so that the owner of a lock is it.
"""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Protocol

from dlock_core import AsyncLock, Lock

__all__ = ["AnyLock", "Loop", "Person", "TaskPerson", "ThreadPerson"]

PATIENCE, OPENING = 45.0, 1.0
AnyLock = Lock | AsyncLock


class Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="test-loop", daemon=True)
        self._thread.start()

    def begin(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Begin to run a coroutine."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine and wait for it."""
        return self.begin(coroutine).result(PATIENCE)

    def close(self) -> None:
        """Give what still runs a moment, cancel the rest, as asyncio.run does, and close."""
        self.run(self._settle())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()

    async def _settle(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if tasks:  # an opening goes on when its asker has left; cancelled here, one was once left to the collector
            await asyncio.wait(tasks, timeout=OPENING)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Maker(Protocol):
    """What makes locks."""

    def __call__(self, key: Any, **options: Any) -> AnyLock: ...


class Person:
    """An owner that takes locks, one after the other."""

    def __init__(self, maker: Maker) -> None:
        self._maker = maker
        self.locks: list[AnyLock] = []

    def submit(self, step: Callable[[], Any]) -> Future[Any]:
        """Let it take a step, which may return something to await."""
        raise NotImplementedError

    def leave(self) -> None:
        """Let it end, whatever it holds."""
        raise NotImplementedError

    def do(self, step: Callable[[], Any]) -> Any:
        """Let it take a step and wait for it."""
        return self.submit(step).result(PATIENCE)

    def begin(self, key: Any, *, block: bool = True, **options: Any) -> Future[Any]:
        """Let it begin to acquire; the future tells whether it got it."""
        lock = self._maker(key, **options)
        self.locks.append(lock)
        return self.submit(lambda: lock.acquire(block))

    def acquire(self, key: Any, **options: Any) -> bool:
        """Let it acquire."""
        granted: bool = self.begin(key, **options).result(PATIENCE)
        return granted

    def release(self) -> None:
        """Let it release the lock that it took last."""
        held = next(lock for lock in reversed(self.locks) if lock.held or lock.lost)
        self.do(held.release)

    def within(self, key: Any, body: Callable[[AnyLock], Any], **options: Any) -> Any:
        """Let it run a body inside `with`."""
        return self.begin_within(key, body, **options).result(PATIENCE)

    def begin_within(self, key: Any, body: Callable[[AnyLock], Any], **options: Any) -> Future[Any]:
        """Let it begin to run a body inside `with`."""
        return self.submit(lambda: self._within(self._maker(key, **options), body))

    def _within(self, lock: AnyLock, body: Callable[[AnyLock], Any]) -> Any:
        if isinstance(lock, AsyncLock):
            return self._async_within(lock, body)
        with lock:
            return body(lock)

    async def _async_within(self, lock: AsyncLock, body: Callable[[AnyLock], Any]) -> Any:
        async with lock:
            result = body(lock)
            return await result if inspect.isawaitable(result) else result


class ThreadPerson(Person):
    """A person that is a thread."""

    def __init__(self, maker: Maker) -> None:
        super().__init__(maker)
        self._steps: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def submit(self, step: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self._steps.put((step, future))
        return future

    def _live(self) -> None:
        while (work := self._steps.get()) is not None:
            step, future = work
            try:
                future.set_result(step())
            except BaseException as error:
                future.set_exception(error)

    def leave(self) -> None:
        self._steps.put(None)
        self._thread.join(PATIENCE)


class TaskPerson(Person):
    """A person that is an asyncio task."""

    def __init__(self, maker: Maker, loop: Loop) -> None:
        super().__init__(maker)
        self._loop = loop.loop
        self._steps: asyncio.Queue[tuple[Callable[[], Any], Future[Any]] | None] = asyncio.Queue()
        self.task: Future[None] = asyncio.run_coroutine_threadsafe(self._live(), self._loop)

    def submit(self, step: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self._loop.call_soon_threadsafe(self._steps.put_nowait, (step, future))
        return future

    async def _live(self) -> None:
        while (work := await self._steps.get()) is not None:
            step, future = work
            try:
                result = step()
                future.set_result(await result if inspect.isawaitable(result) else result)
            except BaseException as error:
                future.set_exception(error)
                if isinstance(error, asyncio.CancelledError):
                    raise

    def leave(self) -> None:
        if not self.task.done():
            self._loop.call_soon_threadsafe(self._steps.put_nowait, None)
            self.task.result(PATIENCE)
