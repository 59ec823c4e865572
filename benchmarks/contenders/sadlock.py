"""sqlalchemy-dlock 0.9: locks on a connection of the application."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import Connection, create_engine
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from ..address import LIMIT, Address
from .base import AsyncContender, Contender

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from .base import AsyncSeat, Seat

__all__ = ["Sadlock", "SadlockAsync", "SadlockForEver"]


class _Seat:
    """A connection that is kept."""

    def __init__(self, connection: Connection, limit: float | None) -> None:
        self._connection = connection
        self._limit = limit

    def lock(self, key: str) -> AbstractContextManager[Any]:
        from sqlalchemy_dlock import create_sadlock  # type: ignore[attr-defined]  # here, since a run may do without it

        lock: AbstractContextManager[Any] = create_sadlock(self._connection, key, contextual_timeout=self._limit)
        return lock

    def acquire(self, key: str, timeout: float) -> bool:
        from sqlalchemy_dlock import create_sadlock  # type: ignore[attr-defined]  # here, since a run may do without it

        return bool(create_sadlock(self._connection, key).acquire(timeout=timeout))

    def close(self) -> None:
        self._connection.close()


class _JobSeat:
    """A connection out of the pool for each lock."""

    def __init__(self, contender: Sadlock) -> None:
        self._contender = contender

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        with self._contender.engine.connect() as connection, _Seat(connection, self._contender.limit).lock(key):
            yield

    def acquire(self, key: str, timeout: float) -> bool:
        with self._contender.engine.connect() as connection:
            return _Seat(connection, None).acquire(key, timeout)

    def close(self) -> None:
        """Leave the pool to the others."""


class Sadlock(Contender):
    """Waits with a limit: on PostgreSQL, it polls."""

    name = "sqlalchemy-dlock"
    use = (
        "`with create_sadlock(connection, key, contextual_timeout=30):` on a connection that the thread keeps; "
        "in the job, on one out of the engine's pool for each lock"
    )
    modules = ("sqlalchemy_dlock",)
    distribution = "sqlalchemy-dlock"
    limit: ClassVar[float | None] = LIMIT

    def __init__(self, address: Address, driver: str) -> None:
        super().__init__(address, driver)
        self.engine = create_engine(address.of(driver), pool_size=0)  # no limit

    @classmethod
    def poll(cls, kind: str) -> float:
        return 1.0 if kind == "postgresql" and cls.limit is not None else 0.0

    def seat(self) -> Seat:
        return _Seat(self.engine.connect(), self.limit)

    def job_seat(self) -> Seat:
        return _JobSeat(self)

    def close(self) -> None:
        self.engine.dispose()


class SadlockForEver(Sadlock):
    """Waits without a limit, at the server."""

    name = "sqlalchemy-dlock, no limit"
    use = "the same without `contextual_timeout`: then PostgreSQL itself waits, indefinitely"
    kinds = frozenset({"postgresql"})
    only = frozenset({"hand-over", "threads", "processes"})
    limit = None


class _AsyncSeat:
    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    def lock(self, key: str) -> AbstractAsyncContextManager[Any]:
        from sqlalchemy_dlock import create_async_sadlock  # type: ignore[attr-defined]  # here, since a run may do without it

        lock: AbstractAsyncContextManager[Any] = create_async_sadlock(self._connection, key, contextual_timeout=LIMIT)
        return lock

    async def close(self) -> None:
        await self._connection.close()


class SadlockAsync(AsyncContender):
    """The same for asyncio."""

    name = "sqlalchemy-dlock"
    use = "`async with create_async_sadlock(connection, key, contextual_timeout=30):`"
    modules = ("sqlalchemy_dlock",)
    distribution = "sqlalchemy-dlock"

    def __init__(self, address: Address, driver: str) -> None:
        super().__init__(address, driver)
        self._engine = create_async_engine(address.of(driver), pool_size=0)  # no limit

    async def seat(self) -> AsyncSeat:
        connection = self._engine.connect()
        await connection.start()
        return _AsyncSeat(connection)

    async def close(self) -> None:
        await self._engine.dispose()
