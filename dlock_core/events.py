"""What happens to locks in this process, for whoever counts, traces or logs it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from .keys import Key
    from .requests import Request

__all__ = [
    "Listeners",
    "LockAcquired",
    "LockAttempt",
    "LockEvent",
    "LockLost",
    "LockNotAcquired",
    "LockReleased",
]

log = logging.getLogger("dlock")


@dataclass(frozen=True, kw_only=True)
class LockEvent:
    """What all events tell."""

    key: Key
    """The key as it was given, without the prefix."""
    actual_key: int | str
    """The database's own name for the lock."""
    mode: str
    """"exclusive" or "shared"."""
    database: str
    """SQLAlchemy's name of the database, such as "postgresql"."""


@dataclass(frozen=True, kw_only=True)
class LockAttempt(LockEvent):
    """Somebody asks for a lock; `LockAcquired` or `LockNotAcquired` follows in the same thread or task."""

    timeout: float | None
    """Seconds that it may take; None is for ever, 0 one try."""


@dataclass(frozen=True, kw_only=True)
class LockAcquired(LockEvent):
    """The lock is held now."""

    waited: float
    """Seconds from asking to having it."""


@dataclass(frozen=True, kw_only=True)
class LockNotAcquired(LockEvent):
    """The lock was not free in time, or an exception ended the wait."""

    waited: float
    """Seconds from asking to the answer."""
    error: str | None = None
    """The name of the exception's class; None when the lock was not free."""


@dataclass(frozen=True, kw_only=True)
class LockReleased(LockEvent):
    """The holder gave the lock back."""

    held_for: float
    """Seconds."""


@dataclass(frozen=True, kw_only=True)
class LockLost(LockEvent):
    """The lock was taken from its holder; told in a helper thread, or where it was released."""

    held_for: float
    """Seconds until the loss was known."""


class Listeners:
    """Those who want to hear of the events of one provider."""

    def __init__(self, database: str) -> None:
        self._database = database
        self._all: tuple[Callable[[LockEvent], object], ...] = ()

    def __bool__(self) -> bool:
        return bool(self._all)

    def add(self, listener: Callable[[LockEvent], object]) -> Callable[[], None]:
        """Let somebody listen; what is returned ends it."""
        self._all = (*self._all, listener)
        return lambda: self._remove(listener)

    def _remove(self, listener: Callable[[LockEvent], object]) -> None:
        self._all = tuple(one for one in self._all if one is not listener)

    def _tell(self, event: LockEvent) -> None:
        for listener in self._all:
            try:
                listener(event)
            except Exception:
                log.exception("a listener failed on key %s", shown(event.key))

    def asked(self, request: Request, timeout: float | None, ask: Callable[[], bool]) -> bool:
        """Ask for a lock, and tell how it went."""
        self._tell(LockAttempt(**self._facts(request), timeout=timeout))
        started = time.monotonic()
        try:
            granted = ask()
        except BaseException as error:
            self._not_acquired(request, started, type(error).__name__)
            raise
        if granted:
            self._tell(LockAcquired(**self._facts(request), waited=time.monotonic() - started))
        else:
            self._not_acquired(request, started, None)
        return granted

    def _not_acquired(self, request: Request, started: float, error: str | None) -> None:
        self._tell(LockNotAcquired(**self._facts(request), waited=time.monotonic() - started, error=error))

    def ended(self, request: Request, since: float, *, lost: bool) -> None:
        """Tell that a lock, held since a time on the monotonic clock, was released or lost."""
        kind = LockLost if lost else LockReleased
        self._tell(kind(**self._facts(request), held_for=time.monotonic() - since))

    def _facts(self, request: Request) -> dict[str, Any]:
        return {
            "key": request.key,
            "actual_key": request.name,
            "mode": "shared" if request.shared else "exclusive",
            "database": self._database,
        }
