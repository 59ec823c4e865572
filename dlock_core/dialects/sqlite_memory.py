"""Locks of a database in memory: within this process, with the same behaviour as all others."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from .base import Session

__all__ = ["MemoryLocks"]


class MemoryLocks:
    """Who holds what in one database: an engine's own, or a URI name that several engines share."""

    _by_engine: ClassVar[WeakKeyDictionary[Engine, MemoryLocks]] = WeakKeyDictionary()
    _by_name: ClassVar[dict[str, MemoryLocks]] = {}

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._holders: dict[str, tuple[bool, set[object]]] = {}
        self._tokens: dict[str, int] = {}

    @classmethod
    def of(cls, engine: Engine) -> MemoryLocks:
        """Return the locks of this engine's database."""
        database = engine.url.database or ""
        if database.startswith("file:"):
            return cls._by_name.setdefault(database.partition("?")[0], cls())
        return cls._by_engine.setdefault(engine, cls())

    def session(self) -> Session:
        return MemorySession(self)

    def acquire(self, name: str, session: object, *, shared: bool) -> bool:
        """Try once."""
        with self._mutex:
            held_shared, holders = self._holders.get(name, (shared, set()))
            if holders and not (shared and held_shared):
                return False
            self._holders[name] = (shared, {*holders, session})
            return True

    def release(self, name: str, session: object) -> bool:
        """Unlock; False when this session does not hold the name."""
        with self._mutex:
            _, holders = self._holders.get(name, (False, set()))
            if session not in holders:
                return False
            holders.discard(session)
            if not holders:
                del self._holders[name]
            return True

    def holds(self, session: object) -> bool:
        """Tell whether a session holds anything."""
        with self._mutex:
            return any(session in holders for _, holders in self._holders.values())

    def next_token(self, name: str) -> int:
        """Count the grants of a name, while holding it."""
        with self._mutex:
            self._tokens[name] = self._tokens.get(name, 0) + 1
            return self._tokens[name]

    def free(self, session: object) -> None:
        """Unlock all that a session holds."""
        for name in list(self._holders):
            self.release(name, session)

    def after_fork(self) -> None:
        """Start empty: a child's database in memory is its own."""
        self._mutex = threading.Lock()
        self._holders.clear()


class MemorySession:
    """One holder inside this process."""

    fresh = True

    def __init__(self, locks: MemoryLocks) -> None:
        self._locks = locks
        self._pid = os.getpid()

    def acquire(self, name: str, *, shared: bool, timeout: float | None, label: str | None) -> bool:  # noqa: ARG002
        return self._locks.acquire(name, self, shared=shared)

    def release(self, name: str, *, shared: bool) -> bool:  # noqa: ARG002
        return self._locks.release(name, self)

    def next_token(self, name: str) -> int:
        return self._locks.next_token(name)

    def alive(self) -> bool:
        return self._locks.holds(self)

    def end(self) -> None:
        if self._pid == os.getpid():
            self._locks.free(self)

    def interrupt(self) -> None:
        """Do nothing: a single try does not wait."""

    def park(self) -> None:
        """Do nothing: `MemoryLocks.after_fork` has forgotten the parent's holders."""
