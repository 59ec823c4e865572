"""Providers: where locks come from, one for each database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.util import greenlet_spawn

from .aio import AsyncLock
from .contexts import GREENLET, Threaded
from .decorator import guarded
from .errors import UnsupportedError, shown
from .keys import check_prefix
from .lock import Lock
from .manager import Manager, Options
from .timeouts import parse_timeout
from .urls import shown_url

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from .decorator import KeySource

__all__ = ["AsyncLockProvider", "LockProvider"]

F = TypeVar("F", bound="Callable[..., Any]")
MIN_SESSIONS = 2


class _BaseProvider:
    """What both providers have in common."""

    def __init__(self, engine: Engine, *, owns_engine: bool, options: Options) -> None:
        self._owns_engine = owns_engine
        self._manager = Manager(engine, options)

    def __repr__(self) -> str:
        url = shown_url(self._manager.engine.url)
        return f"<{type(self).__name__} {url}, prefix={self._manager.options.prefix!r}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a lock provider cannot be pickled: make it at import, and each process makes its own")


class LockProvider(_BaseProvider):
    """Locks from one database, for threads; `alock` serves asyncio over the same sync engine.

    Args:
        engine_or_url: An SQLAlchemy engine, or a URL to make one from.
        prefix: Goes before every key, so that applications sharing a database do not share locks.
        max_sessions: How many server sessions this process may have at most (its main thread counts apart).
            All held locks need one, each wait for a key that another process holds needs one more;
            beyond the limit such waits poll.
        share_sessions: Hold all locks on one session. Without, each thread or task has one of his own for
            all his locks and waits, so that the server sees deadlocks across processes.
        show_keys: Show readable keys in the database's own views of its sessions.
        unsafe_ok: Do not refuse a server on which a lock may protect nothing.

    Raises:
        UnsupportedError: The database has no locks for us, its driver is async or not installed.
        ValueError: The URL is none, or max_sessions is below 2.
    """

    def __init__(
        self,
        engine_or_url: Engine | URL | str,
        *,
        prefix: str = "",
        max_sessions: int = 8,
        share_sessions: bool = True,
        show_keys: bool = True,
        unsafe_ok: bool = False,
    ) -> None:
        engine = engine_or_url if isinstance(engine_or_url, Engine) else _make(create_engine, engine_or_url)
        if engine.dialect.is_async:
            raise UnsupportedError(f"the driver {engine.driver} is async: use AsyncLockProvider")
        options = Options(check_prefix(prefix), show_keys, unsafe_ok, _check_limit(max_sessions), share_sessions)
        super().__init__(engine, owns_engine=engine is not engine_or_url, options=options)

    def lock(self, key: object, *, timeout: float | None = None, shared: bool = False, fencing: bool = False) -> Lock:
        """Make a lock for one use.

        Args:
            key: str, bytes, int, or a tuple of them.
            timeout: Seconds that `with` and `acquire` wait; None is for ever, 0 one try.
            shared: Share it with others who ask for it shared (readers); exclusive otherwise.
            fencing: Give each grant a number that grows, `fencing_token`; costs a round trip.

        Raises:
            LockKeyError: The key cannot name a lock.
            UnsupportedError: The database has no shared locks.
            ValueError: The timeout is negative or not a number.
        """
        request = self._manager.request(key, shared=shared, fencing=fencing)
        return Lock(self._manager, request, parse_timeout(timeout))

    def alock(
        self, key: object, *, timeout: float | None = None, shared: bool = False, fencing: bool = False
    ) -> AsyncLock:
        """Make a lock for one use in an asyncio task; what blocks runs in threads of this provider."""
        request = self._manager.request(key, shared=shared, fencing=fencing)
        return AsyncLock(self._manager, request, parse_timeout(timeout), lambda: Threaded(self._manager.workers))

    def locked(self, key: KeySource, *, timeout: float | None = None, shared: bool = False) -> Callable[[F], F]:
        """Decorate a function: each call runs under a fresh lock.

        Args:
            key: As for `lock`; in text, `{name}` stands for the function's argument of that name.
                Or a callable that gets the function's arguments and returns the key.
            timeout: Seconds; None is for ever, 0 one try.
            shared: As for `lock`.

        Raises:
            LockTimeoutError: From the decorated function, when the lock is not free in time.
        """
        self._manager.check_shared(key, shared=shared)
        return guarded(key, parse_timeout(timeout), shared, lock=self.lock, alock=self.alock)

    def close(self) -> None:
        """End all sessions of this provider, and with them its locks."""
        self._manager.close()
        if self._owns_engine:
            self._manager.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncLockProvider(_BaseProvider):
    """Locks from one database over an async driver, for asyncio; arguments as for LockProvider.

    Its sessions belong to the event loop that opened them; one provider serves several loops.
    """

    def __init__(
        self,
        engine_or_url: AsyncEngine | URL | str,
        *,
        prefix: str = "",
        max_sessions: int = 8,
        share_sessions: bool = True,
        show_keys: bool = True,
        unsafe_ok: bool = False,
    ) -> None:
        given = isinstance(engine_or_url, AsyncEngine)
        self._engine = engine_or_url if isinstance(engine_or_url, AsyncEngine) else _make_async(engine_or_url)
        options = Options(check_prefix(prefix), show_keys, unsafe_ok, _check_limit(max_sessions), share_sessions)
        super().__init__(self._engine.sync_engine, owns_engine=not given, options=options)

    def lock(
        self, key: object, *, timeout: float | None = None, shared: bool = False, fencing: bool = False
    ) -> AsyncLock:
        """Make a lock for one use; see `LockProvider.lock`."""
        request = self._manager.request(key, shared=shared, fencing=fencing)
        return AsyncLock(self._manager, request, parse_timeout(timeout), lambda: GREENLET)

    def locked(self, key: KeySource, *, timeout: float | None = None, shared: bool = False) -> Callable[[F], F]:
        """Decorate an async function: each call runs under a fresh lock; see `LockProvider.locked`."""
        self._manager.check_shared(key, shared=shared)
        return guarded(key, parse_timeout(timeout), shared, lock=None, alock=self.lock)

    async def close(self) -> None:
        """End all sessions of this provider, and with them its locks."""
        await greenlet_spawn(self._manager.close)
        if self._owns_engine:
            await self._engine.dispose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _check_limit(max_sessions: object) -> int:
    if isinstance(max_sessions, bool) or not isinstance(max_sessions, int) or max_sessions < MIN_SESSIONS:
        raise ValueError(
            f"max_sessions={shown(max_sessions)}: give a number from {MIN_SESSIONS}: one to hold, one to wait"
        )
    return max_sessions


def _make(factory: Callable[[URL], Any], url: object) -> Any:
    if not isinstance(url, str | URL):
        raise TypeError(f"{type(url).__name__} is neither an SQLAlchemy engine nor a URL, or of the other kind (async)")
    try:
        return factory(make_url(url))
    except (NoSuchModuleError, ImportError) as error:
        drivername = make_url(url).drivername
        raise UnsupportedError(
            f"{drivername}: {error}. Install the driver, for example with "
            f"pip install 'dlock-suite[{drivername.partition('+')[0]}]', or correct the URL"
        ) from error
    except ArgumentError as error:
        raise ValueError(
            f"not a database URL; give one like postgresql+psycopg://user@host/database ({error})"
        ) from error


def _make_async(url: object) -> AsyncEngine:
    return _make(_create_async_engine, url)  # type: ignore[no-any-return]


def _create_async_engine(url: URL) -> AsyncEngine:
    try:
        return create_async_engine(url)
    except Exception as error:
        if type(error).__name__ != "InvalidRequestError":
            raise
        raise UnsupportedError(
            f"the driver of {url.drivername} is not async: use LockProvider and its alock()"
        ) from error
