"""The sessions of one process, or of one event loop in it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .dialects.base import Session

__all__ = ["SessionPool"]


class SessionPool:
    """Sessions, lent to one borrower at a time; idle ones are lent again."""

    def __init__(self, opener: Callable[[], Session], keep: int) -> None:
        self._open = opener
        self._keep = keep
        self._mutex = threading.Lock()
        self._idle: list[Session] = []
        self._all: set[Session] = set()

    def take(self) -> Session:
        """Lend an idle session, or open one."""
        with self._mutex:
            if self._idle:
                return self._idle.pop()
        session = self._open()
        self._adopt(session)
        return session

    def keep(self, session: Session) -> None:
        """Take in a session that was opened for a borrower who left meanwhile."""
        self._adopt(session)
        self.give(session)

    def _adopt(self, session: Session) -> None:
        with self._mutex:
            self._all.add(session)

    def give(self, session: Session) -> None:
        """Take back a session that holds nothing."""
        with self._mutex:
            if session in self._all and len(self._idle) < self._keep:
                self._idle.append(session)
                return
        self.end(session)

    def end(self, session: Session) -> None:
        """End a session: whatever it holds is free."""
        with self._mutex:
            self._all.discard(session)
        session.end()

    def end_all(self) -> None:
        """End every session, lent or idle, and keep none from now on."""
        self._keep = 0
        for session in self._forget_all():
            session.end()

    def park_all(self) -> None:
        """Give up all sessions in a forked child; see `Session.park`."""
        for session in self._forget_all(mutex=threading.Lock()):
            session.park()

    def _forget_all(self, mutex: threading.Lock | None = None) -> list[Session]:
        self._mutex = mutex or self._mutex
        with self._mutex:
            sessions = list(self._all)
            self._all.clear()
            self._idle.clear()
        return sessions
