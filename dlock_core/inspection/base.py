"""What a database tells of its locks, and what the views of all databases share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from sqlalchemy.exc import DBAPIError

from ..dialects.base import error_number
from ..errors import NotPermittedError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from sqlalchemy import TextClause

__all__ = ["Finding", "LockRow", "Run", "Snapshot", "View", "ago", "ending", "room", "with_counts"]

# Share of a server's connections from which on there is too little room.
NEARLY_ALL = 0.9


class Run(Protocol):
    """Runs a statement on a connection that is there for questions only."""

    def __call__(self, statement: TextClause, /, **values: object) -> Sequence[Any]:
        """Return all its rows."""
        ...


class LockRow(NamedTuple):
    """One session that holds one lock, or waits for it, as far as the database tells."""

    name: int | str
    granted: bool
    session: int | str
    shared: bool = False
    user: str | None = None
    label: str | None = None
    """What the session calls itself; ours tell adapter, host and pid, sometimes a key."""
    host: str | None = None
    since: datetime | None = None
    session_since: datetime | None = None
    key: str | None = None
    """The readable key, where the database itself keeps it."""
    other_locks: int | None = 0
    """How many other locks end with this one; None where the database does not tell."""


class Snapshot(NamedTuple):
    """All that could be seen, and what hides the rest."""

    rows: list[LockRow]
    missing: str = ""
    """Why this is not all, and which right or setting would change that; '' when it is all."""

    def holder(self, name: int | str, session: int | str) -> LockRow | None:
        """Return what is seen of a session that holds a lock; None when it does not hold it."""
        wanted = (name, session)
        return next((row for row in self.rows if row.granted and (row.name, row.session) == wanted), None)


@dataclass(frozen=True)
class Finding:
    """One thing that `LockProvider.check` looked at."""

    name: str
    """What it was, in a word."""
    ok: bool | None
    """False for what is wrong, None for what is only good to know."""
    detail: str
    """What was found, and what to change."""


class View(ABC):
    """One database's view of its locks."""

    may_not_end: ClassVar[Collection[int]] = ()
    """The numbers of the errors of a user that may not end a session."""
    right_to_end: ClassVar[str] = ""
    """What such a user learns; `{}` is the session's user."""
    gone: ClassVar[Collection[int]] = ()
    """The numbers of the errors that say that the session has ended by itself."""

    @abstractmethod
    def look(self, run: Run, name: Any | None, known: Callable[[], Sequence[Any]]) -> Snapshot:
        """Look at one lock, or at all of them.

        Args:
            run: Runs the statements.
            name: The server's name of the lock, None for all.
            known: Gives names that may be locked, for servers that only answer to a name.
        """

    def end(self, run: Run, row: LockRow, *, alone: bool) -> bool:
        """Ask the server to end a session, if it still holds the lock.

        Args:
            run: Runs the statements.
            row: The lock and the session that held it.
            alone: Only if no other lock would end with it, by what the server says directly before the end.

        Returns:
            False when another lock would have ended too, and nothing was done.

        Raises:
            NotPermittedError: We have not the right to; the message names it.
        """
        seen = self.look(run, row.name, list).holder(row.name, row.session)
        if seen is None:
            return True
        if alone and seen.other_locks != 0:
            return False
        try:
            self.kill(run, row)
        except DBAPIError as error:
            number = error_number(error)
            if number in self.may_not_end:
                raise NotPermittedError(self.right_to_end.format(row.user or "another user")) from error
            if number not in self.gone:
                raise
        return True

    def kill(self, run: Run, row: LockRow) -> None:
        """End the session of a holder."""
        raise NotImplementedError

    @abstractmethod
    def findings(self, run: Run) -> list[Finding]:
        """Look at what is good to know about the server and our rights there."""


def with_counts(rows: Iterable[LockRow]) -> list[LockRow]:
    """Add how many other locks each session holds, where these are all locks of all sessions."""
    rows = list(rows)
    held = Counter(row.session for row in rows if row.granted)
    return [row._replace(other_locks=held[row.session] - row.granted) for row in rows]


def ago(seconds: float | None) -> datetime | None:
    """Return the time that lies so many seconds back."""
    return None if seconds is None else datetime.now(UTC) - timedelta(seconds=float(seconds))


def room(used: int, most: int) -> Finding:
    """Judge how many connections a server has left."""
    return Finding("connections", used < NEARLY_ALL * most, f"{used} of {most} in use on the server")


def ending(allowed: object, right: str) -> Finding:
    """Say whether this user may end sessions of others."""
    return Finding("ending", None, f"sessions of other users: {'yes' if allowed else f'only with {right}'}")
