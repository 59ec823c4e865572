"""filelock: a lock on a file, for one machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..address import LIMIT
from .base import Contender

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from .base import Seat

__all__ = ["FileLock"]


class _Seat:
    def __init__(self, folder: str) -> None:
        self._folder = folder

    def lock(self, key: str) -> AbstractContextManager[Any]:
        import filelock  # here, since a run may do without it

        return filelock.FileLock(f"{self._folder}/{key}.lock", timeout=LIMIT)

    def acquire(self, key: str, timeout: float) -> bool:
        import filelock  # here, since a run may do without it

        try:
            filelock.FileLock(f"{self._folder}/{key}.lock").acquire(timeout=timeout)
        except filelock.Timeout:
            return False
        return True

    def close(self) -> None:
        """Hold nothing."""


class FileLock(Contender):
    """A lock file beside the database."""

    name = "filelock"
    use = "`with FileLock(path, timeout=30):`, a new one for each lock"
    modules = ("filelock",)
    distribution = "filelock"
    kinds = frozenset({"sqlite"})
    one_seat = True

    @classmethod
    def poll(cls, kind: str) -> float:  # noqa: ARG003
        return 0.05

    def seat(self) -> Seat:
        database = self.address.of(self.driver).database
        assert database is not None
        return _Seat(database.rpartition("/")[0])
