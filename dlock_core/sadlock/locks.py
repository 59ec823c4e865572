"""The locks that sqlalchemy-dlock 0.9's interface makes: one for threads, one for tasks."""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session
from sqlalchemy.util import greenlet_spawn

from ..coordination.contexts import BLOCKING, GREENLET
from ..coordination.main_thread import MainThreadCall, helpers, in_main_thread
from ..coordination.state import Request
from ..dialects.base import TRANSACTION
from ..errors import LockLostError, LockStateError, shown
from ..lock import LockObject
from ..sessions.timeouts import parse_timeout
from ..sessions.workers import INSIST
from .connection import Hold, acquire_on
from .own import ModeHold, OwnHold, acquire_apart, acquire_in_mode
from .wanted import KNOWN_BY, Options, Place, Wanted, actual_key, readable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

    from sqlalchemy import Dialect

    from ..coordination.contexts import Context

__all__ = ["A", "AsyncSadLock", "S", "SadLock"]

log = logging.getLogger("dlock")

ConnectionOrSession: TypeAlias = Connection | Session | scoped_session[Any]
AsyncConnectionOrSession: TypeAlias = AsyncConnection | AsyncSession | async_scoped_session[Any]
AnyHold: TypeAlias = Hold | OwnHold | ModeHold
G = TypeVar("G")
S = TypeVar("S", bound=ConnectionOrSession)
A = TypeVar("A", bound=AsyncConnectionOrSession)

# How long a question or release may last on, in a helper thread, when a signal has called the main thread away:
# it is over by itself within the first of these intervals, or withdrawn at each of them. In seconds.
UNLOCKED_IN_TIME = 5 * INSIST


def helped(work: Callable[[], Any], undo: Callable[[MainThreadCall], object]) -> MainThreadCall:
    """Let a helper thread do the main thread's work; see `coordination/main_thread.py`."""
    # The caller's listeners on SQLAlchemy's events may want to know what the work belongs to.
    return MainThreadCall(helpers, partial(copy_context().run, work), undo)


class BaseSadLock(LockObject, Generic[G]):
    """One lock, one acquisition at a time: everything but the waiting."""

    def __init__(
        self,
        given: G,
        dialect: Dialect,
        key: Any,
        *,
        contextual_timeout: float | None,
        convert: Callable[[Any], int | str] | None,
        options: Options,
    ) -> None:
        options.check(dialect, key)
        request = Request(key, actual_key(dialect, key, convert), readable(key), bool(options.shared))
        super().__init__(request, _seconds(contextual_timeout))
        self._given = given
        self._wanted = Wanted(request=request, mode=options.mode(dialect, key), options=options)
        self._shows_mode = dialect.name in KNOWN_BY["lock_mode"]
        self._hold: AnyHold | None = None
        self._upgraded: AnyHold | None = None

    def __repr__(self) -> str:
        state = "locked" if self.locked else "unlocked"
        return f"<{state} {type(self).__name__} actual_key={self.actual_key!r} at {id(self):#x}>"

    @property
    def connection_or_session(self) -> G:
        """What the caller gave."""
        return self._given

    @property
    def shared(self) -> bool:
        """Whether others may hold it too, if they ask for it shared."""
        return self._request.shared

    @property
    def xact(self) -> bool:
        """Whether it ends with the transaction."""
        return bool(self._wanted.options.xact)

    @property
    def update(self) -> bool:
        """Whether it is held beside shared ones, alone among its kind, and may become exclusive by `upgrade`."""
        return bool(self._wanted.options.update)

    @property
    def lock_mode(self) -> str | None:
        """SQL Server's or Oracle's mode that was asked for; None on other databases."""
        return self._wanted.mode if self._shows_mode else None

    @property
    def release_on_commit(self) -> bool:
        """Whether it ends with the transaction, if it is not released before."""
        return bool(self._wanted.options.release_on_commit)

    @property
    def locked(self) -> bool:
        """Whether this object holds the lock, as far as this process knows."""
        hold = self._hold
        return hold is not None and hold.pid == os.getpid() and hold.alive

    def _current(self) -> Connection | Session:
        """Return the caller's connection or session, in SQLAlchemy's sync form; a scoped session has one a scope."""
        raise NotImplementedError

    def _place(self) -> Place:
        return Place(self._current(), in_transaction=self._wanted.options.scope == TRANSACTION)

    def _acquire(self, context: Context, timeout: float | None, place: Place | None = None) -> bool:
        place = place or self._place()
        hold = None
        try:
            with self._asking(context, timeout):
                self._check_free()
                place.connect()
                hold = self._hold = self._take(place)
        finally:
            if hold is None:
                place.leave()
        if hold is not None:
            log.debug("acquired %s", shown(self._request.key))
        return hold is not None

    @contextmanager
    def _asking(self, context: Context, timeout: float | None) -> Iterator[None]:
        if not self._in_use.acquire(blocking=False):
            raise self._misuse("another thread or task is using this lock object; make one for each use")
        try:
            self._wanted.context, self._wanted.timeout = context, timeout
            yield
        finally:
            self._wanted.stop = None
            self._in_use.release()

    def _check_free(self) -> None:
        hold = self._hold
        if hold is None or hold.pid != os.getpid():
            return
        if hold.alive:
            raise self._misuse("acquire() on a lock that this object holds; make one object for each use")
        if hold.scope != TRANSACTION:
            raise self._misuse("acquire() on a lock that was lost; release() or close() it first, which says how")

    def _take(self, place: Place) -> AnyHold | None:
        """Take the lock where it belongs."""
        subject, bind, wanted = place.subject, place.bind, self._wanted
        if not isinstance(bind, Connection):
            return (acquire_in_mode if wanted.options.named_mode else acquire_apart)(bind, subject, wanted)
        if bind.dialect.name == "sqlite":
            return acquire_apart(bind.engine, bind, wanted)
        return acquire_on(bind, subject, wanted)

    def _upgrade(self, context: Context, timeout: float | None) -> bool:
        if not self.update:
            raise self._misuse("upgrade() is for a lock made with update=True, of which there is one at a time")
        with self._asking(context, timeout):
            hold = self._hold
            if hold is None or not self.locked:
                raise self._misuse("upgrade() on a lock that is not held")
            if self._upgraded is hold:
                raise self._misuse("upgrade() on a lock that is exclusive already")
            assert isinstance(hold, Hold | ModeHold), "update is a mode of its own"
            upgraded = hold.upgrade(self._wanted)
            if upgraded:
                self._upgraded = hold
        return upgraded

    def _release(self) -> None:
        hold = self._hold
        if hold is None or (hold.scope == TRANSACTION and not hold.alive):
            raise self._misuse("release() on a lock that is not held")
        if hold.pid == os.getpid():  # a forked child's copy: the lock is the parent's
            if hold.scope != TRANSACTION:
                self._hold = None
            hold.release(self._request.key)
            log.debug("released %s", shown(self._request.key))
        self._hold = None

    def _release_amid(self, error: BaseException | None) -> None:
        """Release while an exception is under way, None for none.

        A cancel or Ctrl-C in a statement ends its connection, and the lock with it: that is no loss.
        """
        try:
            self._release()
        except LockLostError as lost:
            if error is None or isinstance(error, Exception):
                raise
            log.debug("released with its connection: %s", lost)

    def _close(self, error: BaseException | None) -> None:
        if self._hold is not None and self._hold.to_be_released:
            self._release_amid(error)

    def _exit(self, error: BaseException | None) -> None:
        """Release what is still held, without ever hiding the body's own exception."""
        try:
            self._close(error)
        except Exception as failure:  # noqa: BLE001 - it is raised or noted
            self._note_failure(failure, error)


class SadLock(BaseSadLock[S]):
    """A lock on a connection or session of the caller's; made by `create_sadlock`.

    `with lock:` acquires it, or raises LockTimeoutError after `contextual_timeout`, and releases it at the end.
    """

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Acquire the lock.

        Args:
            block: False tries once, whatever the timeout.
            timeout: Seconds; None waits without limit, 0 or less tries once.

        Returns:
            Whether the lock is held now.

        Raises:
            LockStateError: This object holds it already, or another thread is using it.
            DeadlockError: The wait could never end.
            LockConnectionError: The database cannot be asked; the connection is invalid then.
            UnsafeEnvironmentError: A lock there would protect nothing.
            ValueError: The timeout is not a number.
        """
        seconds = _seconds(timeout) if block else 0
        if not in_main_thread():
            return self._acquire(BLOCKING, seconds)
        call = self._call_to_acquire(seconds)
        try:
            granted: bool = call.result()
        except BaseException as error:
            call.end(error)
            raise
        return granted

    def upgrade(self, timeout: float | None = None) -> bool:
        """Turn a lock with update=True into an exclusive one, when all that share it have left.

        In vain, and after an error that is no loss, it is held as before. Its release releases both.

        Args:
            timeout: Seconds; None waits without limit, 0 or less tries once.

        Returns:
            Whether it is exclusive now.

        Raises:
            LockStateError: It is not held, exclusive already, or not an update lock.
            LockLostError: The server says that it was lost.
            DeadlockError: The wait could never end.
        """
        work = partial(self._upgrade, BLOCKING, _seconds(timeout))
        return bool(helped(work, self._withdraw).outcome() if in_main_thread() else work())

    def release(self) -> None:
        """Release the lock.

        Raises:
            LockStateError: It is not held, or it ends with its transaction (xact=True).
            LockLostError: It was lost while we held it; another holder may have had it.
        """
        self._leave(self._release_amid, sys.exception())

    def close(self) -> None:
        """Release the lock if it is held; leave one with xact=True to its transaction."""
        self._leave(self._close, sys.exception())

    def __enter__(self) -> Self:
        """Acquire, or raise LockTimeoutError after `contextual_timeout`."""
        started = time.monotonic()
        if not in_main_thread():
            granted = self._acquire(BLOCKING, self._timeout)
        else:
            call = self._call_to_acquire(self._timeout)
            try:
                granted = call.result()
            except BaseException as error:
                call.end(error)
                raise
        if not granted:
            raise self._timed_out(started)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave(self._exit, error)

    def _current(self) -> Connection | Session:
        return self._given() if isinstance(self._given, scoped_session) else self._given

    def _call_to_acquire(self, timeout: float | None) -> MainThreadCall:
        place = self._place()
        return helped(partial(self._acquire, BLOCKING, timeout, place), partial(self._undo, place))

    def _undo(self, place: Place, call: MainThreadCall) -> None:
        """Undo an acquisition, under way or finished."""
        try:
            self._withdraw(call)
            if call.succeeded:
                self._close(None)
        finally:
            place.leave()

    def _withdraw(self, call: MainThreadCall) -> None:
        """End a question, so that no other thread uses the caller's connection when the main thread goes on."""
        if call.call_off():
            return
        while not call.over(INSIST):
            if (stop := self._wanted.stop) is not None:
                stop()

    def _leave(self, release: Callable[[BaseException | None], None], amid: BaseException | None) -> None:
        """Release; when a signal calls the main thread away, a helper does it or goes on with it."""
        call = None
        try:
            if not in_main_thread():
                release(amid)
                return
            call = self._call_to_release(partial(release, amid))
            call.result()
        except BaseException as error:
            if in_main_thread():
                (call or self._call_to_release(partial(release, amid))).end(error)
            raise

    def _call_to_release(self, release: Callable[[], None]) -> MainThreadCall:
        return helped(release, partial(self._see_released, self._hold, release))

    @staticmethod
    def _see_released(hold: AnyHold | None, release: Callable[[], None], call: MainThreadCall) -> None:
        if call.call_off():
            release()
            return
        seconds = UNLOCKED_IN_TIME
        while not call.over(seconds):
            seconds = INSIST
            if hold is not None:
                hold.withdraw()


class AsyncSadLock(BaseSadLock[A]):
    """A lock on an async connection or session of the caller's; made by `create_async_sadlock`.

    `async with lock:` acquires it, or raises LockTimeoutError after `contextual_timeout`, and releases it at the end.
    """

    async def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Acquire the lock; see `SadLock.acquire`. A cancelled task leaves nothing held."""
        return await greenlet_spawn(self._acquire, GREENLET, _seconds(timeout) if block else 0)

    async def upgrade(self, timeout: float | None = None) -> bool:
        """Turn a lock with update=True into an exclusive one; see `SadLock.upgrade`."""
        return await greenlet_spawn(self._upgrade, GREENLET, _seconds(timeout))

    async def release(self) -> None:
        """Release the lock; see `SadLock.release`."""
        await greenlet_spawn(self._release_amid, sys.exception())

    async def aclose(self) -> None:
        """Release the lock if it is held; leave one with xact=True to its transaction."""
        await greenlet_spawn(self._close, sys.exception())

    async def __aenter__(self) -> Self:
        """Acquire, or raise LockTimeoutError after `contextual_timeout`."""
        started = time.monotonic()
        if not await greenlet_spawn(self._acquire, GREENLET, self._timeout):
            raise self._timed_out(started)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await greenlet_spawn(self._exit, error)

    def _current(self) -> Connection | Session:
        given = self._given() if isinstance(self._given, async_scoped_session) else self._given
        if isinstance(given, AsyncSession):
            return given.sync_session
        if given.sync_connection is None:
            raise LockStateError("this AsyncConnection has not been started: await it, or use it in `async with`")
        return given.sync_connection


def _seconds(timeout: object) -> float | None:
    """Read a timeout as sqlalchemy-dlock does: below 0 is one try."""
    negative = isinstance(timeout, Real) and not isinstance(timeout, bool) and timeout < 0
    return parse_timeout(0 if negative else timeout)
