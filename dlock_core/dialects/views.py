"""What a database shows of its locks: who holds, who waits, and how to end a session."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from sqlalchemy import TextClause

__all__ = ["Finding", "Look", "Run", "Sight", "View", "room"]


# Share of a server's connections from which on there is too little room.
NEARLY_ALL = 0.9


class Run(Protocol):
    """Runs a statement on a connection that is there for questions only."""

    def __call__(self, statement: TextClause, /, **values: object) -> Sequence[Any]:
        """Return all its rows."""
        ...


class Sight(NamedTuple):
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
    dies_with: int | None = 0
    """How many other locks end with this one; None where the database does not tell."""


class Look(NamedTuple):
    """All that could be seen, and what hides the rest."""

    sights: list[Sight]
    missing: str = ""
    """Why this is not all, and which right or setting would change that; '' when it is all."""


@dataclass(frozen=True)
class Finding:
    """One thing that `LockProvider.check` looked at."""

    name: str
    """What it was, in a word."""
    ok: bool | None
    """False for what is wrong, None for what is only good to know."""
    detail: str
    """What was found, and what to change."""


def room(used: int, most: int) -> Finding:
    """Judge how many connections a server has left."""
    return Finding("connections", used < NEARLY_ALL * most, f"{used} of {most} in use on the server")


class View(Protocol):
    """One database server's views of its locks."""

    def look(self, run: Run, name: Any | None, known: Callable[[], Sequence[Any]]) -> Look:
        """Look at one lock, or at all of them.

        Args:
            run: Runs the statements.
            name: The server's name of the lock, None for all.
            known: Gives names that may be locked, for servers that only answer to a name.
        """
        ...

    def end(self, run: Run, sight: Sight) -> None:
        """Ask the server to end a session, if it still holds the lock.

        Raises:
            NotPermittedError: We have not the right to; the message names it.
        """
        ...

    def findings(self, run: Run) -> list[Finding]:
        """Look at what is good to know about the server and our rights there."""
        ...
