"""Handles: what `with dlock.lock(key) as handle:` gives, for threads and for tasks."""

from __future__ import annotations

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from flask import g, has_app_context

from dlock_core import AsyncLock, Lock, LockLostError, LockStateError, LockTimeoutError
from dlock_core.adapters import UNSET, Acquisition, holder_of, shown

from .conflict import STATUSES, LockConflict
from .signals import lock_acquired, lock_conflict, lock_lost, lock_released, send

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator
    from types import TracebackType
    from typing import Self

    from .settings import Options
    from .state import AppState

__all__ = ["AsyncHandle", "BaseHandle", "Handle", "handles_here"]

L = TypeVar("L", Lock, AsyncLock)
log = logging.getLogger("dlock.flask")
# The one name that we use on `flask.g`.
IN_CONTEXT = "_dlock_handles"


def handles_here() -> list[BaseHandle[Any]]:
    """Return the handles with a lock in this application context, in the order in which they got it."""
    found: list[BaseHandle[Any]] = g.get(IN_CONTEXT, []) if has_app_context() else []
    return found


def _owner() -> object:
    """Return the owner, as the core sees it: the task, else the thread."""
    try:
        return asyncio.current_task() or threading.current_thread()
    except RuntimeError:
        return threading.current_thread()


@dataclass(eq=False)
class Grant(Generic[L]):
    """One lock at the database, and how many handles of its owner are inside it."""

    lock: L
    place: tuple[str | None, object]
    taken: Acquisition
    shared: bool
    owner: object = field(default_factory=_owner)
    handles: int = 1

    def admits(self, place: tuple[str | None, object], *, shared: bool) -> bool:
        """Tell whether the current owner is inside already."""
        return self.place == place and self.owner is _owner() and self.lock.held and (shared or not self.shared)


class BaseHandle(Generic[L]):
    """What both handles have in common: everything but the waiting.

    Attributes:
        key: The key as it was given.
        waited: Seconds that the lock was waited for.
    """

    key: object
    waited: float

    def __init__(self, state: AppState, key: object, options: Options) -> None:
        self.key = key
        self.waited = 0.0
        self._state = state
        self._options = options
        self._provider = state.provider(options.bind)
        self._asked = False
        self._crowded = False
        self.until_context_ends = False
        self._handed_over = False
        self._grant: Grant[L] | None = None
        self._listed: list[BaseHandle[Any]] = []

    def __repr__(self) -> str:
        state = "held" if self.held else "lost" if self.lost else "not held"
        return f"<{type(self).__name__} {shown(self.key)}, {state}>"

    def __bool__(self) -> bool:
        """Whether the lock is held, for `with dlock.try_lock(key) as handle: if handle: ...`."""
        if not self._asked:
            raise LockStateError(f"key {shown(self.key)}: not asked for yet; use `with`, and the handle inside it")
        return self.held

    @property
    def held(self) -> bool:
        """Whether this handle has the lock, as far as this process knows."""
        return self._grant is not None and self._grant.lock.held

    @property
    def lost(self) -> bool:
        """Whether the lock went away while this handle had it."""
        return self._grant is not None and self._grant.lock.lost

    @property
    def fencing_token(self) -> int:
        """The number of this grant, greater than that of every earlier holder of the key.

        Raises:
            LockStateError: The lock is not held, or was asked for without `fencing=True`.
        """
        token: int = self._held_grant().lock.fencing_token
        return token

    def _held_grant(self) -> Grant[L]:
        if self._grant is None:
            raise LockStateError(f"key {shown(self.key)}: this handle does not have the lock", key=self.key)
        return self._grant

    @property
    def _timeout(self) -> float | None:
        timeout = self._options.timeout
        return self._state.settings.timeout if timeout is UNSET else timeout

    def _lock_options(self, taken: Acquisition) -> dict[str, Any]:
        options = self._options
        return {
            "timeout": self._timeout,
            "shared": options.shared,
            "fencing": options.fencing,
            "on_lost": lambda _: send(lock_lost, self._state.app, lock=self, **taken.ended()),
        }

    def _join(self) -> bool:
        """Reuse the grant this request already holds (reentrant=True)."""
        if self._grant is not None:
            raise LockStateError(
                f"key {shown(self.key)}: this handle has the lock; make one for each use", key=self.key
            )
        self._asked = True
        place = (self._options.bind, self.key)
        inside = [one._grant for one in handles_here() if one._grant is not None]  # noqa: SLF001 - of this class
        found = next((one for one in inside if one.admits(place, shared=self._options.shared)), None)
        if not self._options.reentrant or found is None:
            return False
        found.handles += 1
        self._grant = found
        self._list()
        return True

    def _list(self) -> None:
        """Let the application context know, where there is one; a plain generator has none."""
        if has_app_context():
            self._listed = g.setdefault(IN_CONTEXT, [])
            self._listed.append(self)

    def _timeouts(self) -> Generator[float | None]:
        """Yield how long to try, in turn; a lock that is free needs no seat in the waiting room."""
        room = self._state.room
        if self._timeout == 0 or room.limit is None:
            yield self._timeout
            return
        yield 0
        if not room.enter():
            self._crowded = True
            return
        try:
            yield self._timeout
        finally:
            room.leave()

    def _granted(self, lock: L, taken: Acquisition) -> None:
        facts = taken.acquired()
        self.waited = facts["waited"]
        self._grant = Grant(lock, (self._options.bind, self.key), taken, self._options.shared)
        self._list()
        send(lock_acquired, self._state.app, **facts)

    def _refused(self, taken: Acquisition) -> None:
        """Answer that the lock is held elsewhere, as the options say."""
        facts = taken.conflict()
        self.waited = facts["waited"]
        log.info("key %s: the lock is held elsewhere; waited %.3f s", shown(self.key), self.waited)
        send(lock_conflict, self._state.app, **facts)
        match self._options.on_conflict:
            case "abort":
                raise self._conflict()
            case "raise":
                raise LockTimeoutError(
                    f"key {shown(self.key)}: not free within {self._timeout} s; try again later, or wait longer",
                    key=self.key,
                    timeout=self._timeout,
                    waited=self.waited,
                )

    def _conflict(self) -> LockConflict:
        settings, options = self._state.settings, self._options
        status = 503 if self._crowded else options.status or settings.conflict_status
        retry_after = settings.retry_after if options.retry_after is UNSET else options.retry_after
        description = self._detailed() if self._state.app.debug else None
        return STATUSES[status](description, key=self.key, waited=self.waited, retry_after=retry_after)

    def _detailed(self) -> str:
        """Return what only a developer may read."""
        if self._crowded:
            return f"key {shown(self.key)}: DLOCK_MAX_WAITERS={self._state.room.limit} requests wait already."
        holder = self.holder()
        by = f"held by {holder}" if holder else "and its holder is not known"
        return f"key {shown(self.key)}: not free after {self.waited:.3f} s, {by}. Debug mode says this."

    def holder(self) -> str:
        """Return the session that holds the key, in words; "" if unknown. It asks the database."""
        return holder_of(self._provider, self.key)

    @contextmanager
    def _leaving(self, error: BaseException | None) -> Generator[Lock | AsyncLock | None]:
        """Leave the grant; give its lock if it is to be released now, and then send the signal, unless it was lost.

        The last handle releases; after `hand_over` only an error does, since the answer will not be streamed then.
        """
        grant = self._grant
        if grant is None or (self._handed_over and error is None):
            yield None
            return
        self._grant = None
        if self in self._listed:
            self._listed.remove(self)
        grant.handles -= 1
        if grant.handles:
            yield None
            return
        lost = grant.lock.lost
        try:
            yield grant.lock
        except LockLostError:
            lost = True
            raise
        finally:
            if not lost:
                send(lock_released, self._state.app, **grant.taken.ended())

    def hand_over(self) -> None:
        """Let a streamed body release, in whatever thread it ends.

        Raises:
            LockLostError: There is nothing to hand over any more.
        """
        if self.lost:
            self.finish()
        self._held_grant().lock.disown()
        self._handed_over = True
        self.until_context_ends = False

    def finish(self) -> None:
        """Release, from wherever the context or the streamed body ends."""
        raise NotImplementedError


class Handle(BaseHandle[Lock]):
    """A lock for one `with` of a thread; made by `DLock.lock`, `try_lock` and `hold`.

    It is true while it has the lock.
    """

    def __enter__(self) -> Self:
        """Acquire.

        Raises:
            LockConflict: It is held elsewhere.
            DeadlockError: This thread has it, and asked to wait for it.
            LockConnectionError: The database cannot be asked.
        """
        if not self._join():
            taken = Acquisition(self.key, bind=self._options.bind)
            lock = self._provider.lock(self.key, **self._lock_options(taken))
            try:
                with closing(self._timeouts()) as timeouts:
                    granted = any(lock.acquire(timeout=timeout) for timeout in timeouts)
                self._granted(lock, taken) if granted else self._refused(taken)
            except BaseException:
                lock.close()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release; raise LockLostError if the lock was lost and nothing else is raised."""
        with self._leaving(error) as lock:
            if isinstance(lock, AsyncLock):  # a task's, which this handle has joined and left last
                _run_elsewhere(lock.__aexit__(kind, error, traceback))
            elif lock is not None:
                lock.__exit__(kind, error, traceback)

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
            taken = Acquisition(self.key, bind=self._options.bind)
            lock = self._provider.alock(self.key, **self._lock_options(taken))
            try:
                await self._ask(lock, taken)
            except BaseException:
                await lock.close()
                raise
        return self

    async def _ask(self, lock: AsyncLock, taken: Acquisition) -> None:
        with closing(self._timeouts()) as timeouts:
            for timeout in timeouts:
                if await lock.acquire(timeout=timeout):
                    self._granted(lock, taken)
                    return
        self._refused(taken)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release; see `Handle.__exit__`."""
        with self._leaving(error) as lock:
            if isinstance(lock, Lock):  # a thread's, which this handle has joined and left last
                await asyncio.to_thread(lock.__exit__, kind, error, traceback)
            elif lock is not None:
                await lock.__aexit__(kind, error, traceback)

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
