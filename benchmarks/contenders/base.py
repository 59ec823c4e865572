"""What a benchmark asks of a library that locks."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from ..address import Address

__all__ = ["AsyncContender", "AsyncSeat", "Contender", "Seat"]

SERVERS = frozenset({"postgresql", "mariadb", "mysql"})


class Seat(Protocol):
    """What one thread locks with."""

    def lock(self, key: str) -> AbstractContextManager[Any]:
        """Return a lock; entering it waits."""
        ...

    def acquire(self, key: str, timeout: float) -> bool:
        """Wait for a lock that is never free so soon."""
        ...

    def close(self) -> None:
        """Give back what the seat holds."""
        ...


class AsyncSeat(Protocol):
    """What one task locks with."""

    def lock(self, key: str) -> AbstractAsyncContextManager[Any]:
        """Return a lock; entering it waits."""
        ...

    async def close(self) -> None:
        """Give back what the seat holds."""
        ...


class _Described:
    """What is true of a library in every process."""

    name: ClassVar[str]
    use: ClassVar[str]
    """How it is used here, as its documentation has it."""
    modules: ClassVar[tuple[str, ...]]
    """What must be installed."""
    distribution: ClassVar[str | None] = None
    """The package; the report names its version."""
    kinds: ClassVar[frozenset[str]] = SERVERS
    needs_redis: ClassVar[bool] = False
    one_seat: ClassVar[bool] = False
    """One seat serves all threads or tasks: they need no connection each."""
    only: ClassVar[frozenset[str] | None] = None
    """The measures it takes part in; None is all."""
    absent: ClassVar[frozenset[str]] = frozenset()
    """The measures it cannot take part in."""

    def __init__(self, address: Address, driver: str) -> None:
        self.address = address
        self.driver = driver

    def key(self, what: str) -> str:
        """Return a key that no other contender on the same server uses."""
        return f"{re.sub('[^a-z]+', '-', self.name.lower())}-{what}"

    @classmethod
    def poll(cls, kind: str) -> float:  # noqa: ARG003 - most wait in the same way everywhere
        """Return the seconds between its tries on a kind of database, 0 where something wakes it."""
        return 0.0


class Contender(_Described, ABC):
    """A library in one process, used by threads."""

    @abstractmethod
    def seat(self) -> Seat:
        """Make what one thread needs, connections included."""

    def job_seat(self) -> Seat:
        """Make what serves one request after another; whatever a request opens or borrows, it pays for."""
        return self.seat()

    def close(self) -> None:
        """Close what all seats share."""


class AsyncContender(_Described, ABC):
    """A library in one event loop, used by tasks."""

    @abstractmethod
    async def seat(self) -> AsyncSeat:
        """Make what one task needs, connections included."""

    async def close(self) -> None:
        """Close what all seats share."""
