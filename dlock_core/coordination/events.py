"""What happens to locks in this process, for code that counts, traces or logs it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import shown
from .state import State

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ..keys import Key
    from .state import Request, Ticket

__all__ = ["Listeners", "LockAcquired", "LockAttempt", "LockEvent", "LockLost", "LockNotAcquired", "LockReleased"]

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
    """A lock is asked for; `LockAcquired` or `LockNotAcquired` follows in the same thread or task."""

    timeout: float | None
    """Seconds that it may take; None is no limit, 0 one try."""


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
    """The lock was taken from its holder; reported in a helper thread, or where it was released."""

    held_for: float
    """Seconds until the loss was known."""


class Listeners:
    """The listeners to the events of one provider."""

    def __init__(self, database: str) -> None:
        self._database = database
        self.all: tuple[Callable[[LockEvent], object], ...] = ()
        self.holds: dict[Ticket, tuple[float, tuple[Callable[[LockEvent], object], ...]]] = {}
        """Grants whose end is to be reported: since when, on the monotonic clock, and to which listeners."""

    def add(self, listener: Callable[[LockEvent], object]) -> Callable[[], None]:
        """Add a listener; what is returned removes it."""
        self.all = (*self.all, listener)

        def remove() -> None:
            self.all = tuple(one for one in self.all if one is not listener)

        return remove

    def after_fork(self) -> None:
        """Forget in a forked child what the parent holds."""
        self.holds.clear()

    def asked(self, ticket: Ticket, acquire: Callable[[Ticket], bool]) -> bool:
        """Ask for a lock, and tell how it went."""
        request, error, granted = ticket.request, None, False
        self._tell(self.all, LockAttempt, request, timeout=ticket.deadline.timeout)
        started = time.monotonic()
        try:
            granted = acquire(ticket)
        except BaseException as failure:
            error = type(failure).__name__
            raise
        finally:
            listeners, now = self.all, time.monotonic()
            if not granted:
                self._tell(listeners, LockNotAcquired, request, waited=now - started, error=error)
        if granted:
            self._tell(listeners, LockAcquired, request, waited=now - started)
            self.holds[ticket] = now, listeners
            if ticket.state is not State.HELD:  # it ended before that was noted
                self.ended(ticket, lost=ticket.state is State.LOST)
        return granted

    def ended(self, ticket: Ticket, *, lost: bool) -> None:
        """Tell once that a hold was released or lost, to the listeners that heard of its beginning."""
        if not self.holds:
            return
        since, heard = self.holds.pop(ticket, (0.0, ()))
        listening = [one for one in heard if any(one is other for other in self.all)]
        self._tell(listening, LockLost if lost else LockReleased, ticket.request, held_for=time.monotonic() - since)

    def _tell(
        self,
        listeners: Iterable[Callable[[LockEvent], object]],
        kind: Callable[..., LockEvent],
        request: Request,
        **facts: object,
    ) -> None:
        mode = "shared" if request.shared else "exclusive"
        event = kind(key=request.key, actual_key=request.name, mode=mode, database=self._database, **facts)
        for listener in listeners:
            try:
                listener(event)
            except (Exception, SystemExit):
                log.exception("a listener failed on key %s", shown(event.key))
