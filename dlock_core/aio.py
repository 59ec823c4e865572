"""The same for asyncio: a shell that runs the blocking code in SQLAlchemy's greenlet."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from sqlalchemy.util import greenlet_spawn

from .errors import LockLostError
from .lock import UNSET, BaseLock, Unset

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from .contexts import Context
    from .manager import Manager
    from .requests import Request

__all__ = ["AsyncLock"]


class AsyncLock(BaseLock):
    """A lock for tasks; make one for each use with `AsyncLockProvider.lock` or `LockProvider.alock`.

    `async with lock:` acquires it, or raises LockTimeoutError when its time is over, and releases it at the end. It is
    not re-entrant.
    """

    def __init__(
        self,
        manager: Manager,
        request: Request,
        timeout: float | None,
        context: Callable[[], Context],
        on_lost: Callable[[AsyncLock], object] | None = None,
        *,
        cancel_on_lost: bool = False,
    ) -> None:
        super().__init__(manager, request, timeout, on_lost)
        self._context = context
        self._cancel_on_lost = cancel_on_lost
        self._body: _Body | None = None

    async def acquire(self, block: bool = True, timeout: float | Unset | None = UNSET) -> bool:
        """Acquire the lock; see `Lock.acquire`. A cancelled task leaves nothing held and nothing queued."""
        return await greenlet_spawn(self._acquire, self._context(), block=block, timeout=timeout)

    async def release(self) -> None:
        """Release the lock; see `Lock.release`."""
        await greenlet_spawn(self._release, self._context())

    async def close(self) -> None:
        """Release the lock if it is held."""
        await greenlet_spawn(self._exit, self._context(), None)

    async def __aenter__(self) -> Self:
        """Acquire, or raise LockTimeoutError."""
        await greenlet_spawn(self._enter, self._context())
        if self._cancel_on_lost:
            self._body = _Body()
            if self.lost:  # between the grant and this line
                self._body.cancel()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        body, self._body = self._body, None
        ours = body is not None and body.leave(error)
        try:
            await greenlet_spawn(self._exit, self._context(), None if ours else error)
        except LockLostError as lost:
            if ours:
                raise lost from error
            raise

    def _lost(self) -> None:
        if (body := self._body) is not None:
            with suppress(RuntimeError):  # its loop is closed
                body.loop.call_soon_threadsafe(body.cancel)
        super()._lost()


class _Body:
    """The body of `async with` in its task, to be cancelled as `asyncio.timeout` does it."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancels_before = task.cancelling()
        self._cancelled = self._left = False

    def cancel(self) -> None:
        """Cancel it, in its loop, once."""
        if not (self._cancelled or self._left):
            self._cancelled = True
            self._task.cancel()

    def leave(self, error: BaseException | None) -> bool:
        """Tell whether its exception is our cancel, and nobody else's."""
        self._left = True
        if not self._cancelled:
            return False
        return self._task.uncancel() <= self._cancels_before and isinstance(error, asyncio.CancelledError)
