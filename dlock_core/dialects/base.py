"""What a database must be able to do to lend its locks: two verbs and a few facts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Dialect, TextClause

    from ..keys import Key

__all__ = ["Capabilities", "LockDialect", "ServerDialect", "Session", "Statements", "error_number", "sqlstate"]


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a database's locks can do; errors, tests and the table in the docs read this record."""

    mechanism: str
    shared: bool
    server_waits: bool
    """The server queues waiters, first come first served; otherwise we poll."""
    detects_deadlocks: bool
    across_machines: bool


class Statements(Protocol):
    """A server session as a dialect sees it."""

    driver_connection: Any
    label: str
    """What the server's views show when the session shows no key."""
    sqla: Dialect
    """SQLAlchemy's own dialect, which has asked the server what it is."""

    def first(self, statement: TextClause, /, **values: object) -> Sequence[Any]:
        """Run a statement and return its first row, an empty one where there is none."""
        ...


class Session(Protocol):
    """One holder in the eyes of the server, used by one borrower at a time."""

    fresh: bool
    """Nothing was locked on it yet, so an error is not the error of a session gone stale."""

    def acquire(self, name: Any, *, shared: bool, timeout: float | None, label: str | None) -> bool:
        """Ask for the lock: once at 0, else the server waits; False may come early when it rounds."""
        ...

    def release(self, name: Any, *, shared: bool) -> bool:
        """Unlock; False when the server says that this session did not hold it."""
        ...

    def next_token(self, name: Any) -> int:
        """Return a number that grows with every grant of the lock, while holding it."""
        ...

    def alive(self) -> bool:
        """Tell, without asking the server, whether the session still lives; False when in doubt."""
        ...

    def end(self) -> None:
        """End the session on the server, so that all that it holds is free; never raises."""
        ...

    def interrupt(self) -> None:
        """End a wait that another thread runs on this session; never raises."""
        ...

    def park(self) -> None:
        """Give up the parent's session in a forked child without ending it for the parent."""
        ...


class LockDialect(Protocol):
    """One database's locks."""

    capabilities: Capabilities

    def name(self, prefix: str, key: Key) -> int | str:
        """Map a checked key to the server's own name for it."""
        ...


class ServerDialect(LockDialect, Protocol):
    """A database server: its locks belong to a session, and statements take them.

    A `label` is for people: where the server shows a name for each session, it is to be that.
    """

    token: TextClause
    """Gives a number that grows from one call to the next, over all sessions."""

    def guard(self, session: Statements, *, unsafe_ok: bool) -> bool:
        """Refuse a server on which a lock protects nothing, changing nothing on it.

        Returns:
            Whether the session is ours alone, so that settings on it reach nobody else.
        """
        ...

    def prepare(self, session: Statements, *, label: str) -> None:
        """Set what keeps the server from taking the session, and its locks, away."""
        ...

    def acquire(
        self, session: Statements, name: Any, *, shared: bool, timeout: float | None, label: str | None
    ) -> bool:
        """Ask for the lock, see `Session.acquire`."""
        ...

    def release(self, session: Statements, name: Any, *, shared: bool, label: str | None) -> bool:
        """Unlock, see `Session.release`."""
        ...


def sqlstate(error: BaseException) -> str | None:
    """Return the SQLSTATE of a driver's error, whatever the driver calls it."""
    original = getattr(error, "orig", error)
    return getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)


def error_number(error: BaseException) -> int | None:
    """Return the number that MySQL and MariaDB give an error, None when the driver shows none."""
    original = getattr(error, "orig", error)
    first = next(iter(getattr(original, "args", ())), None)
    return first if isinstance(first, int) else None
