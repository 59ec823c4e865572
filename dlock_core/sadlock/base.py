"""What the sync and async locks of this package have in common: everything but the waiting."""

from __future__ import annotations

import logging
import os
import threading
from numbers import Real
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from sqlalchemy import Connection

from ..errors import LockLostError, LockStateError, LockTimeoutError, shown
from ..requests import Request
from ..timeouts import Deadline, parse_timeout
from .alone import acquire_alone
from .connections import acquire_on
from .modes import mode_of
from .names import actual_key, readable
from .own import acquire_apart
from .questions import Ask
from .transactions import acquire_in_transaction

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from sqlalchemy import Dialect
    from sqlalchemy.orm import Session

    from ..contexts import Context
    from .options import Options

__all__ = ["BaseSadLock", "Caller"]

log = logging.getLogger("dlock")
G = TypeVar("G")


class Caller(Protocol):
    """Who asks: the caller's connection or session, in the sync form that SQLAlchemy has of each."""

    dialect: Dialect

    def current(self) -> Connection | Session:
        """Return it; a scoped session has one for each scope."""
        ...


class Hold(Protocol):
    """A lock that is held, or was."""

    pid: int
    ends_with_transaction: bool

    @property
    def alive(self) -> bool:
        """Whether it is held, as far as this process knows."""
        ...

    @property
    def to_be_released(self) -> bool:
        """Whether leaving `with` releases it."""
        ...

    def release(self, key: object) -> None:
        """Unlock."""
        ...


class BaseSadLock(Generic[G]):
    """One lock, one acquisition at a time."""

    def __init__(
        self,
        given: G,
        caller: Caller,
        key: Any,
        *,
        contextual_timeout: float | None,
        convert: Callable[[Any], int | str] | None,
        options: Options,
    ) -> None:
        options.check(caller.dialect, key)
        self._mode = mode_of(caller.dialect.name, options, key)
        self._given = given
        self._caller = caller
        self._options = options
        self._contextual_timeout = _seconds(contextual_timeout)
        self._request = Request(key, actual_key(caller.dialect, key, convert), readable(key), bool(options.shared))
        self._in_use = threading.Lock()
        self._hold: Hold | None = None
        self._upgraded_hold: Hold | None = None

    def __repr__(self) -> str:
        state = "locked" if self.locked else "unlocked"
        return f"<{state} {type(self).__name__} actual_key={self.actual_key!r} at {id(self):#x}>"

    @property
    def connection_or_session(self) -> G:
        """What the caller gave."""
        return self._given

    @property
    def actual_key(self) -> int | str:
        """The database's own name for the lock."""
        return self._request.name

    @property
    def shared(self) -> bool:
        """Whether others may hold it too, if they ask for it shared."""
        return self._request.shared

    @property
    def xact(self) -> bool:
        """Whether it ends with the transaction."""
        return bool(self._options.xact)

    @property
    def update(self) -> bool:
        """Whether it is held beside shared ones, alone among its kind, and may become exclusive by `upgrade`."""
        return bool(self._options.update)

    @property
    def lock_mode(self) -> str | None:
        """SQL Server's or Oracle's mode that was asked for; None on other databases."""
        return self._mode

    @property
    def release_on_commit(self) -> bool:
        """Whether it ends with the transaction, if it is not released before."""
        return bool(self._options.release_on_commit)

    @property
    def locked(self) -> bool:
        """Whether this object holds the lock, as far as this process knows."""
        hold = self._hold
        return hold is not None and hold.pid == os.getpid() and hold.alive

    def _acquire(self, context: Context, *, block: bool, timeout: float | None) -> bool:
        seconds = _seconds(timeout) if block else 0
        if not self._in_use.acquire(blocking=False):
            self._misuse("another thread or task is using this lock object; make one for each use")
        try:
            self._check_free()
            self._hold = self._take(context, seconds)
        finally:
            self._in_use.release()
        if self._hold is not None:
            log.debug("acquired %s", shown(self._request.key))
        return self._hold is not None

    def _check_free(self) -> None:
        hold = self._hold
        if hold is None or hold.pid != os.getpid():
            return
        if hold.alive:
            self._misuse("acquire() on a lock that this object holds; make one object for each use")
        if not hold.ends_with_transaction:
            self._misuse("acquire() on a lock that was lost; release() or close() it first, which says how")

    def _take(self, context: Context, timeout: float | None) -> Hold | None:
        """Take the lock where it belongs, see the modules of the three functions."""
        subject, ask = self._caller.current(), self._asked(context, timeout)
        if self.xact or self.release_on_commit:
            return acquire_in_transaction(subject, ask)
        bind = subject if isinstance(subject, Connection) else subject.get_bind()
        if not isinstance(bind, Connection):
            apart = acquire_alone if self.update or self._options.lock_mode is not None else acquire_apart
            return apart(bind, subject, ask)
        if bind.dialect.name == "sqlite":
            return acquire_apart(bind.engine, bind, ask)
        return acquire_on(bind, None if isinstance(subject, Connection) else subject, ask)

    def _asked(self, context: Context, timeout: float | None) -> Ask:
        return Ask(self._request, self.xact, context, timeout, self._mode, self.release_on_commit)

    def _upgrade(self, context: Context, timeout: float | None) -> bool:
        seconds = _seconds(timeout)
        if not self.update:
            self._misuse("upgrade() is for a lock made with update=True, which nobody else can be upgrading")
        if not self._in_use.acquire(blocking=False):
            self._misuse("another thread or task is using this lock object; make one for each use")
        try:
            if self._hold is None or not self.locked:
                self._misuse("upgrade() on a lock that is not held")
            if self._upgraded_hold is self._hold:
                self._misuse("upgrade() on a lock that is exclusive already")
            upgraded: bool = self._hold.upgrade(self._asked(context, seconds))  # type: ignore[attr-defined]
            if upgraded:
                self._upgraded_hold = self._hold
        finally:
            self._in_use.release()
        return upgraded

    def _enter(self, context: Context) -> None:
        deadline = Deadline(self._contextual_timeout)
        if not self._acquire(context, block=True, timeout=self._contextual_timeout):
            raise LockTimeoutError(
                f"key {shown(self._request.key)}: not free within {self._contextual_timeout} s; "
                "try again later, or wait longer",
                key=self._request.key,
                timeout=self._contextual_timeout,
                waited=deadline.waited,
            )

    def _release(self) -> None:
        hold = self._hold
        if hold is None or (hold.ends_with_transaction and not hold.alive):
            self._misuse("release() on a lock that is not held")
        if hold.pid == os.getpid():  # a forked child's copy: the lock is the parent's
            if not hold.ends_with_transaction:
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
        except Exception as failure:
            if error is None:
                raise
            error.add_note(f"dlock: and then the release of key {shown(self._request.key)} failed: {failure}")
            log.exception("release of key %s failed", shown(self._request.key))

    def _misuse(self, what: str) -> NoReturn:
        raise LockStateError(f"key {shown(self._request.key)}: {what}", key=self._request.key)


def _seconds(timeout: object) -> float | None:
    """Read a timeout as sqlalchemy-dlock does: below 0 is one try."""
    negative = isinstance(timeout, Real) and not isinstance(timeout, bool) and timeout < 0
    return parse_timeout(0 if negative else timeout)
