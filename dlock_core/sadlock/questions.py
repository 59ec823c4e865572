"""How a database's locks are asked for on a connection of which nothing else may change."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..dialects import find_dialect
from ..dialects.sqlite import SQLite
from ..errors import DeadlockError, LockLostError, shown
from ..timeouts import Deadline
from .main_thread import hearing, helpers
from .modes import MSSQLOnCaller, OracleOnCaller
from .postgresql import PostgreSQLOnCaller

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..contexts import Context
    from ..dialects.base import ServerDialect
    from ..requests import Request
    from ..session import SqlSession
    from .caller import CallerSession

__all__ = ["Ask", "LocksOnCaller", "locks_on_caller", "refuse_second", "wait_for", "wait_for_upgrade"]


class Ask(NamedTuple):
    """A question for a lock: what, how, where to wait, and how many seconds (None is for ever)."""

    request: Request
    xact: bool
    context: Context
    timeout: float | None
    mode: str | None = None
    """SQL Server's or Oracle's."""
    release_on_commit: bool = False


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


def locks_on_caller(name: str, ask: Ask) -> LocksOnCaller:
    """Return the locks of a database server, by SQLAlchemy's name of the dialect, for one question."""
    match name:
        case "postgresql":
            return PostgreSQLOnCaller()
        case "mssql":
            assert ask.mode is not None
            return MSSQLOnCaller(ask.mode, xact=ask.xact)
        case "oracle":
            assert ask.mode is not None
            return OracleOnCaller(ask.mode, release_on_commit=ask.release_on_commit)
    locks = find_dialect(name)
    assert not isinstance(locks, SQLite), "SQLite's locks are on no connection"
    return PlainLocksOnCaller(locks)


def wait_for(session: Any, locks: LocksOnCaller, ask: Ask) -> bool:
    """Ask the server; the longest waits are asked for in several rounds."""
    return _in_rounds(
        session, ask, partial(locks.acquire, session, ask.request.name, shared=ask.request.shared, xact=ask.xact)
    )


def wait_for_upgrade(session: Any, locks: Any, ask: Ask) -> bool:
    """Ask the server for the exclusive mode of what is held.

    Raises:
        LockLostError: Nothing is.
    """

    def question(*, timeout: float | None) -> bool:
        granted = locks.upgrade(session, ask.request.name, timeout=timeout)
        if granted is None:
            raise LockLostError("the lock was lost: the server says that our session does not hold it")
        return bool(granted)

    return _in_rounds(session, ask, question)


def _in_rounds(session: SqlSession, ask: Ask, question: Callable[..., bool]) -> bool:
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
