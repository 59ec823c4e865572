"""Locks of a database in memory: within this process, with the same behaviour as all others."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from .base import WithoutServer
from .views import Finding, Look, Sight

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from .base import Session

__all__ = ["MemoryLocks"]


class MemoryLocks:
    """Who holds what in one database: an engine's own, or a URI name that several engines share."""

    _by_engine: ClassVar[WeakKeyDictionary[Engine, MemoryLocks]] = WeakKeyDictionary()
    _by_name: ClassVar[dict[str, MemoryLocks]] = {}

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._holders: dict[str, tuple[bool, set[MemorySession]]] = {}
        self._tokens: dict[str, int] = {}
        self.fault: Callable[[], object] | None = None
        """What happens at every question, for tests."""

    @classmethod
    def of(cls, engine: Engine) -> MemoryLocks:
        """Return the locks of this engine's database."""
        database = engine.url.database or ""
        if database.startswith("file:"):
            return cls.named(database.partition("?")[0])
        return cls._by_engine.setdefault(engine, cls())

    @classmethod
    def named(cls, name: str) -> MemoryLocks:
        """Return the locks of a database with a URI name."""
        return cls._by_name.setdefault(name, cls())

    def session(self, label: str, watch: Callable[[Any], None]) -> Session:
        return MemorySession(self, label, watch)

    def look(self, name: str | None) -> Look:
        with self._mutex:
            held = [(n, shared, s, len(sessions)) for n, (shared, sessions) in self._holders.items() for s in sessions]
        return Look([_sight(*one) for one in held if name in (None, one[0])])

    def findings(self) -> list[Finding]:
        return [Finding("server", None, "a database in memory, for the threads of this process")]

    def break_lock(self, name: str) -> set[MemorySession]:
        """Take a lock from whoever holds it, and return him."""
        with self._mutex:
            return self._holders.pop(name, (False, set()))[1]

    def acquire(self, name: str, session: MemorySession, *, shared: bool) -> bool:
        """Try once."""
        with self._mutex:
            held_shared, holders = self._holders.get(name, (shared, set()))
            if holders and not (shared and held_shared):
                return False
            self._holders[name] = (shared, {*holders, session})
            return True

    def release(self, name: str, session: MemorySession) -> bool:
        """Unlock; False when this session does not hold the name."""
        with self._mutex:
            _, holders = self._holders.get(name, (False, set()))
            if session not in holders:
                return False
            holders.discard(session)
            if not holders:
                del self._holders[name]
            return True

    def holds(self, session: MemorySession) -> bool:
        """Tell whether a session holds anything."""
        with self._mutex:
            return any(session in holders for _, holders in self._holders.values())

    def next_token(self, name: str) -> int:
        """Count the grants of a name, while holding it."""
        with self._mutex:
            self._tokens[name] = self._tokens.get(name, 0) + 1
            return self._tokens[name]

    def free(self, session: MemorySession) -> None:
        """Unlock all that a session holds."""
        for name in list(self._holders):
            self.release(name, session)

    def after_fork(self) -> None:
        """Start empty: a child's database in memory is its own."""
        self._mutex = threading.Lock()
        self._holders.clear()


class MemorySession(WithoutServer):
    """One holder inside this process."""

    fresh = True
    ended = False

    def __init__(self, locks: MemoryLocks, label: str, watch: Callable[[Any], None]) -> None:
        self._locks = locks
        self._watch = watch
        self._pid = os.getpid()
        self.label = label
        self.locks = 0
        self.key: str | None = None
        self.since: datetime | None = None

    def acquire(self, name: str, *, shared: bool, timeout: float | None, label: str | None) -> bool:  # noqa: ARG002
        self._ask()
        granted = self._locks.acquire(name, self, shared=shared)
        if granted:
            self.locks, self.key, self.since = 1, label or None, datetime.now(UTC)
            if not self.watched:
                self._watch(self)
        return granted

    def release(self, name: str, *, shared: bool) -> bool:  # noqa: ARG002
        self.locks = 0
        self._ask()
        return self._locks.release(name, self)

    def _ask(self) -> None:
        if self._locks.fault is not None:
            self._locks.fault()

    def hung_up(self) -> bool:
        """Tell whether somebody took the lock away."""
        return self.locks > 0 and not self._locks.holds(self)

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


def _sight(name: str, shared: bool, session: Any, readers: int) -> Sight:
    return Sight(
        name,
        granted=True,
        session=id(session),
        shared=shared,
        label=session.label,
        since=session.since,
        key=session.key,
        dies_with=readers - 1,
    )
