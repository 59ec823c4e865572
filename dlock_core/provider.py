"""Providers: where locks come from, one for each database."""

from __future__ import annotations

import functools
import inspect
import logging
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias, TypeVar

from sqlalchemy.util import greenlet_spawn

from .coordination.contexts import BLOCKING, GREENLET
from .coordination.coordinator import Coordinator
from .coordination.main_thread import to_its_end
from .coordination.options import checked
from .dialects.failures import shown_url
from .errors import UnsupportedError, shown
from .inspection import CHECK_SECONDS, Inspector
from .lock import AsyncLock, Lock
from .sessions.engines import async_engine_of, engine_of
from .sessions.timeouts import parse_timeout
from .templates import key_maker

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from sqlalchemy import URL, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from .coordination.events import LockEvent
    from .coordination.options import Options
    from .inspection import Finding, LockInfo
    from .templates import KeySource

__all__ = ["AsyncLockProvider", "LockProvider", "OnConflict", "refuse_generator"]

F = TypeVar("F", bound="Callable[..., Any]")
OnConflict: TypeAlias = Literal["raise", "skip"]
"""What the call of a decorated function does when its lock is not free in time."""
log = logging.getLogger("dlock")


class _BaseProvider:
    """What both providers have in common."""

    def __init__(self, engine: Engine, *, owns_engine: bool, options: Options) -> None:
        self._owns_engine = owns_engine
        self._coordinator = Coordinator(engine, options)
        self._inspector = Inspector(self._coordinator)

    def listen(self, listener: Callable[[LockEvent], object]) -> Callable[[], None]:
        """Call a listener with every attempt, acquisition, release and loss of this provider's locks in this process.

        It is called in the thread or task where that happens, and must be quick; its errors are logged.

        Args:
            listener: Called with each event.

        Returns:
            A function that removes the listener.
        """
        return self._coordinator.listeners.add(listener)

    def __repr__(self) -> str:
        url = shown_url(self._coordinator.engine.url)
        return f"<{type(self).__name__} {url}, prefix={self._coordinator.options.prefix!r}>"

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
        on_lost: Called, in a helper thread, with each lock object whose lock was lost, one after the other.
        share_sessions: Hold all locks on one session. Without, each thread or task has one of its own for
            all its locks and waits, so that the server sees deadlocks across processes.
        show_keys: Show readable keys in the database's own views of its sessions.
        allow_unsafe: Accept a server on which a lock may protect nothing, without UnsafeEnvironmentError.
        adapter: What its sessions are called in those views: a short word such as "celery".

    Raises:
        UnsupportedError: The database has no locks for us, or no lease; its driver is async or not installed.
        ValueError: Not a valid database URL, max_sessions below 2, or heartbeat or lease below 1 s.
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
        allow_unsafe: bool = False,
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
            allow_unsafe=allow_unsafe,
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
            timeout: Seconds that `with` and `acquire` wait; None is without limit, 0 one try.
            shared: Share it with others that ask for it shared (readers); exclusive otherwise.
            fencing: Give each grant a number that grows, `fencing_token`; costs a round trip.
            on_lost: Called, in a helper thread, with the lock object when its lock was lost.

        Raises:
            LockKeyError: The key cannot name a lock.
            UnsupportedError: The database has no shared locks, or no fencing tokens; a shared lock has none anywhere.
            ValueError: The timeout is negative or not a number.
        """
        request = self._coordinator.request(key, shared=shared, fencing=fencing)
        return Lock(self._coordinator, request, parse_timeout(timeout), on_lost)

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
        request = self._coordinator.request(key, shared=shared, fencing=fencing)
        return AsyncLock(self._coordinator, request, parse_timeout(timeout), on_lost, cancel_on_lost=cancel_on_lost)

    def held_locks(self) -> list[Lock | AsyncLock]:
        """Return the locks of this provider that this process holds now."""
        return self._coordinator.held_locks()

    def locked(
        self, key: KeySource, *, timeout: float | None = None, shared: bool = False, on_conflict: OnConflict = "raise"
    ) -> Callable[[F], F]:
        """Decorate a function: each call runs under a fresh lock.

        Args:
            key: As for `lock`; in text, `{name}` stands for the function's argument of that name.
                Or a callable that gets the function's arguments and returns the key.
            timeout: Seconds; None is without limit, 0 one try.
            shared: As for `lock`.
            on_conflict: What a call does when the lock is not free in time: "raise" LockTimeoutError, or "skip":
                return None without running, and say so in the log.

        Raises:
            LockTimeoutError: From the decorated function, when the lock is not free in time.
            LockKeyError: The function has no such argument.
            UnsupportedError: The function is a generator, or the database has no shared locks.
            ValueError: The timeout is negative or not a number, or there is no such on_conflict.
        """
        self._coordinator.check_shared(key, shared=shared)
        return _locked(key, parse_timeout(timeout), shared, on_conflict, lock=self.lock, alock=self.alock)

    def inspect(self, key: object | None = None) -> list[LockInfo]:
        """Ask the database which sessions hold locks, and which wait for them.

        It asks on a connection of its own, which works while all locks are held, and for ten seconds at most.

        Args:
            key: Only this key; None is all locks there, those of other applications too.

        Raises:
            NotPermittedError: The database does not show all of it to this user, or is not set up to; the
                message says what to change, `found` is what it did show. An empty list means: no locks.
            LockConnectionError: The database cannot be asked.
        """
        return self._inspector.within_limit(lambda: self._inspector.inspect(key))

    def terminate(self, info: LockInfo, *, whole_session: bool = False) -> bool:
        """End the session of a holder, which frees its locks; its process learns that it lost them.

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

    def check(self) -> list[Finding]:
        """Look for what makes locks unsafe or slow here: poolers, replicas, missing rights, limits, latency.

        Returns:
            What was found, and what is in order.
        """
        return self._inspector.within_limit(lambda: self._inspector.check(BLOCKING), CHECK_SECONDS)

    def close(self) -> None:
        """End all sessions of this provider, and with them its locks; a later `acquire` is LockStateError."""
        to_its_end(self._coordinator.workers, self._coordinator.close)
        if self._owns_engine:
            self._coordinator.engine.dispose()

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
        allow_unsafe: bool = False,
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
            allow_unsafe=allow_unsafe,
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
        request = self._coordinator.request(key, shared=shared, fencing=fencing)
        return AsyncLock(self._coordinator, request, parse_timeout(timeout), on_lost, cancel_on_lost=cancel_on_lost)

    def held_locks(self) -> list[AsyncLock]:
        """Return the locks of this provider that this process holds now."""
        return self._coordinator.held_locks()

    def locked(
        self, key: KeySource, *, timeout: float | None = None, shared: bool = False, on_conflict: OnConflict = "raise"
    ) -> Callable[[F], F]:
        """Decorate an async function: each call runs under a fresh lock; see `LockProvider.locked`."""
        self._coordinator.check_shared(key, shared=shared)
        return _locked(key, parse_timeout(timeout), shared, on_conflict, lock=None, alock=self.lock)

    async def inspect(self, key: object | None = None) -> list[LockInfo]:
        """Ask the database which sessions hold locks; see `LockProvider.inspect`."""
        return await self._inspector.awaited(lambda: self._inspector.inspect(key))

    async def terminate(self, info: LockInfo, *, whole_session: bool = False) -> bool:
        """End the session of a holder; see `LockProvider.terminate`."""
        end = partial(self._inspector.terminate, info, GREENLET, whole_session=whole_session)
        return await self._inspector.awaited(end)

    async def check(self) -> list[Finding]:
        """Look for what makes locks unsafe or slow here; see `LockProvider.check`."""
        return await self._inspector.awaited(lambda: self._inspector.check(GREENLET), CHECK_SECONDS)

    async def close(self) -> None:
        """End all sessions of this provider, and with them its locks."""
        await greenlet_spawn(self._coordinator.close)
        if self._owns_engine:
            await self._engine.dispose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _locked(
    key: KeySource,
    timeout: float | None,
    shared: bool,
    on_conflict: OnConflict,
    *,
    lock: Callable[..., Lock] | None,
    alock: Callable[..., AsyncLock],
) -> Callable[[F], F]:
    """Return the decorator."""
    if on_conflict not in ("raise", "skip"):
        raise ValueError(f"on_conflict={shown(on_conflict)}: give 'raise' or 'skip'")

    def decorate(function: F) -> F:
        refuse_generator(function)
        make_key = key_maker(key, function)
        if inspect.iscoroutinefunction(function):
            return _guard_async(function, make_key, partial(alock, timeout=timeout, shared=shared), on_conflict)
        if lock is None:
            raise UnsupportedError(f"{function.__qualname__} is not async: use LockProvider for it")
        return _guard(function, make_key, partial(lock, timeout=timeout, shared=shared), on_conflict)

    return decorate


def refuse_generator(function: Callable[..., Any]) -> None:
    """Refuse a function whose body runs only after its call has returned.

    Raises:
        UnsupportedError: It is a generator.
    """
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise UnsupportedError(
            f"{function.__qualname__} is a generator: the lock would be released before its body runs; "
            "take the lock inside it"
        )


def _guard(function: F, make_key: Callable[..., Any], lock: Callable[[Any], Lock], on_conflict: OnConflict) -> F:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        held = lock(make_key(*args, **kwargs))
        if on_conflict == "raise":
            with held:
                return function(*args, **kwargs)
        with ExitStack() as stack:
            stack.push(held)  # before the acquisition, so that no signal comes between
            if held.acquire():
                return function(*args, **kwargs)
        log.info("key %s: held elsewhere; %s skipped", shown(held.key), function.__qualname__)
        return None

    return run  # type: ignore[return-value]


def _guard_async(
    function: F, make_key: Callable[..., Any], lock: Callable[[Any], AsyncLock], on_conflict: OnConflict
) -> F:
    @functools.wraps(function)
    async def run(*args: Any, **kwargs: Any) -> Any:
        held = lock(make_key(*args, **kwargs))
        if on_conflict == "raise":
            async with held:
                return await function(*args, **kwargs)
        async with AsyncExitStack() as stack:
            stack.push_async_exit(held)
            if await held.acquire():
                return await function(*args, **kwargs)
        log.info("key %s: held elsewhere; %s skipped", shown(held.key), function.__qualname__)
        return None

    return run  # type: ignore[return-value]
