"""The open sessions of one part of a process, so that none is forgotten."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .dialects.base import Session

__all__ = ["Stock"]

# Sessions without a lock that are kept for the next ones.
KEEP_IDLE = 2


class Stock:
    """Sessions, lent to one borrower at a time.

    Args:
        opener: Opens a session.
        lost: Is told of each session that ends while it may hold locks.
        everything: All open sessions of the provider; whoever ends them must not refer to it.
        limit: How many sessions there may be.
    """

    def __init__(
        self,
        opener: Callable[[], Session],
        lost: Callable[[Session], object],
        everything: set[Session],
        limit: int,
    ) -> None:
        self._everything = everything
        self._open = opener
        self._lost = lost
        self._limit = limit
        self._mutex = threading.Lock()
        self._closed = False
        self._opening = 0
        self._idle: list[Session] = []
        self._all: set[Session] = set()

    def take(self, *, within_limit: bool = False) -> Session | None:
        """Lend an idle session or open one; None when the limit is reached."""
        with self._mutex:
            if self._idle:
                return self._idle.pop()
            if within_limit and len(self._all) + self._opening >= self._limit:
                return None
            self._opening += 1
        try:
            session = self._open()
            self._adopt(session)
        finally:
            with self._mutex:
                self._opening -= 1
        return session

    def has_idle(self) -> bool:
        """Tell whether a session is at hand."""
        return bool(self._idle)

    def __contains__(self, session: Session) -> bool:
        return session in self._all

    def keep(self, session: Session) -> None:
        """Take in a session that was opened for a borrower who left meanwhile."""
        self._adopt(session)
        self.give(session)

    def _adopt(self, session: Session) -> None:
        with self._mutex:
            closed = self._closed
            if not closed:
                self._all.add(session)
                self._everything.add(session)
        if closed:
            session.end()

    def give(self, session: Session) -> None:
        """Take back a session that holds nothing."""
        with self._mutex:
            if session in self._all and len(self._idle) < KEEP_IDLE:
                self._idle.append(session)
                return
        self.end(session)

    def end(self, session: Session) -> None:
        """End a session; whatever it holds is lost."""
        with self._mutex:
            self._all.discard(session)
            self._everything.discard(session)
        try:
            session.end()
        finally:
            self._lost(session)

    def end_all(self) -> None:
        """End every session, lent or idle, and keep none from now on."""
        for session in self._forget_all():
            session.end()
            self._lost(session)

    def park_all(self) -> None:
        """Give up all sessions in a forked child; see `Session.park`."""
        self._mutex = threading.Lock()
        for session in self._forget_all():
            session.park()

    def _forget_all(self) -> list[Session]:
        with self._mutex:
            self._closed = True
            sessions = list(self._all)
            self._everything.difference_update(sessions)
            self._all.clear()
            self._idle.clear()
        return sessions
