"""The same for asyncio: a shell that runs the blocking code in SQLAlchemy's greenlet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy.util import greenlet_spawn

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
    """A lock for tasks; make one for each use with `AsyncLockProvider.lock` or `LockProvider.alock`."""

    def __init__(
        self, manager: Manager, request: Request, timeout: float | None, context: Callable[[], Context]
    ) -> None:
        super().__init__(manager, request, timeout)
        self._context = context

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
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await greenlet_spawn(self._exit, self._context(), error)
