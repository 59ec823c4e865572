"""How a database's locks are asked for on a connection of which nothing else may change."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..dialects import find_dialect
from ..dialects.sqlite import SQLite
from ..errors import DeadlockError, shown
from ..timeouts import Deadline
from .main_thread import hearing, helpers
from .postgresql import PostgreSQLOnCaller

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..contexts import Context
    from ..dialects.base import ServerDialect
    from ..requests import Request
    from .caller import CallerSession

__all__ = ["Ask", "LocksOnCaller", "locks_on_caller", "refuse_second", "wait_for"]


class Ask(NamedTuple):
    """A question for a lock: what, how, where to wait, and how many seconds (None is for ever)."""

    request: Request
    xact: bool
    context: Context
    timeout: float | None


class LocksOnCaller(Protocol):
    """A database's locks on a connection of which nothing else may change."""

    def guard(self, session: CallerSession) -> None:
        """Refuse a server on which a lock protects nothing."""
        ...

    def acquire(self, session: CallerSession, name: Any, *, shared: bool, xact: bool, timeout: float | None) -> bool:
        """Ask for the lock: once at 0, else the server waits; False may come early when it rounds."""
        ...

    def release(self, session: CallerSession, name: Any, *, shared: bool, recover: Callable[[], None]) -> bool:
        """Unlock; False when the server says that this session did not hold it."""
        ...


class PlainLocksOnCaller:
    """A database whose statements for locks touch neither transactions nor settings: MySQL, MariaDB."""

    def __init__(self, locks: ServerDialect) -> None:
        self._locks = locks

    def guard(self, session: CallerSession) -> None:
        self._locks.guard(session, unsafe_ok=False)

    def acquire(self, session: CallerSession, name: Any, *, shared: bool, xact: bool, timeout: float | None) -> bool:
        assert not xact
        return self._locks.acquire(session, name, shared=shared, timeout=timeout, label=None)

    def release(self, session: CallerSession, name: Any, *, shared: bool, recover: Callable[[], None]) -> bool:  # noqa: ARG002 - a failed transaction does not hinder it
        return self._locks.release(session, name, shared=shared, label=None)


def locks_on_caller(name: str) -> LocksOnCaller:
    """Return the locks of a database server, by SQLAlchemy's name of the dialect."""
    if name == "postgresql":
        return PostgreSQLOnCaller()
    locks = find_dialect(name)
    assert not isinstance(locks, SQLite), "SQLite's locks are on no connection"
    return PlainLocksOnCaller(locks)


def wait_for(session: CallerSession, locks: LocksOnCaller, ask: Ask) -> bool:
    """Ask the server; the longest waits are asked for in several rounds."""
    question = partial(locks.acquire, session, ask.request.name, shared=ask.request.shared, xact=ask.xact)
    if ask.timeout == 0:
        return question(timeout=0)
    deadline, context = Deadline(ask.timeout), hearing(ask.context, helpers())
    while not deadline.passed:
        if context.wait(partial(question, timeout=deadline.remaining()), session.interrupt):
            return True
    return False


def refuse_second(ask: Ask) -> None:
    """Refuse a key whose asker holds it already: the server would count a second hold, not wait.

    Raises:
        DeadlockError: A wait was asked for; a try is just refused.
    """
    if ask.timeout != 0:
        key = ask.request.key
        raise DeadlockError(
            f"key {shown(key)}: this connection or session holds it already and would wait for itself; "
            "release it first, or use another one",
            key=key,
        )
