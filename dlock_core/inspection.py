"""Who holds and who waits, as the database itself shows it, and an end to a holder's session.

Questions run on a connection of their own, opened for them from the engine's settings: they work while
all locks are held and all sessions wait, and they touch nothing that holds a lock.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.util import greenlet_spawn

from .dialects.sqlite import SQLite
from .errors import LockConnectionError, LockError, LockStateError, NotPermittedError, shown
from .failures import connecting, connection_lost, first_line
from .keys import check_key, label
from .names import known_names, remember
from .signals import from_handler
from .timeouts import Deadline
from .urls import shown_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import TextClause

    from .contexts import Context
    from .dialects.views import Finding, Look, Run, Sight
    from .manager import Manager

__all__ = ["Inspector", "LockInfo", "LockWaiter"]

T = TypeVar("T")

# How our sessions call themselves; PostgreSQL cuts the name, and we the key in it, at 63 bytes.
LABEL = re.compile(r"dlock(?:-(?P<adapter>\S+))?(?: (?P<key>.*))? (?P<host>\S*):(?P<pid>\d+)")
LABEL_BYTES = 63
# How long a server may take to end a session that it agreed to end, in seconds.
END_SECONDS = 5.0
# How long it may take to answer at all.
ASK_SECONDS = 10.0
# How many keys a refusal names.
NAMED = 5


@dataclass(frozen=True, kw_only=True)
class _Party:
    """A session, as far as the database tells and itself has told."""

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

    @property
    def party(self) -> str:
        """Who it is and where, in a few words."""
        place = f"{self.host or '?'}:{self.pid}" if self.pid is not None else self.host or "?"
        return f"{self.who} on {place}, session {self.session}"

    @property
    def who(self) -> str:
        """What runs there, as the adapter, another application's name, or the database's user."""
        foreign = self.application if self.pid is None else None
        return self.adapter or foreign or self.user or "a process"


@dataclass(frozen=True, kw_only=True)
class LockWaiter(_Party):
    """A session that waits for a lock."""


@dataclass(frozen=True, kw_only=True)
class LockInfo(_Party):
    """A session that holds a lock, and who waits for it."""

    key: str | None
    """The key in readable form; None when nobody could tell it."""
    actual_key: int | str
    """The database's own name for the lock."""
    session_since: datetime | None
    """When the session began, before which the lock cannot be."""
    waiters: tuple[LockWaiter, ...]
    """Sessions that wait for this lock at the database; the first will get it."""
    shared_with: int | None
    """How many other locks would end with this one; None where the database does not tell."""

    def __str__(self) -> str:
        return f"{self.key or self.actual_key} held by {self.party}"


class _Label(NamedTuple):
    adapter: str | None = None
    key: str | None = None
    host: str | None = None
    pid: int | None = None


class Inspector:
    """Asks the database of one provider."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._engine = manager.engine
        self._locks = manager.locks

    def within_limit(self, ask: Callable[[], T]) -> T:
        """Ask in a thread, so that no dead server can hold up the caller for long.

        Raises:
            LockConnectionError: There was no answer in time.
        """
        running = self._manager.workers.submit(ask)
        try:
            return running.result(ASK_SECONDS)
        except TimeoutError:
            if running.done():
                raise
            raise self._no_answer() from None

    async def awaited(self, ask: Callable[[], T]) -> T:
        """Ask over an async driver; see `within_limit`."""
        try:
            async with asyncio.timeout(ASK_SECONDS) as limit:
                return await greenlet_spawn(ask)
        except TimeoutError:
            if not limit.expired():  # pyright: ignore[reportPossiblyUnboundVariable]  # only its end raises this
                raise
            raise self._no_answer() from None

    def _no_answer(self) -> LockConnectionError:
        return LockConnectionError(f"{shown_url(self._engine.url)} has not answered in {ASK_SECONDS:g} s")

    def inspect(self, key: object | None) -> list[LockInfo]:
        """Return the holders of one key, or of all.

        Raises:
            NotPermittedError: The database shows only a part, or nothing, to this user.
            LockConnectionError: It cannot be asked.
        """
        name = None if key is None else self._manager.request(key, shared=False, fencing=False).name
        asked = {} if name is None else {name: self._readable(key)}
        with self._asking() as run:
            look = self._look(run, name)
            found = self._infos(look.sights, asked)
            written = known_names(run, [info.actual_key for info in found if info.key is None])
        found = [replace(info, key=info.key or written.get(str(info.actual_key))) for info in found]
        if look.missing:
            raise NotPermittedError(look.missing, key=key, found=found)
        return found

    def findings(self) -> list[Finding]:
        """Return what is good to know about the database and our rights there."""
        with self._asking() as run:
            if isinstance(self._locks, SQLite):
                return self._locks.place(self._engine, self._engine.pool.recreate()).findings()
            return self._locks.view.findings(run)

    def terminate(self, info: LockInfo, context: Context, *, whole_session: bool) -> bool:
        """End the session of a holder; False when it did not hold the lock any more.

        Raises:
            LockStateError: It holds other locks too, and whole_session is False.
            NotPermittedError: The database does not let this user.
            LockConnectionError: It cannot be asked, or did not end the session.
        """
        with self._asking() as run:
            sight = self._find(run, info)
            if sight is None:
                return False
            if not whole_session:
                self._refuse_others(run, sight, info)
            self._end(run, sight)
            deadline = Deadline(END_SECONDS)
            while self._find(run, info) is not None:
                if deadline.passed:
                    raise LockConnectionError(f"the database has not ended session {info.session} yet", key=info.key)
                context.pause(0.01)
        return True

    def remember(self, key: object) -> None:
        """Write the name of a key into the table `dlock_names`."""
        name = self._manager.request(key, shared=False, fencing=False).name
        with self._asking() as run:
            if not isinstance(self._locks, SQLite):  # which shows all keys by itself
                remember(run, name, self._readable(key))

    def _readable(self, key: object) -> str:
        return label(self._manager.options.prefix, check_key(key))

    def _known(self) -> dict[int | str, str]:
        return {name: self._readable(key) for name, key in self._manager.entries.keys().items()}

    def _find(self, run: Run, info: LockInfo) -> Sight | None:
        sights = self._look(run, info.actual_key).sights
        return next((one for one in sights if one.granted and one.session == info.session), None)

    def _refuse_others(self, run: Run, sight: Sight, info: LockInfo) -> None:
        if sight.dies_with == 0:
            return
        if isinstance(self._locks, SQLite):
            others = f"{sight.dies_with} more who share this lock"
        elif sight.dies_with is None:
            others = "perhaps more locks, which the database does not show to this user"
        else:
            sights = [one for one in self._look(run, None).sights if one.granted and one.session == sight.session]
            names = [one.key or str(one.actual_key) for one in self._infos(sights, {}) if one.actual_key != sight.name]
            others = f"{len(names)} more: " + ", ".join(map(shown, names[:NAMED])) + ", …" * (len(names) > NAMED)
        raise LockStateError(
            f"key {shown(info.key or info.actual_key)}: with it would end {others}. "
            "Say whole_session=True (--whole-session) to end them all",
            key=info.key,
        )

    def _look(self, run: Run, name: int | str | None) -> Look:
        if isinstance(self._locks, SQLite):
            return self._locks.place(self._engine, self._engine.pool.recreate()).look(name)  # type: ignore[arg-type]
        return self._locks.view.look(run, name, lambda: list(self._known()))

    def _end(self, run: Run, sight: Sight) -> None:
        if isinstance(self._locks, SQLite):
            self._locks.place(self._engine, self._engine.pool.recreate()).break_lock(str(sight.name))
        else:
            self._locks.view.end(run, sight)

    @contextmanager
    def _asking(self) -> Iterator[Run]:
        if isinstance(self._locks, SQLite):
            yield _nothing  # its locks are not in the database
            return
        engine = Engine(self._engine.pool.recreate(), self._engine.dialect, self._engine.url, hide_parameters=True)
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
            if from_handler(error) or (isinstance(error, SQLAlchemyError) and not connection_lost(error)):
                raise
            raise LockConnectionError(f"{failure}: {first_line(error)}") from error
        finally:
            engine.dispose()

    def _infos(self, sights: Sequence[Sight], asked: Mapping[int | str, str]) -> list[LockInfo]:
        keys = {**_shown_keys(sights), **self._known(), **asked}
        waiters: dict[int | str, list[LockWaiter]] = {}
        for sight in sights:
            if not sight.granted:
                waiters.setdefault(sight.name, []).append(LockWaiter(**_party(sight)))
        return [
            LockInfo(
                **_party(sight),
                key=keys.get(sight.name),
                actual_key=sight.name,
                session_since=sight.session_since,
                waiters=tuple(waiters.get(sight.name, ())),
                shared_with=sight.dies_with,
            )
            for sight in sights
            if sight.granted
        ]


def _nothing(_statement: TextClause, /, **_values: object) -> Sequence[Any]:
    return ()


def _party(sight: Sight) -> dict[str, Any]:
    told = read_label(sight.label)
    return {
        "session": sight.session,
        "mode": "shared" if sight.shared else "exclusive",
        "user": sight.user,
        "application": sight.label,
        "host": told.host or sight.host,
        "pid": told.pid,
        "adapter": told.adapter,
        "since": sight.since,
    }


def _shown_keys(sights: Sequence[Sight]) -> dict[int | str, str]:
    """Collect the keys that the database, or a session with only one of them, tells."""
    keys = {sight.name: sight.key for sight in sights if sight.key}
    for sight in sights:
        key = read_label(sight.label).key
        if key and (not sight.granted or sight.dies_with == 0):
            keys.setdefault(sight.name, key)
    return keys


def read_label(label: str | None) -> _Label:
    """Read what one of our sessions says of itself."""
    found = LABEL.fullmatch(label or "")
    if not label or not found:
        return _Label()
    key = found["key"]
    if key and len(label.encode()) >= LABEL_BYTES:
        key += "…"
    return _Label(found["adapter"], key or None, found["host"] or None, int(found["pid"]))
