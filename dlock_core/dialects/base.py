"""What a database must be able to do to lend its locks: two verbs and a few facts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Dialect, TextClause

    from ..keys import Key
    from .views import View

__all__ = [
    "PING",
    "Capabilities",
    "EndableStatements",
    "LockDialect",
    "ServerDialect",
    "Session",
    "Statements",
    "error_number",
    "sqlstate",
]


PING = text("SELECT 1")


@dataclass(frozen=True, kw_only=True)
class Capabilities:
    """What a database's locks can do; errors, tests and the table in the docs read this record."""

    mechanism: str
    shared: bool
    server_waits: bool
    """The server queues waiters, first come first served; otherwise we poll."""
    fencing: bool = True
    """The database gives numbers that grow with every grant."""
    lease: bool = False
    """The server can end a session that was silent for a time that we choose."""


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

    def answer(self, block: TextClause, /, **values: object) -> Any:
        """Run a PL/SQL block and return the number that it assigns to `:answer`."""
        ...


class EndableStatements(Statements, Protocol):
    """One that is ours to end."""

    def hang_up(self) -> None:
        """Close its socket, from any thread, so that a statement on it fails at once."""
        ...

    def end(self) -> None:
        """End the session on the server; never raises."""
        ...


class Session(Protocol):
    """One holder in the eyes of the server, used by one borrower at a time."""

    fresh: bool
    """Nothing was locked on it yet, so an error is not the error of a session gone stale."""
    silent: bool
    """It was given up, since the server did not answer: the next session would fare no better."""
    ended: bool
    """Another thread has ended it, and told the losers: whatever the server still grants on it is gone."""

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

    def expired(self) -> bool:
        """Tell whether its lease is over, so that the server may have given its locks to others."""
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


class WithoutServer:
    """What the watch over sessions is told of one without a server: silence means nothing."""

    socket = None
    watched = False
    proof = inf
    due = inf
    silent = False

    def stranded(self) -> bool:
        """Tell that no event loop is needed."""
        return False

    def waits(self) -> bool:
        """Tell that nobody waits at a server."""
        return False

    def beat(self) -> None:
        """Do nothing: there is nobody to ask."""

    def expired(self) -> bool:
        """Tell that there is no lease."""
        return False


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

    ping: TextClause
    """Asks for a sign of life."""

    @property
    def token(self) -> TextClause | None:
        """What gives a number that grows from one call to the next, over all sessions; None for nothing."""
        ...

    @property
    def view(self) -> View:
        """What shows who holds and who waits."""
        ...

    def lost(self, error: BaseException) -> bool:
        """Tell whether a driver's error means that the session is gone, where SQLAlchemy does not know it."""
        ...

    def guard(
        self, session: Statements, *, unsafe_ok: bool, another: Callable[[], EndableStatements] | None = None
    ) -> bool:
        """Refuse a server on which a lock protects nothing, changing nothing on it.

        Args:
            session: As it was opened.
            unsafe_ok: Do not refuse.
            another: Opens a second one, to probe with; None where that is out of place.

        Returns:
            Whether the session is ours alone, so that settings on it reach nobody else.
        """
        ...

    def prepare(self, session: Statements, *, label: str, lease: float | None) -> None:
        """Set what keeps the server from taking the session, and its locks, away; with a lease, when it shall."""
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
    """Return the number that the server gives an error, None when the driver shows none."""
    original = getattr(error, "orig", error)
    match getattr(original, "args", ()):
        case (int(number), *_) | ((int(number), *_), *_):  # MySQL's drivers and pymssql
            return number
        case (str(), str(message), *_):  # pyodbc: SQLSTATE, and the number in the text
            found = _ODBC_NUMBER.search(message)
            return int(found[1]) if found else None
        case (detail,) if isinstance(getattr(detail, "code", None), int):  # oracledb
            return int(detail.code)
        case _:
            return None


_ODBC_NUMBER = re.compile(r"\((\d+)\) \(SQL")
