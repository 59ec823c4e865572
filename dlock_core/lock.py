"""Locks: what a user acquires and releases."""

from __future__ import annotations

import logging
import os
import threading
from enum import Enum
from typing import TYPE_CHECKING, Final, Literal

from .contexts import BLOCKING, MainThread
from .errors import LockStateError, LockTimeoutError, shown
from .manager import log
from .tickets import State, Ticket
from .timeouts import parse_timeout

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from .contexts import Context
    from .keys import Key
    from .manager import Manager
    from .requests import Request

__all__ = ["UNSET", "BaseLock", "Lock", "Unset"]


class _Unset(Enum):
    UNSET = "the lock's own timeout"

    def __repr__(self) -> str:
        return "<the lock's own>"


UNSET: Final = _Unset.UNSET
Unset = Literal[_Unset.UNSET]


class BaseLock:
    """What sync and async locks have in common: everything but the waiting."""

    def __init__(self, manager: Manager, request: Request, timeout: float | None) -> None:
        self._manager = manager
        self._request = request
        self._timeout = timeout
        self._in_use = threading.Lock()
        self._ticket: Ticket | None = None

    def __repr__(self) -> str:
        state = "held" if self.held else "lost" if self.lost else "not held"
        return f"<{type(self).__name__} {shown(self.key)}, {state}>"

    @property
    def key(self) -> Key:
        """The key as it was given."""
        return self._request.key

    @property
    def actual_key(self) -> int | str:
        """The database's own name for the lock: what its views show."""
        return self._request.name

    @property
    def held(self) -> bool:
        """Whether this object holds the lock, as far as this process knows."""
        return self._state is State.HELD

    @property
    def lost(self) -> bool:
        """Whether the lock went away while this object held it."""
        return self._state is State.LOST

    @property
    def _state(self) -> State:
        ticket = self._ticket
        return State.GONE if ticket is None or ticket.pid != os.getpid() else ticket.state

    @property
    def fencing_token(self) -> int:
        """The number of this grant: greater than that of every earlier holder of the key.

        Raises:
            LockStateError: The lock was not made with `fencing=True`, or it is not held.
        """
        if not self._request.fencing:
            raise self._misuse("no fencing token without fencing=True when the lock is made")
        if self._ticket is None or self._ticket.token is None:
            raise self._misuse("no fencing token while the lock is not held")
        return self._ticket.token

    def disown(self) -> None:
        """Say that another thread or task will release, so that this one may wait for the key.

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
            self._ticket = self._manager.acquire(self._request, context, seconds)
        finally:
            self._in_use.release()
        if self._ticket is not None:
            self._log("acquired %s")
        return self._ticket is not None

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
        self._manager.release(ticket, context)
        self._log("released %s")

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
    """A lock for threads; make one for each use with `LockProvider.lock`."""

    def acquire(self, block: bool = True, timeout: float | Unset | None = UNSET) -> bool:
        """Acquire the lock.

        Args:
            block: False tries once.
            timeout: Seconds; None waits for ever, 0 tries once. Default: the lock's own.

        Returns:
            Whether the lock is held now.

        Raises:
            LockStateError: This object holds it already.
            DeadlockError: The wait could never end.
            LockConnectionError: The database cannot be asked.
            ValueError: The timeout is negative or not a number, or comes with block=False.
        """
        return self._acquire(self._context(), block=block, timeout=timeout)

    def release(self) -> None:
        """Release the lock.

        Raises:
            LockStateError: It is not held.
            LockLostError: The server did not hold it for us any more; somebody else may have held it.
        """
        self._release(BLOCKING)

    def close(self) -> None:
        """Release the lock if it is held."""
        self._exit(BLOCKING, None)

    def __enter__(self) -> Self:
        """Acquire, or raise LockTimeoutError."""
        self._enter(self._context())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exit(BLOCKING, error)

    def _context(self) -> Context:
        """Return how this thread waits: signals arrive in the main thread, whatever a driver does at the server."""
        if threading.current_thread() is threading.main_thread() and self._manager.locks.capabilities.server_waits:
            return MainThread(self._manager.workers)
        return BLOCKING
