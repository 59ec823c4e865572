"""What the handles for threads and for tasks have in common: everything but the waiting."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from flask import g, has_app_context

from dlock_core import AsyncLock, Lock, LockStateError, LockTimeoutError

from .conflict import STATUSES, LockConflict
from .options import CONFIGURED, Options, checked, shown
from .signals import lock_acquired, lock_conflict, lock_lost, lock_released, send

if TYPE_CHECKING:
    from collections.abc import Generator

    from .state import AppState

__all__ = ["BaseHandle", "handles_here"]

L = TypeVar("L", Lock, AsyncLock)
log = logging.getLogger("dlock.flask")
# The one name that we use on `flask.g`.
IN_CONTEXT = "_dlock_handles"


def handles_here() -> list[BaseHandle[Any]]:
    """Return the handles with a lock in this application context, in the order in which they got it."""
    found: list[BaseHandle[Any]] = g.get(IN_CONTEXT, []) if has_app_context() else []
    return found


def _owner() -> object:
    """Return who asks, as the core sees it: the task, else the thread."""
    try:
        return asyncio.current_task() or threading.current_thread()
    except RuntimeError:
        return threading.current_thread()


class Grant(Generic[L]):
    """One lock at the database, and how many handles of its owner are inside it."""

    def __init__(self, lock: L, place: tuple[str | None, object], *, shared: bool) -> None:
        self.lock: L = lock
        self.place = place
        self.shared = shared
        self.owner = _owner()
        self.handles = 1

    def admits(self, place: tuple[str | None, object], *, shared: bool) -> bool:
        """Tell whether the asker, who is the owner, is inside already."""
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
        self._options = checked(options)
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
        return self._state.settings.timeout if timeout is CONFIGURED else timeout

    def _lock_options(self) -> dict[str, Any]:
        options = self._options
        return {
            "timeout": self._timeout,
            "shared": options.shared,
            "fencing": options.fencing,
            "on_lost": lambda _: send(lock_lost, self._state.app, self),
        }

    def _join(self) -> bool:
        """Go where this request is already, if that was asked for."""
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

    def _granted(self, lock: L, since: float) -> None:
        self.waited = time.monotonic() - since
        self._grant = Grant(lock, (self._options.bind, self.key), shared=self._options.shared)
        self._list()
        send(lock_acquired, self._state.app, self)

    def _refused(self, since: float) -> None:
        """Say that somebody else has the lock, as the options want it said."""
        self.waited = time.monotonic() - since
        log.info("key %s: somebody else has the lock; waited %.3f s", shown(self.key), self.waited)
        send(lock_conflict, self._state.app, self)
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
        retry_after = settings.retry_after if options.retry_after is None else options.retry_after
        description = self._detailed() if self._state.app.debug else None
        return STATUSES[status](description, key=self.key, waited=self.waited, retry_after=retry_after)

    def _detailed(self) -> str:
        """Return what only a developer may read."""
        if self._crowded:
            return f"key {shown(self.key)}: DLOCK_MAX_WAITERS={self._state.room.limit} requests wait already."
        return f"key {shown(self.key)}: not free after {self.waited:.3f} s, {self._holder()}. Debug mode says this."

    def _holder(self) -> str:
        """Return who has the lock, as far as the database tells."""
        try:
            holders = self._provider.inspect(self.key)
        except Exception as error:  # noqa: BLE001 - the conflict is the answer, whatever goes wrong here
            return f"and who holds it cannot be told ({error})"
        return ", ".join(f"held by {one.party}" for one in holders) or "but is by now"

    def _ends_here(self, error: BaseException | None) -> bool:
        """Tell whether the end of `with` is to release; an answer that an error stopped will never be streamed."""
        return self._grant is not None and (not self._handed_over or error is not None)

    def _leave(self) -> Lock | AsyncLock | None:
        """Leave the grant; the lock is for the last one to release."""
        grant, self._grant = self._held_grant(), None
        if self in self._listed:
            self._listed.remove(self)
        grant.handles -= 1
        return grant.lock if grant.handles == 0 else None

    def _released(self) -> None:
        send(lock_released, self._state.app, self)

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
