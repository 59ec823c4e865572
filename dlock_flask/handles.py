"""Handles: what `with dlock.lock(key) as handle:` gives, for threads and for tasks."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Any

from dlock_core import AsyncLock, Lock

from .base import BaseHandle

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from types import TracebackType
    from typing import Self

__all__ = ["AsyncHandle", "Handle"]


class Handle(BaseHandle[Lock]):
    """A lock for one `with` of a thread; made by `DLock.lock`, `try_lock` and `hold`.

    It is true while it has the lock.
    """

    def __enter__(self) -> Self:
        """Acquire.

        Raises:
            LockConflict: Somebody else has the lock.
            DeadlockError: This thread has it, and asked to wait for it.
            LockConnectionError: The database cannot be asked.
        """
        if not self._join():
            since = time.monotonic()
            lock = self._provider.lock(self.key, **self._lock_options())
            try:
                with closing(self._timeouts()) as timeouts:
                    granted = any(lock.acquire(timeout=timeout) for timeout in timeouts)
                self._granted(lock, since) if granted else self._refused(since)
            except BaseException:
                lock.close()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release; raise LockLostError if the lock was lost and nothing else is raised."""
        if not self._ends_here(error):
            return
        lock = self._leave()
        if lock is not None:
            try:
                if isinstance(lock, AsyncLock):  # a task's, which this handle has joined and left last
                    _run_elsewhere(lock.__aexit__(kind, error, traceback))
                else:
                    lock.__exit__(kind, error, traceback)
            finally:
                self._released()

    def release(self) -> None:
        """Release before the end.

        Raises:
            LockStateError: The lock is not held.
            LockLostError: The database did not hold it for us any more.
        """
        self._held_grant()
        self.finish()

    def finish(self) -> None:
        self._handed_over = False
        self.__exit__(None, None, None)


class AsyncHandle(BaseHandle[AsyncLock]):
    """A lock for one `async with` of a task; made by `DLock.alock`.

    It is true while it has the lock.
    """

    async def __aenter__(self) -> Self:
        """Acquire; see `Handle.__enter__`. What blocks runs in threads of its own."""
        if not self._join():
            since = time.monotonic()
            lock = self._provider.alock(self.key, **self._lock_options())
            try:
                await self._ask(lock, since)
            except BaseException:
                await lock.close()
                raise
        return self

    async def _ask(self, lock: AsyncLock, since: float) -> None:
        with closing(self._timeouts()) as timeouts:
            for timeout in timeouts:
                if await lock.acquire(timeout=timeout):
                    self._granted(lock, since)
                    return
        self._refused(since)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release; see `Handle.__exit__`."""
        if not self._ends_here(error):
            return
        lock = self._leave()
        if lock is not None:
            try:
                if isinstance(lock, Lock):  # a thread's, which this handle has joined and left last
                    await asyncio.to_thread(lock.__exit__, kind, error, traceback)
                else:
                    await lock.__aexit__(kind, error, traceback)
            finally:
                self._released()

    async def release(self) -> None:
        """Release before the end; see `Handle.release`."""
        self._held_grant()
        self._handed_over = False
        await self.__aexit__(None, None, None)

    def finish(self) -> None:
        if self._grant is not None:
            _run_elsewhere(self.release())  # the loop of the request has ended long ago


def _run_elsewhere(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end in a thread and a loop of its own, since this thread may have one."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()
