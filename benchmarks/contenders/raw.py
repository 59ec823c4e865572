"""The driver alone: plain statements on one autocommit connection for each thread."""

from __future__ import annotations

import sqlite3
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Self

from ..address import LIMIT
from .base import Contender

if TYPE_CHECKING:
    from .base import Seat

__all__ = ["Raw", "RawSQLite", "Statement", "number"]

# Its text and its parameters.
Statement = tuple[str, tuple[Any, ...]]


def number(key: str) -> int:
    """Return what PostgreSQL takes for a key."""
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "little", signed=True)


class _Held:
    """The two statements of a lock."""

    __slots__ = ("_acquire", "_connection", "_release")

    def __init__(self, connection: Any, acquire: Statement, release: Statement) -> None:
        self._connection = connection
        self._acquire = acquire
        self._release = release

    def __enter__(self) -> Self:
        if _ask(self._connection, *self._acquire) == 0:
            raise TimeoutError
        return self

    def __exit__(self, *_: object) -> None:
        _ask(self._connection, *self._release)


def _ask(connection: Any, statement: str, parameters: tuple[Any, ...]) -> Any:
    cursor = connection.cursor()
    cursor.execute(statement, parameters)
    row = cursor.fetchone()
    cursor.close()
    return row[0]


class _PostgreSQLSeat:
    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._limit(LIMIT)

    def _limit(self, seconds: float) -> None:
        _ask(self._connection, "SELECT set_config('lock_timeout', %s, false)", (f"{seconds * 1000:.0f}ms",))

    def lock(self, key: str) -> _Held:
        name = (number(key),)
        return _Held(self._connection, ("SELECT pg_advisory_lock(%s)", name), ("SELECT pg_advisory_unlock(%s)", name))

    def acquire(self, key: str, timeout: float) -> bool:
        import psycopg  # installed, since it made the connection

        self._limit(timeout)
        try:
            _ask(self._connection, "SELECT pg_advisory_lock(%s)", (number(key),))
        except psycopg.errors.LockNotAvailable:
            return False
        return True

    def close(self) -> None:
        self._connection.close()


class _MySQLSeat:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def lock(self, key: str) -> _Held:
        return _Held(self._connection, ("SELECT GET_LOCK(%s, %s)", (key, LIMIT)), ("SELECT RELEASE_LOCK(%s)", (key,)))

    def acquire(self, key: str, timeout: float) -> bool:
        return bool(_ask(self._connection, "SELECT GET_LOCK(%s, %s)", (key, timeout)))

    def close(self) -> None:
        self._connection.close()


class Raw(Contender):
    """pg_advisory_lock or GET_LOCK."""

    name = "raw driver"
    use = (
        "`pg_advisory_lock` and `pg_advisory_unlock` (`lock_timeout` set once), or `GET_LOCK` and `RELEASE_LOCK`, "
        "each by a DBAPI cursor on an autocommit connection that the thread keeps"
    )
    modules = ()

    def seat(self) -> Seat:
        url = self.address.of(self.driver)
        if self.address.kind == "postgresql":
            import psycopg  # here, since a run may do without it

            text = url.set(drivername="postgresql").render_as_string(hide_password=False)
            return _PostgreSQLSeat(psycopg.connect(text, autocommit=True))
        import pymysql  # here, since a run may do without it

        options = {"host": url.host, "port": url.port, "user": url.username, "password": url.password or ""}
        return _MySQLSeat(pymysql.connect(**options, database=url.database, autocommit=True))


class _Transaction:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, *_: object) -> None:
        self._connection.execute("ROLLBACK")


class _SQLiteSeat:
    """Connections of one thread, one for each key."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._files: dict[str, sqlite3.Connection] = {}

    def _file(self, key: str) -> sqlite3.Connection:
        if key not in self._files:
            self._files[key] = sqlite3.connect(
                f"{self._folder}/raw-{key}", timeout=LIMIT, isolation_level=None, check_same_thread=False
            )
        return self._files[key]

    def lock(self, key: str) -> _Transaction:
        return _Transaction(self._file(key))

    def acquire(self, key: str, timeout: float) -> bool:
        file = self._file(key)
        file.execute(f"PRAGMA busy_timeout={timeout * 1000:.0f}")
        try:
            file.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        return True

    def close(self) -> None:
        for file in self._files.values():
            file.close()


class RawSQLite(Contender):
    """A transaction that writes nothing."""

    name = "raw driver"
    use = "`BEGIN IMMEDIATE` and `ROLLBACK` of `sqlite3` on a file of the key's own, which each thread keeps open"
    modules = ()
    kinds = frozenset({"sqlite"})

    def seat(self) -> Seat:
        database = self.address.of(self.driver).database
        assert database is not None
        return _SQLiteSeat(database.rpartition("/")[0])
