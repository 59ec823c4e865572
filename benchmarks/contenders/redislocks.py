"""Locks in Redis: redis-py's own and python-redis-lock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ..address import LIMIT, Address
from .base import AsyncContender, Contender

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from .base import AsyncSeat, Seat

__all__ = ["PythonRedisLock", "RedisPy", "RedisPyAsync"]

# Seconds after which a lock is free whatever its holder does.
EXPIRY = 60
# Of tasks, which must not have one each: redis-py allows a hundred.
CONNECTIONS = 10


class _RedisPySeat:
    def __init__(self, client: Any, run: str) -> None:
        self._client = client
        self._run = run

    def lock(self, key: str) -> AbstractContextManager[Any]:
        lock: AbstractContextManager[Any] = self._client.lock(self._run + key, timeout=EXPIRY, blocking_timeout=LIMIT)
        return lock

    def acquire(self, key: str, timeout: float) -> bool:
        return bool(self._client.lock(self._run + key, timeout=EXPIRY, blocking_timeout=timeout).acquire())

    def close(self) -> None:
        """Leave the client to the others."""


class RedisPy(Contender):
    """One client for the process."""

    name = "redis-py"
    use = "`with client.lock(key, timeout=60, blocking_timeout=30):` on one `redis.Redis` for the process"
    modules: ClassVar[tuple[str, ...]] = ("redis",)
    distribution = "redis"
    kinds = frozenset({"postgresql"})  # once is enough: the database plays no part
    needs_redis = True
    options: ClassVar[dict[str, Any]] = {}

    def __init__(self, address: Address, driver: str) -> None:
        super().__init__(address, driver)
        import redis  # here, since a run may do without it

        assert address.redis is not None
        self._client = redis.Redis.from_url(address.redis, **self.options)

    @classmethod
    def poll(cls, kind: str) -> float:  # noqa: ARG003
        return 0.1

    def seat(self) -> Seat:
        return _RedisPySeat(self._client, self.address.run)

    def close(self) -> None:
        self._client.close()


class _RedisLockSeat(_RedisPySeat):
    def lock(self, key: str) -> AbstractContextManager[Any]:
        import redis_lock  # here, since a run may do without it

        lock: AbstractContextManager[Any] = redis_lock.Lock(self._client, self._run + key, expire=EXPIRY)
        return lock

    def acquire(self, key: str, timeout: float) -> bool:
        import redis_lock  # here, since a run may do without it

        return bool(redis_lock.Lock(self._client, self._run + key, expire=EXPIRY).acquire(timeout=timeout))


class PythonRedisLock(RedisPy):
    """The same client, with a list that wakes the next."""

    name = "python-redis-lock"
    use = (
        "`with redis_lock.Lock(client, key, expire=60):` on one `redis.Redis(socket_timeout=None)` for the process; "
        "its timeouts are whole seconds"
    )
    modules = ("redis", "redis_lock")
    distribution = "python-redis-lock"
    absent = frozenset({"timeouts"})
    options: ClassVar[dict[str, Any]] = {"socket_timeout": None}  # it lets Redis wait

    @classmethod
    def poll(cls, kind: str) -> float:  # noqa: ARG003
        return 0.0

    def seat(self) -> Seat:
        return _RedisLockSeat(self._client, self.address.run)


class _AsyncSeat:
    def __init__(self, client: Any, run: str) -> None:
        self._client = client
        self._run = run

    def lock(self, key: str) -> AbstractAsyncContextManager[Any]:
        lock: AbstractAsyncContextManager[Any] = self._client.lock(
            self._run + key, timeout=EXPIRY, blocking_timeout=LIMIT
        )
        return lock

    async def close(self) -> None:
        """Leave the client to the others."""


class RedisPyAsync(AsyncContender):
    """One client for the loop."""

    name = "redis-py"
    use = (
        "`async with client.lock(key, timeout=60, blocking_timeout=30):` on one `redis.asyncio.Redis` with "
        "a `BlockingConnectionPool` of ten"
    )
    modules = ("redis",)
    distribution = "redis"
    kinds = frozenset({"postgresql"})
    needs_redis = True
    one_seat = True

    def __init__(self, address: Address, driver: str) -> None:
        super().__init__(address, driver)
        import redis.asyncio  # here, since a run may do without it

        assert address.redis is not None
        pool = redis.asyncio.BlockingConnectionPool.from_url(address.redis, max_connections=CONNECTIONS, timeout=None)
        self._client = redis.asyncio.Redis(connection_pool=pool)

    async def seat(self) -> AsyncSeat:
        return _AsyncSeat(self._client, self.address.run)

    async def close(self) -> None:
        await self._client.aclose()
