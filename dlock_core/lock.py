"""Locks: what a user acquires and releases."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import warnings
import weakref
from contextvars import copy_context
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from .contexts import BLOCKING
from .errands import Errand, MainThreadsHelper, in_main_thread
from .errors import LockStateError, LockTimeoutError, shown
from .forgotten import Forgotten
from .manager import log
from .tickets import State, Ticket
from .timeouts import parse_timeout

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from .contexts import Context
    from .keys import Key
    from .manager import Manager
    from .requests import Request

__all__ = ["UNSET", "BaseLock", "Lock", "Unset"]


# How often the undoing of an interrupted wait is repeated until it is heard, in seconds.
INSIST = 0.05


class _Unset(Enum):
    UNSET = "the lock's own timeout"

    def __repr__(self) -> str:
        return "<the lock's own>"


UNSET: Final = _Unset.UNSET
Unset: TypeAlias = Literal[_Unset.UNSET]


class BaseLock:
    """What sync and async locks have in common: everything but the waiting."""

    _ticket: Ticket | None = None
    _since: float | None = None

    def __init__(
        self, manager: Manager, request: Request, timeout: float | None, on_lost: Callable[[Any], object] | None = None
    ) -> None:
        self._manager = manager
        self._request = request
        self._timeout = timeout
        self._on_lost = on_lost
        self._in_use = threading.Lock()

    def __repr__(self) -> str:
        state = "held" if self.held else "lost" if self.lost else "not held"
        return f"<{type(self).__name__} {shown(self.key)}, {state}>"

    @property
    def key(self) -> Key:
        """The key as it was given."""
        return self._request.key

    @property
    def actual_key(self) -> int | str:
        """The database's own name for the lock, which its views show."""
        return self._request.name

    @property
    def held(self) -> bool:
        """Whether this object holds the lock, as far as this process knows."""
        return self._state is State.HELD

    @property
    def lost(self) -> bool:
        """Whether the lock went away while this object held it.

        The server's end of a session shows within milliseconds, a silent network by the provider's
        `heartbeat` or `lease`.
        """
        return self._state is State.LOST

    @property
    def _state(self) -> State:
        ticket = self._ticket
        if ticket is None or ticket.pid != os.getpid():
            return State.GONE
        if ticket.state is State.HELD and ticket.session is not None and ticket.session.expired():
            return State.LOST
        return ticket.state

    @property
    def fencing_token(self) -> int:
        """The number of this grant, greater than that of every earlier holder of the key; see `fence`.

        Raises:
            LockStateError: The lock was not made with `fencing=True`, or it is not held.
        """
        if not self._request.fencing:
            raise self._misuse("no fencing token without fencing=True when the lock is made")
        if self._ticket is None or self._ticket.token is None:
            raise self._misuse("no fencing token while the lock is not held")
        return self._ticket.token

    def disown(self) -> None:
        """Let another thread or task release the lock.

        Without, this one waiting for the key again would be refused as a deadlock.

        Raises:
            LockStateError: The lock is not held.
        """
        if self._ticket is None or not self.held:
            raise self._misuse("disown() on a lock that is not held")
        self._ticket.disown()

    def _acquire(self, context: Context, *, block: bool, timeout: float | Unset | None) -> bool:
        seconds = self._seconds(block=block, timeout=timeout)
        if not self._in_use.acquire(blocking=False):
            raise self._misuse("another thread or task is using this lock object; make one for each use")
        try:
            if self._state is not State.GONE:
                raise self._misuse("acquire() on a lock that this object holds; make one object for each use")
            if self._manager.listeners:
                return self._manager.listeners.asked(self._request, seconds, lambda: self._ask(context, seconds))
            return self._ask(context, seconds)
        finally:
            self._in_use.release()

    def _ask(self, context: Context, seconds: float | None) -> bool:
        ticket = self._ticket = self._manager.ticket(self._request, context, seconds)
        ticket.told = weakref.WeakMethod(self._lost)
        granted = False
        try:
            granted = self._manager.acquire(ticket, self._request, context, seconds)
        finally:
            if not granted:
                self._ticket = None
        if granted:
            self._since = time.monotonic()
            self._log("acquired %s")
        return granted

    def _lost(self) -> None:
        """Tell the user's callbacks; runs in a helper thread."""
        self._tell_end(lost=True)
        for callback in (self._on_lost, self._manager.options.on_lost):
            try:
                if callback is not None:
                    callback(self)
            except Exception:  # noqa: BLE001 - the user's own; nobody above could do more
                log.exception("on_lost for key %s failed", shown(self.key))

    def __del__(self) -> None:
        ticket = self._ticket
        if ticket is None or ticket.state is not State.HELD or ticket.pid != os.getpid() or sys.is_finalizing():
            return
        release = partial(self._manager.release_forgotten, ticket)
        Forgotten(self.key, release, pid=ticket.pid, loop=ticket.loop)()
        warnings.warn(
            f"dlock: key {shown(self.key)}: the lock object became garbage while it held the lock, which is released "
            "now; use `with`, or keep the object and release it",
            ResourceWarning,
            source=self,
            stacklevel=2,
        )

    def _seconds(self, *, block: bool, timeout: float | Unset | None) -> float | None:
        if block:
            return self._timeout if timeout is UNSET else parse_timeout(timeout)
        if timeout is not UNSET:
            raise ValueError(f"timeout={timeout!r} with block=False: one try does not wait; give one of them")
        return 0

    def _release(self, context: Context) -> None:
        ticket, self._ticket = self._ticket, None
        if ticket is None:
            raise self._misuse("release() on a lock that is not held")
        try:
            self._manager.release(ticket, context)
        except Exception:
            self._tell_end(lost=True)
            raise
        self._tell_end(lost=False)
        self._log("released %s")

    def _tell_end(self, *, lost: bool) -> None:
        """Tell the listeners, once for each grant."""
        since, self._since = self._since, None
        if since is not None and self._manager.listeners:
            self._manager.listeners.ended(self._request, since, lost=lost)

    def _log(self, message: str) -> None:
        if log.isEnabledFor(logging.DEBUG):
            log.debug(message, shown(self.key))

    def _enter(self, context: Context) -> None:
        if not self._acquire(context, block=True, timeout=UNSET):
            raise LockTimeoutError(
                f"key {shown(self.key)}: not free within {self._timeout} s; try again later, or wait longer",
                key=self.key,
                timeout=self._timeout,
                waited=self._timeout,
            )

    def _exit(self, context: Context, error: BaseException | None) -> None:
        """Release what is still held, without ever hiding the body's own exception."""
        if self._ticket is None:
            return
        try:
            self._release(context)
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"dlock: and then the release of key {shown(self.key)} failed: {failure}")
            log.exception("release of key %s failed", shown(self.key))

    def _misuse(self, what: str) -> LockStateError:
        return LockStateError(f"key {shown(self.key)}: {what}", key=self.key)


class Lock(BaseLock):
    """A lock for threads; make one for each use with `LockProvider.lock`.

    `with lock:` acquires it, or raises LockTimeoutError when its time is over, and releases it at the end. It is not
    re-entrant. An object that becomes garbage while it holds the lock releases it, with a ResourceWarning.
    """

    def acquire(self, block: bool = True, timeout: float | Unset | None = UNSET) -> bool:
        """Acquire the lock.

        Args:
            block: False tries once.
            timeout: Seconds; None waits for ever, 0 tries once. Default: the lock's own.

        Returns:
            Whether the lock is held now.

        Raises:
            LockStateError: This object holds it already, is in use by another thread, or its provider is closed.
            DeadlockError: The wait could never end.
            LockConnectionError: The database cannot be asked.
            UnsafeEnvironmentError: A lock there would protect nothing.
            ValueError: The timeout is negative or not a number, or comes with block=False.
        """
        if not in_main_thread():
            return self._acquire(BLOCKING, block=block, timeout=timeout)
        errand = self._errand(partial(self._acquire, MAIN_THREAD, block=block, timeout=timeout))
        try:
            granted: bool = errand.result()
        except BaseException as error:
            errand.end(error)
            raise
        return granted

    def release(self) -> None:
        """Release the lock.

        Raises:
            LockStateError: It is not held.
            LockLostError: The server did not hold it for us any more; somebody else may have held it.
        """
        self._leave(self._release)

    def close(self) -> None:
        """Release the lock if it is held."""
        self._leave(partial(self._exit, error=None))

    def __enter__(self) -> Self:
        """Acquire, or raise LockTimeoutError."""
        if not in_main_thread():
            self._enter(BLOCKING)
            return self
        errand = self._errand(partial(self._enter, MAIN_THREAD))
        try:
            errand.result()
        except BaseException as error:
            errand.end(error)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave(partial(self._exit, error=error))

    def _errand(self, work: Callable[[], Any]) -> Errand:
        if self._manager.listeners:  # who traces wants to know what it belongs to
            work = partial(copy_context().run, work)
        return Errand(self._manager.workers, work, self._withdraw)

    def _withdraw(self, errand: Errand) -> None:
        """Undo an acquisition, under way or finished."""
        if errand.call_off():
            return
        while not errand.over(INSIST):
            if (ticket := self._ticket) is not None:
                self._manager.withdraw(ticket)
        if errand.succeeded:
            self._exit(BLOCKING, None)

    def _leave(self, release: Callable[[Context], None]) -> None:
        """Release; when a signal calls the main thread away, a helper goes on with it."""
        if not in_main_thread():
            release(BLOCKING)
            return
        errand = Errand(
            self._manager.workers,
            partial(release, BLOCKING),
            lambda errand: release(BLOCKING) if errand.call_off() else errand.over(),
        )
        try:
            errand.result()
        except BaseException as error:
            errand.end(error)
            raise


MAIN_THREAD = MainThreadsHelper()
