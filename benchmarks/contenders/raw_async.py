"""The async drivers alone: plain statements on one autocommit connection for each task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from ..address import LIMIT
from .base import AsyncContender
from .raw import number

if TYPE_CHECKING:
    from .base import AsyncSeat
    from .raw import Statement

__all__ = ["RawAsync"]


class _AsyncpgHeld:
    __slots__ = ("_connection", "_name")

    def __init__(self, connection: Any, name: int) -> None:
        self._connection = connection
        self._name = name

    async def __aenter__(self) -> Self:
        await self._connection.fetchval("SELECT pg_advisory_lock($1)", self._name)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.fetchval("SELECT pg_advisory_unlock($1)", self._name)


class _AsyncpgSeat:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def lock(self, key: str) -> _AsyncpgHeld:
        return _AsyncpgHeld(self._connection, number(key))

    async def close(self) -> None:
        await self._connection.close()


class _CursorHeld:
    """The two statements of a lock, by cursors."""

    __slots__ = ("_acquire", "_connection", "_release")

    def __init__(self, connection: Any, acquire: Statement, release: Statement) -> None:
        self._connection = connection
        self._acquire = acquire
        self._release = release

    async def __aenter__(self) -> Self:
        if await _ask(self._connection, *self._acquire) == 0:
            raise TimeoutError
        return self

    async def __aexit__(self, *_: object) -> None:
        await _ask(self._connection, *self._release)


async def _ask(connection: Any, statement: str, parameters: tuple[Any, ...]) -> Any:
    async with connection.cursor() as cursor:
        await cursor.execute(statement, parameters)
        return (await cursor.fetchone())[0]


class _PsycopgSeat:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def lock(self, key: str) -> _CursorHeld:
        name = (number(key),)
        return _CursorHeld(
            self._connection, ("SELECT pg_advisory_lock(%s)", name), ("SELECT pg_advisory_unlock(%s)", name)
        )

    async def close(self) -> None:
        await self._connection.close()


class _MySQLSeat:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def lock(self, key: str) -> _CursorHeld:
        return _CursorHeld(
            self._connection, ("SELECT GET_LOCK(%s, %s)", (key, LIMIT)), ("SELECT RELEASE_LOCK(%s)", (key,))
        )

    async def close(self) -> None:
        closing = self._connection.ensure_closed()
        await closing


class RawAsync(AsyncContender):
    """pg_advisory_lock or GET_LOCK."""

    name = "raw driver"
    use = "the same statements, awaited, on an autocommit connection that the task keeps"
    modules = ()

    async def seat(self) -> AsyncSeat:
        url = self.address.of(self.driver)
        text = url.set(drivername="postgresql").render_as_string(hide_password=False)
        milliseconds = f"{LIMIT * 1000:.0f}"
        if self.driver == "asyncpg":
            import asyncpg  # here, since a run may do without it

            return _AsyncpgSeat(await asyncpg.connect(text, server_settings={"lock_timeout": milliseconds}))
        if self.driver == "psycopg":
            import psycopg  # here, since a run may do without it

            options = f"-c lock_timeout={milliseconds}"
            return _PsycopgSeat(await psycopg.AsyncConnection.connect(text, autocommit=True, options=options))
        module: Any = __import__(self.driver)  # aiomysql or asyncmy, which have one interface
        where = {"host": url.host, "port": url.port, "user": url.username, "password": url.password or ""}
        return _MySQLSeat(await module.connect(**where, db=url.database, autocommit=True))
