"""For tests of code that takes locks: locks in memory, another holder, and faults on demand.

::

    from dlock_core.contrib.testing import MemoryDatabase

    def test_a_second_import_is_skipped() -> None:
        with MemoryDatabase() as database, database.held("import"):
            assert run_import(database.provider()) == "skipped"

pytest finds the fixtures `lock_database` and `hold_lock` by itself.
"""

from __future__ import annotations

import secrets
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from sqlalchemy import create_engine
from sqlalchemy.pool import QueuePool

from ..dialects.sqlite import MemoryLocks
from ..errors import LockConnectionError, LockLostError, LockStateError, shown
from ..keys import check_key, file_name
from ..provider import LockProvider
from ..sessions.timeouts import Deadline

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from ..lock import Lock

__all__ = ["MemoryDatabase", "hold"]

# How long a loss may take to be noticed, in seconds.
NOTICED = 10.0


class MemoryDatabase:
    """A database in memory, for locks with the behaviour of real ones; nothing leaves this process.

    Each of its providers is to the others what another process would be.
    """

    def __init__(self) -> None:
        name = f"file:dlock-{secrets.token_hex(8)}"
        self._url = f"sqlite:///{name}?mode=memory&cache=shared&uri=true"
        self._locks = MemoryLocks.named(name)
        self._locks.fault = self._fail
        self._open = ExitStack()
        self._delay = 0.0
        self._failures = 0

    def provider(self, *, prefix: str = "", adapter: str = "") -> LockProvider:
        """Make a provider, which is closed with the database.

        Args:
            prefix: As for `LockProvider`.
            adapter: As for `LockProvider`.
        """
        engine = create_engine(self._url, poolclass=QueuePool)
        self._open.callback(engine.dispose)
        return self._open.enter_context(LockProvider(engine, prefix=prefix, adapter=adapter))

    @contextmanager
    def held(self, key: object, *, prefix: str = "", shared: bool = False) -> Iterator[Lock]:
        """Hold a lock, as another process would, during a `with` block.

        Args:
            key: As for `LockProvider.lock`.
            prefix: The prefix of the providers that shall find it held.
            shared: Hold it as a reader.

        Raises:
            LockStateError: It is not free.
        """
        with hold(self.provider(prefix=prefix), key, shared=shared) as lock:
            yield lock

    def lose(self, key: object, *, prefix: str = "") -> None:
        """Take a lock away from its holder, as a server does that ends a session; return when the holder knows.

        Raises:
            LockStateError: It is not held.
        """
        taken = self._locks.break_lock(file_name(prefix, check_key(key)))
        if not taken:
            raise LockStateError(f"key {shown(key)}: it is not held, so it cannot be lost", key=key)
        deadline = Deadline(NOTICED)
        while not all(session.ended for session in taken) and not deadline.passed:
            time.sleep(0.01)

    def delay(self, seconds: float) -> None:
        """Slow down every question to the database by so many seconds from now on; 0 ends it."""
        self._delay = seconds

    def drop(self, times: int = 1) -> None:
        """Let the next questions, so many times, end in LockConnectionError, as if the database were unreachable."""
        self._failures = times

    def close(self) -> None:
        """Close all its providers."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _fail(self) -> None:
        time.sleep(self._delay)
        if self._failures:
            self._failures -= 1
            raise LockConnectionError("the database cannot be reached: drop() was called")


@contextmanager
def hold(locks: LockProvider, key: object, *, shared: bool = False) -> Iterator[Lock]:
    """Hold a lock, as a process that knows nothing of this provider, during a `with` block.

    It works with any database, over a provider of its own with the same engine and prefix.

    Args:
        locks: The provider that shall find the lock held.
        key: As for `LockProvider.lock`.
        shared: Hold it as a reader.

    Raises:
        LockStateError: It is not free.
    """
    coordinator = locks._coordinator  # noqa: SLF001 - for the same database and prefix
    with LockProvider(
        coordinator.engine, prefix=coordinator.options.prefix, allow_unsafe=coordinator.options.allow_unsafe
    ) as stranger:
        lock = stranger.lock(key, timeout=0, shared=shared)
        if not lock.acquire():
            raise LockStateError(f"key {shown(key)}: it is held already", key=key)
        try:
            yield lock
        finally:
            with suppress(LockLostError):  # a test may have ended it
                lock.close()
