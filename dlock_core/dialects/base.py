"""What a database must be able to do to lend its locks: two verbs and a few facts."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from sqlalchemy import text

from ..errors import UnsafeEnvironmentError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy import Dialect, TextClause

    from ..keys import Key

__all__ = [
    "PING",
    "SESSION",
    "TRANSACTION",
    "Capabilities",
    "Opener",
    "Scope",
    "ServerDialect",
    "ServerSession",
    "Session",
    "check_driver",
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


class ServerSession(Protocol):
    """A server session as a dialect sees it; the layer above has it."""

    driver_connection: Any
    label: str
    """What the server's views show when the session shows no key."""
    sqla: Dialect
    """SQLAlchemy's own dialect, which has asked the server what it is."""
    number: int | None
    """By which another session kills its statement; behind a pooler the driver may know another one."""
    borrowed: bool
    """It is under a connection of the caller's, of which nothing but its locks may change."""

    def first(self, statement: TextClause, /, **values: object) -> Sequence[Any]:
        """Run a statement and return its first row, an empty one where there is none."""
        ...

    def answer(self, block: TextClause, /, **values: object) -> Any:
        """Run a PL/SQL block and return the number that it assigns to `:answer`."""
        ...

    def command(self, statement: TextClause) -> None:
        """Run a statement that has no rows."""
        ...

    def begun(self) -> bool:
        """Tell whether a transaction is open."""
        ...

    def rollback(self) -> None:
        """End the driver's transaction."""
        ...

    def hang_up(self) -> None:
        """Close its socket, from any thread, so that a statement on it fails at once."""
        ...

    def end(self) -> None:
        """End the session on the server; never raises."""
        ...


Opener: TypeAlias = "Callable[[], ServerSession]"


class Session(Protocol):
    """One holder in the eyes of the server, used by one borrower at a time."""

    fresh: bool
    """Nothing was locked on it yet, so an error is not the error of a session gone stale."""
    silent: bool
    """It was given up, since the server did not answer: the next session would fare no better."""
    ended: bool
    """Another thread has ended it, and reported its locks as lost: what the server still grants on it is gone."""
    waiter: object
    """What waits here, or did last."""

    def acquire(
        self, name: Any, *, shared: bool, timeout: float | None, label: str | None, again: bool = False
    ) -> bool:
        """Ask for the lock: once at 0, else the server waits; False may come early when it rounds.

        Args:
            name: The server's name of the lock.
            shared: Whether others may share it.
            timeout: Seconds; None is no limit.
            label: What the server is to show for the session meanwhile; None for no change.
            again: The session holds it, and unlocks it first, in the same statement where the server can.
        """
        ...

    def release(self, name: Any, *, shared: bool) -> bool:
        """Unlock; False when the server says that this session did not hold it."""
        ...

    def holds(self, name: Any, *, shared: bool) -> bool:
        """Ask the server whether this session holds the lock now."""
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

    def interrupt(self, waiter: object = None) -> None:
        """End a wait that another thread or task runs here, if it is this waiter's; never raises.

        It reaches no later statement: the wait does not end before the call has returned.
        """
        ...

    def park(self) -> None:
        """Give up the parent's session in a forked child without ending it for the parent."""
        ...


Scope = Literal["session", "transaction"]
SESSION: Scope = "session"
TRANSACTION: Scope = "transaction"


class ServerDialect(ABC):
    """A database server: its locks belong to a session, and statements take them.

    A `mode` is one of the dialect's own. A `label` is for people: where the server shows a name for each session, it is
    to be that.
    """

    capabilities: Capabilities
    ping: TextClause = PING
    """Asks for a sign of life."""
    token: TextClause | None = None
    """What gives a number that grows from one call to the next, over all sessions; None for nothing."""
    shared: str = "shared"
    exclusive: str = "exclusive"
    update: str = ""
    """The mode that goes with shared ones, alone among its kind, and may become exclusive; '' for none."""
    modes: Sequence[str] = ()
    """All modes by the database's own names, where it names them."""
    counts_upgrades: bool = False
    """An upgrade is a second grant, to be released as well."""

    @abstractmethod
    def name(self, prefix: str, key: Key) -> int | str:
        """Map a checked key to the server's own name for it."""

    @abstractmethod
    def lost(self, error: BaseException) -> bool:
        """Tell whether a driver's error means that the session is gone, where SQLAlchemy does not know it."""

    @abstractmethod
    def guard(self, session: ServerSession, *, allow_unsafe: bool, another: Opener | None = None) -> bool:
        """Refuse a server on which a lock protects nothing, changing nothing on it.

        Args:
            session: As it was opened.
            allow_unsafe: Do not refuse.
            another: Opens a second one, to probe with; None where that is out of place.

        Returns:
            Whether the session is ours alone, so that settings on it reach no other client.
        """

    @abstractmethod
    def prepare(self, session: ServerSession, *, label: str, lease: float | None) -> None:
        """Set what keeps the server from taking the session, and its locks, away; with a lease, when it shall."""

    @abstractmethod
    def acquire(
        self,
        session: ServerSession,
        name: Any,
        *,
        mode: str,
        scope: Scope,
        timeout: float | None,
        label: str | None,
        again: bool = False,
    ) -> bool:
        """Ask for the lock: once at 0, else the server waits; False may come early when it rounds.

        With `again` the session holds it, and unlocks it first, so that those go first who wait already; before it
        raises what is the server's own answer, too.

        Raises:
            DeadlockError: The session holds it already, or was chosen as a deadlock's victim.
        """

    def upgrade(self, session: ServerSession, name: Any, *, scope: Scope, timeout: float | None) -> bool | None:
        """Ask for the exclusive mode, keeping what is held; None when the server says that nothing is."""
        raise NotImplementedError

    @abstractmethod
    def release(self, session: ServerSession, name: Any, *, mode: str, scope: Scope, label: str | None) -> bool:
        """Undo one grant; False when the server says that this session held none."""

    @abstractmethod
    def holds(self, session: ServerSession, name: Any, *, mode: str) -> bool:
        """Ask whether the session holds the lock now, without a change to it."""

    def close(self) -> None:  # noqa: B027 - SQLite has its own
        """Remove what is kept beside the sessions, which have ended; for a server that is nothing."""

    def after_fork(self) -> None:  # noqa: B027 - same
        """Start anew in a forked child."""


def check_driver(session: ServerSession, drivers: tuple[str, ...]) -> None:
    """Refuse a driver whose socket and session numbers are unknown here: a pooler, or a loss, would go unnoticed.

    Raises:
        UnsafeEnvironmentError: It is none of these.
    """
    driver = session.sqla.driver
    if driver.removesuffix("_async") not in drivers:
        raise UnsafeEnvironmentError(
            f"the driver {driver} is not known here: a pooler or proxy before the server, and a lost session, would go "
            f"unnoticed. Use {' or '.join(drivers)}, or allow_unsafe=True if you know better"
        )


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
