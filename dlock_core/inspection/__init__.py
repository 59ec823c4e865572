"""Holders and waiters, as the database itself shows them, an end to a holder's session, and a check of it all.

Questions run on a connection of their own, opened for them from the engine's settings: they work while
all locks are held and all sessions wait, and they touch nothing that holds a lock.
"""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.util import greenlet_spawn

from ..coordination.state import Ticket
from ..dialects.base import error_number, sqlstate
from ..dialects.failures import connecting, first_line, from_handler, shown_url
from ..dialects.sqlite import SQLite
from ..errors import LockConnectionError, LockError, LockStateError, NotPermittedError, shown
from ..keys import check_key, label, readings
from ..sessions.pool import private_pool
from ..sessions.timeouts import Deadline
from .base import Finding
from .mssql import MSSQLView
from .mysql import MySQLView
from .oracle import OracleView
from .postgresql import PostgreSQLView, known_names
from .sqlite import SQLiteView

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime
    from typing import Self

    from sqlalchemy import TextClause

    from ..coordination.contexts import Context
    from ..coordination.coordinator import Coordinator
    from .base import LockRow, Run, Snapshot, View

__all__ = ["Finding", "Inspector", "LockInfo", "LockWaiter"]

T = TypeVar("T")

VIEWS: dict[str, View] = {
    "postgresql": PostgreSQLView(),
    "mysql": MySQLView(),
    "mariadb": MySQLView(),
    "mssql": MSSQLView(),
    "oracle": OracleView(),
}
# How our sessions call themselves; PostgreSQL cuts the name, and we the key in it, at 63 bytes.
LABEL = re.compile(r"dlock(?:-(?P<adapter>\S+))?(?: (?P<key>.*))? (?P<host>\S*):(?P<pid>\d+)")
LABEL_BYTES = 63
CUT = "…"
# How many keys are tried that a readable form may be of.
READINGS = 2000
# How long a server may take to end a session that it agreed to end, in seconds.
END_SECONDS = 5.0
# How long it may take to answer at all.
ASK_SECONDS = 10.0
# A check asks some fifty times.
CHECK_SECONDS = 60.0
# Cycles whose median is the latency; fewer, when they take longer than so many seconds in all.
CYCLES, MEASURED = 15, 3.0
# A lock that takes so long, in seconds, is worth a look at the network.
SLOW = 0.25
# Always the same: SQLite keeps a file for each key. Two checks at one time wait for each other, in seconds.
CHECK_KEY, PATIENCE = "dlock-check", 5.0
# What a server says to a user that may not look: PostgreSQL's SQLSTATE; the numbers of MySQL and MariaDB, SQL Server
# and Oracle.
INSUFFICIENT_PRIVILEGE = "42501"
NO_RIGHT = frozenset({1044, 1142, 1143, 1227, 229, 297, 300, 942, 1031})
# How many keys a refusal names.
NAMED = 5


@dataclass(frozen=True, kw_only=True)
class _Session:
    """A session, as far as the database and the session itself tell."""

    session: int | str
    """The database's number for the session; on SQLite the process."""
    mode: str
    """"exclusive" or "shared"."""
    user: str | None
    """The database's user; None where the database does not tell."""
    application: str | None
    """What the session calls itself."""
    host: str | None
    """The machine, in its own words for sessions of this library; else the client's address."""
    pid: int | None
    """The process; None for sessions of others, or where the database does not tell."""
    adapter: str | None
    """Which adapter the provider belongs to, such as "celery"."""
    since: datetime | None
    """When it was granted, or the wait began; None where the database does not know."""

    @classmethod
    def _of(cls, row: LockRow, **more: Any) -> Self:
        said = read_label(row.label)
        return cls(
            session=row.session,
            mode="shared" if row.shared else "exclusive",
            user=row.user,
            application=row.label,
            host=said.host or row.host,
            pid=said.pid,
            adapter=said.adapter,
            since=row.since,
            **more,
        )

    def describe(self) -> str:
        """Say which session it is and where, in a few words."""
        place = f"{self.host or '?'}:{self.pid}" if self.pid is not None else self.host or "?"
        return f"{self.who} on {place}, session {self.session}"

    @property
    def who(self) -> str:
        """What runs there, as the adapter, another application's name, or the database's user."""
        foreign = self.application if self.pid is None else None
        return self.adapter or foreign or self.user or "a process"


@dataclass(frozen=True, kw_only=True)
class LockWaiter(_Session):
    """A session that waits for a lock."""


@dataclass(frozen=True, kw_only=True)
class LockInfo(_Session):
    """A session that holds a lock, and the sessions that wait for it."""

    key: str | None
    """The key in readable form; None when it is unknown."""
    actual_key: int | str
    """The database's own name for the lock."""
    session_since: datetime | None
    """When the session began, before which the lock cannot be."""
    waiters: tuple[LockWaiter, ...]
    """Sessions that wait for this lock at the database; the first will get it."""
    other_locks: int | None
    """How many other locks would end with this one; None where the database does not tell."""

    def __str__(self) -> str:
        return f"{self.key or self.actual_key} held by {self.describe()}"


class _Label(NamedTuple):
    adapter: str | None = None
    key: str | None = None
    host: str | None = None
    pid: int | None = None


class Inspector:
    """Asks the database of one provider."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._engine = coordinator.engine
        locks = coordinator.locks
        self._view: View = (
            SQLiteView(locks, self._engine) if isinstance(locks, SQLite) else VIEWS[self._engine.dialect.name]
        )

    def within_limit(self, ask: Callable[[], T], limit: float = ASK_SECONDS) -> T:
        """Ask in a thread, so that no dead server can hold up the caller for long.

        Raises:
            LockConnectionError: There was no answer in time.
        """
        running = self._coordinator.workers.submit(ask)
        try:
            return running.result(limit)
        except TimeoutError:
            if running.done():
                raise
            raise self._no_answer(limit) from None

    async def awaited(self, ask: Callable[[], T], limit: float = ASK_SECONDS) -> T:
        """Ask over an async driver; see `within_limit`."""
        try:
            async with asyncio.timeout(limit) as scope:
                return await greenlet_spawn(ask)
        except TimeoutError:
            if not scope.expired():  # pyright: ignore[reportPossiblyUnboundVariable]  # only its end raises this
                raise
            raise self._no_answer(limit) from None

    def _no_answer(self, limit: float) -> LockConnectionError:
        return LockConnectionError(f"{shown_url(self._engine.url)} has not answered in {limit:g} s")

    def inspect(self, key: object | None) -> list[LockInfo]:
        """Return the holders of one key, or of all.

        Raises:
            NotPermittedError: The database shows only a part, or nothing, to this user.
            LockConnectionError: It cannot be asked, or answers with an error.
        """
        name = None if key is None else self._coordinator.request(key, shared=False, fencing=False).name
        asked = {} if name is None else {name: self._readable(key)}
        with self._asking() as run:
            look = self._look(run, name)
            if self._engine.dialect.name == "postgresql":
                asked = {**self._written(run, look.rows), **asked}
        found = self._infos(look.rows, asked)
        if look.missing:
            raise NotPermittedError(look.missing, key=key, found=found)
        return found

    def check(self, context: Context) -> list[Finding]:
        """Take a lock of our own, again and again, and ask the database about itself and our rights there."""
        found = _try_lock(self._coordinator, context)
        try:
            with self._asking() as run:
                return found + self._view.findings(run)
        except (LockError, SQLAlchemyError) as error:  # a server that is not quite what its driver says
            return [*found, Finding("server", None, f"cannot be asked about itself: {first_line(error)}")]

    def terminate(self, info: LockInfo, context: Context, *, whole_session: bool) -> bool:
        """End the session of a holder; False when it did not hold the lock any more.

        Raises:
            LockStateError: It holds other locks too, and whole_session is False.
            NotPermittedError: The database does not let this user, or does not show which session it is.
            LockConnectionError: It cannot be asked, or did not end the session.
        """
        with self._asking() as run:
            deadline = Deadline(END_SECONDS)
            while (row := self._holder(run, info)) is not None:
                if not whole_session:
                    self._refuse_others(run, row, info)
                if self._view.end(run, row, alone=not whole_session):
                    break
                self._expect_end(deadline, info)
            else:
                return False
            while self._look(run, row.name).holder(row.name, row.session) is not None:
                self._expect_end(deadline, info)
                context.pause(0.01)
        return True

    def _holder(self, run: Run, info: LockInfo) -> LockRow | None:
        look = self._look(run, info.actual_key)
        row = look.holder(info.actual_key, info.session)
        if row is None and look.missing:
            raise NotPermittedError(look.missing, key=info.key)
        return row

    @staticmethod
    def _expect_end(deadline: Deadline, info: LockInfo) -> None:
        if deadline.passed:
            raise LockConnectionError(f"the database has not ended session {info.session} yet", key=info.key)

    def _readable(self, key: object) -> str:
        return label(self._coordinator.options.prefix, check_key(key))

    def _written(self, run: Run, rows: Sequence[LockRow]) -> dict[int | str, str]:
        """Return the keys of the table `dlock_names` that are those of these locks."""
        written = known_names(run, {int(row.name) for row in rows})
        return {name: label(*key) for name, key in written.items() if self._coordinator.locks.name(*key) == name}

    def _shown_keys(self, rows: Sequence[LockRow]) -> dict[int | str, str]:
        """Collect the keys that the database, or a session with only one of them, tells."""
        keys = {row.name: row.key for row in rows if row.key}
        for row in rows:
            key = read_label(row.label).key
            if key and row.name not in keys and (not row.granted or row.other_locks == 0):
                readable = key if key.endswith(CUT) else self._verified(key, row.name)
                if readable is not None:
                    keys[row.name] = readable
        return keys

    def _verified(self, text: str, name: int | str) -> str | None:
        """Return the readable key if it is that of the lock: what a session shows may be of its last one."""
        for readable in dict.fromkeys((text, _unescaped(text))):
            if any(self._coordinator.locks.name(*key) == name for key in islice(readings(readable), READINGS)):
                return readable
        return None

    def _known(self) -> dict[int | str, str]:
        return {name: self._readable(key) for name, key in self._coordinator.entries.keys().items()}

    def _refuse_others(self, run: Run, row: LockRow, info: LockInfo) -> None:
        if row.other_locks == 0:
            return
        if isinstance(self._view, SQLiteView):
            others = f"{row.other_locks} more that share this lock"
        elif row.other_locks is None:
            others = "perhaps more locks, which the database does not show to this user"
        else:
            rows = [one for one in self._look(run, None).rows if one.granted and one.session == row.session]
            names = [one.key or str(one.actual_key) for one in self._infos(rows, {}) if one.actual_key != row.name]
            others = f"{len(names)} more: " + ", ".join(map(shown, names[:NAMED])) + ", …" * (len(names) > NAMED)
        raise LockStateError(
            f"key {shown(info.key or info.actual_key)}: with it would end {others}. "
            "Say whole_session=True (--whole-session) to end them all",
            key=info.key,
        )

    def _look(self, run: Run, name: int | str | None) -> Snapshot:
        return self._view.look(run, name, lambda: list(self._known()))

    @contextmanager
    def _asking(self) -> Iterator[Run]:
        if isinstance(self._view, SQLiteView):
            yield _nothing  # its locks are not in the database
            return
        engine = Engine(private_pool(self._engine), self._engine.dialect, self._engine.url, hide_parameters=True)
        failure = f"cannot ask {shown_url(engine.url)} for its locks"
        try:
            with connecting(failure):
                connection = engine.connect()
            with connection:
                # Not as an option: SQLAlchemy would set it back, to a default that it may not know yet while
                # another connection of the engine is its first.
                engine.dialect.set_isolation_level(connection.connection.dbapi_connection, "AUTOCOMMIT")  # type: ignore[arg-type]

                def run(statement: TextClause, /, **values: object) -> Sequence[Any]:
                    result = connection.execute(statement, values)
                    return result.all() if result.returns_rows else ()

                yield run
        except LockError:
            raise
        except (SQLAlchemyError, OSError) as error:
            if from_handler(error):
                raise
            denied = sqlstate(error) == INSUFFICIENT_PRIVILEGE or error_number(error) in NO_RIGHT
            kind = NotPermittedError if denied else LockConnectionError
            raise kind(f"{failure}: {first_line(error)}") from error
        finally:
            engine.dispose()

    def _infos(self, rows: Sequence[LockRow], asked: Mapping[int | str, str]) -> list[LockInfo]:
        keys = {**self._shown_keys(rows), **self._known(), **asked}
        waiters: dict[int | str, list[LockWaiter]] = {}
        for row in rows:
            if not row.granted:
                waiters.setdefault(row.name, []).append(LockWaiter._of(row))  # noqa: SLF001 - of this module
        return [
            LockInfo._of(  # noqa: SLF001 - of this module
                row,
                key=keys.get(row.name),
                actual_key=row.name,
                session_since=row.session_since,
                waiters=tuple(waiters.get(row.name, ())),
                other_locks=row.other_locks,
            )
            for row in rows
            if row.granted
        ]


def _nothing(_statement: TextClause, /, **_values: object) -> Sequence[Any]:
    return ()


def _unescaped(text: str) -> str:
    """Read what PostgreSQL keeps as ASCII."""
    try:
        return text.encode("ascii").decode("unicode_escape")
    except UnicodeError:
        return text


def read_label(label: str | None) -> _Label:
    """Read what one of our sessions says of itself."""
    found = LABEL.fullmatch(label or "")
    if not label or not found:
        return _Label()
    key = found["key"]
    if key and len(label.encode()) >= LABEL_BYTES:
        key += CUT
    return _Label(found["adapter"], key or None, found["host"] or None, int(found["pid"]))


def _try_lock(coordinator: Coordinator, context: Context) -> list[Finding]:
    try:
        first, seconds = _cycle(coordinator, context), [_cycle(coordinator, context)]
        while len(seconds) < CYCLES and sum(seconds) < MEASURED:
            seconds.append(_cycle(coordinator, context))
    except LockError as error:
        return [Finding("lock", False, str(error).partition(": ")[2] or str(error))]  # noqa: FBT003 - a field
    median = sorted(seconds)[len(seconds) // 2]
    return [
        Finding("lock", True, f"taken and released; {_ms(first)} with the opening of a session"),  # noqa: FBT003
        Finding("latency", median < SLOW, f"{_ms(median)} to take and release a free lock (median of {len(seconds)})"),
    ]


def _cycle(coordinator: Coordinator, context: Context) -> float:
    """Take and release a lock that only other checks want; return the seconds."""
    request = coordinator.request(CHECK_KEY, shared=False, fencing=False)
    started = time.perf_counter()
    ticket = Ticket(request, context, PATIENCE)
    if not coordinator.acquire(ticket):
        raise LockError(f"key {CHECK_KEY}: a lock that only checks hold was refused for {PATIENCE:.0f} s")
    coordinator.release(ticket, context)
    return time.perf_counter() - started


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"
