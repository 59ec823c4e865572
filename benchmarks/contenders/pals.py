"""PALs: advisory locks, each on a connection out of an engine's pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import create_engine

from ..address import LIMIT, Address
from .base import Contender

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from .base import Seat

__all__ = ["PALs"]


class _Seat:
    def __init__(self, locker: Any) -> None:
        self._locker = locker

    def lock(self, key: str) -> AbstractContextManager[Any]:
        lock: AbstractContextManager[Any] = self._locker.lock(key)
        return lock

    def acquire(self, key: str, timeout: float) -> bool:
        return bool(self._locker.lock(key).acquire(acquire_timeout=round(timeout * 1000)))

    def close(self) -> None:
        """Leave the locker to the others."""


class PALs(Contender):
    """One locker for the process."""

    name = "PALs"
    use = "`with locker.lock(key):` on one `Locker(app, create_engine_callable=…)` for the process, `pool_size=0`"
    modules = ("pals",)
    distribution = "PALs"
    kinds = frozenset({"postgresql"})

    def __init__(self, address: Address, driver: str) -> None:
        super().__init__(address, driver)
        import pals  # here, since a run may do without it

        self._locker = pals.Locker(
            "bench",
            acquire_timeout_default=round(LIMIT * 1000),
            create_engine_callable=lambda: create_engine(address.of(driver), pool_size=0),  # no limit
        )

    def seat(self) -> Seat:
        return _Seat(self._locker)

    def close(self) -> None:
        self._locker.engine.dispose()
