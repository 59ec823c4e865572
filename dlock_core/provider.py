"""Providers: where locks come from, one for each database."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from sqlalchemy.util import greenlet_spawn

from .aio import AsyncLock
from .checks import check
from .contexts import BLOCKING, GREENLET, Threaded
from .decorator import guarded
from .engines import async_engine_of, engine_of
from .inspection import Inspector
from .lock import Lock
from .manager import Manager
from .options import checked
from .timeouts import parse_timeout
from .urls import shown_url

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from sqlalchemy import URL, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from .checks import Finding
    from .events import LockEvent
    from .inspection import LockInfo
    from .options import Options
    from .templates import KeySource

__all__ = ["AsyncLockProvider", "LockProvider"]

F = TypeVar("F", bound="Callable[..., Any]")


class _BaseProvider:
    """What both providers have in common."""

    def __init__(self, engine: Engine, *, owns_engine: bool, options: Options) -> None:
        self._owns_engine = owns_engine
        self._manager = Manager(engine, options)
        self._inspector = Inspector(self._manager)

    def listen(self, listener: Callable[[LockEvent], object]) -> Callable[[], None]:
        """Tell a listener of every attempt, acquisition, release and loss of this provider's locks in this process.

        It is called in the thread or task where that happens, and must be quick; its errors are logged.

        Args:
            listener: Called with each event.

        Returns:
            What ends it when called.
        """
        return self._manager.listeners.add(listener)

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
        heartbeat: Seconds of silence after which a session that holds locks is asked for a sign of life;
            finds a network that was cut without a word. None: never.
        lease: Seconds of silence after which the server ends a session, and frees its locks, although
            its process is there: frozen, or cut off. `held` turns False no later. It renews itself.
            None: a frozen process keeps its locks. PostgreSQL 14 and newer, MySQL, MariaDB.
        max_sessions: How many server sessions the threads of this process, and each of its event loops, may
            have at most. All held locks need one, each wait for a key that another process holds needs
            one more; beyond the limit such waits poll. No limit without `share_sessions`.
        on_lost: Called, in a helper thread, with each lock object whose lock was lost.
        share_sessions: Hold all locks on one session. Without, each thread or task has one of its own for
            all its locks and waits, so that the server sees deadlocks across processes.
        show_keys: Show readable keys in the database's own views of its sessions.
        unsafe_ok: Do not refuse a server on which a lock may protect nothing, with UnsafeEnvironmentError.
        adapter: What sessions call themselves there, for whoever inspects: a short word such as "celery".

    Raises:
        UnsupportedError: The database has no locks for us, or no lease; its driver is async or not installed.
        ValueError: The URL is none, max_sessions is below 2, or heartbeat or lease below 1 s.
    """

    def __init__(
        self,
        engine_or_url: Engine | URL | str,
        *,
        prefix: str = "",
        heartbeat: float | None = 30.0,
        lease: float | None = None,
        max_sessions: int = 8,
        share_sessions: bool = True,
        on_lost: Callable[[Lock | AsyncLock], object] | None = None,
        show_keys: bool = True,
        unsafe_ok: bool = False,
        adapter: str = "",
    ) -> None:
        engine = engine_of(engine_or_url)
        options = checked(
            prefix=prefix,
            heartbeat=heartbeat,
            lease=lease,
            max_sessions=max_sessions,
            share_sessions=share_sessions,
            on_lost=on_lost,
            show_keys=show_keys,
            unsafe_ok=unsafe_ok,
            adapter=adapter,
        )
        super().__init__(engine, owns_engine=engine is not engine_or_url, options=options)

    def lock(
        self,
        key: object,
        *,
        timeout: float | None = None,
        shared: bool = False,
        fencing: bool = False,
        on_lost: Callable[[Lock], object] | None = None,
    ) -> Lock:
        """Make a lock for one use; nothing is asked of the database yet.

        Args:
            key: str, bytes, int, or a tuple of them.
            timeout: Seconds that `with` and `acquire` wait; None is for ever, 0 one try.
            shared: Share it with others who ask for it shared (readers); exclusive otherwise.
            fencing: Give each grant a number that grows, `fencing_token`; costs a round trip.
            on_lost: Called, in a helper thread, with the lock object when its lock was lost.

        Raises:
            LockKeyError: The key cannot name a lock.
            UnsupportedError: The database has no shared locks, or no fencing tokens; a shared lock has none anywhere.
            ValueError: The timeout is negative or not a number.
        """
        request = self._manager.request(key, shared=shared, fencing=fencing)
        return Lock(self._manager, request, parse_timeout(timeout), on_lost)

    def alock(
        self,
        key: object,
        *,
        timeout: float | None = None,
        shared: bool = False,
        fencing: bool = False,
        on_lost: Callable[[AsyncLock], object] | None = None,
        cancel_on_lost: bool = False,
    ) -> AsyncLock:
        """Make a lock for one use in an asyncio task; what blocks runs in threads of this provider.

        Args:
            key: As for `lock`, and so the rest.
            timeout: Seconds.
            shared: With other readers.
            fencing: With a `fencing_token`.
            on_lost: Called when the lock was lost.
            cancel_on_lost: Cancel the body of `async with` when the lock is lost; it raises LockLostError then.
        """
        request = self._manager.request(key, shared=shared, fencing=fencing)
        return AsyncLock(
            self._manager,
            request,
            parse_timeout(timeout),
            lambda: Threaded(self._manager.workers),
            on_lost,
            cancel_on_lost=cancel_on_lost,
        )

    def held_locks(self) -> list[Lock | AsyncLock]:
        """Return the locks of this provider that this process holds now."""
        return self._manager.held_locks()

    def locked(self, key: KeySource, *, timeout: float | None = None, shared: bool = False) -> Callable[[F], F]:
        """Decorate a function: each call runs under a fresh lock.

        Args:
            key: As for `lock`; in text, `{name}` stands for the function's argument of that name.
                Or a callable that gets the function's arguments and returns the key.
            timeout: Seconds; None is for ever, 0 one try.
            shared: As for `lock`.

        Raises:
            LockTimeoutError: From the decorated function, when the lock is not free in time.
            LockKeyError: The function has no such argument.
            UnsupportedError: The function is a generator, or the database has no shared locks.
        """
        self._manager.check_shared(key, shared=shared)
        return guarded(key, parse_timeout(timeout), shared, lock=self.lock, alock=self.alock)

    def inspect(self, key: object | None = None) -> list[LockInfo]:
        """Ask the database who holds locks, and who waits for them.

        It asks on a connection of its own, which works while all locks are held, and for ten seconds at most.

        Args:
            key: Only this key; None is for all locks there, other applications' too.

        Raises:
            NotPermittedError: The database does not show all of it to this user, or is not set up to; the
                message says what to change, `found` is what it did show. An empty list means: no locks.
            LockConnectionError: The database cannot be asked.
        """
        return self._inspector.within_limit(lambda: self._inspector.inspect(key))

    def terminate(self, info: LockInfo, *, whole_session: bool = False) -> bool:
        """End the session of a holder, and so free its locks; its process learns that it lost them.

        Args:
            info: What `inspect` returned.
            whole_session: Also when other locks end with it: a process holds all its locks on one session.

        Returns:
            False when it did not hold the lock any more.

        Raises:
            LockStateError: Other locks would end too; the message names them.
            NotPermittedError: The database does not let this user; the message names the missing right.
            LockConnectionError: The database cannot be asked.
        """
        end = partial(self._inspector.terminate, info, BLOCKING, whole_session=whole_session)
        return self._inspector.within_limit(end)

    def remember(self, key: object) -> None:
        """Write a key into the table `dlock_names`, so that `inspect` can name its lock on PostgreSQL.

        `dlock init` makes the table, or your migrations, with `name_table`.
        """
        self._inspector.within_limit(lambda: self._inspector.remember(key))

    def check(self) -> list[Finding]:
        """Look for what makes locks unsafe or slow here: poolers, replicas, missing rights, limits, latency.

        Returns:
            What was found, and what is in order.
        """
        return self._inspector.within_limit(lambda: check(self._manager, self._inspector, BLOCKING))

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
    """Locks from one database over an async driver, for asyncio; arguments as for `LockProvider`.

    Its sessions belong to the event loop that opened them; one provider serves several loops.
    """

    def __init__(
        self,
        engine_or_url: AsyncEngine | URL | str,
        *,
        prefix: str = "",
        heartbeat: float | None = 30.0,
        lease: float | None = None,
        max_sessions: int = 8,
        share_sessions: bool = True,
        on_lost: Callable[[AsyncLock], object] | None = None,
        show_keys: bool = True,
        unsafe_ok: bool = False,
        adapter: str = "",
    ) -> None:
        self._engine = async_engine_of(engine_or_url)
        options = checked(
            prefix=prefix,
            heartbeat=heartbeat,
            lease=lease,
            max_sessions=max_sessions,
            share_sessions=share_sessions,
            on_lost=on_lost,
            show_keys=show_keys,
            unsafe_ok=unsafe_ok,
            adapter=adapter,
        )
        super().__init__(self._engine.sync_engine, owns_engine=self._engine is not engine_or_url, options=options)

    def lock(
        self,
        key: object,
        *,
        timeout: float | None = None,
        shared: bool = False,
        fencing: bool = False,
        on_lost: Callable[[AsyncLock], object] | None = None,
        cancel_on_lost: bool = False,
    ) -> AsyncLock:
        """Make a lock for one use; see `LockProvider.lock` and, for cancel_on_lost, `LockProvider.alock`."""
        request = self._manager.request(key, shared=shared, fencing=fencing)
        return AsyncLock(
            self._manager,
            request,
            parse_timeout(timeout),
            lambda: GREENLET,
            on_lost,
            cancel_on_lost=cancel_on_lost,
        )

    def held_locks(self) -> list[AsyncLock]:
        """Return the locks of this provider that this process holds now."""
        return self._manager.held_locks()

    def locked(self, key: KeySource, *, timeout: float | None = None, shared: bool = False) -> Callable[[F], F]:
        """Decorate an async function: each call runs under a fresh lock; see `LockProvider.locked`."""
        self._manager.check_shared(key, shared=shared)
        return guarded(key, parse_timeout(timeout), shared, lock=None, alock=self.lock)

    async def inspect(self, key: object | None = None) -> list[LockInfo]:
        """Ask the database who holds locks; see `LockProvider.inspect`."""
        return await self._inspector.awaited(lambda: self._inspector.inspect(key))

    async def terminate(self, info: LockInfo, *, whole_session: bool = False) -> bool:
        """End the session of a holder; see `LockProvider.terminate`."""
        end = partial(self._inspector.terminate, info, GREENLET, whole_session=whole_session)
        return await self._inspector.awaited(end)

    async def remember(self, key: object) -> None:
        """Write a key into the table `dlock_names`; see `LockProvider.remember`."""
        await self._inspector.awaited(lambda: self._inspector.remember(key))

    async def check(self) -> list[Finding]:
        """Look for what makes locks unsafe or slow here; see `LockProvider.check`."""
        return await self._inspector.awaited(lambda: check(self._manager, self._inspector, GREENLET))

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
