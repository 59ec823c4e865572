"""dlock_core itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlock_core import AsyncLockProvider, LockProvider

from ..address import LIMIT, Address
from .base import SERVERS, AsyncContender, Contender

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from .base import AsyncSeat, Seat

__all__ = ["Ours", "OursAsync"]


class _Seat:
    def __init__(self, locks: LockProvider) -> None:
        self._locks = locks

    def lock(self, key: str) -> AbstractContextManager[object]:
        return self._locks.lock(key, timeout=LIMIT)

    def acquire(self, key: str, timeout: float) -> bool:
        return self._locks.lock(key, timeout=timeout).acquire()

    def close(self) -> None:
        """Leave the provider to the others."""


class Ours(Contender):
    """One provider for the process."""

    name = "dlock"
    use = "`with locks.lock(key, timeout=30):` on one `LockProvider(url)` for the process, all options at their default"
    modules = ()
    distribution = "dlock-suite"
    kinds = SERVERS | {"sqlite"}
    one_seat = True

    def __init__(self, address: Address, driver: str) -> None:
        super().__init__(address, driver)
        self._locks = LockProvider(address.of(driver))

    def seat(self) -> Seat:
        return _Seat(self._locks)

    def close(self) -> None:
        self._locks.close()


class _AsyncSeat:
    def __init__(self, locks: AsyncLockProvider) -> None:
        self._locks = locks

    def lock(self, key: str) -> AbstractAsyncContextManager[object]:
        return self._locks.lock(key, timeout=LIMIT)

    async def close(self) -> None:
        """Leave the provider to the others."""


class OursAsync(AsyncContender):
    """One provider for the event loop."""

    name = "dlock"
    use = "`async with locks.lock(key, timeout=30):` on one `AsyncLockProvider(url)`"
    modules = ()
    distribution = "dlock-suite"
    one_seat = True

    def __init__(self, address: Address, driver: str) -> None:
        super().__init__(address, driver)
        self._locks = AsyncLockProvider(address.of(driver))

    async def seat(self) -> AsyncSeat:
        return _AsyncSeat(self._locks)

    async def close(self) -> None:
        await self._locks.close()
