"""The same for asyncio: a shell that runs the blocking code in SQLAlchemy's greenlet."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.util import greenlet_spawn

from ..contexts import GREENLET
from ..errors import LockStateError
from .base import BaseSadLock
from .lock import refuse
from .options import Options

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from sqlalchemy import Connection, Dialect
    from sqlalchemy.orm import Session

__all__ = ["AsyncConnectionOrSession", "AsyncSadLock", "create_async_sadlock"]

AsyncConnectionOrSession: TypeAlias = AsyncConnection | AsyncSession | async_scoped_session[Any]
G = TypeVar("G", bound=AsyncConnectionOrSession)


class AsyncSadLock(BaseSadLock[G]):
    """A lock on an async connection or session of the caller's; made by `create_async_sadlock`.

    `async with lock:` acquires it, or raises LockTimeoutError after `contextual_timeout`, and releases it at the end.
    """

    async def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Acquire the lock; see `SadLock.acquire`. A cancelled task leaves nothing held."""
        return await greenlet_spawn(self._acquire, GREENLET, block=block, timeout=timeout)

    async def upgrade(self, timeout: float | None = None) -> bool:
        """Turn a lock with update=True into an exclusive one; see `SadLock.upgrade`."""
        return await greenlet_spawn(self._upgrade, GREENLET, timeout)

    async def release(self) -> None:
        """Release the lock; see `SadLock.release`."""
        await greenlet_spawn(self._release_amid, sys.exception())

    async def aclose(self) -> None:
        """Release the lock if it is held; leave one with xact=True to its transaction."""
        await greenlet_spawn(self._close, sys.exception())

    async def __aenter__(self) -> Self:
        """Acquire, or raise LockTimeoutError after `contextual_timeout`."""
        await greenlet_spawn(self._enter, GREENLET)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await greenlet_spawn(self._exit, error)


def create_async_sadlock(
    connection_or_session: G,
    key: Any,
    /,
    contextual_timeout: float | None = None,
    convert: Callable[[Any], int | str] | None = None,
    *,
    shared: bool = False,
    xact: bool = False,
    update: bool = False,
    lock_mode: str | None = None,
    release_on_commit: bool = False,
) -> AsyncSadLock[G]:
    """Make a lock on an AsyncConnection, AsyncSession or async_scoped_session; see `create_sadlock`."""
    options = Options(shared=shared, xact=xact, update=update, lock_mode=lock_mode, release_on_commit=release_on_commit)
    caller = _AsyncCaller(connection_or_session)
    return AsyncSadLock(
        connection_or_session, caller, key, contextual_timeout=contextual_timeout, convert=convert, options=options
    )


class _AsyncCaller:
    """The sync object inside the caller's async one."""

    def __init__(self, given: AsyncConnectionOrSession) -> None:
        if not isinstance(given, AsyncConnection | AsyncSession | async_scoped_session):
            refuse(given, "an AsyncConnection, AsyncSession or async_scoped_session", "create_sadlock")
        self._given = given
        bind = given.sync_engine if isinstance(given, AsyncConnection) else given.get_bind()
        self.dialect: Dialect = bind.dialect

    def current(self) -> Connection | Session:
        """Return the sync connection or session; a scoped session's of this task."""
        given = self._given() if isinstance(self._given, async_scoped_session) else self._given
        if isinstance(given, AsyncSession):
            return given.sync_session
        if given.sync_connection is None:
            raise LockStateError("this AsyncConnection has not been started: await it, or use it in `async with`")
        return given.sync_connection
